/**
 * Who waits for a server that has no connection left for us (53300): first come first served, each until its time is over.
 *
 * Others use the server as well, so nobody tells us when there is room: the first of those who wait asks again and again,
 * at once when a session of ours has ended, and the rest wait behind it.
 */
import { ProxyError } from '../errors.ts';
import { UpstreamError } from './connect.ts';

const RETRY_MS = [50, 100, 200, 400, 500] as const;

/** One that waits. */
interface Waiter {
  /** The how many-th it was to come. */
  readonly arrival: number;
  /** Tries once; whether that was its last try. Never throws. */
  try(): Promise<boolean>;
}

/** The queue before one server. */
export class Crowd {
  readonly #most: number;
  readonly #onFull: () => void;
  #arrivals = 0;
  readonly #queue: Waiter[] = [];
  #serving = false;
  #wake = nothing;

  /** At most `most` wait. `onFull` is called each time the server has said that it is full: perhaps something can be closed. */
  constructor(most: number, onFull: () => void) {
    this.#most = most;
    this.#onFull = onFull;
  }

  /** A session of ours has ended. */
  onRoom(): void {
    this.#wake();
  }

  /**
   * What `attempt` brings, tried again until `deadline`, on the clock of `performance.now()`, while the server is full.
   *
   * @throws {ProxyError} what the last attempt threw; pool_timeout where its turn has not come, or too many wait; the
   *   signal's reason.
   */
  async enter<T>(deadline: number, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
    const arrival = ++this.#arrivals;
    if (this.#queue.length === 0) {
      try {
        return await attempt();
      } catch (error) {
        if (!isFull(error) || performance.now() >= deadline) throw error;
      }
    }
    signal.throwIfAborted();
    if (this.#queue.length >= this.#most) throw full(`${this.#most} others wait already`);
    return new Promise((resolve, reject) => {
      this.#wait(arrival, deadline, signal, async () => resolve(await attempt()), reject);
    });
  }

  #wait(
    arrival: number,
    deadline: number,
    signal: AbortSignal,
    attempt: () => Promise<void>,
    reject: (error: unknown) => void,
  ): void {
    let trying = false;
    let refusal: unknown = full('others waited before it');
    const leave = (error?: unknown) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      this.#queue.splice(this.#queue.indexOf(waiter), 1);
      if (error !== undefined) reject(error);
      this.#wake();
    };
    const waiter: Waiter = {
      arrival,
      async try() {
        trying = true;
        try {
          await attempt();
          leave();
        } catch (error) {
          refusal = error;
          if (isFull(error) && performance.now() < deadline) return false;
          leave(error);
        } finally {
          trying = false;
        }
        return true;
      },
    };
    // An attempt that is under way ends by itself, and may still bring something that must not be lost.
    const onAbort = () => void (trying || leave(signal.reason));
    const timer = setTimeout(
      () => void (trying || leave(refusal)),
      Math.max(deadline - performance.now(), 0),
    );
    signal.addEventListener('abort', onAbort);
    // Who came sooner may have been told later.
    const place = this.#queue.findIndex((other) => other.arrival > arrival);
    this.#queue.splice(place === -1 ? this.#queue.length : place, 0, waiter);
    void this.#serve();
  }

  /** Has the first of those who wait try, again and again. */
  async #serve(): Promise<void> {
    if (this.#serving) return;
    this.#serving = true;
    // Each has been refused just now, or has come behind one that was.
    for (let tries = 0; this.#queue.length > 0; ) {
      this.#onFull();
      await this.#pause(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)] as number);
      for (tries++; await this.#queue[0]?.try(); ) tries = 0;
    }
    this.#serving = false;
  }

  /** Waits for so long, or until there may be room. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

const nothing = () => {};

/** PostgreSQL's "too many clients", and not a login role's own limit, which is about one slot. */
function isFull(error: unknown): boolean {
  if (!ProxyError.is(error, 'upstream_rejected')) return false;
  const { cause } = error;
  return (
    cause instanceof UpstreamError &&
    cause.sqlstate === '53300' &&
    cause.routine !== 'InitializeSessionUserId'
  );
}

function full(why: string): ProxyError {
  return new ProxyError('pool_timeout', { cause: new Error(`the server is full, and ${why}`) });
}
