/**
 * Which slot is whose: leased ones that are free, busy ones, quarantined ones, and who waits for one.
 *
 * A slot is a LOGIN role that one live session uses at a time. Several proxies share the slots of a
 * database by leasing them there; this is one proxy's part of the book.
 *
 *              lease                acquire               release (its backend is gone)
 *   database ─────────▶ free ─────────────────▶ busy ─────────────────▶ free
 *                                                 │ quarantine (its user changed it)
 *                                                 └──────────────────────▶ quarantined ──(a while)──▶ free
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
  /** It is no good at present (its user changed its password or settings), so nobody may have it for so long. */
  quarantine(ms: number): void;
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
  const free: string[] = [];
  const quarantined = new Map<string, number>();
  const waiters = new Set<Waiter>();
  let busy = 0;
  // Bumped when the leases are lost: what was leased before must not come back as free.
  let generation = 0;
  let leasing = false;
  let retry: NodeJS.Timeout | undefined;

  const slot = (name: string): Slot => {
    const leasedIn = generation;
    let ended = false;
    const end = (then: () => void) => {
      if (ended) throw new TypeError('a slot is released once');
      ended = true;
      busy--;
      if (leasedIn === generation) then();
      serve();
    };
    busy++;
    return {
      name,
      release: () => end(() => (free.length < KEEP_FREE ? free.push(name) : giveBack([name]))),
      quarantine: (ms) => end(() => quarantined.set(name, Date.now() + ms)),
    };
  };

  const serve = (): void => {
    for (const waiter of waiters) {
      const name = free.shift();
      if (name === undefined) break;
      waiters.delete(waiter);
      waiter.resolve(slot(name));
    }
    if (waiters.size > 0) void lease();
  };

  /** Asks the database for more, one question at a time, and again soon while somebody waits and none was to be had. */
  const lease = async (): Promise<void> => {
    if (leasing || retry !== undefined) return;
    leasing = true;
    const askedIn = generation;
    try {
      const names = await source.lease(role, LEASE_BATCH);
      if (askedIn === generation) free.push(...names, ...recovered());
      // Either that connection is lost, and they are nobody's, or the question waited for the next one, which has
      // them for good: they go back, and whoever waits asks again.
      else giveBack(names);
    } catch (error) {
      for (const waiter of waiters) waiter.reject(error);
      waiters.clear();
    } finally {
      leasing = false;
    }
    if (free.length === 0 && waiters.size > 0) {
      retry = setTimeout(() => {
        retry = undefined;
        serve();
      }, RETRY_LEASE_MS);
    } else serve();
  };

  // Should it fail, the lease is still ours and ends with the control connection.
  const giveBack = (names: readonly string[]): void => {
    source.giveBack(names).catch(() => {});
  };

  const recovered = (): string[] => {
    const names = [...quarantined].filter(([, until]) => until <= Date.now()).map(([name]) => name);
    for (const name of names) quarantined.delete(name);
    return names;
  };

  return {
    acquire(signal, patienceMs = acquireTimeoutMs) {
      return new Promise((resolve, reject) => {
        const settle = (finish: () => void) => {
          clearTimeout(timer);
          signal.removeEventListener('abort', onAbort);
          waiters.delete(waiter);
          if (waiters.size === 0) {
            clearTimeout(retry);
            retry = undefined;
          }
          finish();
        };
        const onAbort = () => settle(() => reject(signal.reason));
        const waiter: Waiter = {
          resolve: (given) => settle(() => resolve(given)),
          reject: (error) => settle(() => reject(error)),
        };
        const timer = setTimeout(() => {
          settle(() =>
            reject(
              new ProxyError('pool_timeout', {
                cause: new Error(`no free slot for role "${role}"`),
              }),
            ),
          );
        }, patienceMs);
        if (signal.aborted) return onAbort();
        signal.addEventListener('abort', onAbort);
        waiters.add(waiter);
        serve();
      });
    },
    giveBack() {
      free.push(...recovered());
      if (free.length > 0) giveBack(free.splice(0));
    },
    forget() {
      generation++;
      free.length = 0;
      quarantined.clear();
    },
    counts: () => ({
      free: free.length,
      busy,
      quarantined: quarantined.size,
      waiting: waiters.size,
    }),
  };
}
