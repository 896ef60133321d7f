/**
 * What becomes of a session when its client has left: it is reset and kept for its next user, or it is closed.
 *
 * Whatever is not certain ends in the closing. Chooses nobody: who may have a kept session is the pool's decision.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { cancelQuery } from './cancel.ts';
import { disconnect } from './connect.ts';
import { isAnswer, type Control } from './control.ts';
import type { Entered } from './entry.ts';
import { clear, reset } from './reset.ts';
import type { Session } from './session.ts';
import { QUARANTINE_MS, type Slots } from './slots.ts';

const STUBBORN_MS = 5_000;

/** How a client has left its session. */
export interface Departure {
  /** The backend may still be working for nobody. */
  readonly busy: boolean;
  /** Nothing is outstanding, no transaction is open, and both directions are at a frame boundary. */
  readonly idle: boolean;
  /** The server has told the client of a setting meanwhile. */
  readonly reported: boolean;
  /** Whether no cancel of this client's is on its way any more, once that is known: one that comes late must hit nobody else. */
  readonly cancelled: Promise<boolean>;
}

/** For whom a session may be kept. */
export interface Keeping {
  readonly slots: Slots<Session>;
  readonly key: string;
  readonly role: string;
  /** Another identity may be next, so this one is taken off before. */
  readonly forAnybody: boolean;
}

/**
 * Resets a session and keeps it. Whether that could be done; if not, it is still to be closed. Never throws.
 *
 * Where strangers press for slots, most of what is kept is given up before its user returns: then the question whether the
 * reset was one is left until that user does.
 */
export async function keep(
  { slot, session }: Entered,
  { slots, key, role, forAnybody }: Keeping,
  { reported, cancelled }: Departure,
  control: Control,
): Promise<boolean> {
  // Only its own user waits for it: a stranger must not be kept waiting by what another one has left to be cleared away.
  if (!forAnybody) slot.expect(key);
  try {
    if (await cancelled) {
      if (forAnybody) {
        session.identity = undefined;
        await control.unbind(session.backend);
      }
      if (!forAnybody && slots.pressed) await clear(session, reported);
      else await reset(session, role, reported);
      if (isSilent(session)) {
        shelve({ slot, session }, slots, key);
        return true;
      }
    }
  } catch {
    // It is closed instead, and whoever comes next gets another.
  }
  slot.expect(undefined);
  return false;
}

/** Keeps a session that is as good as new, for as long as its connection is silent and open. */
export function shelve({ slot, session }: Entered, slots: Slots<Session>, key: string): void {
  const { stream } = session.connection;
  const onSign = () => slots.evict((one) => one === session);
  const signs = ['data', 'end', 'error', 'close'] as const;
  for (const sign of signs) stream.on(sign, onSign);
  session.unwatch = () => {
    for (const sign of signs) stream.off(sign, onSign);
    stream.pause();
    // Nothing here is to outlive the watch: the session may get another stream.
    session.unwatch = () => {};
  };
  stream.resume();
  slot.keep(session, key);
}

/** Whether the server has said nothing that nobody has read, and is still there. */
export function isSilent({ connection: { stream } }: Session): boolean {
  return stream.readableLength === 0 && !stream.readableEnded && !stream.destroyed;
}

/**
 * Closes a session: where it may still be at work its identity first, so that not one more row is read under it, then
 * the connection, and the slot is free only when PostgreSQL itself says that the backend is gone. Never throws.
 */
export async function leave(
  { session: { backend, connection, cancelTarget }, slot }: Entered,
  control: Control,
  busy: boolean,
): Promise<void> {
  if (busy) {
    await control.unbind(backend).catch(() => {});
    await cancelQuery(cancelTarget);
  }
  await disconnect(connection.stream);
  for (let pause = 5; pause < STUBBORN_MS; pause *= 2) {
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
