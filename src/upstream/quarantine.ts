/**
 * Slots that are put aside for a while, because of what their last user did to them.
 */

/** Those that nobody may have, by name, and until when in ms since the epoch. */
export class Quarantine extends Map<string, number> {
  /** Puts a slot aside for so long. What this returns ends that sooner, and says whether it was not over already. */
  putAside(name: string, ms: number): () => boolean {
    const until = Date.now() + ms;
    this.set(name, until);
    return () => this.get(name) === until && this.delete(name);
  }

  /** Takes out those whose time is over. */
  takeRecovered(): string[] {
    const now = Date.now();
    const names = [...this].filter(([, until]) => until <= now).map(([name]) => name);
    for (const name of names) this.delete(name);
    return names;
  }
}
