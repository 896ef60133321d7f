/**
 * Who waits for a slot: first come first served, each for a bounded time, all of them bounded in number.
 *
 * Those that only want what nobody else does come last. Knows nothing of slots.
 */
import { ProxyError } from '../errors.ts';
import type { SlotRequest } from './slots.ts';

/** One that waits. */
export interface Waiter<T> {
  readonly request: SlotRequest;
  readonly resolve: (given: T) => void;
  readonly reject: (error: unknown) => void;
}

/** The queue. Iterates in the order in which they are to be served. */
export class Waiters<T> implements Iterable<Waiter<T>> {
  readonly #most: number;
  readonly #onNobody: () => void;
  readonly #logins = new Set<Waiter<T>>();
  readonly #spares = new Set<Waiter<T>>();

  /** At most `most` logins wait; `onNobody` is called when the last of all has gone. */
  constructor(most: number, onNobody: () => void) {
    this.#most = most;
    this.#onNobody = onNobody;
  }

  /** Logins that wait. */
  get size(): number {
    return this.#logins.size;
  }

  /** Whether nobody waits, not even for a spare. */
  get empty(): boolean {
    return this.#logins.size + this.#spares.size === 0;
  }

  *[Symbol.iterator](): Iterator<Waiter<T>> {
    yield* this.#logins;
    yield* this.#spares;
  }

  /** Whether a login that waits would take what is kept under this key. */
  want(key: string): boolean {
    for (const { request } of this.#logins) if (request.keys.includes(key)) return true;
    return false;
  }

  /**
   * Waits until somebody resolves the waiter, for `request.patienceMs`.
   *
   * @throws {ProxyError} pool_timeout when that is over or the queue is full; the signal's reason.
   */
  wait(request: SlotRequest, signal: AbortSignal, timedOut: () => ProxyError): Promise<T> {
    const queue = request.spare === undefined ? this.#logins : this.#spares;
    if (queue.size >= this.#most) {
      const cause = new Error(`${this.#most} others wait already`);
      return Promise.reject(new ProxyError('pool_timeout', { cause }));
    }
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
        queue.delete(waiter);
        if (this.empty) this.#onNobody();
      };
      const waiter: Waiter<T> = {
        request,
        resolve: (given) => {
          leave();
          resolve(given);
        },
        reject: (error) => {
          leave();
          reject(error);
        },
      };
      const onAbort = () => waiter.reject(signal.reason);
      const timer = setTimeout(() => waiter.reject(timedOut()), request.patienceMs);
      signal.addEventListener('abort', onAbort);
      queue.add(waiter);
    });
  }

  rejectAll(error: unknown): void {
    for (const waiter of this) waiter.reject(error);
  }
}
