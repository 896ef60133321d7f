/**
 * From a cancel key that we gave out to the one query it may cancel.
 *
 * A client never sees the upstream's key: it gets a random one of ours, good for its own session alone
 * and only while that session has its backend. Where several workers serve one port, the key says whose it is.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
 */
import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto';
import type { Duplex } from 'node:stream';
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
  /**
   * Makes a key worthless; resolves when we wait for no cancel any more that it allowed, with whether PostgreSQL has taken
   * all of them. If not, one may still hit whatever its backend does next.
   */
  revoke(key: CancelKey): Promise<boolean>;
  /**
   * Forwards a client's CancelRequest, and resolves when PostgreSQL has taken it: clients may start
   * their next query then. A key that matches nothing resolves at once with `false`, which no client is ever told.
   */
  forward(key: CancelKey): Promise<boolean>;
}

// What PostgreSQL 18 gives in protocol 3.2; in 3.0 there are 4, which Node has in store.
const SECRET_BYTES = 32;
const CANCEL_TIMEOUT_MS = 10_000;

// A process id is positive and has 31 bits; its highest 7 are the number of the worker, where there are several.
const WORKER_SHIFT = 24;
/** The highest number that a worker may have. */
export const MAX_WORKERS = 127;

/** The number of the worker that gave out a key with this process id; 0 where it can be none's. */
export function workerOf(processId: number): number {
  return processId > 0 ? processId >>> WORKER_SHIFT : 0;
}

interface Entry {
  readonly secretKey: Buffer;
  readonly target: CancelTarget;
  readonly line: Line;
  /** Whether PostgreSQL has taken every cancel so far. */
  allTaken: boolean;
}

/** What became of a request: PostgreSQL has taken it, could not be reached, has not said, or the key is nobody's. */
export type CancelOutcome = 'taken' | 'unreachable' | 'unanswered' | 'unknown_key';

/** An empty registry; `worker` is the number of this process among several, from 1. `onOutcome` is told of each request forwarded. */
export function createCancels(
  worker?: number,
  onOutcome: (outcome: CancelOutcome) => void = () => {},
): Cancels {
  const entries = new Map<number, Entry>();

  const find = ({ processId, secretKey }: CancelKey): Entry | undefined => {
    const entry = entries.get(processId);
    if (entry === undefined || entry.secretKey.length !== secretKey.length) return undefined;
    return timingSafeEqual(entry.secretKey, secretKey) ? entry : undefined;
  };

  return {
    register(target, minor) {
      let processId: number;
      do processId = randomProcessId(worker);
      while (entries.has(processId));
      const secretKey = minor >= 2 ? randomBytes(SECRET_BYTES) : shortSecret();
      entries.set(processId, { secretKey, target, line: new Line(), allTaken: true });
      return { processId, secretKey };
    },
    async revoke(key) {
      const entry = find(key);
      entries.delete(key.processId);
      await entry?.line.inFlight;
      return entry?.allTaken ?? true;
    },
    async forward(key) {
      const entry = find(key);
      if (entry === undefined) {
        onOutcome('unknown_key');
        return false;
      }
      await entry.line.join(async () => {
        if (entries.get(key.processId) !== entry) return;
        const outcome = await cancelQuery(entry.target);
        if (outcome === 'unanswered') entry.allTaken = false;
        onOutcome(outcome);
      });
      return true;
    },
  };
}

/** In a buffer of its own: a piece of a shared one would keep all of that for as long as the session lasts. */
function shortSecret(): Buffer {
  const secretKey = Buffer.allocUnsafeSlow(4);
  secretKey.writeUInt32BE(randomInt(2 ** 32));
  return secretKey;
}

function randomProcessId(worker: number | undefined): number {
  if (worker === undefined) return randomInt(1, 2 ** 31 - 1);
  return worker * 2 ** WORKER_SHIFT + randomInt(0, 2 ** WORKER_SHIFT);
}

/**
 * Cancels for one key: one at a time, and one more behind it. A flood of them (attack G2) costs one connection, and yet
 * none is lost, for the one under way may have met an earlier query than this one means.
 */
export class Line {
  inFlight: Promise<void> | undefined;
  /** The one that starts when that is done. */
  #queued: Promise<void> | undefined;

  /** Runs `task`, which must not fail, now or when its turn comes; or waits for the one that is to come anyway. */
  async join(task: () => Promise<void>): Promise<void> {
    if (this.inFlight === undefined) return this.#start(task);
    this.#queued ??= this.inFlight.then(() => {
      this.#queued = undefined;
      return this.#start(task);
    });
    await this.#queued;
  }

  #start(task: () => Promise<void>): Promise<void> {
    this.inFlight = task().finally(() => {
      this.inFlight = undefined;
    });
    return this.inFlight;
  }
}

/**
 * Cancels what the backend is running; resolves when PostgreSQL has closed the request's connection, or after ten seconds:
 * then, `unanswered`, a cancel may still be on its way. Never throws.
 */
export async function cancelQuery({
  upstream,
  processId,
  secretKey,
}: CancelTarget): Promise<Exclude<CancelOutcome, 'unknown_key'>> {
  const signal = AbortSignal.timeout(CANCEL_TIMEOUT_MS);
  let stream: Duplex;
  try {
    stream = await dial(upstream, signal);
  } catch {
    // There is nobody to tell: a CancelRequest has no answer. Nothing was sent.
    return 'unreachable';
  }
  const closed = new Promise<'taken' | 'unanswered'>((resolve) => {
    if (stream.destroyed) resolve('unanswered');
    stream.once('close', () => resolve(stream.readableEnded ? 'taken' : 'unanswered'));
    signal.addEventListener('abort', () => stream.destroy(), { once: true });
  });
  stream.end(encodeCancelRequest(processId, secretKey));
  stream.resume();
  return closed;
}
