/**
 * Tells addresses on the public internet from those that only somebody inside a network, or on one machine, can reach.
 *
 * Resolves no names: that is up to whoever connects, who must judge the very address that it connects to.
 *
 * https://www.iana.org/assignments/iana-ipv4-special-registry and https://www.iana.org/assignments/iana-ipv6-special-registry
 */
import { BlockList, isIPv4 } from 'node:net';

/** `private` can be somebody's own network; `never` is no place to fetch anything from, cloud metadata services among them. */
export type Reach = 'public' | 'private' | 'never';

const PRIVATE = blockList([
  '10.0.0.0/8',
  // Carrier-grade NAT, which VPNs and clouds hand out as well.
  '100.64.0.0/10',
  '127.0.0.0/8',
  '172.16.0.0/12',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '::1/128',
  '64:ff9b:1::/48',
  'fc00::/7',
  'fec0::/10',
]);

const NEVER = blockList([
  '0.0.0.0/8',
  // Link-local: 169.254.169.254 hands out a cloud machine's credentials.
  '169.254.0.0/16',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
  '::/128',
  '100::/64',
  '2001::/32',
  '2001:db8::/32',
  // 6to4 leads to the IPv4 address inside it, by way of strangers; nobody publishes keys there.
  '2002::/16',
  'fe80::/10',
  'ff00::/8',
]);

const LOOPBACK = blockList(['127.0.0.0/8', '::1/128']);

/** How far `address` reaches; one that is written as IPv6 but holds an IPv4 address, as far as that one. */
export function reachOf(address: string): Reach {
  const judged = innerAddress(address);
  const family = isIPv4(judged) ? 'ipv4' : 'ipv6';
  if (NEVER.check(judged, family)) return 'never';
  return PRIVATE.check(judged, family) ? 'private' : 'public';
}

/** Whether `address` is this machine. */
export function isLoopbackAddress(address: string): boolean {
  const judged = innerAddress(address);
  return LOOPBACK.check(judged, isIPv4(judged) ? 'ipv4' : 'ipv6');
}

// ::ffff:0:0/96 (mapped), ::/96 (compatible, long dead) and 64:ff9b::/96 (NAT64) end in the IPv4 address that is meant.
const EMBEDDING = blockList(['::ffff:0:0/96', '::/96', '64:ff9b::/96']);

function innerAddress(address: string): string {
  const [bare = ''] = address.split('%');
  if (isIPv4(bare) || !EMBEDDING.check(bare, 'ipv6')) return bare;
  const words = wordsOf(bare);
  const [high = 0, low = 0] = words.slice(-2);
  // :: and ::1 lie in ::/96 and mean what they say.
  if (words.slice(0, 7).every((word) => word === 0) && low <= 1) return bare;
  return [high >> 8, high & 255, low >> 8, low & 255].join('.');
}

/** The eight 16-bit words of an IPv6 address, in the one spelling that URL gives every IPv6 address. */
function wordsOf(address: string): number[] {
  const [head = '', tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::');
  const read = (text: string) =>
    text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16));
  const [first, last] = [read(head), read(tail ?? '')];
  return [...first, ...Array<number>(8 - first.length - last.length).fill(0), ...last];
}

function blockList(subnets: readonly string[]): BlockList {
  const list = new BlockList();
  for (const subnet of subnets) {
    const [network = '', bits] = subnet.split('/');
    list.addSubnet(network, Number(bits), isIPv4(network) ? 'ipv4' : 'ipv6');
  }
  return list;
}
