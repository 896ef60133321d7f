/**
 * What administrators see of pools and providers: what one process has of them, and that of several as one.
 *
 * Public keys are known by their names here, and secrets not at all.
 */
import type { UpstreamConfig } from './config.ts';
import type { ProxyError } from './errors.ts';
import type { KeyState } from './identity/jwks.ts';
import { explain } from './log.ts';
import type { PoolState } from './upstream/role-pool.ts';

/** An upstream, over all processes. */
export interface PoolDescription {
  readonly upstream: string;
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly session: UpstreamConfig['session'];
  readonly limits: {
    readonly maxConnections: number | null;
    readonly maxWaiting: number;
    readonly acquireTimeoutMs: number;
  };
  /** For each process, whether its control connection can be had, and whether its logins give up at once. */
  readonly control: readonly {
    readonly worker?: number;
    readonly reachable: boolean;
    readonly error?: string;
    readonly circuit: 'open' | 'closed';
  }[];
  readonly roles: Readonly<Record<string, RoleDescription>>;
}

/** The sessions of one role of an upstream, over all processes. */
export interface RoleDescription {
  /** How many slots the database has for this role. */
  readonly slots: number;
  readonly maxConnections: number;
  /** Leased and vacant; with a session that waits for its next user; with a client. */
  readonly free: number;
  readonly idle: number;
  readonly busy: number;
  readonly quarantined: number;
  /** Logins that wait for a slot. */
  readonly waiting: number;
  /** Those put aside, and until when, ISO 8601. */
  readonly quarantine: readonly { readonly slot: string; readonly until: string }[];
}

/** An issuer, as one process knows it. Times are ISO 8601. */
export interface ProviderDescription {
  readonly worker?: number;
  readonly provider: string;
  readonly issuer: string;
  /** Where its keys come from: a URL or a file. */
  readonly source: string;
  /** Whether tokens can be verified at present. */
  readonly usable: boolean;
  readonly keys: readonly { readonly kid: string | null; readonly algorithms: readonly string[] }[];
  /** When they were read last, until when they count as fresh, and until when they serve at all. */
  readonly readAt?: string | undefined;
  readonly ageMs?: number;
  readonly freshUntil?: string | undefined;
  readonly usableUntil?: string | undefined;
  /** When they are to be read again. */
  readonly nextRefreshAt?: string | undefined;
  /** Why the last attempt failed, where it did. */
  readonly lastError?: string;
}

/** An upstream of this process. `error` is why its control connection cannot be had, where it cannot. */
export function describePool(
  upstream: string,
  config: UpstreamConfig,
  { circuit, roles }: PoolState,
  error: ProxyError | undefined,
): PoolDescription {
  const { host, port, database, session, pool, acquireTimeoutMs } = config;
  const { maxConnections = null, maxWaiting } = pool;
  const control = {
    reachable: error === undefined,
    ...(error !== undefined && { error: explain(error).cause ?? error.message }),
    circuit,
  };
  const described = Object.entries(roles).map(([role, { counts, quarantined }]) => {
    const { slots = 0, maxConnections: most = slots } = config.roles[role] ?? {};
    const aside = [...quarantined].map(([slot, until]) => ({ slot, until: isoTime(until) }));
    return [role, { slots, maxConnections: most, ...counts, quarantine: aside }];
  });
  return {
    upstream,
    host,
    port,
    database,
    session,
    limits: { maxConnections, maxWaiting, acquireTimeoutMs },
    control: [control],
    roles: Object.fromEntries(described) as PoolDescription['roles'],
  };
}

/** The same upstreams in several processes, as one. What each may open is its share of what all may. */
export function mergePools(
  all: readonly { readonly worker: number; readonly pools: readonly PoolDescription[] }[],
): PoolDescription[] {
  const merged = new Map<string, PoolDescription>();
  for (const { worker, pools } of all) {
    for (const pool of pools) {
      const control = pool.control.map((one) => ({ worker, ...one }));
      const known = merged.get(pool.upstream);
      merged.set(pool.upstream, known ? addUp(known, { ...pool, control }) : { ...pool, control });
    }
  }
  return [...merged.values()];
}

function addUp(one: PoolDescription, other: PoolDescription): PoolDescription {
  const [mine, others] = [one.limits.maxConnections, other.limits.maxConnections];
  const roles = Object.entries(other.roles).map(([role, part]) => {
    const known = one.roles[role];
    return [role, known === undefined ? part : addUpRoles(known, part)];
  });
  return {
    ...one,
    limits: {
      ...one.limits,
      maxConnections: mine === null || others === null ? null : mine + others,
      maxWaiting: one.limits.maxWaiting + other.limits.maxWaiting,
    },
    control: [...one.control, ...other.control],
    roles: { ...one.roles, ...(Object.fromEntries(roles) as PoolDescription['roles']) },
  };
}

function addUpRoles(one: RoleDescription, other: RoleDescription): RoleDescription {
  const { slots } = one;
  return {
    slots,
    // Where it is not limited, each may open as many as there are slots.
    maxConnections: Math.min(slots, one.maxConnections + other.maxConnections),
    free: one.free + other.free,
    idle: one.idle + other.idle,
    busy: one.busy + other.busy,
    quarantined: one.quarantined + other.quarantined,
    waiting: one.waiting + other.waiting,
    quarantine: [...one.quarantine, ...other.quarantine],
  };
}

/** An issuer's keys at hand. */
export function describeProvider(state: KeyState): ProviderDescription {
  const { provider, issuer, source, usable, published, lastError, ageMs, times } = state;
  const now = Date.now();
  const at = (inMs: number | undefined) =>
    inMs !== undefined && Number.isFinite(inMs) ? isoTime(now + inMs) : undefined;
  return {
    provider,
    issuer,
    source,
    usable,
    keys: published,
    ...(ageMs !== undefined && {
      ageMs: Math.round(ageMs),
      readAt: at(-ageMs),
      freshUntil: at(times.freshForMs),
      usableUntil: at(times.usableForMs),
    }),
    nextRefreshAt: at(times.nextRefreshInMs),
    ...(lastError !== undefined && { lastError }),
  };
}

function isoTime(ms: number): string {
  return new Date(ms).toISOString();
}
