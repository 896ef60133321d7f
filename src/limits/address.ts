/**
 * Clients' addresses in one spelling, lists of networks that they may be in, and what counts as one client among them.
 */
import { BlockList, isIPv4, isIPv6, SocketAddress } from 'node:net';

// RFC 4291 section 2.5.5.2: how an IPv4 client looks to a listener on `::`.
const MAPPED = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/;
const MAPPED_BITS = 96;

/** An address as it is written everywhere here: IPv4 where it is one inside IPv6, else RFC 5952. What is no address stays. */
export function canonical(address: string): string {
  if (!isIPv6Address(address)) return address;
  const [bare = ''] = address.split('%');
  const spelled = new SocketAddress({ address: bare, family: 'ipv6' }).address;
  return MAPPED.exec(spelled)?.[1] ?? spelled;
}

/** As `isIPv6`; but what has no colon needs no look at that grammar, which is a long one. */
function isIPv6Address(text: string): boolean {
  return text.includes(':') && isIPv6(text);
}

/** Networks, as CIDR. IPv4 clients are in IPv4 networks alone, whatever the listener takes them for: `::/0` is no IPv4. */
export class Networks {
  // Node's own BlockList would find an IPv4 address in `::/0`.
  readonly #v4 = new BlockList();
  readonly #v6 = new BlockList();
  readonly #areNone: boolean;

  /** @param cidrs as the configuration's schema lets them pass: an address, and a prefix length where it is a network. */
  constructor(cidrs: readonly string[]) {
    this.#areNone = cidrs.length === 0;
    for (const cidr of cidrs) {
      const [network = '', length] = cidr.split('/');
      const address = canonical(network);
      const bits = length === undefined ? undefined : Number(length);
      if (isIPv6Address(address)) this.#v6.addSubnet(address, bits ?? 128, 'ipv6');
      else if (isIPv4(network)) this.#v4.addSubnet(address, bits ?? 32, 'ipv4');
      else this.#v4.addSubnet(address, bits === undefined ? 32 : bits - MAPPED_BITS, 'ipv4');
    }
  }

  /** Whether a canonical address is in one of them. */
  has(address: string): boolean {
    if (this.#areNone) return false;
    if (isIPv4(address)) return this.#v4.check(address, 'ipv4');
    return isIPv6Address(address) && this.#v6.check(address, 'ipv6');
  }
}

/** What of `listen` says who may connect. */
export interface Admittance {
  readonly allow?: readonly string[] | undefined;
  readonly deny: readonly string[];
}

/** Whether a canonical address may connect: it is in `allow`, where there is one, and not in `deny`. */
export function createAdmittance({ allow, deny }: Admittance): (address: string) => boolean {
  const allowed = allow && new Networks(allow);
  const denied = new Networks(deny);
  return (address) => (allowed?.has(address) ?? true) && !denied.has(address);
}

/**
 * By what the client at a canonical address is counted: an IPv4 address, or an IPv6 network of `ipv6PrefixBits`, since whoever
 * has one address of those has them all.
 */
export function countedAs(address: string, ipv6PrefixBits: number): string {
  if (!isIPv6Address(address)) return address;
  const [head = '', tail] = address.split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = Array.from({ length: 8 - left.length - right.length }, () => '0');
  const groups = [...left, ...zeros, ...right].map((group, index) => {
    const bits = Math.min(Math.max(ipv6PrefixBits - index * 16, 0), 16);
    return (Number.parseInt(group, 16) & (0xffff << (16 - bits))).toString(16);
  });
  return `${canonical(groups.join(':'))}/${ipv6PrefixBits}`;
}
