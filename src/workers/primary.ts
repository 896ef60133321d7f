/**
 * Several workers behind one port: the primary listens, hands each client to a worker, and holds what they must agree on.
 *
 *   primary   the port, SIGHUP and the administrators' endpoint, the count of clients, whose cancel key is whose
 *   worker    a whole proxy: TLS, tokens, sessions, with a pool and a control connection of its own
 *
 * It never reads a byte of a client. Slots need no coordination here: PostgreSQL leases each to one worker.
 */
import type { Server, Socket } from 'node:net';
import { createOrigins } from '../accept/origin.ts';
import { addressOf, listen, type Address } from '../accept/tcp.ts';
import { startAdmin, type Admin } from '../admin/endpoint.ts';
import { readCredentials } from '../admin/principal.ts';
import { createRoutes } from '../admin/routes.ts';
import { changedSettings, settingsThatNeedRestart, type Config } from '../config.ts';
import { ConfigError } from '../errors.ts';
import { Revocations } from '../identity/revocations.ts';
import { canonical } from '../limits/address.ts';
import { createSharing, type ForwardOwn } from '../limits/sharing.ts';
import type { Logger } from '../log.ts';
import { createMetrics } from '../metrics.ts';
import { watchProcess } from '../metrics-process.ts';
import { render } from '../metrics-sample.ts';
import { createProxy, type Proxy } from '../proxy.ts';
import { workerOf } from '../upstream/cancel.ts';
import { Crew } from './crew.ts';
import { Dispatch } from './dispatch.ts';
import { FleetMetrics } from './fleet-metrics.ts';
import { LedgerDesk } from './ledger.ts';
import { assertShareable, shareOf } from './share.ts';
import { createSurvey } from './survey.ts';

/** What all workers together have in use, as `Proxy.counts` says it of one. */
export type Counts = ReturnType<Proxy['counts']>;

/** A proxy of several processes. It is used like one of a single process. */
export interface Workers extends Pick<Proxy, 'start' | 'drain' | 'close' | 'metrics'> {
  /** Resolves when every worker has the configuration. @throws {ConfigError} when it cannot be used; nothing has changed then. */
  reload(config: Config | (() => Config)): Promise<void>;
  /** Resolves when no worker has a session left that this revokes. @throws {z.ZodError} when the entry is none. */
  revoke(entry: unknown): Promise<void>;
  /** The sum over all workers that answer. */
  counts(): Promise<Counts>;
}

/** What the primary may be given beside its configuration. */
export interface WorkersOptions {
  readonly workers: number;
  readonly logger: Logger;
  /** Reads the configuration again, for administrators who ask for that. @throws {ConfigError} */
  readonly readConfig: () => Config;
  /** An administrator wants the proxy to end as SIGTERM ends it. */
  readonly onDrainRequest: () => void;
}

// A cancel may wait for one before it, and PostgreSQL has ten seconds for each.
const CANCEL_MS = 25_000;

/**
 * A proxy of so many workers; it opens and forks nothing before `start`.
 *
 * @throws {ConfigError} when a file or secret that the configuration names cannot be read.
 */
