/**
 * Walks the frame headers in passing bytes: where frames begin and end, and of what type they are.
 *
 * Copies nothing and keeps nothing but a header that was split between two chunks. What it learns is
 * what makes it safe to speak between two frames, and to know whether a session is idle.
 *
 * The state is how many bytes are still to be skipped, or how many header bytes have been seen:
 *
 *   header (0–4 bytes seen) ──5th byte──▶ body (n bytes to skip) ──0 left──▶ header
 *              └────── a length below 4 ──▶ lost, for good
 */

/** What walkers tell their owner; called while the chunk is being walked, before the next frame is looked at. */
export interface FrameListener {
  /** A frame's header is complete. */
  onFrame(type: number, walker: FrameWalker): void;
  /** The first body byte of a frame of `watchedType`. */
  onFirstByte(byte: number, walker: FrameWalker): void;
}

const HEADER_BYTES = 5;

/** One direction's walker. `watchedType` is the type whose first body byte its listener wants. */
export class FrameWalker {
  readonly #listener: FrameListener;
  readonly #watchedType: number;
  /** Body bytes of the current frame that are still to come. */
  #bodyLeft = 0;
  #firstByteWanted = false;
  #headerSeen = 0;
  #type = 0;
  #length = 0;
  #lost = false;

  constructor(watchedType: number, listener: FrameListener) {
    this.#watchedType = watchedType;
    this.#listener = listener;
  }

  /** Whether the bytes so far end exactly where a frame ends. Never again once the walker is lost. */
  get atBoundary(): boolean {
    return this.#bodyLeft === 0 && this.#headerSeen === 0 && !this.#lost;
  }

  /** Whether the bytes made no sense as frames; PostgreSQL ends such a connection itself. */
  get lost(): boolean {
    return this.#lost;
  }

  /** Walks the next bytes of the stream. */
  walk(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && !this.#lost) {
      if (this.#bodyLeft > 0) at = this.#walkBody(chunk, at);
      else if (this.#headerSeen === 0 && chunk.length - at >= HEADER_BYTES)
        at = this.#wholeHeader(chunk, at);
      else at = this.#headerByte(chunk, at);
    }
  }

  #walkBody(chunk: Buffer, at: number): number {
    if (this.#firstByteWanted) {
      this.#firstByteWanted = false;
      this.#listener.onFirstByte(chunk[at] as number, this);
    }
    const skipped = Math.min(this.#bodyLeft, chunk.length - at);
    this.#bodyLeft -= skipped;
    return at + skipped;
  }

  #wholeHeader(chunk: Buffer, at: number): number {
    this.#begin(chunk[at] as number, chunk.readInt32BE(at + 1));
    return at + HEADER_BYTES;
  }

  /** A header that is split between chunks, byte by byte. */
  #headerByte(chunk: Buffer, at: number): number {
    const byte = chunk[at] as number;
    if (this.#headerSeen === 0) this.#type = byte;
    else this.#length = (this.#length << 8) | byte;
    if (++this.#headerSeen === HEADER_BYTES) {
      const length = this.#length;
      this.#headerSeen = 0;
      this.#length = 0;
      this.#begin(this.#type, length);
    }
    return at + 1;
  }

  #begin(type: number, length: number): void {
    if (length < 4) {
      this.#lost = true;
      return;
    }
    this.#bodyLeft = length - 4;
    this.#firstByteWanted = type === this.#watchedType && this.#bodyLeft > 0;
    this.#listener.onFrame(type, this);
  }
}
