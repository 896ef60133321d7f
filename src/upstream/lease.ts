/**
 * An upstream session while it belongs to one client: its stream, its identity that may be renewed or taken off, its return.
 *
 * An object with methods rather than closures, since there are many, and each is silent most of the time.
 */
import type { Duplex } from 'node:stream';
import { ProxyError } from '../errors.ts';
import type { CancelTarget } from './cancel.ts';
import type { Control } from './control.ts';
import type { Entered } from './entry.ts';
import type { Departure } from './parting.ts';
import type { Verified } from './pool.ts';
import type { RolePool } from './role-pool.ts';
import type { SessionIdentity, SessionMode } from './session.ts';

/** A lease. */
export interface Lease {
  /** The session's stream; the splice may replace it with one that reads faster. */
  readonly peer: { stream: Duplex };
  /** ParameterStatus and NoticeResponse frames of its login. */
  readonly greeting: readonly Buffer[];
  readonly cancelTarget: CancelTarget;
  /** The LOGIN role, for the log. */
  readonly slot: string;
  /**
   * Gives the session the claims and the end of another token of the same subject, if `assertGood` lets it when all is known
   * of it that a lookup says. Undefined where the session mode cannot.
   *
   * @throws {ProxyError} what `assertGood` throws, claims_too_large, lookup_empty, lookup_failed, upstream_unreachable, upstream_rejected,
   *   upstream_login_rejected, or the signal's reason.
   */
  readonly renew:
    | ((identity: Verified, signal: AbortSignal, assertGood: () => void) => Promise<void>)
    | undefined;
  /** Takes the identity off at once, for whoever it was revoked; the session goes on as nobody's. Never throws. */
  disown(): Promise<void>;
  /**
   * Takes the session back, to be kept for its next user or closed; resolves when it is. A slot is free when its backend
   * is gone. Never throws; only the first call counts.
   */
  release(departure: Departure): Promise<void>;
  /** Called once, when it has been released. */
  onReleased?: () => void;
}

/** What leases need of their pool. */
export interface Leasing {
  readonly control: Control;
  readonly mode: SessionMode;
  /** With the chosen claims, and what a lookup says. */
  describe(identity: Verified, signal: AbortSignal): Promise<SessionIdentity>;
  /** Has whoever closes the pool wait for this. */
  track<T>(task: Promise<T>): Promise<T>;
}

/** A lease of a pool's. */
export class PooledLease implements Lease {
  onReleased?: () => void;
  readonly #entered: Entered;
  readonly #pool: RolePool;
  readonly #leasing: Leasing;
  /** A question about its identity that was not answered as it should be leaves it uncertain. */
  #renewing = false;
  #disowned = false;
  #released: Promise<void> | undefined;

  constructor(entered: Entered, pool: RolePool, leasing: Leasing) {
    this.#entered = entered;
    this.#pool = pool;
    this.#leasing = leasing;
  }

  get peer(): Lease['peer'] {
    return this.#entered.session.connection;
  }

  /** As it is now: a reset makes another one, for the next user. */
  get greeting(): readonly Buffer[] {
    return [...this.#entered.session.connection.greeting];
  }

  get cancelTarget(): CancelTarget {
    return this.#entered.session.cancelTarget;
  }

  get slot(): string {
    return this.#entered.slot.name;
  }

  get renew(): Lease['renew'] {
    if (this.#leasing.mode.renew === undefined) return undefined;
    return (...given) => this.#renew(...given);
  }

  async disown(): Promise<void> {
    // What is on the backend may be its next user's by now.
    if (this.#released !== undefined) return;
    this.#disowned = true;
    await this.#leasing.control.unbind(this.#entered.session.backend).catch(() => {});
  }

  release(departure: Departure): Promise<void> {
    this.#released ??= this.#leasing.track(this.#part(departure));
    return this.#released;
  }

  async #part(departure: Departure): Promise<void> {
    try {
      await this.#pool.part(this.#entered, departure, !this.#renewing && !this.#disowned);
    } finally {
      this.onReleased?.();
    }
  }

  async #renew(
    ...[renewed, until, assertGood]: Parameters<NonNullable<Lease['renew']>>
  ): Promise<void> {
    const { session } = this.#entered;
    const wanted = await this.#leasing.describe(renewed, until);
    assertGood();
    // Its backend may have been left, or soon be somebody else's.
    if (this.#released !== undefined) throw new ProxyError('client_lost');
    this.#renewing = true;
    await this.#leasing.mode.renew?.(session.backend, wanted);
    session.identity = wanted;
    this.#renewing = false;
  }
}
