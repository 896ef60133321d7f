/**
 * Reads exactly as many bytes as asked for, so that nobody ever holds more of a peer's bytes than a checked length allows.
 *
 * Stateless: what was not asked for stays in the stream, and the next reader, TLS or the splice finds
 * it there. Knows nothing of message types.
 */
import type { Duplex } from 'node:stream';

/** The peer closed or reset the connection before the bytes asked for had arrived. */
export class EndOfStream extends Error {
  override readonly name = 'EndOfStream';
  /** How many of the bytes asked for had arrived. */
  readonly received: number;

  constructor(received: number, options?: ErrorOptions) {
    super(`the peer closed the connection after ${received} of the bytes asked for`, options);
    this.received = received;
  }
}

/** Exactly `length` bytes if they have arrived, as they usually have; else `undefined`, and the stream keeps what it has. */
export function takeExactly(stream: Duplex, length: number): Buffer | undefined {
  if (length === 0) return Buffer.alloc(0);
  if (stream.destroyed || stream.readableLength < length) return undefined;
  return (stream.read(length) as Buffer | null) ?? undefined;
}

/**
 * Resolves with exactly `length` bytes, a buffer of the caller's own.
 *
 * One read at a time for each stream.
 *
 * @throws {EndOfStream} when the stream ends or breaks first.
 * @throws the signal's reason when `signal` aborts first; bytes that had arrived stay in the stream.
 */
export function readExactly(stream: Duplex, length: number, signal: AbortSignal): Promise<Buffer> {
  if (length > 0 && signal.aborted) return Promise.reject(signal.reason as Error);
  const here = takeExactly(stream, length);
  if (here !== undefined) return Promise.resolve(here);
  if (stream.destroyed || stream.readableEnded) return Promise.reject(new EndOfStream(0));
  return new Promise((resolve, reject) => {
    const settle = (finish: () => void) => {
      stream.off('readable', onReadable);
      stream.off('end', onEnd);
      stream.off('close', onEnd);
      stream.off('error', onError);
      signal.removeEventListener('abort', onAbort);
      finish();
    };
    const onReadable = () => {
      const bytes = stream.read(length) as Buffer | null;
      if (bytes === null) return;
      // Once the peer has ended, read(n) gives what is left, however little that is.
      if (bytes.length < length) settle(() => reject(new EndOfStream(bytes.length)));
      else settle(() => resolve(bytes));
    };
    const onEnd = () => settle(() => reject(new EndOfStream(stream.readableLength)));
    const onError = (error: Error) =>
      settle(() => reject(new EndOfStream(stream.readableLength, { cause: error })));
    const onAbort = () => settle(() => reject(signal.reason as Error));

    signal.addEventListener('abort', onAbort);
    stream.on('end', onEnd);
    stream.on('close', onEnd);
    stream.on('error', onError);
    stream.on('readable', onReadable);
    onReadable();
  });
}

/**
 * Reads and forgets `length` bytes without ever holding more than a small piece of them.
 *
 * @throws as `readExactly`.
 */
export async function skip(stream: Duplex, length: number, signal: AbortSignal): Promise<void> {
  const PIECE = 4_096;
  for (let left = length; left > 0; left -= PIECE) {
    await readExactly(stream, Math.min(left, PIECE), signal);
  }
}

/** A copy for as long as a session lasts: a small Buffer is a piece of 8 KiB of Node's, all of which it would keep alive. */
export function ownCopy(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(copy);
  return copy;
}
