/**
 * The secrets of an upstream: the one that its server has, and while that is rotated another one beside it.
 *
 * Logs nobody in by itself. Whoever is refused with one secret tries the other, once, so running proxies need not know when
 * `pgjot rotate-secret` changes the passwords; and whether a slot is refused for its own sake, or all are, is told by
 * the control role, whose password no user can change.
 */
import { createHmac } from 'node:crypto';
import type { SecretPair, UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { CONTROL_ROLE } from '../session-sql/credentials.ts';
import { asRole } from './errand.ts';

/** Where a secret stands in the configuration. */
export type SecretSetting = 'secret' | 'previousSecret';

/** How long the answer of `areRefused` holds: whoever spoils slot after slot causes one login a second, not one for each. */
const VERDICT_MS = 1_000;
const TELL_AGAIN_MS = 60_000;

/** One upstream's secrets, and which of them its server has, as far as logins have shown. */
export class Secrets {
  readonly #all: readonly string[];
  readonly #onChange: (setting: SecretSetting) => void;
  readonly #onRefused: () => void;
  #toldAt = Number.NEGATIVE_INFINITY;
  #inUse = 0;
  #verdict: { readonly refused: Promise<boolean>; readonly until: number } | undefined;

  /**
   * @param onChange hears which setting logins succeed with from now on, when that is another one than before.
   * @param onRefused hears, at most once a minute, that the server refuses all of them.
   */
  constructor(
    { current, previous }: SecretPair,
    onChange: (setting: SecretSetting) => void = () => {},
    onRefused: () => void = () => {},
  ) {
    this.#all = previous === undefined || previous === current ? [current] : [current, previous];
    this.#onChange = onChange;
    this.#onRefused = onRefused;
  }

  /** The secret that let us in last; until one has, the current one. */
  get inUse(): string {
    return this.#all[this.#inUse] as string;
  }

  /** All of them, the current one first. */
  get all(): readonly string[] {
    return this.#all;
  }

  /**
   * What `attempt` brings with the secret that worked last or, where PostgreSQL refuses that password, with the other one.
   *
   * @throws what the last attempt threw.
   */
  async try<T>(attempt: (secret: string) => Promise<T>): Promise<T> {
    const first = this.#inUse;
    const other = 1 - first;
    try {
      return await attempt(this.#all[first] as string);
    } catch (error) {
      if (this.#all.length === 1 || !isPasswordRefused(error)) throw error;
    }
    const result = await attempt(this.#all[other] as string);
    if (this.#inUse !== other) {
      this.#inUse = other;
      this.#onChange(other === 0 ? 'secret' : 'previousSecret');
    }
    return result;
  }

  /** Whether the server refuses every secret, even for the control role. Asks it once a second at most; never throws. */
  areRefused(upstream: UpstreamConfig): Promise<boolean> {
    const now = performance.now();
    if (this.#verdict === undefined || this.#verdict.until < now) {
      const asked = this.try((secret) =>
        asRole(
          { user: CONTROL_ROLE, name: 'pgjot secret check', upstream, secret },
          async () => false,
        ),
      );
      const refused = asked.catch((error: unknown) => {
        const all = isPasswordRefused(error);
        if (all && performance.now() - this.#toldAt > TELL_AGAIN_MS) {
          this.#toldAt = performance.now();
          this.#onRefused();
        }
        return all;
      });
      this.#verdict = { refused, until: now + VERDICT_MS };
    }
    return this.#verdict.refused;
  }

  /**
   * What a control connection says of two secrets in its name, which every user of the server can read: so little of a hash
   * that no secret can be guessed by it, and enough that a mistyped one is all but sure to show. Empty where there is one.
   */
  get sign(): string {
    return this.#all.length === 1 ? '' : `keys:${this.#all.map(fingerprint).join(',')}`;
  }
}

/** The fingerprint of a secret in `Secrets.sign`: 12 bits. */
export function fingerprint(secret: string): string {
  return createHmac('sha256', secret).update('fingerprint\0').digest('hex').slice(0, 3);
}

/** Whether an error is PostgreSQL's refusal of a password, 28P01. */
export function isPasswordRefused(error: unknown): boolean {
  const cause = error instanceof ProxyError ? error.cause : error;
  const { sqlstate, code } = (cause ?? {}) as { sqlstate?: string; code?: string };
  return (sqlstate ?? code) === '28P01';
}
