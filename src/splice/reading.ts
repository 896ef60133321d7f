/**
 * Reads a socket into buffers that are used again, instead of one new buffer for every chunk.
 *
 * Node offers this (`onread`) for sockets that it connects, not for accepted ones or ones already in
 * use. So the handle of a plain socket is wrapped in a new `net.Socket` that has it: the one place
 * in pgjot that touches what Node does not document (`_handle`, stable since Node 0.1). Streams of
 * any other kind, TLS above all, are read with `data` events.
 *
 * A socket has three of them to read into. Its own small one, as long as what it reads is small: nothing is
 * allocated or copied then. One that all sockets of the thread share, while it reads what is larger now
 * and then; from this one bytes are copied. And a large one of its own while it moves bulk. What is
 * not copied is passed on by reference, so no buffer is used again before those bytes are written.
 *
 * A stream can be let go and taken again any number of times; in between it is one like any other.
 */
import { Socket, type OnReadOpts } from 'node:net';
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

// With less there are more calls; with more, a processor's nearest cache no longer holds what is read and then written.
const BUFFER_BYTES = 32_768;
// PostgreSQL writes in pieces of 8 KiB (PQ_SEND_BUFFER_SIZE): whatever is as long as that has more behind it.
const BULK_BYTES = 8_192;
// A statement or its answer in the usual case. Every idle session keeps two of these, unlike the large ones.
const SMALL_BYTES = 2_048;
const shared = Buffer.allocUnsafeSlow(BUFFER_BYTES);

/** What Node keeps inside a socket, as far as it must be moved to another one. */
interface SocketInside {
  _handle: { reading: boolean; readStop(): number } | null;
  _server: unknown;
  server: unknown;
}

/** Reads one stream, for one taker after the other. */
interface Reader {
  /** The stream to use: another one than was given where the handle has moved. */
  readonly stream: Duplex;
  start(taker: ByteTaker): void;
  /** From now on the stream keeps its bytes for whoever reads it. */
  stop(): void;
}

const readers = new WeakMap<Duplex, Reader>();

/**
 * Starts reading `stream` and gives every chunk to `take`, in order, what is already buffered first.
 *
 * Returns the stream to use from now on, for writing and for its `end`, `error` and `close` events:
 * another one than before where the handle has moved. Listeners do not move.
 */
export function readInto(stream: Duplex, taker: ByteTaker): Duplex {
  const early = stream.read() as Buffer | null;
  const known = readers.get(stream);
  const reader = known ?? (canMove(stream) ? new MovedReader(stream) : new ChunkReader(stream));
  readers.set(reader.stream, reader);
  reader.start(taker);
  if (early !== null && !taker.take(early)) reader.stream.pause();
  return reader.stream;
}

/**
 * Makes a stream that `readInto` returned an ordinary one again, paused: what arrives from now on stays in it.
 *
 * A socket that has moved stays where it is, since a handle that has read into a buffer of ours can do nothing else.
 */
export function letGo(stream: Duplex): void {
  readers.get(stream)?.stop();
  stream.pause();
}

/** Whether the peer's end has been read, delivered or not. */
export function hasEnded(stream: Duplex): boolean {
  return (stream as unknown as { _readableState: { ended: boolean } })._readableState.ended;
}

/** Takes the chunks that the stream itself makes. */
class ChunkReader implements Reader {
  readonly stream: Duplex;
  #taker: ByteTaker | undefined;
  readonly #onChunk = (chunk: Buffer) => {
    if (this.#taker?.take(chunk) === false) this.stream.pause();
  };

  constructor(stream: Duplex) {
    this.stream = stream;
  }

  start(taker: ByteTaker): void {
    this.#taker = taker;
    this.stream.on('data', this.#onChunk).resume();
  }

  stop(): void {
    this.#taker = undefined;
    this.stream.off('data', this.#onChunk);
  }
}

/** Reads by a new socket around the old one's handle, into a buffer of ours. */
class MovedReader implements Reader {
  readonly stream: Socket;
  #taker: ByteTaker | undefined;
  #small: Buffer | undefined;
  /** Whether the last chunk would have had room in the small buffer. */
  #wasSmall = false;
  #next: Buffer = shared;

  constructor(old: Socket) {
    this.stream = moveHandle(old, {
      // Asked for after every chunk.
      buffer: () => this.#next,
      callback: (length, buffer) => this.#onBytes(buffer as Buffer, length),
    });
  }

  start(taker: ByteTaker): void {
    this.#taker = taker;
    this.stream.resume();
  }

  stop(): void {
    this.#taker = undefined;
  }

  #onBytes(buffer: Buffer, length: number): boolean {
    const bytes = buffer.subarray(0, length);
    const taker = this.#taker;
    if (taker === undefined) return this.stream.push(Buffer.from(bytes));
    const goOn = taker.take(buffer === shared ? Buffer.from(bytes) : bytes);
    this.#next = this.#choose(buffer, length, taker);
    return goOn;
  }

  /** Never a buffer whose bytes somebody still refers to: they would be another's by the time they are written. */
  #choose(last: Buffer, length: number, taker: ByteTaker): Buffer {
    const isHeld = taker.holdsBytes();
    // For good: the next taker, who holds nothing, knows nothing of what this one still has to write.
    if (isHeld && last === this.#small) this.#small = undefined;
    const isSmall = length < SMALL_BYTES;
    // Twice in a row, or what is a little larger would be read in two pieces every time.
    const staysSmall = isSmall && this.#wasSmall;
    this.#wasSmall = isSmall;
    // A sink that holds on, as TLS does until it has encrypted, would have it replaced with every chunk.
    if (staysSmall && !isHeld) return (this.#small ??= Buffer.allocUnsafeSlow(SMALL_BYTES));
    if (length < BULK_BYTES || !taker.expectsMore()) return shared;
    const isOwn = last !== shared && !isHeld;
    return isOwn ? last : Buffer.allocUnsafeSlow(BUFFER_BYTES);
  }
}

/** Only a plain socket with nothing of its own still to be written or delivered: a new one would never hear of an end. */
function canMove(stream: Duplex): stream is Socket {
  return (
    Object.getPrototypeOf(stream) === Socket.prototype &&
    (stream as unknown as SocketInside)._handle !== null &&
    !stream.destroyed &&
    !hasEnded(stream) &&
    stream.writableLength === 0 &&
    !stream.writableEnded
  );
}

function moveHandle(old: Socket, onread: OnReadOpts): Socket {
  const inside = old as unknown as SocketInside;
  const handle = inside._handle as NonNullable<SocketInside['_handle']>;
  handle.readStop();
  handle.reading = false;

  const moved = new Socket({
    handle,
    allowHalfOpen: true,
    onread,
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
