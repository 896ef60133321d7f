/**
 * Which worker gets the next client: the one that serves fewest of those that have taken over their last.
 *
 * Not node:cluster's own round robin: a socket that is on its way to a worker when that dies is closed by nobody there, and
 * its client waits for ever. One at a time is on its way to each, which tells, too, that a worker is too busy to have more.
 */
import type { Socket } from 'node:net';

/** A worker, as somebody who takes clients. */
export interface Taker {
  /** Clients that it serves. */
  readonly open: number;
  /** Whether it has taken over whatever was sent to it. */
  readonly free: boolean;
  take(client: Socket): void;
}

/** How many may wait for a worker, of whom nobody else knows yet, and for how long. */
export interface DispatchLimits {
  readonly maxWaiting: number;
  readonly patienceMs: number;
}

/** Clients on their way from the listener to a worker. The sockets are read by nobody yet. */
export class Dispatch {
  readonly #limits: () => DispatchLimits;
  readonly #takers = new Set<Taker>();
  readonly #waiting = new Map<Socket, NodeJS.Timeout>();

  constructor(limits: () => DispatchLimits) {
    this.#limits = limits;
  }

  /** How many wait for a worker. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** A client has come. */
  onArrival(client: Socket): void {
    const { maxWaiting, patienceMs } = this.#limits();
    // A worker says whom it has before it is free again: of all others the ledger knows.
    if (this.#waiting.size >= maxWaiting) {
      client.destroy();
      return;
    }
    const timer = setTimeout(() => this.#turnAway(client), patienceMs);
    this.#waiting.set(client, timer);
    this.onFree();
  }

  /** A worker takes clients from now on. */
  add(taker: Taker): void {
    this.#takers.add(taker);
    this.onFree();
  }

  /** And no more. */
  remove(taker: Taker): void {
    this.#takers.delete(taker);
  }

  /** A worker has taken over a client, or is new. */
  onFree(): void {
    for (const [client, timer] of this.#waiting) {
      const taker = this.#freest();
      if (taker === undefined) return;
      clearTimeout(timer);
      this.#waiting.delete(client);
      taker.take(client);
    }
  }

  /** Sends everybody away who waits. */
  close(): void {
    for (const client of this.#waiting.keys()) this.#turnAway(client);
    this.#takers.clear();
  }

  #freest(): Taker | undefined {
    let best: Taker | undefined;
    for (const taker of this.#takers) {
      if (taker.free && (best === undefined || taker.open < best.open)) best = taker;
    }
    return best;
  }

  #turnAway(client: Socket): void {
    clearTimeout(this.#waiting.get(client));
    this.#waiting.delete(client);
    client.destroy();
  }
}
