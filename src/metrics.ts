/**
 * The metrics: each with its name, its meaning and its labels, in one registry for each proxy.
 *
 * A label's value is a name of the configuration's (a provider, an upstream, a role) or a word of ours (an error code, a
 * state), never what a client has sent: whoever connects makes numbers grow, not the number of series (attack I6). Names and
 * units are those of https://prometheus.io/docs/practices/naming/; docs/metrics.md says what each is good for.
 */
import { createRequire } from 'node:module';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Sample } from './metrics-sample.ts';

const { version } = createRequire(import.meta.url)('../package.json') as { version: string };

// From a session that is kept, on the same machine, to an upstream that answers at the last moment.
const LOGIN_SECONDS = [
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];
// Fewer: there is one of these for each role of each upstream.
const WAIT_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10];
const DELAY_SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5];
const GC_SECONDS = [0.001, 0.01, 0.1, 1];

const PHASES = ['handshake', 'token', 'verify', 'acquire', 'welcome'] as const;
const CANCEL_OUTCOMES = ['taken', 'unreachable', 'unanswered', 'unknown_key'];

/** The phases of a login, in their order. */
export type Phase = (typeof PHASES)[number];

/** How the numbers of several workers become one, where that is not their sum: the primary's own, the largest, the smallest. */
type Aggregator = 'first' | 'max' | 'min';

/** The metrics of one proxy. Made once, since they count for as long as it lives. */
export type Metrics = ReturnType<typeof createMetrics>;

/** Metrics at zero. Whoever has something to count does so; whoever has a state gives it by `onSample`. */
export function createMetrics() {
  const registry = new Registry();
  const collectors = new Set<() => void | Promise<void>>();
  let configTakenAt = performance.now();
  const instruments = {
    ...connectionMetrics(registry),
    ...loginMetrics(registry),
    ...sessionMetrics(registry),
    ...upstreamMetrics(registry),
    ...identityMetrics(registry),
    ...houseMetrics(registry),
    ...processMetrics(registry),
  };
  instruments.build.set({ version, node: process.versions.node }, 1);
  instruments.configCurrent.set(1);
  // So that a first failure is an increase.
  for (const outcome of ['success', 'failure']) instruments.reloads.inc({ outcome }, 0);
  for (const outcome of CANCEL_OUTCOMES) instruments.cancels.inc({ outcome }, 0);
  for (const phase of PHASES) instruments.loginPhaseSeconds.zero({ phase });
  return {
    ...instruments,
    /** A configuration was taken in place of another, or refused. */
    onConfig(outcome: 'success' | 'failure'): void {
      instruments.reloads.inc({ outcome });
      instruments.configCurrent.set(outcome === 'success' ? 1 : 0);
      if (outcome === 'success') configTakenAt = performance.now();
    },
    /** Has `collect` bring gauges up to date before each sample; returns how to stop that. */
    onSample(collect: () => void | Promise<void>): () => void {
      collectors.add(collect);
      return () => void collectors.delete(collect);
    },
    /** All numbers as they are now. */
    async sample(): Promise<Sample> {
      instruments.configAge.set((performance.now() - configTakenAt) / 1000);
      await Promise.all([...collectors].map(async (collect) => collect()));
      return registry.getMetricsAsJSON();
    },
  };
}

function connectionMetrics(registry: Registry) {
  const { counter, gauge } = instrumentsOf(registry);
  return {
    connections: gauge('pgjot_connections', 'Client sockets that are open.'),
    clients: gauge('pgjot_clients', 'Clients that have asked to log in and are still there.'),
    accepted: counter('pgjot_connections_accepted_total', 'Client sockets accepted.'),
    limits: counter(
      'pgjot_limits_hit_total',
      'Clients sent away because of a limit: its name among `limits`, or the error code.',
      ['limit'],
    ),
    cancelRequests: counter(
      'pgjot_cancel_requests_total',
      'Cancel requests that clients have sent. Some join another one of the same session.',
    ),
    cancels: counter(
      'pgjot_cancels_total',
      'What became of cancel requests: taken, unreachable, unanswered, unknown_key.',
      ['outcome'],
    ),
  };
}

