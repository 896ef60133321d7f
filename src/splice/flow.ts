/**
 * One direction of a splice: reads its source only while its sink can take it.
 *
 * What the bytes mean, and when it is over, is its owner's business.
 */
import type { Duplex } from 'node:stream';
import { readInto, type ByteTaker } from './reading.ts';

/** One side: its stream, which the flow replaces when it can read it faster. */
export interface Peer {
  stream: Duplex;
}

/** What flows ask and tell. One owner has both directions: no flow keeps closures of its own. */
export interface FlowOwner {
  /** Called with each chunk before it is given to the sink, which it is not if that stops the flow. */
  onChunk(chunk: Buffer, flow: Flow): void;
  /** Called after each chunk has been given to the sink. */
  afterWrite(flow: Flow): void;
  expectsMore(): boolean;
  /** Called with what any of this has thrown: a mistake of ours, which must not become that of the whole process. */
  onMistake(thrown: unknown): void;
  /** The sink has taken nothing for as long as it may. */
  onStall(): void;
}

/** One direction: reads its source only while its sink can take it. */
export class Flow implements ByteTaker {
  bytes = 0;
  readonly #source: Peer;
  readonly #sink: Peer;
  readonly #owner: FlowOwner;
  /** How long the sink may take nothing, in ms. */
  readonly #stallMs: number | undefined;
  /** Once there was something to wait for. */
  #onDrain: (() => void) | undefined;
  #waiting = false;
  #stopped = false;
  #stallTimer: NodeJS.Timeout | undefined;

  constructor(source: Peer, sink: Peer, owner: FlowOwner, stallMs?: number) {
    this.#source = source;
    this.#sink = sink;
    this.#owner = owner;
    this.#stallMs = stallMs;
  }

  /** Begins to read, into `first` where the bytes are to go through another's hands before ours. */
  begin(first: ByteTaker = this): void {
    this.#source.stream = readInto(this.#source.stream, first);
  }

  take(chunk: Buffer): boolean {
    try {
      return this.#pass(chunk);
    } catch (thrown) {
      this.#owner.onMistake(thrown);
      return true;
    }
  }

  #pass(chunk: Buffer): boolean {
    // After the end what still arrives is read and forgotten, so that closing resets nothing.
    if (!this.#stopped) this.#owner.onChunk(chunk, this);
    if (this.#stopped) return true;
    this.bytes += chunk.length;
    const sink = this.#sink.stream;
    if (sink.destroyed || sink.writableEnded) return true;
    const hasRoom = sink.write(chunk);
    this.#owner.afterWrite(this);
    // write() judges by the size of the chunk; what counts is whether the kernel has taken it all.
    if (hasRoom || sink.writableLength === 0) return true;
    this.#wait(sink);
    return false;
  }

  holdsBytes(): boolean {
    return this.#sink.stream.writableLength > 0;
  }

  expectsMore(): boolean {
    return this.#owner.expectsMore();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#stallTimer);
    if (this.#onDrain !== undefined) this.#sink.stream.off('drain', this.#onDrain);
    if (this.#waiting) this.#source.stream.resume();
  }

  #wait(sink: Duplex): void {
    this.#waiting = true;
    sink.once('drain', (this.#onDrain ??= () => this.#resume()));
    const ms = this.#stallMs;
    if (ms === undefined) return;
    // One timer, used again: bulk traffic waits thousands of times a second.
    this.#stallTimer =
      this.#stallTimer?.refresh() ??
      setTimeout(() => this.#waiting && this.#owner.onStall(), ms).unref();
  }

  #resume(): void {
    this.#waiting = false;
    this.#source.stream.resume();
  }
}
