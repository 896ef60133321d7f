/**
 * Gives a verified identity an upstream session, takes it back, and decides who may have it next.
 *
 * By default that is the same issuer, subject and role with the same settings and nobody else; another user gets a spare
 * that nobody has used, or a fresh connection. One upstream's part of that is here, one role's in `role-pool.ts`.
 */
import { setMaxListeners } from 'node:events';
import type { SecretPair, UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import type { Identity } from '../identity/policy.ts';
import { chooseClaims, type SessionClaims } from '../identity/session-claims.ts';
import { derivePassword } from '../session-sql/credentials.ts';
import { connect } from './connect.ts';
import { createControl, type Control } from './control.ts';
import { Crowd } from './crowd.ts';
import { createHealing, type Healing, type HealingListener } from './healing.ts';
import { createLookup, type Lookup } from './lookup.ts';
import { mendSlot } from './mend.ts';
import { type Lease, type Leasing, PooledLease } from './lease.ts';
import { Neighbours } from './neighbours.ts';
import type { Departure } from './parting.ts';
import { Patience } from './patience.ts';
import { type PoolState, RolePool, type RoleListener, type Surroundings } from './role-pool.ts';
import { nameSession } from './session-name.ts';
import { createSessionMode, type SessionIdentity, type SessionMode } from './session.ts';
import { Secrets, type SecretSetting } from './secrets.ts';
import type { House, SlotCounts } from './slots.ts';
import type { Settings } from './spares.ts';
import { addressesOf } from './whereabouts.ts';

export type { Lease };

/** What a pool has to know of an identity. */
export type Verified = Pick<Identity, 'role' | 'issuer' | 'subject' | 'claims' | 'expiresAt'>;

/** The sessions of one upstream. */
export interface Pool {
  /**
   * A session with this identity on it, verified by the backend itself; `session` is the id that it may be named by upstream.
   *
   * @throws {ProxyError} pool_timeout, upstream_unreachable, upstream_login_rejected, upstream_rejected,
   *   upstream_lost, upstream_protocol, session_setup_failed, claims_too_large,
   *   lookup_empty, lookup_failed, or the signal's reason.
   */
  acquire(
    identity: Verified,
    parameters: ReadonlyMap<string, string>,
    signal: AbortSignal,
    session?: string,
  ): Promise<Lease>;
  /** How many slots of each role are in which state. */
  counts(): Readonly<Record<string, SlotCounts>>;
  /** What there is, for administrators. */
  state(): PoolState;
  /** Has the control connection answer. Throws as `acquire`, when it cannot be had. */
  ping(): Promise<void>;
  /**
   * Sees to it that every login from now on gets a session that was opened later: those that wait are closed, those in use
   * when their client leaves. Returns how many of them there are.
   */
  reconnect(): { readonly closed: number; readonly inUse: number };
  /** Keeps no session and no slot from now on: others are to lease them. Sessions that are in use go on. */
  retire(): void;
  /** Waits for the sessions that are being released, then ends the control connection. */
  close(): Promise<void>;
}

/** Who hears of logins, of slots that users have spoilt, of lookups that failed, and of a server that is elsewhere. */
export interface PoolListener extends HealingListener, RoleListener {
  /** The upstream's name leads to these addresses now, and not to where the control connection was. */
  readonly onMoved: (addresses: readonly string[]) => void;
  /** A lookup that is not required: the login goes on without. */
  readonly onLookupFailed: (error: ProxyError) => void;
  /** It is put aside, until it is healed or a minute has passed. */
  readonly onQuarantine: (slot: string, error: ProxyError) => void;
  /** Another secret lets us in than before: the passwords have been changed. */
  readonly onSecretChange: (setting: SecretSetting) => void;
  /** The server refuses every secret that we have, at most once a minute. */
  readonly onSecretsRefused: () => void;
}

const UNHEARD: PoolListener = {
  onMoved: () => {},
  onEntered: () => {},
  onWaited: () => {},
  onLookupFailed: () => {},
  onQuarantine: () => {},
  onHealed: () => {},
  onHealingFailed: () => {},
  onSecretChange: () => {},
  onSecretsRefused: () => {},
};
const SWEEP_MS = 10_000;
// Soon, because another proxy may wait for the slots that this one has no use for.
const GIVE_BACK_MS = 2_000;
const AGE_MS = 1_000;
const MEET_MS = 1_000;
const LOOK_MS = 2_000;

/** What was left by a login that came to nothing. */
const UNFINISHED: Departure = {
  busy: false,
  idle: false,
  reported: false,
  cancelled: Promise.resolve(true),
};

/**
 * A pool for one upstream, whose secrets these are. Connects when first needed.
 * `listener` hears of each login, each slot that a user has spoilt, and how it went on, and of lookups that failed.
 */
export function createPool(
  upstream: UpstreamConfig,
  secrets: SecretPair,
  listener: PoolListener = UNHEARD,
): Pool {
  return new UpstreamPool(upstream, secrets, listener);
}

class UpstreamPool implements Pool {
  readonly #upstream: UpstreamConfig;
  readonly #control: Control;
  readonly #mode: SessionMode;
  readonly #patience = new Patience();
  readonly #lookup: Lookup | undefined;
  readonly #healing: Healing | undefined;
  readonly #roles: ReadonlyMap<string, RolePool>;
  /** Logins and releases. */
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #neighbours: Neighbours;
  readonly #housekeeping: readonly NodeJS.Timeout[];
  readonly #retired = new AbortController();
  readonly #onMoved: PoolListener['onMoved'];
  readonly #leasing: Leasing;
  #looking = false;

  constructor(upstream: UpstreamConfig, pair: SecretPair, listener: PoolListener) {
    const secrets = new Secrets(pair, listener.onSecretChange, listener.onSecretsRefused);
    this.#upstream = upstream;
    this.#control = createControl(upstream, secrets, () => this.#eachRole((role) => role.forget()));
    this.#mode = createSessionMode(upstream, secrets, this.#control);
    this.#lookup = createLookup(upstream, secrets, listener.onLookupFailed);
    this.#healing = upstream.healSlots
      ? createHealing((slot) => secrets.try((secret) => mendSlot(upstream, secret, slot)), listener)
      : undefined;
    // Every spare that is being logged in listens.
    setMaxListeners(0, this.#retired.signal);
    const around = this.#surroundings(secrets, listener);
    this.#roles = new Map(
      Object.keys(upstream.roles).map((role) => [role, new RolePool(role, around)]),
    );
    this.#onMoved = listener.onMoved;
    this.#leasing = {
      control: this.#control,
      mode: this.#mode,
      describe: (verified, signal) => this.#describe(verified, signal),
      track: (task) => this.#track(task),
    };
    this.#neighbours = new Neighbours(this.#control, secrets, this.#roles, this.#retired.signal);
    const every = (ms: number, then: () => void) => setInterval(then, ms).unref();
    this.#housekeeping = [
      every(SWEEP_MS, () => void this.#control.sweep().catch(nothing)),
      every(GIVE_BACK_MS, () => this.#eachRole((role) => role.giveBack())),
      every(AGE_MS, () => this.#eachRole((role) => role.closeAged())),
      every(MEET_MS, () => void this.#track(this.#neighbours.meet())),
      every(LOOK_MS, () => void this.#look()),
    ];
  }

  acquire(...[identity, settings, signal, session]: Parameters<Pool['acquire']>): Promise<Lease> {
    const admitted = this.#track(this.#admit(identity, settings, signal, session));
    return orLeave(admitted, signal, (lease) => void lease.release(UNFINISHED));
  }

  counts(): Readonly<Record<string, SlotCounts>> {
    return Object.fromEntries([...this.#roles].map(([role, pool]) => [role, pool.counts()]));
  }

  state(): PoolState {
    const roles = [...this.#roles].map(([role, pool]) => [role, pool.state()]);
    return {
      circuit: this.#patience.open ? 'open' : 'closed',
      roles: Object.fromEntries(roles) as PoolState['roles'],
    };
  }

  ping(): Promise<void> {
    return this.#track(this.#control.ping());
  }

  reconnect(): { readonly closed: number; readonly inUse: number } {
    const all = [...this.#roles.values()].map((role) => role.reconnect());
    const sum = (name: 'closed' | 'inUse') => all.reduce((total, one) => total + one[name], 0);
    return { closed: sum('closed'), inUse: sum('inUse') };
  }

  retire(): void {
    if (!this.#retired.signal.aborted) {
      this.#retired.abort(new ProxyError('draining'));
      void this.#track(this.#neighbours.meet());
    }
    this.#eachRole((role) => role.retire());
  }

  async close(): Promise<void> {
    this.retire();
    for (const timer of this.#housekeeping) clearInterval(timer);
    // A login that was given up ends only when the question that it was at is answered.
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    await this.#healing?.close();
    await Promise.all([this.#control.close(), this.#lookup?.close()]);
  }

  #surroundings(secrets: Secrets, listener: PoolListener): Surroundings {
    const upstream = this.#upstream;
    const { maxConnections = Infinity } = upstream.pool;
    const roles = () => [...this.#roles.values()];
    const makeRoom: House['makeRoom'] = (onMade) => roles().some((role) => role.closeIdle(onMade));
    const crowd: Crowd = new Crowd(upstream.pool.maxWaiting, () => makeRoom(() => crowd.onRoom()));
    return {
      upstream,
      control: this.#control,
      mode: this.#mode,
      patience: this.#patience,
      lastEntry: { at: Number.NEGATIVE_INFINITY },
      healing: this.#healing,
      onQuarantine: listener.onQuarantine,
      listener,
      areSecretsRefused: () => secrets.areRefused(upstream),
      retired: this.#retired.signal,
      track: (task) => this.#track(task),
      crowd,
      house: {
        hasRoom: () => roles().reduce((sum, role) => sum + role.connections, 0) < maxConnections,
        makeRoom,
        onRoom: () => this.#eachRole((role) => role.serve()),
      },
      open: ({ identity, settings, question }, slot, signal) =>
        secrets.try((secret) => {
          const credentials = {
            user: slot,
            password: derivePassword(secret, slot),
            role: identity.role,
            parameters: settings,
            question,
            identity: (localPort: number) =>
              this.#mode.startupParameters(identity, slot, localPort, secret),
          };
          return connect(upstream, credentials, signal);
        }),
    };
  }

  /** Lets go of what is connected to where the upstream's name does not lead any more. Never throws. */
  async #look(): Promise<void> {
    const { host, session } = this.#upstream;
    // Standbys may take turns under one name, and none of them knows of leases or identities.
    if (session === 'replica' || this.#looking) return;
    this.#looking = true;
    const addresses = await addressesOf(host);
    this.#looking = false;
    if (addresses === undefined || this.#retired.signal.aborted) return;
    this.#eachRole((role) => role.closeUnlessAt(addresses));
    if (await this.#control.leaveUnlessAt(addresses)) this.#onMoved([...addresses]);
  }

  async #admit(
    verified: Verified,
    settings: Settings,
    signal: AbortSignal,
    session?: string,
  ): Promise<Lease> {
    const { role } = verified;
    const pool = this.#roles.get(role);
    if (pool === undefined) throw new ProxyError('role_forbidden', { role });
    const identity = await this.#describe(verified, signal);
    const entered = await pool.enter({ identity, settings }, signal);
    if (this.#upstream.nameSessions && session !== undefined) {
      await nameSession(entered.session.connection, settings, session, signal).catch(
        (error: unknown) => {
          void this.#track(pool.part(entered, UNFINISHED, false));
          throw error;
        },
      );
    }
    return new PooledLease(entered, pool, this.#leasing);
  }

  /** With the chosen claims, and what is to be known of the subject; of nobody nothing is. */
  async #describe(verified: Verified, signal: AbortSignal): Promise<SessionIdentity> {
    const claims: SessionClaims = {
      claims: chooseClaims(verified.claims, this.#upstream.sessionClaims),
      lookup:
        verified.subject === undefined
          ? undefined
          : await this.#lookup?.row(verified.claims, signal),
    };
    return { ...verified, claims };
  }

  #eachRole(then: (role: RolePool) => void): void {
    for (const role of this.#roles.values()) then(role);
  }

  #track<T>(task: Promise<T>): Promise<T> {
    this.#underWay.add(task);
    return task.finally(() => this.#underWay.delete(task));
  }
}

const nothing = () => {};

/** `task`, or the signal's reason as soon as it aborts; then `abandon` gets what the task still brings. */
function orLeave<T>(task: Promise<T>, signal: AbortSignal, abandon: (late: T) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      reject(signal.reason as Error);
      task.then(abandon, () => {});
    };
    task.finally(() => signal.removeEventListener('abort', onAbort)).then(resolve, reject);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
}
