/**
 * Which slot is whose: leased ones that are vacant, those with a session that waits for its next user, busy ones,
 * quarantined ones, and who waits for one.
 *
 * A slot is a LOGIN role that one live session uses at a time. This is one proxy's part of the book, several of which share
 * a database's slots by leasing them there. It opens and closes no session itself.
 *
 *              lease                acquire               release (its backend is gone)
 *   database ─────────▶ vacant ────────────────▶ busy ─────────────────▶ vacant
 *                                               ▲ │ │ keep (its session is as good as new)
 *                                       acquire │ │ └──────────────────▶ idle ──(somebody needs the slot, or it is old)──▶ closed
 *                                               └─┼──────────────────────┘
 *                                                 │ quarantine (its user changed it)
 *                                                 └──────────────────────▶ quarantined ──(a while, or mended)──▶ vacant
 */
import { ProxyError } from '../errors.ts';
import { Quarantine } from './quarantine.ts';
import { SlotUse, type UseListener } from './slot-use.ts';
import { Shelf, Tally, type Matcher, type Shelved } from './shelf.ts';
import { Waiters } from './waiters.ts';

/** The part of the control connection that slots need. */
export interface SlotSource {
  lease(role: string, count: number): Promise<string[]>;
  giveBack(slots: readonly string[]): Promise<void>;
}

/** A slot in use; `release`, `keep` or `quarantine` ends that use, once. */
export interface Slot<Session> {
  readonly name: string;
  /** The session that was kept on it, which its user may have; else a new one has to log in with it. */
  readonly session: Session | undefined;
  /** Says that it will soon be kept under this key, so that whoever wants just that waits for it; or, `undefined`, that it will not. */
  expect(key: string | undefined): void;
  /** Its backend is gone, so another session may have it. */
  release(): void;
  /** Its session is to be had by whoever wants this key, until somebody else needs the slot. */
  keep(session: Session, key: string): void;
  /**
   * It is no good at present (its user changed its password or settings), so nobody may have it for so long; or until
   * the function that this returns is called, because it has been mended.
   */
  quarantine(ms: number): () => void;
}

/** How somebody wants a slot. */
export interface SlotRequest {
  /** Keys of kept sessions that will do, the best first. Any vacant slot does as well. */
  readonly keys: readonly string[];
  /** How long to wait, in ms. */
  readonly patienceMs: number;
  /** Only what nobody else waits for; and no session that is kept under this key is given up for it. */
  readonly spare?: string;
}

/** What bounds the slots of one role, and who closes sessions. */
export interface SlotOptions<Session> {
  readonly role: string;
  readonly source: SlotSource;
  /** How many connections of the role there may be. */
  readonly maxConnections: number;
  /** How many may wait. */
  readonly maxWaiting: number;
  /** What all roles of the upstream share. */
  readonly house: House;
  /** Closes the session that is kept on this slot, and releases the slot. */
  readonly close: (slot: Slot<Session>) => void;
}

/** How many connections an upstream may have, over all its roles. */
export interface House {
  /** Whether there may be one more. */
  hasRoom(): boolean;
  /** Has an idle session of some role closed; `onMade` is called when it is gone. Whether there was one. */
  makeRoom(onMade: () => void): boolean;
  /** There is one less. */
  onRoom(): void;
}

/** How many slots are in which state. */
export interface SlotCounts {
  /** Leased and vacant. */
  readonly free: number;
  /** With a session that waits for its next user. */
  readonly idle: number;
  readonly busy: number;
  readonly quarantined: number;
  /** Logins that wait. */
  readonly waiting: number;
}

/** How long a slot is put aside that an administrator has to mend, in ms. */
export const QUARANTINE_MS = 60_000;

const LEASE_BATCH = 4;
// What one proxy keeps for itself: enough that steady traffic needs no lease, few enough to leave the others some.
const KEEP_FREE = 16;
const RETRY_LEASE_MS = 100;
const GENEROUS_MS = 2_000;
const PRESSED_MS = 1_000;

/** The book of one role's slots. */
export class Slots<Session> implements UseListener<Session> {
  readonly #options: SlotOptions<Session>;
  readonly #vacant: string[] = [];
  readonly #idle = new Shelf<Session>();
  readonly quarantined = new Quarantine();
  readonly #waiters: Waiters<Slot<Session>>;
  readonly #busy = new Set<string>();
  /** How many busy ones will probably come back under a key. */
  readonly #expected = new Tally();
  /** Sessions that are being closed because somebody who waits needs their slots. */
  #promised = 0;
  /** Bumped when the leases are lost: what was leased before must not come back as free. */
  #generation = 0;
  #leasing = false;
  /** Armed while the database is known to have none. */
  #retry: NodeJS.Timeout | undefined;
  /** Whether it had none when it was last asked. */
  #exhausted = false;
  /** Until when slots go back to the database rather than to nobody, on the clock of `performance.now()`. */
  #generousUntil = 0;
  /** Until when what is kept counts as likely to be given up, on the same clock. */
  #pressedUntil = 0;

