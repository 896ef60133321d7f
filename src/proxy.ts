/**
 * The proxy: puts the parts together, accepts clients, takes new configurations, and ends everything in good order.
 *
 * Public API of the package: `createProxy(config)` and the configuration it takes.
 */
import type { Server, Socket } from 'node:net';
import { createOrigins } from './accept/origin.ts';
import { addressOf, listen, type Address } from './accept/tcp.ts';
import { startAdmin, type Admin } from './admin/endpoint.ts';
import { readCredentials } from './admin/principal.ts';
import { createRoutes } from './admin/routes.ts';
import { changedSettings, settingsThatNeedRestart, type Config } from './config.ts';
import { ConnectionLines } from './connection-log.ts';
import { ConnectionMetrics } from './connection-metrics.ts';
import { ConnectionRecord, type ConnectionListener } from './connection-record.ts';
import { serve } from './connection.ts';
import { ConfigError, ProxyError } from './errors.ts';
import { createGeneration, type Generation, type House } from './generation.ts';
import type { Revocation } from './identity/revocations.ts';
import { canonical } from './limits/address.ts';
import type { Ledger, LedgerCounts } from './limits/ledger.ts';
import { createSharing } from './limits/sharing.ts';
import { createLogger, type Logger } from './log.ts';
import { LogRation } from './limits/log-ration.ts';
import { createMetrics, type Metrics } from './metrics.ts';
import { watchProcess } from './metrics-process.ts';
import { render, type MetricsText } from './metrics-sample.ts';
import { Newcomer } from './newcomer.ts';
import { createOverview, type Overview } from './overview.ts';
import { announce, collectState } from './proxy-metrics.ts';
import { Roster } from './roster.ts';
import { createCancels, type Cancels } from './upstream/cancel.ts';
import type { Pool } from './upstream/pool.ts';

export { loadConfig, parseConfig, type Config, type ConfigInput } from './config.ts';
export { ConfigError, ProxyError, type ErrorCode } from './errors.ts';
export type { PoolDescription, ProviderDescription } from './inspection.ts';
export type { Readiness } from './readiness.ts';
export type {
  SessionDescription,
  SessionPage,
  SessionQuery,
  SessionSelection,
} from './roster.ts';

/** A proxy. `start` once; then `drain` to end it politely or `close` to end it now. */
export interface Proxy extends Overview {
  /** Begins to accept clients; resolves with where. @throws the system's error when the address cannot be bound. */
  start(): Promise<Address>;
  /**
   * Takes another configuration: for new connections at once, while sessions that it still grants go on. Those that it would
   * not grant to the same token, or on another upstream, end. What is listened on changes only with a restart. A function that
   * reads it may be given instead: then one that cannot be read counts as refused, too.
   *
   * @throws {ConfigError} when a file or secret that it names cannot be read, or when the proxy is ending; then nothing has
   *   changed.
   */
  reload(config: Config | (() => Config)): void;
  /** Accepts these tokens no more, and ends their sessions. @throws {z.ZodError} when the entry is none. */
  revoke(entry: unknown): void;
  /** Refuses new clients, ends idle sessions, lets busy ones finish for `sessions.drainTimeoutMs`, then closes. */
  drain(): Promise<void>;
  /** Ends every session now; resolves when every socket, timer and slot is given back. */
  close(): Promise<void>;
  /** All metrics, as text for a scrape with this header Accept. */
  metrics(accept?: string): Promise<MetricsText>;
  /** What is in use, for tests and operators. */
  counts(): {
    /** Open client sockets. */
    connections: number;
    /** Those of them that have asked to log in. */
    clients: number;
    /** The slots of each upstream, by role. */
    upstreams: Record<string, ReturnType<Pool['counts']>>;
    /** What is counted against `limits`, and how often each has refused somebody; of several workers, by the primary. */
    limits: LedgerCounts;
    /** Where the endpoint for administrators listens, once it does. */
    adminPort: number | undefined;
  };
}

/** What a proxy may be given beside its configuration. */
export interface ProxyOptions {
  /** Default: JSON lines on standard output. */
  readonly logger?: Logger;
  /** Where to count, for whoever wants to read it without text. */
  readonly metrics?: Metrics;
  /** Reads the configuration again, for administrators who ask for that. @throws {ConfigError} */
  readonly readConfig?: () => Config;
  /** An administrator wants the proxy to end as SIGTERM ends it. Default: it drains. */
  readonly onDrainRequest?: () => void;
  /** Where the proxy is one of several workers: what they have in common. */
  readonly shared?: Shared;
}

