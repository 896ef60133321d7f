/**
 * Gives a verified identity an upstream session of its own, and takes it back.
 *
 * For now every lease is a fresh connection that is closed when it comes back: nobody ever meets what
 * somebody else left behind.
 */
import type { Duplex } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { readSecret, type UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import type { Identity } from '../identity/policy.ts';
import { chooseClaims, type SessionClaims } from '../identity/session-claims.ts';
import { derivePassword } from '../session-sql/credentials.ts';
import { cancelQuery, type CancelTarget } from './cancel.ts';
import { connect, disconnect } from './connect.ts';
import { createControl, type Control } from './control.ts';
import { enter, withRetries, type Entered, type Opener } from './entry.ts';
import { createHealing, type HealingListener } from './healing.ts';
import { createLookup } from './lookup.ts';
import { mendSlot } from './mend.ts';
import { createSessionMode, type SessionIdentity } from './session.ts';
import { createSlots, QUARANTINE_MS, type Slots } from './slots.ts';

/** An upstream session that belongs to one client. */
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
   * Takes the identity off and closes the session, cancelling what it still runs when it is `busy`; resolves
   * when its connection is closed. The slot is free when the backend is gone. Never throws; only the first call counts.
   */
  release(busy: boolean): Promise<void>;
}

/** What a pool has to know of an identity. */
export type Verified = Pick<Identity, 'role' | 'subject' | 'claims' | 'expiresAt'>;

/** The sessions of one upstream. */
export interface Pool {
  /**
   * A session with this identity on it, verified by the backend itself.
   *
   * @throws {ProxyError} pool_timeout, upstream_unreachable, upstream_login_rejected, upstream_rejected,
   *   upstream_lost, upstream_protocol, session_setup_failed, claims_too_large,
   *   lookup_empty, lookup_failed, or the signal's reason.
   */
  acquire(
    identity: Verified,
    parameters: ReadonlyMap<string, string>,
    signal: AbortSignal,
  ): Promise<Lease>;
  /** How many slots of each role are in which state. */
  counts(): Readonly<Record<string, ReturnType<Slots['counts']>>>;
  /** Gives the slots that are free back to the database, for other pools to lease. */
  giveBack(): void;
  /** Waits for the sessions that are being released, then ends the control connection. */
  close(): Promise<void>;
}

/** Who hears of slots that users have spoilt, and of lookups that failed. */
export interface PoolListener extends HealingListener {
  /** A lookup that is not required: the login goes on without. */
  readonly onLookupFailed: (error: ProxyError) => void;
  /** It is put aside, until it is healed or a minute has passed. */
  readonly onQuarantine: (slot: string, error: ProxyError) => void;
}

const UNHEARD: PoolListener = {
  onLookupFailed: () => {},
  onQuarantine: () => {},
  onHealed: () => {},
  onHealingFailed: () => {},
};
const SWEEP_MS = 10_000;
// Soon, because another proxy may wait for the slots that this one has no use for.
const GIVE_BACK_MS = 2_000;
const STUBBORN_MS = 5_000;

/**
 * A pool for one upstream; `path` is where it stands in the configuration. Connects when first needed.
 * `listener` hears of each slot that a user has spoilt, and how it went on, and of lookups that failed.
 */
