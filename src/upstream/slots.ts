/**
 * Which slot is whose: leased ones that are free, busy ones, quarantined ones, and who waits for one.
 *
 * A slot is a LOGIN role that one live session uses at a time. Several proxies share the slots of a
 * database by leasing them there; this is one proxy's part of the book.
 *
 *              lease                acquire               release (its backend is gone)
 *   database ─────────▶ free ─────────────────▶ busy ─────────────────▶ free
 *                                                 │ quarantine (its user changed it)
 *                                                 └──────────────────────▶ quarantined ──(a while, or mended)──▶ free
 */
import { ProxyError } from '../errors.ts';

/** The part of the control connection that slots need. */
export interface SlotSource {
  lease(role: string, count: number): Promise<string[]>;
  giveBack(slots: readonly string[]): Promise<void>;
}

/** The slots of one role. */
export interface Slots {
  /**
   * A slot for one session, first come first served, within `patienceMs`: what is left of `acquireTimeoutMs`.
   *
   * @throws {ProxyError} pool_timeout when none came free in time, upstream_unreachable, or the signal's reason.
   */
  acquire(signal: AbortSignal, patienceMs?: number): Promise<Slot>;
  /** Gives the free slots back to the database, and those whose quarantine is over, so that an idle proxy starves no busy one. */
  giveBack(): void;
  /** Forgets the free slots: the control connection that leased them is gone. */
  forget(): void;
  /** How many slots are in which state. */
  counts(): { free: number; busy: number; quarantined: number; waiting: number };
}

/** A slot in use; exactly one of its methods ends that use. */
export interface Slot {
  readonly name: string;
  /** Its backend is gone, so another session may have it. */
  release(): void;
  /**
   * It is no good at present (its user changed its password or settings), so nobody may have it for so long; or until
   * the function that this returns is called, because it has been mended.
   */
  quarantine(ms: number): () => void;
}

/** How long a slot is put aside that an administrator has to mend, in ms. */
export const QUARANTINE_MS = 60_000;

const LEASE_BATCH = 4;
// What one proxy keeps for itself: enough that steady traffic needs no lease, few enough to leave the others some.
const KEEP_FREE = 16;
const RETRY_LEASE_MS = 100;

interface Waiter {
  readonly resolve: (slot: Slot) => void;
  readonly reject: (error: unknown) => void;
}

/** The book of one role's slots. `acquireTimeoutMs` bounds every wait. */
export function createSlots(role: string, source: SlotSource, acquireTimeoutMs: number): Slots {
  return new RoleSlots(role, source, acquireTimeoutMs);
}

class RoleSlots implements Slots {
  readonly #role: string;
  readonly #source: SlotSource;
  readonly #acquireTimeoutMs: number;
  readonly #free: string[] = [];
  /** Until when, by the wall clock. */
  readonly #quarantined = new Map<string, number>();
  readonly #waiters = new Set<Waiter>();
  readonly #busy = new Set<string>();
  /** Bumped when the leases are lost: what was leased before must not come back as free. */
  #generation = 0;
  #leasing = false;
  #retry: NodeJS.Timeout | undefined;

  constructor(role: string, source: SlotSource, acquireTimeoutMs: number) {
    this.#role = role;
    this.#source = source;
    this.#acquireTimeoutMs = acquireTimeoutMs;
  }