/** What a proxy that is one of several has from the others: it neither listens nor counts alone. */
export interface Shared {
  /** What administrators have revoked before it started. */
  readonly revocations: readonly Revocation[];
  /** The cancel keys of all, of which it gives out its own. */
  readonly cancels: Cancels;
  /** What is counted for all of them. */
  readonly ledger: Ledger;
  /** Has clients brought to `onArrival`, which owns them and resolves when one is gone. Returns where they come from. */
  listen(onArrival: (socket: Socket) => Promise<void>): Address;
}

/**
 * A proxy for this configuration; it opens nothing before `start`.
 *
 * @throws {ConfigError} when a file or secret that the configuration names cannot be read.
 */
export function createProxy(
  config: Config,
  {
    logger = createLogger(config.log),
    metrics = createMetrics(),
    readConfig,
    onDrainRequest,
    shared,
  }: ProxyOptions = {},
): Proxy {
  const roster = new Roster((asking, identity) => generation.objection(asking, identity));
  const retired = new Map<Generation, Promise<void>>();
  let clients = 0;
  let server: Server | undefined;
  let admin: Admin | undefined;
  let starting: Promise<Address> | undefined;
  let phase: 'starting' | 'serving' | 'draining' = 'starting';
  let origins = createOrigins(config.listen);
  let unwatch: (() => void) | undefined;
  const counting = new ConnectionMetrics(metrics);

  const cancels =
    shared?.cancels ?? createCancels(undefined, (outcome) => metrics.cancels.inc({ outcome }));
  // Of several workers it is the primary that shares anything with other proxies.
  const limits = shared ? { ...config.limits, store: undefined } : config.limits;
  const sharing = createSharing(limits, logger, metrics.limits, (key) => cancels.forward(key));
  const ledger = shared?.ledger ?? sharing.ledger;

  const house: House = {
    logger,
    metrics,
    cancels,
    revocations: shared?.revocations ?? [],
    async admit(address, signal) {
      if (phase === 'draining') throw new ProxyError('draining');
      if (clients >= generation.room.clients) throw new ProxyError('too_many_clients');
      const admission = await ledger.admit(address, signal);
      clients++;
      admission.onLeave(() => clients--);
      return admission;
    },
    async cancel(key, address) {
      if (!(await ledger.mayCancel(address))) return;
      const matched = (await cancels.forward(key)) || (await sharing.cancelElsewhere(key));
      logger.debug({ event: 'cancel', address, matched });
      if (!matched) ledger.missedCancel(address);
    },
    current: () => generation,
    onRevocation: () => roster.judge((...claim) => generation.revocation(...claim)),
  };
  let generation: Generation = createGeneration(config, house);
  announce(metrics, config);
  const ration = new LogRation(logger, () => generation.config.log.refusalsPerMinute);
  // In this order: what an objection ends is counted and logged before.
  const listeners: readonly ConnectionListener[] = [
    counting,
    new ConnectionLines(logger, ration),
    roster,
  ];
  const overview = createOverview({ roster, current: () => generation, phase: () => phase });

  // Not async, or it would keep the socket that came, which the splice replaces, for as long as its client is there.
  const onArrival = (socket: Socket): Promise<void> => {
    const { context, room } = generation;
    // It is gone already, or was never an address.
    const peer = canonical(socket.remoteAddress ?? '');
    if (!origins.mayArrive(peer)) {
      metrics.limits.inc({ limit: 'address_denied' });
      socket.destroy();
      return Promise.resolve();
    }
    if (roster.size >= room.sockets) {
      metrics.limits.inc({ limit: 'descriptors' });
      socket.destroy();
      return Promise.resolve();
    }
    const newcomer = new Newcomer(socket, peer, origins, ledger);
    if (socket.destroyed) {
      newcomer.exit();
      return Promise.resolve();
    }
    metrics.accepted.inc();
    const record = new ConnectionRecord(peer, [...listeners, newcomer]);
    roster.enter(record);
    return serve(socket, newcomer, context, record).finally(() => {
      roster.exit(record);
      newcomer.exit();
    });
  };

  const take = (next: Config): void => {
    // Its parts would be nobody's to close.
    if (phase === 'draining') throw refusal('is not taken: the proxy is shutting down');
    const credentials = admin && next.admin && readCredentials(next.admin);
    const previous = generation;
    generation = createGeneration(next, house, previous);
    announce(metrics, next);
    if (credentials !== undefined) admin?.setCredentials(credentials);
    origins = createOrigins(next.listen);
    sharing.setLimits(next.limits);
    generation.context.verifier.warm();
    retired.set(
      previous,
      previous.retire(generation).finally(() => retired.delete(previous)),
    );
    logger.level = next.log.level;
    const changed = changedSettings(previous.config, next);
    const needsRestart = settingsThatNeedRestart(config, next);
    // Of several workers the primary says it, once for all.
    logger[shared === undefined ? 'info' : 'debug']({ event: 'reloaded', changed, needsRestart });
    roster.judge((...claim) => generation.objection(...claim));
  };

  const reload: Proxy['reload'] = (next) => {
    try {
      take(typeof next === 'function' ? next() : next);
      metrics.onConfig('success');
    } catch (error) {
      metrics.onConfig('failure');
      throw error;
    }
  };

  const open = async (): Promise<Address> => {
    generation.context.verifier.warm();
    unwatch = watchProcess(metrics);
    sharing.open();
    // It answers while the rest is starting.
    await openAdmin();
    const address = await listenForClients();
    if (phase === 'starting') phase = 'serving';
    return address;
  };

  const listenForClients = async (): Promise<Address> => {
    const { host, port } = config.listen;
    if (shared !== undefined) return shared.listen(onArrival);
    server = await listen(
      { host, port },
      (socket) => void onArrival(socket),
      (error) => {
        logger.error({ event: 'accept_failed', cause: error.message });
      },
    );
    return addressOf(server);
  };

  const openAdmin = async (): Promise<void> => {
    // What there is once for all workers is the primary's: the port, and the endpoint for administrators.
    if (config.admin === undefined || shared !== undefined) return;
    const routes = createRoutes({
      readiness: () => overview.readiness(),
      sessions: (query) => overview.sessions(query),
      pools: async () => ({ pools: await overview.pools() }),
      providers: () => ({ providers: overview.providers() }),
      terminate: (selection) => ({ terminated: overview.terminate(selection) }),
      reconnect: (upstream) => overview.reconnect(upstream),
      drain: onDrainRequest ?? (() => void drain()),
      revoke(entry) {
        generation.revocations.add(entry);
        logger.info({ event: 'revoked', entry });
      },
      reload() {
        if (readConfig === undefined) throw refusal('was not read from a file');
        reload(readConfig);
      },
      metrics: readMetrics,
    });
    admin = await startAdmin(config.admin, readCredentials(config.admin), routes, logger);
  };

  const leave = async (graceMs: number): Promise<void> => {
    phase = 'draining';
    // What is about to listen must be there to be closed.
    await starting?.catch(() => {});
    const closed = new Promise<void>((resolve) =>
      server?.listening ? server.close(() => resolve()) : resolve(),
    );
    await roster.leave(graceMs);
    await Promise.all([closed, admin?.close()]);
    for (const previous of retired.keys()) previous.closeVerifier();
    await Promise.all([generation.retire(), ...retired.values()]);
    await sharing.close();
    ration.close();
    unwatch?.();
  };

  const readMetrics: Proxy['metrics'] = async (accept) => render(await metrics.sample(), accept);
  metrics.onSample(() => {
    counting.collect();
    const state = { connections: roster.size, clients, current: generation };
    collectState(metrics, { ...state, retired: retired.keys() });
  });

  const drain: Proxy['drain'] = () => leave(generation.config.sessions.drainTimeoutMs);
  return {
    start: () => (starting ??= open()),
    reload,
    revoke: (entry) => generation.revocations.add(entry),
    drain,
    close: () => leave(0),
    metrics: readMetrics,
    ...overview,
    counts: () => ({
      connections: roster.size,
      clients,
      upstreams: Object.fromEntries([...generation.pools].map(([id, pool]) => [id, pool.counts()])),
      limits: sharing.ledger.counts(),
      adminPort: admin?.port,
    }),
  };
}

/** A configuration as a whole that is not taken. */
function refusal(message: string): ConfigError {
  return new ConfigError([{ path: '(top level)', message }]);
}
