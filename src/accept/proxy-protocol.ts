/**
 * The PROXY protocol: by its first bytes a load balancer says whose connection it is.
 *
 * Strict, as HAProxy's `accept-proxy` is: who may send the header must, and who may not is not served. A header that might be
 * missing is one that clients could send themselves, and where a balancer forgets it everybody would be that balancer.
 *
 * https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
 */
import { isIPv4, isIPv6 } from 'node:net';
import type { Duplex } from 'node:stream';
import { ProxyError } from '../errors.ts';
import { canonical } from '../limits/address.ts';
import { EndOfStream, readExactly, skip } from '../wire/read.ts';

const SIGNATURE_V2 = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
const PREFIX_V1 = Buffer.from('PROXY ', 'latin1');
// Section 2.1: the longest line, with its CRLF.
const MAX_V1_BYTES = 107;
// The length field allows 65,535; addresses need 216, and what balancers add (TLVs) is well below this.
const MAX_V2_BYTES = 4_096;
const V2_HEAD_BYTES = 16;

const PORT = '(0|[1-9]\\d{0,4})';
const LINE_V1 = new RegExp(`^PROXY (TCP4|TCP6) ([\\da-f:.]+) ([\\da-f:.]+) ${PORT} ${PORT}$`, 'i');
const UNKNOWN_V1 = /^PROXY UNKNOWN( |$)/;

/** The address families of version 2 that a byte stream can have, and how many bytes their addresses take. */
const FAMILY = { unspecified: 0x00, tcp4: 0x11, tcp6: 0x21, unix: 0x31 } as const;
const ADDRESS_BYTES = new Map<number, number>([
  [FAMILY.unspecified, 0],
  [FAMILY.tcp4, 12],
  [FAMILY.tcp6, 36],
  [FAMILY.unix, 216],
]);
const COMMAND = { local: 0x20, proxy: 0x21 } as const;

/**
 * Reads the header, and not a byte behind it. Returns the client's canonical address, or `undefined` where the header names
 * none: a health check of the balancer's own (LOCAL), or a client that has no address (UNKNOWN, Unix sockets).
 *
 * @throws {ProxyError} proxy_header_invalid, probe, or the signal's reason.
 */
export async function readProxyHeader(
  stream: Duplex,
  signal: AbortSignal,
): Promise<string | undefined> {
  try {
    // One byte is enough to tell those who say something else; they may be waiting for an answer to less than a header.
    const first = await readExactly(stream, 1, signal);
    if (first[0] === PREFIX_V1[0]) return await readV1(stream, first, signal);
    if (first[0] === SIGNATURE_V2[0]) return await readV2(stream, first, signal);
    throw invalid('there is none');
  } catch (error) {
    if (!(error instanceof EndOfStream)) throw error;
    // A balancer that only looks whether the port is open.
    throw new ProxyError('probe', { cause: error });
  }
}

async function readV1(
  stream: Duplex,
  first: Buffer,
  signal: AbortSignal,
): Promise<string | undefined> {
  const prefix = Buffer.concat([first, await readExactly(stream, PREFIX_V1.length - 1, signal)]);
  if (!prefix.equals(PREFIX_V1)) throw invalid('there is none');
  let line = prefix.toString('latin1');
  // Byte by byte: what is behind the line belongs to the client.
  while (!line.endsWith('\r\n')) {
    if (line.length === MAX_V1_BYTES) throw invalid(`no end within ${MAX_V1_BYTES} bytes`);
    line += (await readExactly(stream, 1, signal)).toString('latin1');
  }
  return addressOfV1(line.slice(0, -2));
}

function addressOfV1(line: string): string | undefined {
  if (UNKNOWN_V1.test(line)) return undefined;
  const [, protocol, source = '', destination = '', ...ports] = LINE_V1.exec(line) ?? [];
  const isAddress = protocol === 'TCP4' ? isIPv4 : isIPv6;
  const arePorts = ports.length === 2 && ports.every((port) => Number(port) <= 65_535);
  if (!isAddress(source) || !isAddress(destination) || !arePorts) {
    throw invalid('not a line of version 1');
  }
  return canonical(source);
}

async function readV2(
  stream: Duplex,
  first: Buffer,
  signal: AbortSignal,
): Promise<string | undefined> {
  const head = Buffer.concat([first, await readExactly(stream, V2_HEAD_BYTES - 1, signal)]);
  if (!head.subarray(0, SIGNATURE_V2.length).equals(SIGNATURE_V2)) throw invalid('there is none');
  const command = head.readUInt8(12);
  const family = head.readUInt8(13);
  const length = head.readUInt16BE(14);
  if (command !== COMMAND.local && command !== COMMAND.proxy) {
    throw invalid('not a version or command of version 2');
  }
  // Before a byte of the rest is waited for.
  if (length > MAX_V2_BYTES - V2_HEAD_BYTES) throw invalid(`more than ${MAX_V2_BYTES} bytes`);
  if (command === COMMAND.local) {
    await skip(stream, length, signal);
    return undefined;
  }
  const addressBytes = ADDRESS_BYTES.get(family);
  if (addressBytes === undefined) throw invalid('an address family that is not of a byte stream');
  if (length < addressBytes) throw invalid('shorter than its addresses');
  const addresses = await readExactly(stream, addressBytes, signal);
  await skip(stream, length - addressBytes, signal);
  return addressOfV2(family, addresses);
}

function addressOfV2(family: number, addresses: Buffer): string | undefined {
  if (family === FAMILY.tcp4) return addresses.subarray(0, 4).join('.');
  if (family !== FAMILY.tcp6) return undefined;
  const groups = addresses.toString('hex', 0, 16).match(/.{4}/g) as string[];
  return canonical(groups.join(':'));
}

function invalid(problem: string): ProxyError {
  return new ProxyError('proxy_header_invalid', { problem });
}