  acquire(signal: AbortSignal, patienceMs = this.#acquireTimeoutMs): Promise<Slot> {
    return new Promise((resolve, reject) => {
      const settle = (finish: () => void) => {
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
        this.#forgetWaiter(waiter);
        finish();
      };
      const onAbort = () => settle(() => reject(signal.reason));
      const waiter: Waiter = {
        resolve: (given) => settle(() => resolve(given)),
        reject: (error) => settle(() => reject(error)),
      };
      const timer = setTimeout(() => waiter.reject(this.#timedOut()), patienceMs);
      if (signal.aborted) return onAbort();
      signal.addEventListener('abort', onAbort);
      this.#waiters.add(waiter);
      this.#serve();
    });
  }

  giveBack(): void {
    this.#free.push(...this.#recovered());
    if (this.#free.length > 0) this.#giveBack(this.#free.splice(0));
  }

  forget(): void {
    this.#generation++;
    this.#free.length = 0;
    this.#quarantined.clear();
  }

  counts(): ReturnType<Slots['counts']> {
    return {
      free: this.#free.length,
      busy: this.#busy.size,
      quarantined: this.#quarantined.size,
      waiting: this.#waiters.size,
    };
  }

  /** Hands free slots to whoever waits, and asks the database for more where that does not do. */
  #serve(): void {
    for (const waiter of this.#waiters) {
      const name = this.#free.shift();
      if (name === undefined) break;
      this.#waiters.delete(waiter);
      waiter.resolve(this.#use(name));
    }
    if (this.#waiters.size > 0) void this.#lease();
  }

  #use(name: string): Slot {
    const leasedIn = this.#generation;
    let ended = false;
    const end = (then: () => void) => {
      if (ended) throw new TypeError('a slot is released once');
      ended = true;
      this.#busy.delete(name);
      if (leasedIn === this.#generation) then();
      this.#serve();
    };
    this.#busy.add(name);
    return {
      name,
      release: () => end(() => this.#keep(name)),
      quarantine: (ms) => {
        const until = Date.now() + ms;
        end(() => this.#quarantined.set(name, until));
        return () => this.#endQuarantine(name, until);
      },
    };
  }

  /** Nothing happens when that quarantine is over, or its lease lost. */
  #endQuarantine(name: string, until: number): void {
    if (this.#quarantined.get(name) !== until) return;
    this.#quarantined.delete(name);
    this.#keep(name);
    this.#serve();
  }

  #keep(name: string): void {
    if (this.#free.length < KEEP_FREE) this.#free.push(name);
    else this.#giveBack([name]);
  }

  /** Asks the database for more, one question at a time, and again soon while somebody waits and none was to be had. */
  async #lease(): Promise<void> {
    if (this.#leasing || this.#retry !== undefined) return;
    this.#leasing = true;
    const askedIn = this.#generation;
    try {
      const named = await this.#source.lease(this.#role, LEASE_BATCH);
      // Either that connection is lost, and they are nobody's, or the question waited for the next one, which has
      // them for good: they go back, and whoever waits asks again.
      const taken = askedIn === this.#generation ? named.filter((name) => !this.#has(name)) : [];
      this.#free.push(...taken);
      if (askedIn === this.#generation) this.#free.push(...this.#recovered());
      const rest = named.filter((name) => !taken.includes(name));
      if (rest.length > 0) this.#giveBack(rest);
    } catch (error) {
      for (const waiter of this.#waiters) waiter.reject(error);
      this.#waiters.clear();
    } finally {
      this.#leasing = false;
    }
    if (this.#free.length > 0 || this.#waiters.size === 0) return this.#serve();
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#serve();
    }, RETRY_LEASE_MS);
  }

  /**
   * Whether we have this slot already. A standby, which keeps no leases, names every slot that nobody is logged in with:
   * those that are free here, on their way in, or put aside for what their user did (attack E11).
   */
  #has(name: string): boolean {
    return this.#free.includes(name) || this.#busy.has(name) || this.#quarantined.has(name);
  }

  /** Should it fail, the lease is still ours and ends with the control connection. */
  #giveBack(names: readonly string[]): void {
    this.#source.giveBack(names).catch(() => {});
  }

  /** The slots whose quarantine is over. */
  #recovered(): string[] {
    const now = Date.now();
    const names = [...this.#quarantined].filter(([, until]) => until <= now).map(([name]) => name);
    for (const name of names) this.#quarantined.delete(name);
    return names;
  }

  #forgetWaiter(waiter: Waiter): void {
    this.#waiters.delete(waiter);
    if (this.#waiters.size > 0) return;
    clearTimeout(this.#retry);
    this.#retry = undefined;
  }

  #timedOut(): ProxyError {
    const cause = new Error(`no free slot for role "${this.#role}"`);
    return new ProxyError('pool_timeout', { cause });
  }
}
