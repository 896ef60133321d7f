/**
 * Tells the other proxies of a database when this one waits for slots, and hears when they do, so that idle sessions of one
 * do not keep the users of another waiting.
 *
 * It is said in the name of the control connection, where other control connections read it and no client can write it, and
 * which goes when the connection does. A second late, and good for a few slots at a time.
 */
import { createHash } from 'node:crypto';
import { controlName, type Control } from './control.ts';
import type { RolePool } from './role-pool.ts';
import type { Secrets } from './secrets.ts';

// PostgreSQL cuts the name at 63 bytes, of which up to 13 tell of secrets.
const MAX_NAMED = 4;
/** Said by a pool that lets nobody in any more: its secrets do not matter. */
const RETIRED = 'retired';
const SLOTS_AT_ONCE = 4;

/** A proxy among those that share the slots of a database. */
export class Neighbours {
  readonly #control: Control;
  readonly #roles: ReadonlyMap<string, RolePool>;
  readonly #secrets: Secrets;
  readonly #retired: AbortSignal;
  #said: string;

  constructor(
    control: Control,
    secrets: Secrets,
    roles: ReadonlyMap<string, RolePool>,
    retired: AbortSignal,
  ) {
    this.#retired = retired;
    this.#control = control;
    this.#roles = roles;
    this.#secrets = secrets;
    this.#said = controlName(secrets, []);
  }

  /** Says what has changed, and gives what others need. To be called once a second. Never throws. */
  async meet(): Promise<void> {
    try {
      await this.#say();
      await this.#listen();
    } catch {
      // Without a control connection nobody gets a slot anyway; the next one will have the right name.
    }
  }

  async #say(): Promise<void> {
    const starving = [...this.#roles]
      .filter(([, role]) => role.starving)
      .map(([name]) => short(name));
    const words = this.#retired.aborted ? [RETIRED] : starving.slice(0, MAX_NAMED);
    const name = controlName(this.#secrets, words);
    if (name === this.#said) return;
    this.#said = name;
    await this.#control.rename(name);
  }

  async #listen(): Promise<void> {
    const generous = [...this.#roles].filter(
      ([, role]) => !role.starving && role.counts().idle > 0,
    );
    if (generous.length === 0) return;
    const names = await this.#control.neighbours();
    const wanted = new Set(names.flatMap((name) => name.split(' ')));
    for (const [name, role] of generous) if (wanted.has(short(name))) role.yield(SLOTS_AT_ONCE);
  }
}

/** Roles may have long names, with spaces in them. */
function short(role: string): string {
  return createHash('sha256').update(role).digest('hex').slice(0, 8);
}