function loginMetrics(registry: Registry) {
  const { counter, histogram } = instrumentsOf(registry);
  return {
    logins: counter(
      'pgjot_logins_total',
      'Logins that have ended: accepted, refused or discovery; the reason is the error code.',
      ['provider', 'outcome', 'reason'],
    ),
    loginSeconds: histogram(
      'pgjot_login_seconds',
      'From the first byte of a client to its first ReadyForQuery.',
      LOGIN_SECONDS,
    ),
    loginPhaseSeconds: histogram(
      'pgjot_login_phase_seconds',
      'How long each phase of a login took: handshake, token (until the client has sent it), verify, acquire, welcome.',
      LOGIN_SECONDS,
      ['phase'],
    ),
  };
}

function sessionMetrics(registry: Registry) {
  const { counter, gauge } = instrumentsOf(registry);
  return {
    sessions: gauge('pgjot_sessions', 'Sessions that clients have now.', ['upstream', 'role']),
    sessionEnds: counter(
      'pgjot_session_ends_total',
      'Sessions that have ended, by who ended them: client, upstream, proxy; the reason is an error code, or empty.',
      ['upstream', 'ended_by', 'reason'],
    ),
    bytes: counter(
      'pgjot_bytes_total',
      'Bytes passed on in sessions, those under way too: client_to_upstream, upstream_to_client.',
      ['upstream', 'direction'],
    ),
    renewals: counter(
      'pgjot_token_renewals_total',
      'New tokens that clients have sent in sessions: accepted or refused; the reason is the error code.',
      ['provider', 'outcome', 'reason'],
    ),
  };
}

function upstreamMetrics(registry: Registry) {
  const { counter, gauge, histogram } = instrumentsOf(registry);
  const perRole = ['upstream', 'role'] as const;
  return {
    slots: gauge(
      'pgjot_slots',
      'Slots that this proxy has leased: busy, idle (with a session that waits for its next user), free, quarantined.',
      [...perRole, 'state'],
    ),
    slotsConfigured: gauge(
      'pgjot_slots_configured',
      'Slots that there are, for all proxies together.',
      perRole,
      'max',
    ),
    waiting: gauge('pgjot_logins_waiting', 'Logins that wait for a slot now.', perRole),
    waitSeconds: histogram(
      'pgjot_slot_wait_seconds',
      'How long each login waited for a slot or a kept session, also those that waited in vain.',
      WAIT_SECONDS,
      perRole,
    ),
    leases: counter(
      'pgjot_leases_total',
      'Sessions given to clients: reused, spare (logged in ahead of time), fresh.',
      [...perRole, 'source'],
    ),
    quarantines: counter(
      'pgjot_slots_quarantined_total',
      'Slots put aside because their users had spoilt them.',
      ['upstream'],
    ),
    healings: counter('pgjot_slots_healed_total', 'Slots mended by the proxy.', ['upstream']),
    lookupFailures: counter(
      'pgjot_lookup_failures_total',
      'Lookups that failed and were not required, so that the login went on without.',
      ['upstream'],
    ),
  };
}

function identityMetrics(registry: Registry) {
  const { counter, gauge } = instrumentsOf(registry);
  return {
    tokens: counter(
      'pgjot_tokens_verified_total',
      'Good tokens, by whether the cache of verified tokens had them: hit, miss.',
      ['provider', 'cache'],
    ),
    keyFetches: counter(
      'pgjot_jwks_fetches_total',
      "Attempts to read a provider's keys: success, failure.",
      ['provider', 'outcome'],
    ),
    keys: gauge('pgjot_jwks_keys', 'Keys at hand of a provider.', ['provider'], 'max'),
    keyAge: gauge(
      'pgjot_jwks_age_seconds',
      'Time since the keys of a provider were last read; of several issuers, the longest.',
      ['provider'],
      'max',
    ),
    revocations: gauge('pgjot_revocations', 'Revocations in force.', [], 'max'),
  };
}

