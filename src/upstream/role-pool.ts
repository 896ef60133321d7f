/**
 * The sessions of one role: finds or opens one for a login, keeps spares for those who have none yet, and takes them back.
 *
 * Who may have which is in `reuse.ts`, how one is opened in `entry.ts`, what becomes of one in `parting.ts`, and how slots go
 * round in `slots.ts`.
 */
import type { UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import type { UpstreamConnection } from './connect.ts';
import type { Crowd } from './crowd.ts';
import type { Hello } from './control.ts';
import { enter, type Door, type Entered } from './entry.ts';
import { isSilent, keep, leave, shelve, type Departure } from './parting.ts';
import type { Patience } from './patience.ts';
import { prove } from './reset.ts';
import { createReuse, isSameIdentity, type Reuse } from './reuse.ts';
import type { Session, SessionIdentity, SessionMode } from './session.ts';
import { Slots, type House, type Slot, type SlotCounts } from './slots.ts';
import { Demand, isSpareKey, settingsKey, spareKey, type Settings } from './spares.ts';
import { leadsElsewhere } from './whereabouts.ts';

/** What a login wants. */
export interface Wanted {
  readonly identity: SessionIdentity;
  readonly settings: Settings;
  /** What is asked of a new session with its login. */
  readonly question?: Buffer | undefined;
}

/** What a role's sessions share with those of the other roles of their upstream. */
export interface Surroundings
  extends Pick<Door, 'control' | 'onQuarantine' | 'areSecretsRefused' | 'lastEntry' | 'healing'> {
  readonly upstream: UpstreamConfig;
  readonly listener: RoleListener;
  readonly mode: SessionMode;
  readonly patience: Patience;
  readonly house: House;
  /** Who waits for the server to have room, of whatever role. */
  readonly crowd: Crowd;
  /** Logs in as a slot, for what is wanted. */
  readonly open: (wanted: Wanted, slot: string, signal: AbortSignal) => Promise<UpstreamConnection>;
  /** From when on nothing is kept any more. */
  readonly retired: AbortSignal;
  /** Has whoever closes the pool wait for this. */
  readonly track: <T>(task: Promise<T>) => Promise<T>;
}

// A login that needs a fresh connection must not wait for many that are only for later; and where many do, none is made for later.
const SPARES_AT_ONCE = 2;
const TOO_BUSY_FOR_SPARES = 4;

/** Where a client's session comes from: one that had a user before, one that was logged in ahead of time, or a new one. */
export type Source = 'reused' | 'spare' | 'fresh';

/** Who hears how logins to a role fare. */
export interface RoleListener {
  /** A client has this session. */
  readonly onEntered: (role: string, source: Source) => void;
  /** A login has waited so long for a slot, or in vain. */
  readonly onWaited: (role: string, ms: number) => void;
}

/** A pool as administrators see it. */
export interface PoolState {
  /** Open while logins give up at once, because the last ones waited in vain. */
  readonly circuit: 'open' | 'closed';
  readonly roles: Readonly<
    Record<
      string,
      { readonly counts: SlotCounts; readonly quarantined: ReadonlyMap<string, number> }
    >
  >;
}

/** One role's part of a pool. */
export class RolePool {
  readonly #role: string;
  readonly #around: Surroundings;
  readonly #slots: Slots<Session>;
  readonly #reuse: Reuse;
  readonly #demand = new Demand();
  readonly #maxSpares: number;
  #sparesComing = 0;
  /** How many logins are opening a session of their own. */
  #opening = 0;
  /** How often it has been told to reconnect: sessions of earlier eras serve nobody else. */
  #era = 0;

  constructor(role: string, around: Surroundings) {
    const { pool, roles } = around.upstream;
    const { slots = 0, maxConnections = slots } = roles[role] ?? {};
    this.#role = role;
    this.#around = around;
    this.#reuse = createReuse(pool.reuse, around.mode);
    this.#maxSpares = Math.min(pool.spares, Math.floor(Math.min(slots, maxConnections) / 4));
    this.#slots = new Slots<Session>({
      role,
      source: around.control,
      maxConnections,
      maxWaiting: pool.maxWaiting,
      house: around.house,
      close: (slot) => void around.track(this.#close(slot)),
    });
  }

  /**
   * A session with this identity on it, which the backend itself has confirmed.
   *
   * @throws {ProxyError} as `Pool.acquire`.
   */
  async enter(wanted: Wanted, signal: AbortSignal): Promise<Entered> {
    const { acquireTimeoutMs, connectTimeoutMs } = this.#around.upstream;
    const settings = settingsKey(wanted.settings);
    const deadline = performance.now() + acquireTimeoutMs;
    const { listener } = this.#around;
    const onWaited = (ms: number) => listener.onWaited(this.#role, ms);
    let keys = this.#reuse.keysFor(wanted.identity, settings);
    const entered = await this.#around.patience.try(connectTimeoutMs, signal, async () => {
      for (;;) {
        const opening = this.#door(wanted, settings, deadline);
        const open = (...its: Parameters<Door['open']>) => this.#count(() => opening.open(...its));
        const door = { ...opening, open, request: { keys }, onWaited };
        const found = await enter(this.#slots, door, signal);
        const isKept = found.slot.session !== undefined;
        try {
          if (isKept) await takeUp(found.session, this.#role);
          await this.#install(found.session, wanted.identity, signal);
          listener.onEntered(this.#role, sourceOf(found, isKept));
          found.session.used = true;
          return found;
        } catch (error) {
          void this.#around.track(leave(found, this.#around.control, false));
          signal.throwIfAborted();
          if (!isKept) throw error;
          // It may have died meanwhile. The next attempt is with a new one.
          keys = [];
        }
      }
    });
    if (this.#demand.note(settings)) this.#makeSpares(wanted, settings);
    return entered;
  }

  /**
   * Keeps a session that its client has left in order, and closes any other. `certain` is whether the identity on it is
   * the one that it is said to have. Never throws.
   */
  async part(entered: Entered, departure: Departure, certain: boolean): Promise<void> {
    const { session } = entered;
    const { control, retired, upstream } = this.#around;
    const key = certain ? this.#reuse.keyToKeep(session) : undefined;
    if (departure.idle && key !== undefined && this.#isWorthKeeping(session, key)) {
      session.keptUntil = performance.now() + jittered(upstream.pool.idleTimeoutMs);
      const { forAnybody } = this.#reuse;
      const keeping = { slots: this.#slots, key, role: this.#role, forAnybody };
      const kept = await keep(entered, keeping, departure, control);
      if (retired.aborted) this.retire();
      // It may have been told to reconnect while that session was being reset.
      this.#slots.evict((one) => one.era !== this.#era);
      if (kept) return;
    }
    await leave(entered, control, departure.busy);
    this.#around.crowd.onRoom();
    // A successor may need its slot.
    if (retired.aborted) this.#slots.giveBack();
  }

  /** Has every login from now on get a session of its own era. Returns how many of earlier ones there are. */
  reconnect(): { readonly closed: number; readonly inUse: number } {
    this.#era++;
    const inUse = this.#slots.counts().busy;
    return { closed: this.#slots.evict(() => true), inUse };
  }

  /** Closes what waits for a next user, and gives the free slots back. */
  retire(): void {
    this.#slots.evict(() => true);
    this.#slots.giveBack();
  }

  /** Closes sessions that have waited for too long, or are too old. */
  closeAged(): void {
    const now = performance.now();
    this.#slots.evict(({ keptUntil, oldAt }) => Math.min(keptUntil, oldAt) < now);
  }

  /** Closes what waits for a next user on a server at none of these addresses. */
  closeUnlessAt(addresses: ReadonlySet<string>): void {
    this.#slots.evict(({ connection }) => leadsElsewhere(connection.stream, addresses));
  }

  /** Has the longest idle session closed; `onClosed` is called when it is gone. Whether there was one. */
  closeIdle(onClosed: () => void): boolean {
    return this.#slots.giveUpOldest(onClosed);
  }

  /** Gives up to so many slots of idle sessions to other proxies. */
  yield(count: number): void {
    this.#slots.yield(count);
  }

  /** Whether logins wait for slots that other proxies have. */
  get starving(): boolean {
    return this.#slots.starving;
  }

  giveBack(): void {
    this.#slots.giveBack();
  }

  /** The leases of all slots are lost. */
  forget(): void {
    this.#slots.forget();
  }

  /** There may be room for somebody who waits. */
  serve(): void {
    this.#slots.serve();
  }

  counts(): SlotCounts {
    return this.#slots.counts();
  }

  state(): PoolState['roles'][string] {
    return { counts: this.#slots.counts(), quarantined: this.#slots.quarantined };
  }

  get connections(): number {
    return this.#slots.connections;
  }

  async #install(session: Session, identity: SessionIdentity, signal: AbortSignal): Promise<void> {
    if (session.identity !== undefined && isSameIdentity(session.identity, identity)) return;
    session.identity = undefined;
    await this.#around.mode.install(session.connection, session.backend, identity, signal);
    session.identity = identity;
  }

  /** Counts a login in for as long as it opens a session of its own. */
  async #count<T>(open: () => Promise<T>): Promise<T> {
    this.#opening++;
    try {
      return await open();
    } finally {
      this.#opening--;
    }
  }

  #door(wanted: Wanted, settings: string, deadline: number): Omit<Door, 'request'> {
    const { open, crowd, mode, control, onQuarantine, areSecretsRefused, lastEntry, healing } =
      this.#around;
    // From before it logs in: what it logs in with may be an earlier era's still.
    const era = this.#era;
    return {
      open: (slot, signal) => crowd.enter(deadline, signal, () => open(wanted, slot, signal)),
      deadline,
      greet: (connection, signal) => mode.greet(connection, signal),
      describe: (connection, backend) => this.#newborn(connection, backend, settings, era),
      control,
      onQuarantine,
      areSecretsRefused,
      lastEntry,
      healing,
    };
  }

  #newborn(connection: UpstreamConnection, backend: Hello, settings: string, era: number): Session {
    const { upstream } = this.#around;
    const { processId, secretKey } = connection;
    const oldAt = performance.now() + jittered(upstream.pool.lifetimeMs);
    const cancelTarget = { upstream, processId, secretKey };
    const state = { identity: undefined, keptUntil: oldAt, era, used: false, unproven: undefined };
    return { connection, backend, cancelTarget, settings, oldAt, ...state, unwatch: () => {} };
  }

  #isWorthKeeping({ oldAt, era }: Session, key: string): boolean {
    if (era !== this.#era) return false;
    return !this.#around.retired.aborted && performance.now() < oldAt && this.#slots.wouldUse(key);
  }

  async #close(slot: Slot<Session>): Promise<void> {
    const session = slot.session as Session;
    session.unwatch();
    await leave({ slot, session }, this.#around.control, false);
  }

  /** Sees to it that the next user who has no session with these settings finds one. */
  #makeSpares(wanted: Wanted, settings: string): void {
    const { mode, retired, track } = this.#around;
    const key = spareKey(settings);
    const missing = this.#maxSpares - this.#slots.idle.countOf(key) - this.#sparesComing;
    if (!mode.adopts || retired.aborted || missing <= 0) return;
    if (this.#sparesComing >= SPARES_AT_ONCE || this.#opening >= TOO_BUSY_FOR_SPARES) return;
    // Those of other settings make room, should all together be too many.
    const isOther = (_: Session, other: string) => isSpareKey(other) && other !== key;
    this.#slots.evict(isOther, this.#slots.idle.countIf(isOther) - missing + 1);
    this.#sparesComing++;
    const made = this.#makeSpare(wanted, settings, key).finally(() => this.#sparesComing--);
    // Whoever logs in next tries again what has failed.
    track(made).then(
      () => this.#makeSpares(wanted, settings),
      () => {},
    );
    this.#makeSpares(wanted, settings);
  }

  async #makeSpare(wanted: Wanted, settings: string, key: string): Promise<void> {
    const { upstream, mode, patience, retired, control } = this.#around;
    const deadline = performance.now() + upstream.connectTimeoutMs;
    // Where the server is full a spare is not waited for.
    const question = mode.rehearsal?.question;
    const opening = this.#door({ ...wanted, question }, settings, 0);
    const door = { ...opening, request: { keys: [], spare: key }, deadline };
    const entered = await patience.try(0, retired, () => enter(this.#slots, door, retired));
    const { connection, backend, era } = entered.session;
    // A backend that never answers would keep its slot, and the place of another spare.
    const timer = setTimeout(() => connection.stream.destroy(), upstream.connectTimeoutMs);
    let isAtWork = true;
    try {
      await mode.rehearsal?.check(connection, backend, retired);
      isAtWork = false;
      retired.throwIfAborted();
      if (era !== this.#era) throw new ProxyError('upstream_lost');
      shelve(entered, this.#slots, key);
    } catch (error) {
      await leave(entered, control, isAtWork);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

function sourceOf({ session }: Entered, isKept: boolean): Source {
  if (!isKept) return 'fresh';
  return session.used ? 'reused' : 'spare';
}

/** Give or take a tenth, so that what began together does not end together. */
function jittered(ms: number): number {
  return ms * (0.9 + 0.2 * Math.random());
}

/**
 * Takes a kept session up again.
 *
 * @throws {ProxyError} upstream_lost when it has ended, or has said what nobody has read; and as `prove`.
 */
async function takeUp(session: Session, role: string): Promise<void> {
  session.unwatch();
  if (!isSilent(session)) throw new ProxyError('upstream_lost');
  if (session.unproven === undefined) return;
  await prove(session, role);
  if (!isSilent(session)) throw new ProxyError('upstream_lost');
}
