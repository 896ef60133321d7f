/**
 * Reads a socket into buffers that are used again, instead of one new buffer for every chunk.
 *
 * Node offers this (`onread`) for sockets that it connects, not for accepted ones or ones already in
 * use. So the handle of a plain socket is wrapped in a new `net.Socket` that has it: the one place
 * in pgjot that touches what Node does not document (`_handle`, stable since Node 0.1). Streams of
 * any other kind, TLS above all, are read with `data` events.
 *
 * Every socket of the thread reads into one shared buffer, and small chunks are copied out of it,
 * which is cheaper than any bookkeeping. A socket that moves bulk gets a buffer of its own, whose
 * bytes are passed on by reference.
 */
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';

/** Whom the bytes go to. */
export interface ByteTaker {
  /** Takes the next bytes of the stream. `false` stops the reading until `resume()`. */
  take(chunk: Buffer): boolean;
  /** Whether any chunk that was taken is still referred to; while it is, its buffer is not used again. */
  holdsBytes(): boolean;
  /** Whether more is likely to follow soon; else a buffer of its own would only lie idle. */
  expectsMore(): boolean;
}

const BUFFER_BYTES = 65_536;
// PostgreSQL writes in pieces of 8 KiB (PQ_SEND_BUFFER_SIZE): whatever is as long as that has more behind it.
const BULK_BYTES = 8_192;
const shared = Buffer.allocUnsafeSlow(BUFFER_BYTES);

/** What Node keeps inside a socket, as far as it must be moved to another one. */
interface SocketInside {
  _handle: { reading: boolean; readStop(): number } | null;
  _server: unknown;
  server: unknown;
}

/**
 * Starts reading `stream` and gives every chunk to `take`, in order, what is already buffered first.
 *
 * Returns the stream to use from now on, for writing and for its `end`, `error` and `close` events:
 * another one than before where the handle has moved. Listeners do not move.
 */
export function readInto(stream: Duplex, taker: ByteTaker): Duplex {
  const early = stream.read() as Buffer | null;
  const reader = canMove(stream) ? moveHandle(stream, taker) : readChunks(stream, taker);
  if (early !== null && !taker.take(early)) reader.pause();
  return reader;
}

function readChunks(stream: Duplex, taker: ByteTaker): Duplex {
  stream.on('data', (chunk: Buffer) => {
    if (!taker.take(chunk)) stream.pause();
  });
  return stream.resume();
}

/** Only a plain socket with nothing of its own still to be written or delivered. */
function canMove(stream: Duplex): stream is Socket {
  return (
    Object.getPrototypeOf(stream) === Socket.prototype &&
    (stream as unknown as SocketInside)._handle !== null &&
    !stream.destroyed &&
    !stream.readableEnded &&
    !hasEnded(stream) &&
    stream.writableLength === 0 &&
    !stream.writableEnded
  );
}

/** Whether the peer's end has been read but not yet delivered: a new socket would never hear of it. */
function hasEnded(stream: Duplex): boolean {
  return (stream as unknown as { _readableState: { ended: boolean } })._readableState.ended;
}

function moveHandle(old: Socket, taker: ByteTaker): Socket {
  const inside = old as unknown as SocketInside;
  const handle = inside._handle as NonNullable<SocketInside['_handle']>;
  handle.readStop();
  handle.reading = false;

  let next: Buffer = shared;
  const moved = new Socket({
    handle,
    allowHalfOpen: true,
    onread: {
      // Asked for after every chunk.
      buffer: () => next,
      callback: (length: number, buffer: Uint8Array) => {
        const bytes = (buffer as Buffer).subarray(0, length);
        const goOn = taker.take(buffer === shared ? Buffer.from(bytes) : bytes);
        if (length < BULK_BYTES || !taker.expectsMore()) next = shared;
        else if (buffer === shared || taker.holdsBytes()) {
          next = Buffer.allocUnsafeSlow(BUFFER_BYTES);
        }
        return goOn;
      },
    },
  } as ConstructorParameters<typeof Socket>[0]);
  // The listener counts its sockets, and must count this one when it closes, not the old one.
  const target = moved as unknown as SocketInside;
  target.server = inside.server;
  target._server = inside._server;
  inside._server = null;
  inside._handle = null;
  old.destroy();
  return moved;
}