function houseMetrics(registry: Registry) {
  const { counter, gauge } = instrumentsOf(registry);
  return {
    reloads: counter(
      'pgjot_config_reloads_total',
      'Configurations read after the first: success, failure.',
      ['outcome'],
      'first',
    ),
    configAge: gauge(
      'pgjot_config_age_seconds',
      'Time since the configuration in force was taken.',
      [],
      'first',
    ),
    configCurrent: gauge(
      'pgjot_config_last_reload_successful',
      '1, or 0 while the last configuration read is not in force because it is wrong.',
      [],
      'first',
    ),
    certificateExpiry: gauge(
      'pgjot_certificate_expiry_timestamp_seconds',
      'When the certificate shown to clients expires, in seconds since the epoch.',
      ['listener'],
      'min',
    ),
    build: gauge('pgjot_build_info', 'Always 1.', ['version', 'node'], 'first'),
    workers: gauge('pgjot_workers', 'Worker processes that there should be.', [], 'first'),
    workersSilent: gauge(
      'pgjot_workers_silent',
      'Worker processes missing, or without an answer to this scrape: their last numbers count.',
      [],
      'first',
    ),
    workersLost: counter(
      'pgjot_workers_lost_total',
      'Worker processes that have ended unasked.',
      [],
      'first',
    ),
  };
}

/** Named as Prometheus's own client libraries name them, so that what is made for any program works here. */
function processMetrics(registry: Registry) {
  const { counter, gauge, histogram } = instrumentsOf(registry);
  return {
    cpuSeconds: counter(
      'process_cpu_seconds_total',
      'CPU time, user and system, of all processes.',
    ),
    residentBytes: gauge('process_resident_memory_bytes', 'Memory of all processes.'),
    startTime: gauge(
      'process_start_time_seconds',
      'When the first process began, in seconds since the epoch.',
      [],
      'min',
    ),
    openFds: gauge(
      'process_open_fds',
      'Open file descriptors, of the process that has most.',
      [],
      'max',
    ),
    maxFds: gauge('process_max_fds', 'File descriptors that a process may have.', [], 'min'),
    heapBytes: gauge('nodejs_heap_size_used_bytes', 'JavaScript heap in use, of all processes.'),
    gcSeconds: histogram(
      'nodejs_gc_duration_seconds',
      'Pauses for garbage collection: minor, major, incremental, weakcb.',
      GC_SECONDS,
      ['kind'],
    ),
    loopDelay: histogram(
      'pgjot_event_loop_delay_seconds',
      'The longest time in each second that something due had to wait for a process.',
      DELAY_SECONDS,
    ),
    loopSeconds: counter(
      'pgjot_event_loop_seconds_total',
      'Time that event loops were active or idle; the active share is the utilisation.',
      ['state'],
    ),
  };
}

/** What makes metrics in this registry. */
function instrumentsOf(registry: Registry) {
  const registers = [registry];
  return {
    counter: <Label extends string>(
      name: string,
      help: string,
      labelNames: readonly Label[] = [],
      aggregator?: Aggregator,
    ) =>
      new Counter<Label>({ name, help, labelNames, registers, ...(aggregator && { aggregator }) }),
    gauge: <Label extends string>(
      name: string,
      help: string,
      labelNames: readonly Label[] = [],
      aggregator?: Aggregator,
    ) => new Gauge<Label>({ name, help, labelNames, registers, ...(aggregator && { aggregator }) }),
    histogram: <Label extends string>(
      name: string,
      help: string,
      buckets: readonly number[],
      labelNames: readonly Label[] = [],
    ) => new Histogram<Label>({ name, help, buckets: [...buckets], labelNames, registers }),
  };
}
