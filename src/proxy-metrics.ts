/**
 * Brings the metrics of a proxy's state up to date when somebody scrapes: sockets, slots, keys, configuration.
 *
 * What happens is counted where it happens; this only looks at what is.
 */
import type { Config } from './config.ts';
import { ERRORS } from './errors.ts';
import type { Verifier } from './identity/jwt.ts';
import type { LimitName } from './limits/ledger.ts';
import type { Metrics } from './metrics.ts';
import type { Pool } from './upstream/pool.ts';

/** What is looked at of a version of the configuration that is at work. */
interface Version {
  readonly config: Config;
  readonly context: { readonly verifier: Pick<Verifier, 'keyStates'> };
  readonly revocations: { readonly size: number };
  readonly pools: ReadonlyMap<string, Pick<Pool, 'counts'>>;
  readonly certificateExpiresAt: number | undefined;
}

/** What a proxy has at a time. */
export interface ProxyState {
  readonly connections: number;
  readonly clients: number;
  /** The version that new connections belong to. */
  readonly current: Version;
  /** Earlier ones, while sessions of theirs go on. */
  readonly retired: Iterable<Version>;
}

/** Sets the gauges of what there is. */
export function collectState(metrics: Metrics, state: ProxyState): void {
  const { current, retired } = state;
  metrics.connections.set(state.connections);
  metrics.clients.set(state.clients);
  metrics.revocations.set(current.revocations.size);
  if (current.certificateExpiresAt !== undefined) {
    const listener = 'clients';
    metrics.certificateExpiry.set({ listener }, current.certificateExpiresAt / 1000);
  }
  collectKeys(metrics, current);
  collectSlots(metrics, current.config, [current, ...retired]);
}

// What an operator is to hear of, however seldom it happens.
const FAULTS = Object.entries(ERRORS).flatMap(([code, { log }]) => (log === 'error' ? [code] : []));

const LIMITS = {
  maxClients: 0,
  maxClientsPerAddress: 0,
  maxClientsPerSubject: 0,
  maxUnauthenticated: 0,
  maxUnauthenticatedPerAddress: 0,
  loginsPerSecond: 0,
  loginsPerSecondPerAddress: 0,
  failedLogins: 0,
  missedCancelsPerSecond: 0,
  pool_timeout: 0,
  address_denied: 0,
} satisfies Record<LimitName | 'pool_timeout' | 'address_denied', 0>;

/**
 * Begins to count at zero what this configuration can make happen and somebody may be waked for: to Prometheus, a series
 * that begins at one has not grown.
 */
export function announce(metrics: Metrics, { providers, upstreams }: Config): void {
  for (const limit of Object.keys(LIMITS)) metrics.limits.inc({ limit }, 0);
  for (const provider of Object.keys(providers)) {
    metrics.logins.inc({ provider, outcome: 'accepted', reason: '' }, 0);
    for (const outcome of ['success', 'failure']) metrics.keyFetches.inc({ provider, outcome }, 0);
  }
  for (const provider of ['', ...Object.keys(providers)]) {
    for (const reason of FAULTS) metrics.logins.inc({ provider, outcome: 'refused', reason }, 0);
  }
  for (const upstream of Object.keys(upstreams)) {
    metrics.sessionEnds.inc({ upstream, ended_by: 'upstream', reason: 'upstream_lost' }, 0);
    metrics.sessionEnds.inc({ upstream, ended_by: 'proxy', reason: 'internal' }, 0);
    for (const counter of [metrics.quarantines, metrics.healings, metrics.lookupFailures]) {
      counter.inc({ upstream }, 0);
    }
  }
}

function collectKeys(metrics: Metrics, { context }: Version): void {
  const { keys, keyAge } = metrics;
  keys.reset();
  keyAge.reset();
  const oldest = new Map<string, number>();
  for (const state of context.verifier.keyStates()) {
    const { provider, ageMs } = state;
    keys.inc({ provider }, state.keys);
    if (ageMs !== undefined) oldest.set(provider, Math.max(ageMs, oldest.get(provider) ?? 0));
  }
  for (const [provider, ageMs] of oldest) keyAge.set({ provider }, ageMs / 1000);
}

function collectSlots(metrics: Metrics, config: Config, versions: readonly Version[]): void {
  const { slots, slotsConfigured, waiting } = metrics;
  for (const gauge of [slots, slotsConfigured, waiting]) gauge.reset();
  for (const [upstream, { roles }] of Object.entries(config.upstreams)) {
    for (const [role, { slots: count }] of Object.entries(roles)) {
      slotsConfigured.set({ upstream, role }, count);
    }
  }
  // A pool that is still at work after a reload is counted once, whoever has it.
  const pools = new Map(
    versions.flatMap(({ pools: all }) => [...all].map(([id, pool]) => [pool, id])),
  );
  for (const [pool, upstream] of pools) {
    for (const [role, { waiting: waits, ...states }] of Object.entries(pool.counts())) {
      waiting.inc({ upstream, role }, waits);
      for (const [state, count] of Object.entries(states)) {
        slots.inc({ upstream, role, state }, count);
      }
    }
  }
}
