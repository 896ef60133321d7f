/**
 * Which settings spare sessions should be logged in with: those that clients have used before.
 *
 * A session's settings are what RESET returns to, so a spare is good only for a client that asks for exactly its own. The
 * clients of an application all do. Opens no session itself.
 */

/** Settings that clients ask for in their StartupMessage. */
export type Settings = ReadonlyMap<string, string>;

// A client may send others at each login, so few are remembered, and once is not enough.
const MAX_REMEMBERED = 16;
const LOGINS_TO_MATTER = 2;

/** The same for the same settings in any order. */
export function settingsKey(settings: Settings): string {
  return JSON.stringify([...settings].toSorted(([one], [other]) => (one < other ? -1 : 1)));
}

/** What one role's clients have asked for lately. */
export class Demand {
  /** Logins by key, the most recent last. */
  readonly #logins = new Map<string, number>();

  /** Counts a login. Whether such logins come often enough for spares. */
  note(key: string): boolean {
    const logins = (this.#logins.get(key) ?? 0) + 1;
    this.#logins.delete(key);
    this.#logins.set(key, logins);
    const [oldest] = this.#logins.keys();
    if (this.#logins.size > MAX_REMEMBERED && oldest !== undefined) this.#logins.delete(oldest);
    return logins >= LOGINS_TO_MATTER;
  }
}

/** Under which key the spares of these settings are kept. */
export function spareKey(settings: string): string {
  return JSON.stringify(['spare', settings]);
}

/** Whether a key is one of spares. */
export function isSpareKey(key: string): boolean {
  return key.startsWith('["spare",');
}
