/**
 * How many of something there are under each key, where there may be only so many.
 *
 * A key is remembered for as long as something is counted under it, so a tally is no larger than what it counts.
 */

/** A tally that may be shared with other proxies. */
export interface Tally {
  /** Counts one more, unless there are `limit` already. */
  add(key: string, limit: number): boolean | Promise<boolean>;
  /** Counts one less; to be called once for each `add` that was true. */
  remove(key: string): void;
}

/** The tally of this process. */
export class LocalTally implements Tally {
  readonly #counts = new Map<string, number>();

  /** How many keys something is counted under. */
  get size(): number {
    return this.#counts.size;
  }

  keys(): IterableIterator<string> {
    return this.#counts.keys();
  }

  count(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  add(key: string, limit: number): boolean {
    const count = this.count(key);
    if (count >= limit) return false;
    this.#counts.set(key, count + 1);
    return true;
  }

  remove(key: string): void {
    const count = this.count(key) - 1;
    if (count > 0) this.#counts.set(key, count);
    else this.#counts.delete(key);
  }
}