  constructor(options: SlotOptions<Session>) {
    this.#options = options;
    this.#waiters = new Waiters(options.maxWaiting, () => this.#calmDown());
  }

  /**
   * A slot for one session, first come first served.
   *
   * @throws {ProxyError} pool_timeout when none came free in time or too many wait already; upstream_unreachable, when
   *   the database could not be asked for one; or the signal's reason.
   */
  acquire(request: SlotRequest, signal: AbortSignal): Promise<Slot<Session>> {
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    const isFirst = request.spare === undefined ? this.#waiters.size === 0 : this.#waiters.empty;
    const mayBeFresh = isFirst && !request.keys.some((key) => this.#expected.has(key));
    const slot = this.#kept(request) ?? (mayBeFresh ? this.#fresh() : undefined);
    if (slot !== undefined) return Promise.resolve(slot);
    const given = this.#waiters.wait(request, signal, () => this.#timedOut());
    this.serve();
    return given;
  }

  /** Whether a session that comes back under this key is likely to be used: nobody waits, or somebody for just that. */
  wouldUse(key: string): boolean {
    return this.#waiters.size === 0 || this.#waiters.want(key);
  }

  /** The sessions that are kept. */
  get idle(): Pick<Shelf<Session>, 'countOf' | 'countIf'> {
    return this.#idle;
  }

  /** Has the kept sessions closed that match, the longest idle first, and at most so many. Returns how many these are. */
  evict(matches: Matcher<Session>, most = Infinity, onEnd = nothing): number {
    let evicted = 0;
    for (const [name, { session, key }] of this.#idle) {
      if (evicted >= most) break;
      if (!matches(session, key)) continue;
      evicted++;
      this.#options.close(this.#take(name, onEnd));
    }
    return evicted;
  }

  /** Has the session closed that was kept longest, but not under this key, because others need its slot. Whether there was one. */
  giveUpOldest(onEnd: () => void, spared?: string): boolean {
    const given = this.evict((_, key) => key !== spared, 1, onEnd) > 0;
    if (given && spared === undefined) this.#pressedUntil = performance.now() + PRESSED_MS;
    return given;
  }

  /** Whether sessions that were kept have lately been given up for others. */
  get pressed(): boolean {
    return performance.now() < this.#pressedUntil;
  }

  /** Has some idle sessions closed, and gives the database what comes free for a while. */
  yield(count: number): void {
    this.#generousUntil = performance.now() + GENEROUS_MS;
    this.evict(() => true, count);
    this.giveBack();
  }

  /** Whether logins wait for slots that the database does not have. */
  get starving(): boolean {
    return this.#exhausted && this.#waiters.size > 0;
  }

  /** Gives the free slots back to the database, and those whose quarantine is over, so that an idle proxy starves no busy one. */
  giveBack(): void {
    this.#vacant.push(...this.quarantined.takeRecovered());
    if (this.#vacant.length > 0) this.#giveBack(this.#vacant.splice(0));
  }

  /** Forgets the free slots: the control connection that leased them is gone. Sessions that live keep others off theirs. */
  forget(): void {
    this.#generation++;
    this.#vacant.length = 0;
    this.quarantined.clear();
  }

  counts(): SlotCounts {
    return {
      free: this.#vacant.length,
      idle: this.#idle.size,
      busy: this.#busy.size,
      quarantined: this.quarantined.size,
      waiting: this.#waiters.size,
    };
  }

  /** How many connections there are, or will be at once. */
  get connections(): number {
    return this.#busy.size + this.#idle.size;
  }

  /** Hands out what there is to those who wait, in their order, and sees to it that there will be more. */
  serve(): void {
    if (this.#waiters.empty) return;
    let promised = this.#promised;
    const expected = new Tally(this.#expected);
    for (const waiter of this.#waiters) {
      const { request } = waiter;
      const kept = this.#kept(request);
      if (kept === undefined && expected.takeOne(request.keys)) continue;
      const slot = kept ?? this.#fresh();
      if (slot !== undefined) waiter.resolve(slot);
      else if (promised-- > 0) continue;
      else if (!this.#makeRoom(request)) break;
    }
  }

  /** The session that was used last of those that are kept for such a request. */
  #kept({ keys }: SlotRequest): Slot<Session> | undefined {
    const name = this.#idle.find(keys);
    return name === undefined ? undefined : this.#take(name);
  }

  /** A vacant slot, where one more connection is allowed. */
  #fresh(): Slot<Session> | undefined {
    if (this.#vacant.length === 0 || !this.#mayConnect()) return undefined;
    return this.#use(this.#vacant.shift() as string, { leasedIn: this.#generation });
  }

  #mayConnect(): boolean {
    return this.connections < this.#options.maxConnections && this.#options.house.hasRoom();
  }

  /** Sees to it that there will be a slot for somebody who waits. Whether there is anything to hope for at once. */
  #makeRoom({ spare }: SlotRequest): boolean {
    if (this.#leasing) return true;
    if (this.#mayConnect() && this.#retry === undefined) {
      void this.#lease();
      return true;
    }
    const broken = this.#promise();
    if (this.giveUpOldest(broken, spare)) return true;
    // Other roles' sessions are in the way only where room is all that is missing.
    const { house, maxConnections } = this.#options;
    const isInVain = spare !== undefined || house.hasRoom() || this.connections >= maxConnections;
    if (!isInVain && house.makeRoom(broken)) return true;
    broken();
    return false;
  }

  /** Whoever waits is promised what comes free when the function that this returns is called. */
  #promise(): () => void {
    this.#promised++;
    return () => this.#promised--;
  }

  /** Takes an idle session out of the book, for its next user or to be closed. */
  #take(name: string, onEnd = nothing): Slot<Session> {
    const { session, leasedIn } = this.#idle.take(name) as Shelved<Session>;
    return this.#use(name, { session, leasedIn, onEnd });
  }

  #use(name: string, began: ConstructorParameters<typeof SlotUse<Session>>[1]): Slot<Session> {
    this.#busy.add(name);
    return new SlotUse(name, began, this);
  }

