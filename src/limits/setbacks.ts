/**
 * Failed logins, by address and issuer: after too many of them each further failure makes the next attempt wait longer.
 *
 * By both, because many users share an address (an office, an application's server): who has only bad tokens of one issuer must
 * not keep out those with good ones of another. By whatever issuer a token names, whether it is configured or not: who is made
 * to wait learns nothing from it.
 */
import { hash } from 'node:crypto';
import type { Config } from '../config.ts';

/** What an issuer's setbacks at an address come to. `issuer` is `digest`'s. */
export interface Wait {
  readonly issuer: string;
  /** How long until the next attempt is looked at, in ms. */
  readonly leftMs: number;
}

/** Setbacks, which may be shared with other proxies. */
export interface Setbacks {
  /** Every issuer that has failed at this address and not succeeded since; an issuer that is not named is `OTHERS` where that is. */
  at(address: string): readonly Wait[] | Promise<readonly Wait[]>;
  failed(address: string, issuer: string): void;
  /** A token of this issuer was good: the failures are forgotten. */
  succeeded(address: string, issuer: string): void;
}

/** How failures turn into waiting. */
export type SetbackRules = Config['limits']['failedLogins'];

/** The key of all issuers for which there is no room at an address. */
export const OTHERS = 'others';

// An address that has as many issuers is one that makes them up.
const MAX_ISSUERS = 16;
// About 3 MiB, whatever a million addresses may try. The oldest are forgotten first: whoever has so many is not slowed down
// by waiting anyway, and everybody else is remembered for no shorter than it takes to come by so many.
const MAX_ADDRESSES = 10_000;
// Twice the longest wait, and at least so long.
const MIN_MEMORY_MS = 600_000;

/** A key for what a token names: 16 bytes, whatever a stranger writes there. */
export function digest(name: string): string {
  return hash('sha256', name, 'hex').slice(0, 32);
}

/** How long to wait after so many failures, in ms. */
export function waitAfter(
  failures: number,
  { allowed, delayMs, maxDelayMs }: SetbackRules,
): number {
  return failures <= allowed ? 0 : Math.min(delayMs * 2 ** (failures - allowed - 1), maxDelayMs);
}

/** How long failures are remembered, in ms. */
export function memoryMs({ maxDelayMs }: SetbackRules): number {
  return Math.max(2 * maxDelayMs, MIN_MEMORY_MS);
}

/** The wait of an issuer among those of an address. */
export function waitOf(waits: readonly Wait[], issuer: string): Wait | undefined {
  return waits.find((one) => one.issuer === issuer) ?? waits.find((one) => one.issuer === OTHERS);
}

interface Setback {
  failures: number;
  /** When the last one was, by `performance.now()`. */
  lastAt: number;
}

/** The setbacks that this process has seen. */
export class LocalSetbacks implements Setbacks {
  readonly #rules: () => SetbackRules;
  readonly #now: () => number;
  /** In the order in which addresses have failed last. */
  readonly #byAddress = new Map<string, Map<string, Setback>>();

  constructor(rules: () => SetbackRules, now: () => number = () => performance.now()) {
    this.#rules = rules;
    this.#now = now;
  }

  /** How many addresses are remembered. */
  get size(): number {
    return this.#byAddress.size;
  }

  at(address: string): Wait[] {
    const rules = this.#rules();
    return [...this.#remembered(address)].map(([issuer, { failures, lastAt }]) => ({
      issuer,
      leftMs: Math.max(lastAt + waitAfter(failures, rules) - this.#now(), 0),
    }));
  }

  failed(address: string, issuer: string): void {
    const setbacks = this.#remembered(address);
    const key = setbacks.has(issuer) || setbacks.size < MAX_ISSUERS ? issuer : OTHERS;
    const failures = (setbacks.get(key)?.failures ?? 0) + 1;
    setbacks.set(key, { failures, lastAt: this.#now() });
    this.#byAddress.delete(address);
    this.#byAddress.set(address, setbacks);
    if (this.#byAddress.size > MAX_ADDRESSES) this.#forgetOldest();
  }

  succeeded(address: string, issuer: string): void {
    const setbacks = this.#byAddress.get(address);
    setbacks?.delete(issuer);
    if (setbacks?.size === 0) this.#byAddress.delete(address);
  }

  /** Makes room for many at once: a Map takes time to find its first key where others were before it. */
  #forgetOldest(): void {
    let count = MAX_ADDRESSES / 10;
    for (const address of this.#byAddress.keys()) {
      if (count-- === 0) return;
      this.#byAddress.delete(address);
    }
  }

  /** What is still to be held against an address. */
  #remembered(address: string): Map<string, Setback> {
    const oldest = this.#now() - memoryMs(this.#rules());
    const setbacks = this.#byAddress.get(address) ?? new Map<string, Setback>();
    for (const [issuer, { lastAt }] of setbacks) if (lastAt < oldest) setbacks.delete(issuer);
    return setbacks;
  }
}
