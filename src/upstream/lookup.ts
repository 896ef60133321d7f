/**
 * Claims from the database: the row that a configured query finds for a user, under a role of its own.
 *
 * For issuers that add no claims: who may see what then stands in a table. Rows are remembered for a while and equal
 * questions asked once. Fails closed: no row, or no answer, is never more than null. Puts nothing on a session.
 */
import { createHash } from 'node:crypto';
import NodeCache from 'node-cache';
import type { LookupConfig, UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { resolvePointer } from '../identity/pointer.ts';
import { createLookupQuery, MAX_ROW_BYTES, type LookupQuery } from './lookup-query.ts';
import type { Secrets } from './secrets.ts';

/** The lookup of one upstream. */
export interface Lookup {
  /**
   * The JSON text of the row for a user with these verified claims; null where there is none and none is required. It is
   * text because numbers may have more digits than JavaScript's have.
   *
   * @param signal ends the wait, not the query that others may be waiting for too.
   * @throws {ProxyError} lookup_empty, lookup_failed, draining, or the signal's reason.
   */
  row(claims: Readonly<Record<string, unknown>>, signal: AbortSignal): Promise<string | null>;
  /**
   * Has PostgreSQL parse, plan and authorize the query without running it.
   *
   * @throws {ProxyError} lookup_failed
   */
  check(): Promise<void>;
  /** Refuses further questions (`draining`), waits a while for those under way, and disconnects. Never throws. */
  close(): Promise<void>;
}

/**
 * The lookup that `upstream` has configured, if any; `secrets` are the upstream's. Connects when first
 * needed. `onProblem` is told when one fails that is not required: that login goes on, with null.
 */
export function createLookup(
  upstream: UpstreamConfig,
  secrets: Secrets,
  onProblem: (error: ProxyError) => void = () => {},
): Lookup | undefined {
  const { lookup } = upstream;
  if (lookup === undefined) return undefined;
  const query = createLookupQuery(upstream, lookup, secrets);
  const memory = createMemory(lookup, (values) => ask(query, values));
  let closed = false;

  const answer = async (values: Values, signal: AbortSignal): Promise<Found> => {
    try {
      return await unlessAborted(memory.find(values), signal);
    } catch (cause) {
      signal.throwIfAborted();
      const failure = new ProxyError('lookup_failed', { cause });
      if (lookup.required) throw failure;
      onProblem(failure);
      return { row: null };
    }
  };

  return {
    async row(claims, signal) {
      if (closed) throw new ProxyError('draining');
      const values = lookup.params.map((pointer) => asText(resolvePointer(claims, pointer)));
      const found = await answer(values, signal);
      // Not an outage but a mistake, which only the operator can mend: required or not, nobody's rows are to be guessed.
      if ('mistake' in found) {
        throw new ProxyError('lookup_failed', { cause: new Error(found.mistake) });
      }
      if (found.row === null && lookup.required) {
        throw new ProxyError('lookup_empty', { cause: new Error('the lookup found no row') });
      }
      return found.row;
    },
    async check() {
      await query.check().catch((cause: unknown) => {
        throw new ProxyError('lookup_failed', { cause });
      });
    },
    async close() {
      closed = true;
      memory.close();
      await query.close();
    },
  };
}

/** What is bound to `$1`, `$2`, …; all of them text, as PostgreSQL knows better what they are. */
type Values = readonly (string | null)[];

/** What the query found: one row, none, or what cannot be an answer. */
type Found = { readonly row: string | null } | { readonly mistake: string };

async function ask(query: LookupQuery, values: Values): Promise<Found> {
  const [row, ...others] = await query.run(values);
  if (others.length > 0) {
    return {
      mistake: 'lookup.sql finds more than one row for this user: let it say which one it means',
    };
  }
  if (row === null) {
    return {
      mistake: `lookup.sql finds a row of more than ${MAX_ROW_BYTES} bytes: let it select fewer columns`,
    };
  }
  return { row: row ?? null };
}

const CACHE_ENTRIES = 10_000;
const SWEEP_SECONDS = 60;
// Who has just been made a member will not wait a minute.
const NO_ROW_MS = 5_000;

/**
 * Has each question asked once at a time, and remembers rows for `cacheMs` from when they were asked for. Mistakes and
 * failures are not remembered.
 */
function createMemory(
  { cacheMs }: LookupConfig,
  look: (values: Values) => Promise<Found>,
): { find(values: Values): Promise<Found>; close(): void } {
  const known = new NodeCache({ useClones: false, checkperiod: SWEEP_SECONDS });
  const underWay = new Map<string, Promise<Found>>();

  const keep = (key: string, found: Found, askedAt: number) => {
    if ('mistake' in found) return;
    const lifetimeMs = found.row === null ? Math.min(cacheMs, NO_ROW_MS) : cacheMs;
    const leftMs = askedAt + lifetimeMs - performance.now();
    // To node-cache, no time is all the time in the world.
    if (leftMs <= 0) return;
    if (known.getStats().keys >= CACHE_ENTRIES) {
      // Many at once, since listing the keys takes as long as there are keys.
      known.del(known.keys().slice(0, CACHE_ENTRIES / 10));
    }
    known.set(key, found, leftMs / 1000);
  };

  return {
    find(values) {
      // Who must see what is true now cannot share the answer to a question that was asked before.
      if (cacheMs === 0) return look(values);
      const key = digest(values);
      const remembered = known.get<Found>(key);
      if (remembered !== undefined) return Promise.resolve(remembered);
      let asked = underWay.get(key);
      if (asked === undefined) {
        const askedAt = performance.now();
        asked = look(values).finally(() => underWay.delete(key));
        underWay.set(key, asked);
        asked.then((found) => keep(key, found, askedAt)).catch(() => {});
      }
      return asked;
    },
    close() {
      known.flushAll();
      known.close();
    },
  };
}

/** Of what is sent, not of what the token says: 1 and "1" are the same question to PostgreSQL, NULL and "null" are not. */
function digest(values: Values): string {
  return createHash('sha256').update(JSON.stringify(values)).digest('base64url');
}

/** A claim as text: strings as they are, what is composed as JSON, and NULL for what is not there. */
function asText(claim: unknown): string | null {
  if (claim === undefined || claim === null) return null;
  return typeof claim === 'string' ? claim : JSON.stringify(claim);
}

function unlessAborted<T>(task: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error);
    task.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
}