  onExpect(before: string | undefined, key: string | undefined): void {
    if (before !== undefined) this.#expected.add(before, -1);
    if (key !== undefined) this.#expected.add(key, 1);
    else this.serve();
  }

  onRelease(use: SlotUse<Session>): void {
    this.#endUse(use);
    if (use.leasedIn === this.#generation) this.#vacate(use.name);
    this.#afterUse();
  }

  onKeep(use: SlotUse<Session>, session: Session, key: string): void {
    this.#endUse(use);
    this.#idle.put(use.name, { session, key, leasedIn: use.leasedIn });
    this.#afterUse();
  }

  onQuarantine(use: SlotUse<Session>, ms: number): () => void {
    this.#endUse(use);
    const isOurs = use.leasedIn === this.#generation;
    const endSooner = isOurs ? this.quarantined.putAside(use.name, ms) : () => false;
    this.#afterUse();
    return () => {
      if (!endSooner()) return;
      this.#vacate(use.name);
      this.serve();
    };
  }

  #endUse(use: SlotUse<Session>): void {
    this.#busy.delete(use.name);
    const expectedAs = use.takeExpectation();
    if (expectedAs !== undefined) this.#expected.add(expectedAs, -1);
    use.onEnd?.();
  }

  #afterUse(): void {
    this.serve();
    this.#options.house.onRoom();
  }

  #vacate(name: string): void {
    const isEnough =
      this.#vacant.length >= KEEP_FREE ||
      (performance.now() < this.#generousUntil && this.#waiters.empty);
    if (!isEnough) this.#vacant.push(name);
    else this.#giveBack([name]);
  }

  /** Asks the database for more, one question at a time, and again soon while somebody waits and none was to be had. */
  async #lease(): Promise<void> {
    this.#leasing = true;
    const askedIn = this.#generation;
    try {
      const named = await this.#options.source.lease(this.#options.role, LEASE_BATCH);
      // Either that connection is lost, and they are nobody's, or the question waited for the next one, which has
      // them for good: they go back, and whoever waits asks again.
      const taken = askedIn === this.#generation ? named.filter((name) => !this.#has(name)) : [];
      this.#vacant.push(...taken);
      if (askedIn === this.#generation) this.#vacant.push(...this.quarantined.takeRecovered());
      this.#exhausted = taken.length === 0;
      const rest = named.filter((name) => !taken.includes(name));
      if (rest.length > 0) this.#giveBack(rest);
    } catch (error) {
      this.#waiters.rejectAll(error);
    } finally {
      this.#leasing = false;
    }
    if (this.#vacant.length === 0 && !this.#waiters.empty) {
      this.#retry = setTimeout(() => {
        this.#retry = undefined;
        this.serve();
      }, RETRY_LEASE_MS);
    }
    this.serve();
  }

  /**
   * Whether we have this slot already. A standby, which keeps no leases, names every slot that nobody is logged in with:
   * those that are free here, on their way in, or put aside for what their user did (attack E11).
   */
  #has(name: string): boolean {
    return (
      this.#vacant.includes(name) ||
      this.#idle.has(name) ||
      this.#busy.has(name) ||
      this.quarantined.has(name)
    );
  }

  /** Should it fail, the lease is still ours and ends with the control connection. */
  #giveBack(names: readonly string[]): void {
    this.#options.source.giveBack(names).catch(() => {});
  }

  /** Nobody waits any more. */
  #calmDown(): void {
    clearTimeout(this.#retry);
    this.#retry = undefined;
  }

  #timedOut(): ProxyError {
    const cause = new Error(`no free slot for role "${this.#options.role}"`);
    return new ProxyError('pool_timeout', { cause });
  }
}

const nothing = () => {};
