/**
 * The packets of the startup phase, which have no type byte: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { isUtf8 } from 'node:buffer';
import type { Duplex } from 'node:stream';
import { ProxyError } from '../errors.ts';
import { encodeInt32, encodeString } from './frame.ts';
import { EndOfStream, readExactly } from './read.ts';

/** Request codes: 1234 in the high half, and a number that can never be a minor protocol version. */
export const REQUEST_CODE = {
  CancelRequest: 80_877_102,
  SSLRequest: 80_877_103,
  GSSENCRequest: 80_877_104,
} as const;

/** Protocol versions: major in the high 16 bits, minor in the low. */
export const PROTOCOL_3_0 = 3 << 16;
/** The newest minor version that we speak: 3.2, whose difference is a longer cancel key. */
export const NEWEST_MINOR = 2;

/** MAX_STARTUP_PACKET_LENGTH in PostgreSQL's pqcomm.h; it counts the packet without its length word. */
export const MAX_STARTUP_BYTES = 10_000;
const MIN_STARTUP_BYTES = 4;

/** A startup packet: the code that its first word holds, and the rest. */
export interface StartupPacket {
  readonly code: number;
  readonly body: Buffer;
}

/**
 * The next startup packet. The length is checked, unsigned, before a byte of the body is waited for (attack A6).
 *
 * @throws {ProxyError} malformed_startup, silent, on an impossible length or an end in the middle: PostgreSQL says
 *   nothing either.
 * @throws {EndOfStream} when the peer is gone before the packet began; the signal's reason when it aborts.
 */
export async function readStartupPacket(
  stream: Duplex,
  signal: AbortSignal,
): Promise<StartupPacket> {
  const length = await readLength(stream, signal);
  if (length < MIN_STARTUP_BYTES || length > MAX_STARTUP_BYTES) {
    throw new ProxyError('malformed_startup', { problem: 'impossible length' }, { silent: true });
  }
  const packet = await readExactly(stream, length, signal).catch((error: unknown) => {
    throw error instanceof EndOfStream ? truncated(error) : error;
  });
  return { code: packet.readUInt32BE(0), body: packet.subarray(4) };
}

async function readLength(stream: Duplex, signal: AbortSignal): Promise<number> {
  try {
    return (await readExactly(stream, 4, signal)).readUInt32BE(0) - 4;
  } catch (error) {
    throw error instanceof EndOfStream && error.received > 0 ? truncated(error) : error;
  }
}

function truncated(cause: EndOfStream): ProxyError {
  return new ProxyError('malformed_startup', { problem: 'truncated' }, { cause, silent: true });
}

/**
 * The name and value pairs of a StartupMessage, in order and with their duplicates; nothing is judged here.
 *
 * @throws {ProxyError} malformed_startup when the pairs do not end with the terminator as the last byte.
 */
export function decodeParameters(body: Buffer): [name: string, value: string][] {
  const pairs: [string, string][] = [];
  // Every field is read as UTF-8 and compared as text: two byte strings must never decode to one name.
  if (!isUtf8(body)) throw malformed('expected names and values in UTF-8');
  let at = 0;
  for (;;) {
    const name = field(body, at);
    if (name.text === '') {
      if (name.next !== body.length) throw malformed();
      return pairs;
    }
    const value = field(body, name.next);
    pairs.push([name.text, value.text]);
    at = value.next;
  }
}

/** A StartupMessage for an upstream, protocol 3.0, from nothing but what it is given; later pairs win in PostgreSQL. */
export function encodeStartupMessage(
  pairs: Iterable<readonly [name: string, value: string]>,
): Buffer {
  const fields = [encodeInt32(PROTOCOL_3_0)];
  for (const [name, value] of pairs) fields.push(encodeString(name), encodeString(value));
  return encodePacket(Buffer.concat([...fields, Buffer.from([0])]));
}

/** An SSLRequest. */
export function encodeSSLRequest(): Buffer {
  return encodePacket(encodeInt32(REQUEST_CODE.SSLRequest));
}

/** A CancelRequest for the backend that gave out this BackendKeyData. */
export function encodeCancelRequest(processId: number, secretKey: Buffer): Buffer {
  return encodePacket(
    Buffer.concat([encodeInt32(REQUEST_CODE.CancelRequest), encodeInt32(processId), secretKey]),
  );
}

function encodePacket(body: Buffer): Buffer {
  return Buffer.concat([encodeInt32(body.length + 4), body]);
}

function field(body: Buffer, start: number): { text: string; next: number } {
  const end = start < body.length ? body.indexOf(0, start) : -1;
  if (end === -1) throw malformed();
  return { text: body.toString('utf8', start, end), next: end + 1 };
}

function malformed(problem = 'expected terminator as last byte'): ProxyError {
  return new ProxyError('malformed_startup', { problem });
}
