/**
 * A client's stream as it changes: plain at first, TLS after the handshake, and closed in a way that lets the last words arrive.
 */
import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import { ProxyError } from '../errors.ts';

/** A connected client. `stream` is replaced when TLS begins; whoever holds the client sees the current one. */
export interface Client {
  stream: Duplex;
  /** Whether what the stream carries is encrypted on the wire. */
  encrypted: boolean;
}

/** The host name that the client gave in its TLS handshake, if there was one. */
export function sniOf({ stream }: Client): string | undefined {
  // Node says `false` where the client gave none.
  return (stream instanceof TLSSocket && stream.servername) || undefined;
}

const LINGER_MS = 1_000;
/** How long a slow client may take to read the end of what it asked for, in ms. */
export const FLUSH_MS = 10_000;
const LINGER_BYTES = 65_536;

/**
 * Writes and waits until the bytes are on their way, so that nobody buffers without bound for a client that does not read.
 *
 * @throws {ProxyError} client_lost
 */
export function send(stream: Duplex, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    stream.write(bytes, (cause) =>
      cause ? reject(new ProxyError('client_lost', { cause })) : resolve(),
    );
  });
}

/**
 * Ends a stream after some last words, and waits until it is closed.
 *
 * What was written before gets `flushMs` to be taken; after that the peer gets a second to close its
 * side, while what it still sends is read and forgotten (at most 64 KiB of it before a session): closing a
 * socket with unread bytes in its receive buffer sends a reset, and the client may then never see the words.
 */
export async function farewell(
  stream: Duplex,
  words?: Buffer,
  flushMs: number = LINGER_MS,
): Promise<void> {
  if (stream.destroyed) return;
  const giveUp = () => stream.destroy();
  let timer = setTimeout(giveUp, flushMs);
  stream.once('finish', () => {
    clearTimeout(timer);
    timer = setTimeout(giveUp, LINGER_MS);
  });
  let forgotten = 0;
  stream.on('data', (chunk: Buffer) => {
    forgotten += chunk.length;
    if (forgotten > LINGER_BYTES) stream.destroy();
  });
  stream.end(words);
  await new Promise<void>((resolve) => stream.once('close', () => resolve()));
  clearTimeout(timer);
}
