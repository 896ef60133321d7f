/**
 * Gets a session for a role: one that was kept for such a user, or from slot to slot until one is fit to log in with.
 *
 * Tells apart what one slot's last user did to it, what is wrong for all of them, and what another slot would not
 * mend. Puts no identity on anything.
 */
import { ProxyError } from '../errors.ts';
import { disconnect, UpstreamError, type UpstreamConnection } from './connect.ts';
import type { Control, Hello } from './control.ts';
import type { Healing } from './healing.ts';
import { isPasswordRefused } from './secrets.ts';
import type { Session, SessionMode } from './session.ts';
import { QUARANTINE_MS, type Slot, type SlotRequest, type Slots } from './slots.ts';

// A login that was given up half-way is over by then.
const IN_USE_MS = 500;
// Long enough that the next login tries others, short enough that a mended configuration works at once.
const REFUSED_MS = 500;

/** Logs in as a slot. */
export type Opener = (slot: string, signal: AbortSignal) => Promise<UpstreamConnection>;

/** A session on a slot: one that was kept, or one that is new and nobody's yet. */
export interface Entered {
  readonly slot: Slot<Session>;
  readonly session: Session;
}

/** What `enter` needs beside the slots. */
export interface Door {
  readonly open: Opener;
  readonly greet: SessionMode['greet'];
  /** A new session, and what is to be known of it beside its connection. */
  readonly describe: (connection: UpstreamConnection, backend: Hello) => Session;
  readonly request: Omit<SlotRequest, 'patienceMs'>;
  readonly control: Control;
  /** Until when to wait for a slot, and go from slot to slot, on the clock of `performance.now()`: one for the whole login. */
  readonly deadline: number;
  readonly onQuarantine: (slot: string, error: ProxyError) => void;
  /** When a slot was last let in, on the same clock: the secret and pg_hba.conf were right then. */
  readonly lastEntry: { at: number };
  /** Told how long it took to get a slot, or not to, in ms. */
  readonly onWaited?: (ms: number) => void;
  /** Whether the server refuses every secret that we have, whichever the role: then no slot is to blame. */
  readonly areSecretsRefused: () => Promise<boolean>;
  /** What mends slots, where the configuration lets the proxy do that. */
  readonly healing: Healing | undefined;
}

/**
 * Logs in with a slot that is fit for it. One that its last user spoilt is put aside and the next one tried.
 *
 * @throws {ProxyError} pool_timeout, upstream_login_rejected, and whatever another slot would not mend.
 */
export async function enter(
  slots: Slots<Session>,
  door: Door,
  signal: AbortSignal,
): Promise<Entered> {
  let refusal: ProxyError | undefined;
  let suspect: Refusal | undefined;
  let refused = 0;
  try {
    for (;;) {
      const patienceMs = Math.max(door.deadline - performance.now(), 0);
      const request = { ...door.request, patienceMs };
      const askedAt = performance.now();
      const slot = await slots
        .acquire(request, signal)
        .catch((error: unknown) => {
          throw ProxyError.is(error, 'pool_timeout') ? (refusal ?? error) : error;
        })
        .finally(() => door.onWaited?.(performance.now() - askedAt));
      if (slot.session !== undefined) return { slot, session: slot.session };
      const entry = await tryEntry(slot, door, signal);
      if (!('error' in entry)) return entry;
      const { fault, error } = entry;
      if (fault === undefined) {
        slot.release();
        throw error;
      }
      // What the slot's last user made PostgreSQL say is not for this one to read.
      const code = fault === 'in use' ? 'pool_timeout' : 'upstream_login_rejected';
      refusal = new ProxyError(code, { cause: error.cause });
      if (isPasswordRefused(error) && (await door.areSecretsRefused())) {
        slot.quarantine(REFUSED_MS);
        throw secretsRefused(error);
      }
      if (fault === 'in use') slot.quarantine(IN_USE_MS);
      else if (fault === 'spoilt' || enteredLately(door)) condemn(entry, door);
      // Mending it needs the secret, too, so it also tells whether that is to blame.
      else if (++refused === 1 && door.healing?.mayHelp(slot.name)) condemn(entry, door);
      else if (refused === 1) suspect = entry;
      else {
        for (const one of [suspect, entry]) one?.slot.quarantine(REFUSED_MS);
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
  readonly slot: Slot<Session>;
  readonly error: ProxyError;
  readonly fault: Fault | undefined;
}

/**
 * Why a login with a slot failed: somebody changed its settings (attack E11) or attributes; it was refused, because its
 * last user changed its password or for a reason that holds for all; or somebody is logged in with it.
 */
type Fault = 'spoilt' | 'refused' | 'in use';

async function tryEntry(
  slot: Slot<Session>,
  door: Door,
  signal: AbortSignal,
): Promise<Entered | Refusal> {
  let connection: UpstreamConnection | undefined;
  let error: ProxyError | undefined;
  try {
    connection = await door.open(slot.name, signal);
    const backend = await door.greet(connection, signal);
    door.lastEntry.at = performance.now();
    if (!backend.dirty) {
      door.healing?.letIn(slot.name);
      return { slot, session: door.describe(connection, backend) };
    }
  } catch (thrown) {
    error = ProxyError.from(thrown);
  }
  // Its backend is left before the slot is: whoever had it next would be refused by CONNECTION LIMIT 1.
  if (connection !== undefined) await disconnect(connection.stream);
  if (error === undefined) return { slot, error: settingsChanged(slot.name), fault: 'spoilt' };
  return { slot, error, fault: await faultOf(slot.name, error, door.control) };
}

/** Puts a slot aside until it is mended, by us or by an administrator. */
function condemn({ slot, error }: Refusal, door: Door): void {
  const endQuarantine = slot.quarantine(QUARANTINE_MS);
  door.onQuarantine(slot.name, error);
  door.healing?.mend(slot.name, endQuarantine);
}

function enteredLately(door: Door): boolean {
  return performance.now() - door.lastEntry.at < QUARANTINE_MS;
}

/** Users can change the passwords of their slots, and not that of the control role. */
function secretsRefused({ cause }: ProxyError): ProxyError {
  const why =
    'the server refuses the secret of this proxy, which has been rotated: give the proxy the new one and reload';
  return new ProxyError('upstream_login_rejected', { cause: new Error(why, { cause }) });
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
  const fromServer = [
    'upstream_login_rejected',
    'upstream_rejected',
    'upstream_lost',
    'upstream_protocol',
  ];
  if (!fromServer.includes(error.code)) return undefined;
  if (await control.isSpoilt(slot).catch(() => false)) return 'spoilt';
  if (error.code === 'upstream_login_rejected') return 'refused';
  // 53300 is also "sorry, too many clients already"; only the routine that checks a role's own CONNECTION LIMIT is about the slot.
  const { cause } = error;
  const isTheSlots = cause instanceof UpstreamError && cause.routine === 'InitializeSessionUserId';
  return isTheSlots ? 'in use' : undefined;
}

function settingsChanged(slot: string): ProxyError {
  return new ProxyError('upstream_login_rejected', {
    cause: new Error(
      `the user of slot ${slot} has changed its settings: run pgjot setup to mend it`,
    ),
  });
}