export function createPool(
  upstream: UpstreamConfig,
  path: string,
  listener: PoolListener = UNHEARD,
): Pool {
  const secret = readSecret(upstream.secret, `${path}.secret`);
  const control = createControl(upstream, path, () => {
    for (const slots of slotsByRole.values()) slots.forget();
  });
  const slotsByRole = new Map(
    Object.keys(upstream.roles).map((role) => [
      role,
      createSlots(role, control, upstream.acquireTimeoutMs),
    ]),
  );
  // Logins and releases.
  const underWay = new Set<Promise<unknown>>();
  const giveBack = () => {
    for (const slots of slotsByRole.values()) slots.giveBack();
  };
  const housekeeping = [
    setInterval(() => void control.sweep().catch(() => {}), SWEEP_MS).unref(),
    setInterval(giveBack, GIVE_BACK_MS).unref(),
  ];

  const lookup = createLookup(upstream, path, listener.onLookupFailed);
  const mode = createSessionMode(upstream, secret, control);
  const healing = upstream.healSlots
    ? createHealing((slot) => mendSlot(upstream, secret, slot), listener)
    : undefined;
  const door = {
    control,
    onQuarantine: listener.onQuarantine,
    lastEntry: { at: Number.NEGATIVE_INFINITY },
    healing,
  };

  /** With the chosen claims, and what is to be known of the subject; of nobody nothing is. */
  const describe = async (verified: Verified, signal: AbortSignal): Promise<SessionIdentity> => {
    const claims: SessionClaims = {
      claims: chooseClaims(verified.claims, upstream.sessionClaims),
      lookup:
        verified.subject === undefined ? undefined : await lookup?.row(verified.claims, signal),
    };
    return { ...verified, claims };
  };

  const admit: Pool['acquire'] = async (verified, parameters, signal) => {
    const { role } = verified;
    const slots = slotsByRole.get(role);
    if (slots === undefined) throw new ProxyError('role_forbidden', { role });
    const identity = await describe(verified, signal);
    const open: Opener = (slot, until) =>
      connect(
        upstream,
        {
          user: slot,
          password: derivePassword(secret, slot),
          role,
          parameters,
          identity: (localPort) => mode.startupParameters(identity, slot, localPort),
        },
        until,
      );
    const deadline = performance.now() + upstream.acquireTimeoutMs;
    const { slot, connection, backend } = await withRetries(upstream.connectTimeoutMs, signal, () =>
      enter(slots, { ...door, open, deadline }, signal),
    );
    const { greeting, processId, secretKey } = connection;
    const cancelTarget = { upstream, processId, secretKey };
    let released: Promise<void> | undefined;
    const release = (busy: boolean) => {
      released ??= track(
        underWay,
        leave({ connection, backend, slot }, control, cancelTarget, busy),
      );
      return released;
    };
    try {
      await mode.install(connection, backend, identity, signal);
    } catch (error) {
      void release(false);
      throw error;
    }
    return {
      peer: connection,
      greeting,
      cancelTarget,
      slot: slot.name,
      renew:
        mode.renew &&
        (async (renewed, until, assertGood) => {
          const wanted = await describe(renewed, until);
          assertGood();
          // Its backend may have been left, or soon be somebody else's.
          if (released !== undefined) throw new ProxyError('client_lost');
          await mode.renew?.(backend, wanted);
        }),
      disown: () => control.unbind(backend).then(nothing, nothing),
      release,
    };
  };

  return {
    acquire(identity, parameters, signal) {
      const admitted = track(underWay, admit(identity, parameters, signal));
      return orLeave(admitted, signal, (lease) => void lease.release(false));
    },
    counts: () =>
      Object.fromEntries([...slotsByRole].map(([role, slots]) => [role, slots.counts()])),
    giveBack,
    async close() {
      for (const timer of housekeeping) clearInterval(timer);
      // A login that was given up ends only when the question that it was at is answered.
      while (underWay.size > 0) await Promise.allSettled(underWay);
      await healing?.close();
      await Promise.all([control.close(), lookup?.close()]);
    },
  };
}

/**
 * Ends a session: identity off first, so that not one more row is read under it, then the connection,
 * and the slot only when PostgreSQL itself says that the backend is gone.
 */
async function leave(
  { connection, backend, slot }: Entered,
  control: Control,
  cancelTarget: CancelTarget,
  busy: boolean,
): Promise<void> {
  await control.unbind(backend).catch(() => {});
  if (busy) await cancelQuery(cancelTarget);
  await disconnect(connection.stream);
  for (let pause = 10; pause < STUBBORN_MS; pause *= 2) {
    // Where nobody could be asked the lease is lost too: `slots` forgets this one, and the next lease looks for live
    // backends. An answer that is an error says nothing about the backend.
    const alive = await control.unbind(backend).catch(isAnswer);
    if (!alive) return slot.release();
    // The cancel came between two statements, or its user catches every cancel to keep the slot.
    await control.terminate(backend).catch(() => {});
    await delay(pause, undefined, { ref: false });
  }
  // PostgreSQL does not end what hangs in the kernel; whoever gets this slot next would be refused.
  slot.quarantine(QUARANTINE_MS);
}

const nothing = () => {};

/** Whether a question to the control connection failed because PostgreSQL said so. */
function isAnswer(error: unknown): boolean {
  return (
    ProxyError.is(error, 'upstream_rejected') || ProxyError.is(error, 'upstream_login_rejected')
  );
}

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

function track<T>(set: Set<Promise<unknown>>, promise: Promise<T>): Promise<T> {
  set.add(promise);
  return promise.finally(() => set.delete(promise));
}
