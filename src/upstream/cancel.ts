/**
 * From a cancel key that we gave out to the one query it may cancel.
 *
 * A client never sees the upstream's key: it gets a random one of ours, good for its own session alone
 * and only while that session has its backend.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
 */
import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto';
import type { UpstreamConfig } from '../config.ts';
import { encodeCancelRequest } from '../wire/startup.ts';
import { dial } from './dial.ts';

/** A backend's own cancel key, and where it is. */
export interface CancelTarget {
  readonly upstream: UpstreamConfig;
  readonly processId: number;
  readonly secretKey: Buffer;
}

/** The key that a client was given. */
export interface CancelKey {
  readonly processId: number;
  readonly secretKey: Buffer;
}

/** All keys that are out. */
export interface Cancels {
  /** A fresh key for a session, with a secret of as many bytes as the protocol's minor version has. */
  register(target: CancelTarget, minor: number): CancelKey;
  /** Makes a key worthless; resolves when no cancel that it allowed is under way any more. */
  revoke(key: CancelKey): Promise<void>;
  /**
   * Forwards a client's CancelRequest, and resolves when PostgreSQL has taken it: clients may start
   * their next query then. A key that matches nothing resolves at once; nobody is ever told.
   */
  forward(key: CancelKey): Promise<void>;
}

// 4 bytes in protocol 3.0; PostgreSQL 18 gives 32 in 3.2.
const SECRET_BYTES = { v30: 4, v32: 32 } as const;
const CANCEL_TIMEOUT_MS = 10_000;

interface Entry {
  readonly secretKey: Buffer;
  readonly target: CancelTarget;
  inFlight: Promise<void> | undefined;
  /** The one that starts when that is done. */
  queued: Promise<void> | undefined;
}

/** An empty registry. */
export function createCancels(): Cancels {
  const entries = new Map<number, Entry>();

  const find = ({ processId, secretKey }: CancelKey): Entry | undefined => {
    const entry = entries.get(processId);
    if (entry === undefined || entry.secretKey.length !== secretKey.length) return undefined;
    return timingSafeEqual(entry.secretKey, secretKey) ? entry : undefined;
  };

  const start = (entry: Entry): Promise<void> => {
    entry.inFlight = cancelQuery(entry.target).finally(() => {
      entry.inFlight = undefined;
    });
    return entry.inFlight;
  };

  return {
    register(target, minor) {
      let processId: number;
      do processId = randomInt(1, 2 ** 31 - 1);
      while (entries.has(processId));
      const secretKey = randomBytes(minor >= 2 ? SECRET_BYTES.v32 : SECRET_BYTES.v30);
      entries.set(processId, { secretKey, target, inFlight: undefined, queued: undefined });
      return { processId, secretKey };
    },
    async revoke(key) {
      const entry = find(key);
      entries.delete(key.processId);
      await entry?.inFlight;
    },
    async forward(key) {
      const entry = find(key);
      if (entry === undefined) return;
      // One at a time for each session and one more behind it: a flood of cancels (attack G2) costs one
      // connection, and yet none is lost, for the one under way may have met an earlier query than this one means.
      if (entry.inFlight === undefined) return start(entry);
      entry.queued ??= entry.inFlight.then(() => {
        entry.queued = undefined;
        return entries.get(key.processId) === entry ? start(entry) : undefined;
      });
      await entry.queued;
    },
  };
}

/** Cancels what the backend is running; resolves when PostgreSQL has closed the request's connection, or after ten seconds. Never throws. */
export async function cancelQuery({ upstream, processId, secretKey }: CancelTarget): Promise<void> {
  const signal = AbortSignal.timeout(CANCEL_TIMEOUT_MS);
  try {
    const stream = await dial(upstream, signal);
    stream.end(encodeCancelRequest(processId, secretKey));
    stream.resume();
    await new Promise<void>((resolve) => {
      stream.once('close', () => resolve());
      signal.addEventListener('abort', () => stream.destroy(), { once: true });
    });
  } catch {
    // There is nobody to tell: a CancelRequest has no answer.
  }
}
