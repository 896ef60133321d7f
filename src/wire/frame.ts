/**
 * The frame that every message after the startup phase travels in: a type byte, a length that counts itself, a body.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import type { Duplex } from 'node:stream';
import { readExactly, takeExactly } from './read.ts';

/** One whole message. `bytes` is all of it as it travelled; `body` is the part after the length. */
export interface Frame {
  readonly type: number;
  readonly body: Buffer;
  readonly bytes: Buffer;
}

/** Type byte and length. */
export const HEADER_BYTES = 5;

/** A frame's length field was below four or above what the reader allows. */
export class InvalidFrameLength extends Error {
  override readonly name = 'InvalidFrameLength';
}

/** A frame from its parts. `type` is one ASCII character, as the manual names the message. */
export function encodeFrame(type: string, ...parts: readonly Buffer[]): Buffer {
  const length = parts.reduce((sum, part) => sum + part.length, 4);
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header.write(type, 0, 1, 'latin1');
  header.writeInt32BE(length, 1);
  return Buffer.concat([header, ...parts]);
}

/**
 * A text as the protocol's String: UTF-8 and a terminating NUL.
 *
 * @throws {TypeError} when it holds a NUL, which would end it early and turn the rest into other fields
 *   (in a StartupMessage: into other parameters, `role` among them).
 */
export function encodeString(text: string): Buffer {
  if (text.includes('\0')) throw new TypeError('a protocol string cannot hold a NUL');
  return Buffer.from(`${text}\0`, 'utf8');
}

/** A 32-bit integer in network byte order. */
export function encodeInt32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeInt32BE(value | 0);
  return bytes;
}

/**
 * The next frame if all of it has arrived, of at most `maxBytes` of body; else `undefined`, and the stream keeps what it has.
 *
 * A server sends many frames at once, and this goes over them without a promise for each:
 *
 *     const frame = takeFrame(stream, maxBytes) ?? (await readFrame(stream, maxBytes, signal));
 *
 * @throws {InvalidFrameLength} as `readFrame`, as soon as the header has arrived.
 */
export function takeFrame(stream: Duplex, maxBytes: number): Frame | undefined {
  const header = takeExactly(stream, HEADER_BYTES);
  if (header === undefined) return undefined;
  const body = takeExactly(stream, bodyBytes(header, maxBytes));
  if (body === undefined) stream.unshift(header);
  return body && frameOf(header, body);
}

/**
 * The next frame, of at most `maxBytes` of body; the length is checked before the body is waited for.
 *
 * @throws {InvalidFrameLength} when the length is impossible or too large.
 * @throws {EndOfStream} when the peer is gone; the signal's reason when it aborts.
 */
export async function readFrame(
  stream: Duplex,
  maxBytes: number,
  signal: AbortSignal,
): Promise<Frame> {
  const header = await readExactly(stream, HEADER_BYTES, signal);
  return frameOf(header, await readExactly(stream, bodyBytes(header, maxBytes), signal));
}

/** How many bytes the header announces. */
function bodyBytes(header: Buffer, maxBytes: number): number {
  const length = header.readInt32BE(1) - 4;
  if (length >= 0 && length <= maxBytes) return length;
  throw new InvalidFrameLength(
    `a frame of ${length + 4} bytes where at most ${maxBytes + 4} are allowed`,
  );
}

function frameOf(header: Buffer, body: Buffer): Frame {
  return { type: header[0] as number, body, bytes: Buffer.concat([header, body]) };
}

/**
 * The NUL-terminated string that starts at `start`, and where the next field starts; bounded by the body.
 *
 * Returns `undefined` when no NUL follows within the body. Bytes that are not UTF-8 become U+FFFD.
 */
export function decodeString(
  body: Buffer,
  start: number,
): { text: string; next: number } | undefined {
  const end = body.indexOf(0, start);
  if (end === -1) return undefined;
  return { text: body.toString('utf8', start, end), next: end + 1 };
}
