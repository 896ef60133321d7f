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
import { derivePassword } from '../session-sql/credentials.ts';
import { Terminate } from '../wire/frontend.ts';
import { cancelQuery, type CancelTarget } from './cancel.ts';
import { UpstreamError, connect, type UpstreamConnection } from './connect.ts';
import { createControl, type Backend, type Control } from './control.ts';
import { hello, install, type SessionIdentity } from './session.ts';
import { createSlots, type Slot, type Slots } from './slots.ts';

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
   * Takes the identity off and closes the session, cancelling what it still runs when it is `busy`; resolves
   * when its connection is closed. The slot is free when the backend is gone. Never throws; only the first call counts.
   */
  release(busy: boolean): Promise<void>;
}

/** The sessions of one upstream. */
export interface Pool {
  /**
   * A session with this identity on it, verified by the backend itself.
   *
   * @throws {ProxyError} pool_timeout, upstream_unreachable, upstream_login_rejected, upstream_rejected,
   *   upstream_lost, upstream_protocol, session_setup_failed, or the signal's reason.
   */
  acquire(
    identity: SessionIdentity & { readonly role: string },
    parameters: ReadonlyMap<string, string>,
    signal: AbortSignal,
  ): Promise<Lease>;
  /** How many slots of each role are in which state. */
  counts(): Readonly<Record<string, ReturnType<Slots['counts']>>>;
  /** Waits for the sessions that are being released, then ends the control connection. */
  close(): Promise<void>;
}

const HOUSEKEEPING_MS = 10_000;
const TERMINATE_TIMEOUT_MS = 2_000;
const QUARANTINE_MS = 60_000;
// A login that was given up half-way is over by then.
const IN_USE_MS = 500;
// Long enough that the next login tries others, short enough that a mended configuration works at once.
const REFUSED_MS = 500;
const STUBBORN_MS = 5_000;
const RETRY_MS = [50, 100, 200, 400, 500] as const;

/**
 * A pool for one upstream; `path` is where it stands in the configuration. Connects when first needed.
 * `onQuarantine` is told of each slot that a user has spoilt: an administrator has to mend it.
 */
export function createPool(
  upstream: UpstreamConfig,
  path: string,
  onQuarantine: (slot: string, error: ProxyError) => void = () => {},
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
  const housekeeping = setInterval(() => {
    control.sweep().catch(() => {});
    for (const slots of slotsByRole.values()) slots.giveBack();
  }, HOUSEKEEPING_MS);
  housekeeping.unref();

  const open: Opener = (slot, role, parameters, signal) =>
    connect(
      upstream,
      { user: slot, password: derivePassword(secret, slot), role, parameters },
      signal,
    );
  const door = { open, control, onQuarantine, lastEntry: { at: Number.NEGATIVE_INFINITY } };

  const admit: Pool['acquire'] = async (identity, parameters, signal) => {
    const slots = slotsByRole.get(identity.role);
    if (slots === undefined) throw new ProxyError('role_forbidden', { role: identity.role });
    const deadline = performance.now() + upstream.acquireTimeoutMs;
    const { slot, connection, backend } = await withRetries(upstream.connectTimeoutMs, signal, () =>
      enter(slots, identity.role, parameters, { ...door, deadline }, signal),
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
      await install(connection, backend, identity, identity.role, control, signal);
    } catch (error) {
      void release(false);
      throw error;
    }
    return { peer: connection, greeting, cancelTarget, slot: slot.name, release };
  };

  return {
    acquire(identity, parameters, signal) {
      const admitted = track(underWay, admit(identity, parameters, signal));
      return orLeave(admitted, signal, (lease) => void lease.release(false));
    },
    counts: () =>
      Object.fromEntries([...slotsByRole].map(([role, slots]) => [role, slots.counts()])),
    async close() {
      clearInterval(housekeeping);
      // A login that was given up ends only when the question that it was at is answered.
      while (underWay.size > 0) await Promise.allSettled(underWay);
      await control.close();
    },
  };
}

type Opener = (
  slot: string,
  role: string,
  parameters: ReadonlyMap<string, string>,
  signal: AbortSignal,
) => Promise<UpstreamConnection>;

interface Entered {
  readonly slot: Slot;
  readonly connection: UpstreamConnection;
  readonly backend: Backend;
}

/** What `enter` needs beside the slots. */
interface Door {
  readonly open: Opener;
  readonly control: Control;
  /** Until when to wait for a slot, and go from slot to slot, on the clock of `performance.now()`: one for the whole login. */
  readonly deadline: number;
  readonly onQuarantine: (slot: string, error: ProxyError) => void;
  /** When a slot was last let in, on the same clock: the secret and pg_hba.conf were right then. */
  readonly lastEntry: { at: number };
}

/** Logs in with a slot that is fit for it. One that its last user spoilt is put aside and the next one tried. */
async function enter(
  slots: Slots,
  role: string,
  parameters: ReadonlyMap<string, string>,
  door: Door,
  signal: AbortSignal,
): Promise<Entered> {
  let refusal: ProxyError | undefined;
  let suspect: Refusal | undefined;
  try {
    for (;;) {
      const patienceMs = Math.max(door.deadline - performance.now(), 0);
      const slot = await slots.acquire(signal, patienceMs).catch((error: unknown) => {
        throw ProxyError.is(error, 'pool_timeout') ? (refusal ?? error) : error;
      });
      const entry = await tryEntry(slot, role, parameters, door, signal);
      if (!('error' in entry)) return entry;
      const { fault, error } = entry;
      if (fault === undefined) {
        slot.release();
        throw error;
      }
      // What the slot's last user made PostgreSQL say is not for this one to read.
      const code = fault === 'in use' ? 'pool_timeout' : 'upstream_login_rejected';
      refusal = new ProxyError(code, { cause: error.cause });
      if (fault === 'in use') slot.quarantine(IN_USE_MS);
      else if (fault === 'spoilt' || enteredLately(door)) condemn(entry, door);
      else if (suspect === undefined) suspect = entry;
      else {
        for (const one of [suspect, entry]) one.slot.quarantine(REFUSED_MS);
        suspect = undefined;
        throw noneIsLetIn(error);
      }
      if (performance.now() > door.deadline) throw refusal;
    }
  } finally {
    if (suspect !== undefined) condemn(suspect, door);
  }
}

