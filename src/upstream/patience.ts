/**
 * How long to go on trying when the server is not there, or not there yet, as during a restart.
 *
 * One login after the other waits and tries again, until it is plain that waiting does not help: then the circuit is open
 * for a second, and whoever comes hears at once what the last ones heard, so that no queue builds up before a dead server.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { ProxyError } from '../errors.ts';

const RETRY_MS = [50, 100, 200, 400, 500] as const;
// So many logins in a row waited in vain.
const FAILURES_TO_OPEN = 3;
const OPEN_MS = 1_000;

/** What one upstream has taught about waiting for it. */
export class Patience {
  #failures = 0;
  #openUntil = 0;
  #lastError: unknown;

  /** Whether whoever comes hears at once what the last ones heard. */
  get open(): boolean {
    return performance.now() < this.#openUntil;
  }

  /**
   * What `attempt` brings, tried again for `forMs` while the server is not there.
   *
   * @throws what the last attempt threw, or the signal's reason.
   */
  async try<T>(forMs: number, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + forMs;
    for (let tries = 0; ; tries++) {
      if (this.open) throw this.#lastError;
      // After the circuit was open one attempt tells whether it was long enough.
      const isProbe = this.#failures >= FAILURES_TO_OPEN;
      try {
        const result = await attempt();
        this.#failures = 0;
        return result;
      } catch (error) {
        if (!isTransient(error)) throw error;
        const pause = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)] as number;
        if (isProbe || performance.now() + pause > deadline) {
          if (isDown(error)) this.#giveUp(error);
          throw error;
        }
        await delay(pause, undefined, { signal }).catch(() => signal.throwIfAborted());
      }
    }
  }

  #giveUp(error: unknown): void {
    this.#failures++;
    if (this.#failures < FAILURES_TO_OPEN) return;
    this.#lastError = error;
    this.#openUntil = performance.now() + OPEN_MS;
  }
}

/** Whether an error is one that waiting may mend. */
export function isTransient(error: unknown): boolean {
  return ProxyError.is(error, 'upstream_lost') || isDown(error);
}

/**
 * Whether the server is down, or not up yet, for everybody. A client must not be able to make it look so: one whose own
 * idle_session_timeout is too short for a login is told 57P05, and a login that breaks off may be its settings' doing.
 */
function isDown(error: unknown): boolean {
  if (ProxyError.is(error, 'upstream_unreachable')) return true;
  if (!ProxyError.is(error, 'upstream_rejected')) return false;
  const cause = error.cause as { sqlstate?: string; code?: string } | undefined;
  return /^57P0[123]$/.test(cause?.sqlstate ?? cause?.code ?? '');
}
