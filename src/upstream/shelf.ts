/**
 * The sessions that wait for their next user, by slot and by key, in the order in which they began to wait.
 *
 * Closes none and watches none.
 */

/** A session that waits. */
export interface Shelved<Session> {
  readonly session: Session;
  /** For whom. */
  readonly key: string;
  /** Which of the leases its slot is from. */
  readonly leasedIn: number;
}

/** Says which sessions are meant. */
export type Matcher<Session> = (session: Session, key: string) => boolean;

/** One role's idle sessions. Iterates over them by slot, the one that has waited longest first. */
export class Shelf<Session> implements Iterable<[slot: string, shelved: Shelved<Session>]> {
  readonly #bySlot = new Map<string, Shelved<Session>>();
  /** Slots by key. */
  readonly #byKey = new Map<string, Set<string>>();

  get size(): number {
    return this.#bySlot.size;
  }

  [Symbol.iterator](): IterableIterator<[string, Shelved<Session>]> {
    return this.#bySlot[Symbol.iterator]();
  }

  has(slot: string): boolean {
    return this.#bySlot.has(slot);
  }

  put(slot: string, shelved: Shelved<Session>): void {
    this.#bySlot.set(slot, shelved);
    const slots = this.#byKey.get(shelved.key);
    if (slots === undefined) this.#byKey.set(shelved.key, new Set([slot]));
    else slots.add(slot);
  }

  take(slot: string): Shelved<Session> | undefined {
    const shelved = this.#bySlot.get(slot);
    if (shelved === undefined) return undefined;
    this.#bySlot.delete(slot);
    const slots = this.#byKey.get(shelved.key);
    slots?.delete(slot);
    if (slots?.size === 0) this.#byKey.delete(shelved.key);
    return shelved;
  }

  /** The slot of the session that has waited least of those that wait under one of these keys, the first key first. */
  find(keys: readonly string[]): string | undefined {
    for (const key of keys) {
      const slot = [...(this.#byKey.get(key) ?? [])].at(-1);
      if (slot !== undefined) return slot;
    }
    return undefined;
  }

  countOf(key: string): number {
    return this.#byKey.get(key)?.size ?? 0;
  }

  countIf(matches: Matcher<Session>): number {
    return [...this.#bySlot.values()].filter(({ session, key }) => matches(session, key)).length;
  }
}

/** How many sessions will probably be there in a moment, by key. */
export class Tally {
  readonly #counts: Map<string, number>;

  /** Begins with what another one has. */
  constructor(from?: Tally) {
    this.#counts = new Map(from === undefined ? [] : from.#counts);
  }

  has(key: string): boolean {
    return this.#counts.has(key);
  }

  add(key: string, change: number): void {
    const count = (this.#counts.get(key) ?? 0) + change;
    if (count === 0) this.#counts.delete(key);
    else this.#counts.set(key, count);
  }

  /** Takes one off the first of these keys that has any. Whether there was one. */
  takeOne(keys: readonly string[]): boolean {
    const key = keys.find((one) => this.#counts.has(one));
    if (key !== undefined) this.add(key, -1);
    return key !== undefined;
  }
}