/** A slot with which nobody got in, still to be ended, and whose fault that is. */
interface Refusal {
  readonly slot: Slot;
  readonly error: ProxyError;
  readonly fault: Fault | undefined;
}

/**
 * Why a login with a slot failed: its last user changed its settings (attack E11); it was refused, because that one
 * changed its password or for a reason that holds for all; or somebody is logged in with it.
 */
type Fault = 'spoilt' | 'refused' | 'in use';

async function tryEntry(
  slot: Slot,
  role: string,
  parameters: ReadonlyMap<string, string>,
  door: Door,
  signal: AbortSignal,
): Promise<Entered | Refusal> {
  let connection: UpstreamConnection | undefined;
  let error: ProxyError | undefined;
  try {
    connection = await door.open(slot.name, role, parameters, signal);
    const backend = await hello(connection, signal);
    door.lastEntry.at = performance.now();
    if (!backend.dirty) return { slot, connection, backend };
  } catch (thrown) {
    error = ProxyError.from(thrown);
  }
  // Its backend is left before the slot is: whoever had it next would be refused by CONNECTION LIMIT 1.
  if (connection !== undefined) await terminate(connection.stream);
  if (error === undefined) return { slot, error: settingsChanged(slot.name), fault: 'spoilt' };
  return { slot, error, fault: await faultOf(slot.name, error, door.control) };
}

/** Puts a slot aside that only an administrator can mend. */
function condemn({ slot, error }: Refusal, door: Door): void {
  slot.quarantine(QUARANTINE_MS);
  door.onQuarantine(slot.name, error);
}

function enteredLately(door: Door): boolean {
  return performance.now() - door.lastEntry.at < QUARANTINE_MS;
}

/** Users spoil slots one by one; when two in a row are refused, and none was let in lately, it is not users. */
function noneIsLetIn({ cause }: ProxyError): ProxyError {
  const why =
    'two slots in a row were refused: is the secret the one that pgjot setup had, and does pg_hba.conf let slots in?';
  return new ProxyError('upstream_login_rejected', { cause: new Error(why, { cause }) });
}

/**
 * Whose fault a failed login is; `undefined` for what another slot would not mend.
 *
 * Settings are asked for rather than guessed from the error: one that makes every login fail, such as
 * local_preload_libraries, fails with an SQLSTATE of its own choice, while a client whose own
 * statement_timeout is too short for us must not make slot after slot unusable.
 */
async function faultOf(
  slot: string,
  error: ProxyError,
  control: Control,
): Promise<Fault | undefined> {
  if (error.code === 'upstream_login_rejected') return 'refused';
  // 53300 is also "sorry, too many clients already"; only the routine that checks a role's own CONNECTION LIMIT is about the slot.
  if (error.cause instanceof UpstreamError && error.cause.routine === 'InitializeSessionUserId')
    return 'in use';
  const fromServer = ['upstream_rejected', 'upstream_lost', 'upstream_protocol'];
  if (!fromServer.includes(error.code)) return undefined;
  return (await control.hasSettings(slot).catch(() => false)) ? 'spoilt' : undefined;
}

function settingsChanged(slot: string): ProxyError {
  return new ProxyError('upstream_login_rejected', {
    cause: new Error(
      `the user of slot ${slot} has changed its settings: run pgjot setup to mend it`,
    ),
  });
}

/** Tries again for a while when the server is not there or not ready yet, as during a restart. */
async function withRetries<T>(
  forMs: number,
  signal: AbortSignal,
  attempt: () => Promise<T>,
): Promise<T> {
  const deadline = performance.now() + forMs;
  for (let tries = 0; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      const pause = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)] as number;
      if (!isTransient(error) || performance.now() + pause > deadline) throw error;
      await delay(pause, undefined, { signal }).catch(() => signal.throwIfAborted());
    }
  }
}

function isTransient(error: unknown): boolean {
  if (ProxyError.is(error, 'upstream_unreachable') || ProxyError.is(error, 'upstream_lost'))
    return true;
  if (!ProxyError.is(error, 'upstream_rejected')) return false;
  const cause = error.cause as { sqlstate?: string; code?: string } | undefined;
  return (cause?.sqlstate ?? cause?.code ?? '').startsWith('57P0');
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
  await terminate(connection.stream);
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

/** Whether a question to the control connection failed because PostgreSQL said so. */
function isAnswer(error: unknown): boolean {
  return (
    ProxyError.is(error, 'upstream_rejected') || ProxyError.is(error, 'upstream_login_rejected')
  );
}

/** Says goodbye and waits for PostgreSQL to close, which it does when the backend has left its tables. */
async function terminate(stream: Duplex): Promise<void> {
  if (stream.destroyed) return;
  const timer = setTimeout(() => stream.destroy(), TERMINATE_TIMEOUT_MS);
  const closed = new Promise<void>((resolve) => stream.once('close', () => resolve()));
  stream.resume();
  if (stream.writableEnded) stream.destroy();
  else stream.end(Terminate);
  await closed;
  clearTimeout(timer);
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