export function createWorkers(
  first: Config,
  { workers, logger, readConfig, onDrainRequest }: WorkersOptions,
): Workers {
  assertUsable(first, workers, logger);
  let config = first;
  let server: Server | undefined;
  let admin: Admin | undefined;
  let starting: Promise<Address> | undefined;
  let phase: 'starting' | 'serving' | 'draining' = 'starting';
  let unwatch: (() => void) | undefined;
  const metrics = createMetrics();
  const revocations = new Revocations(undefined, [], {
    onChange: () => {},
    onProblem: () => {},
  });
  let origins = createOrigins(config.listen);
  /** Has the worker whose key it is forward it. A key of a worker that is gone is nobody's. */
  const forward: ForwardOwn = async (key) => {
    const owner = crew.member(workerOf(key.processId));
    const asked = owner?.ask({ what: 'cancel', ...key }, CANCEL_MS).catch(() => false);
    return (await asked) === true;
  };
  const sharing = createSharing(config.limits, logger, metrics.limits, forward);
  const { ledger } = sharing;
  const desk = new LedgerDesk(ledger);
  const dispatch = new Dispatch(() => ({
    maxWaiting: config.limits.maxUnauthenticated,
    patienceMs: config.limits.loginTimeoutMs,
  }));
  const address = (): Address => addressOf(server as Server);
  const crew = new Crew(
    workers,
    (worker) => ({
      config: shareOf(config, worker, workers),
      revocations: revocations.added,
      address: address(),
    }),
    logger,
    {
      onReady: (member) => dispatch.add(member),
      onLoad: () => dispatch.onFree(),
      onUndelivered: (client) => dispatch.onArrival(client),
      onLimit: (member, note) => desk.onNote(member, note),
      async onQuestion(member, question) {
        if (question.what !== 'cancel') return desk.onQuestion(member, question);
        const { processId, secretKey } = question;
        const key = { processId, secretKey: Buffer.from(secretKey) };
        // What comes from its own worker is known to be none of that one's.
        if (workerOf(processId) !== member.number && (await forward(key))) return true;
        return sharing.cancelElsewhere(key);
      },
      onGone(member) {
        if (phase !== 'draining') metrics.workersLost.inc();
        fleet.onGone(member);
        dispatch.remove(member);
        desk.onGone(member);
      },
    },
  );

  const fleet = new FleetMetrics(metrics, workers, crew);

  const readMetrics: Workers['metrics'] = async (accept) => render(await fleet.sample(), accept);

  /** Who is not to be served is not worth a worker's while; one behind a balancer has not said yet who it is. */
  const onArrival = (client: Socket): void => {
    const peer = canonical(client.remoteAddress ?? '');
    const known = origins.isBalancer(peer) ? undefined : peer;
    if (origins.mayArrive(peer) && ledger.hasRoomFor(known)) dispatch.onArrival(client);
    else client.destroy();
  };

  const take = async (next: Config): Promise<void> => {
    if (phase === 'draining') {
      const message = 'is not taken: the proxy is shutting down';
      throw new ConfigError([{ path: '(top level)', message }]);
    }
    assertUsable(next, workers, logger);
    const changed = changedSettings(config, next);
    const credentials = admin && next.admin && readCredentials(next.admin);
    config = next;
    if (credentials !== undefined) admin?.setCredentials(credentials);
    logger.level = next.log.level;
    origins = createOrigins(next.listen);
    sharing.setLimits(next.limits);
    await crew.order((worker) => ({
      what: 'reload',
      config: shareOf(next, worker, workers),
    }));
    const needsRestart = settingsThatNeedRestart(first, next);
    logger.info({ event: 'reloaded', changed, needsRestart });
  };

  const reload: Workers['reload'] = async (next) => {
    try {
      await take(typeof next === 'function' ? next() : next);
      metrics.onConfig('success');
    } catch (error) {
      metrics.onConfig('failure');
      throw error;
    }
  };

  const revoke = async (entry: unknown): Promise<void> => {
    // Kept for workers that start later.
    revocations.add(entry);
    logger.info({ event: 'revoked', entry });
    await crew.order(() => ({ what: 'revoke', entry }));
  };

  const open = async (): Promise<Address> => {
    const { host, port } = config.listen;
    // It answers while the rest is starting.
    await openAdmin();
    server = await listen(
      { host, port },
      onArrival,
      (error) => logger.error({ event: 'accept_failed', cause: error.message }),
      { pauseOnConnect: true },
    );
    unwatch = watchProcess(metrics);
    sharing.open();
    await crew.start();
    if (phase === 'starting') phase = 'serving';
    return address();
  };

  const openAdmin = async (): Promise<void> => {
    if (config.admin === undefined) return;
    const routes = createRoutes({
      ...createSurvey(crew, { phase: () => phase, config: () => config }),
      drain: onDrainRequest,
      revoke,
      reload: () => reload(readConfig),
      metrics: readMetrics,
    });
    admin = await startAdmin(config.admin, readCredentials(config.admin), routes, logger);
  };

  const leave = async (how: 'drain' | 'close'): Promise<void> => {
    phase = 'draining';
    // What is about to listen must be there to be closed.
    await starting?.catch(() => {});
    // It waits for clients that other processes serve; they are waited for by themselves.
    if (server?.listening) server.close();
    dispatch.close();
    await crew.end(how, how === 'drain' ? config.sessions.drainTimeoutMs : 0);
    await sharing.close();
    await admin?.close();
    unwatch?.();
  };

  return {
    start: () => (starting ??= open()),
    reload,
    revoke,
    drain: () => leave('drain'),
    close: () => leave('close'),
    metrics: readMetrics,
    async counts() {
      const all = (await crew.survey({ what: 'counts' })) as Counts[];
      return { ...all.reduce(addUp, NOTHING), limits: ledger.counts(), adminPort: admin?.port };
    },
  };
}

/** @throws {ConfigError} when a proxy of this configuration could not be made, here as in a worker. */
function assertUsable(config: Config, workers: number, logger: Logger): void {
  assertShareable(config, workers);
  // It has opened nothing that would have to be waited for.
  void createProxy(config, { logger }).close();
}

const NOTHING: Counts = {
  connections: 0,
  clients: 0,
  upstreams: {},
  limits: { unauthenticated: 0, clients: 0, refused: {} },
  adminPort: undefined,
};

/** The sum of two counts, number by number, whatever is counted. */
function addUp(one: Counts, other: Counts): Counts {
  return sum(one, other) as Counts;
}

function sum(one: unknown, other: unknown): unknown {
  if (typeof one === 'number' && typeof other === 'number') return one + other;
  if (!isRecord(one) || !isRecord(other)) return one ?? other;
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return Object.fromEntries([...names].map((name) => [name, sum(one[name], other[name])]));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}
