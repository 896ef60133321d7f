/**
 * How often an issuer may be asked for its keys, whatever logins and outages ask for.
 *
 * Knows times alone: it fetches nothing and holds no key.
 */
import type { JwksConfig } from '../config.ts';

/**
 * The fetches of one issuer. All of them together are at most two in any `2 × cooldownMs`; those for unknown kids one in
 * `cooldownMs`; and each one that failed has a longer pause behind it than the one before.
 *
 * A file is rationed only by that pause, which does not grow.
 */
export class FetchRation {
  readonly #config: JwksConfig;
  readonly #remote: boolean;
  #cooldownUntil = -Infinity;
  #retryAt = -Infinity;
  #failures = 0;
  /** When the last two fetches began. */
  #last = -Infinity;
  #lastButOne = -Infinity;

  constructor(config: JwksConfig, remote: boolean) {
    this.#config = config;
    this.#remote = remote;
  }

  /** No fetch before this. */
  get nextAt(): number {
    if (!this.#remote) return this.#retryAt;
    return Math.max(this.#retryAt, this.#lastButOne + 2 * this.#config.cooldownMs);
  }

  /** Whether a fetch for an unknown kid is allowed now; if so, the next one is not for a while. */
  takeForUnknownKid(now: number): boolean {
    if (now < this.#cooldownUntil || now < this.nextAt) return false;
    // Armed before the fetch and whatever becomes of it: otherwise random kids during an outage are a fetch each (attack D1).
    this.#cooldownUntil = now + this.#config.cooldownMs;
    return true;
  }

  onStart(now: number): void {
    this.#lastButOne = this.#last;
    this.#last = now;
  }

  onSuccess(): void {
    this.#failures = 0;
    this.#retryAt = -Infinity;
  }

  onFailure(now: number): void {
    const { retryMs, maxRetryMs, fileCheckMs } = this.#config;
    const pause = this.#remote
      ? Math.min(retryMs * 2 ** Math.min(this.#failures, 30), maxRetryMs)
      : fileCheckMs;
    this.#failures += 1;
    // Jitter: many proxies lose an issuer at the same moment and must not all come back at the same moment.
    this.#retryAt = now + pause * (1 + Math.random() / 4);
  }
}

/**
 * Kids that an issuer was asked for and did not have.
 *
 * Without them, one client that keeps sending the token of a key long gone would use up the fetches that a new key needs.
 * Each is left alone for the cooldown at first and for twice as long every time, up to `freshMs`: an issuer may sign with a
 * key before all its servers publish it.
 */
export class UnknownKids {
  readonly #config: JwksConfig;
  /** In the order in which they were last asked for. */
  readonly #absent = new Map<string, { readonly until: number; readonly pauseMs: number }>();

  constructor(config: JwksConfig) {
    this.#config = config;
  }

  has(kid: string, now: number): boolean {
    const absence = this.#absent.get(kid);
    return absence !== undefined && now < absence.until;
  }

  remember(kid: string, now: number): void {
    const { cooldownMs, freshMs, maxUnknownKids } = this.#config;
    const before = this.#absent.get(kid);
    const pauseMs = before === undefined ? cooldownMs : Math.min(2 * before.pauseMs, freshMs);
    this.#absent.delete(kid);
    this.#absent.set(kid, { until: now + pauseMs, pauseMs });
    // Strangers choose the kids, so their number is bounded here and not by what they send.
    for (const oldest of this.#absent.keys()) {
      if (this.#absent.size <= maxUnknownKids) break;
      this.#absent.delete(oldest);
    }
  }
}
