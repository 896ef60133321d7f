/**
 * The proxy: puts the parts together, accepts clients, and ends them in good order.
 *
 * Public API of the package: `createProxy(config)` and the configuration it takes.
 */
import { constants, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Server, Socket } from 'node:net';
import { createSecureContext, type SecureContext } from 'node:tls';
import { addressOf, listen, type Address } from './accept/tcp.ts';
import type { Config } from './config.ts';
import { serve, type ConnectionContext, type ConnectionLog, type Finish } from './connection.ts';
import { ConfigError, ProxyError } from './errors.ts';
import { clientTlsMode } from './exposure.ts';
import { chooseAuthentication } from './identity/authentication.ts';
import { createVerifier } from './identity/jwt.ts';
import { decide, decideAnonymous, type Identity } from './identity/policy.ts';
import { createLogger, describeClient, explain, type Logger } from './log.ts';
import { createCancels } from './upstream/cancel.ts';
import { createPool, type Pool } from './upstream/pool.ts';

export { loadConfig, parseConfig, type Config, type ConfigInput } from './config.ts';
export { ConfigError, ProxyError, type ErrorCode } from './errors.ts';

/** A proxy. `start` once; then `drain` to end it politely or `close` to end it now. */
export interface Proxy {
  /** Begins to accept clients; resolves with where. @throws the system's error when the address cannot be bound. */
  start(): Promise<Address>;
  /** Refuses new clients, ends idle sessions, lets busy ones finish for `sessions.drainTimeoutMs`, then closes. */
  drain(): Promise<void>;
  /** Ends every session now; resolves when every socket, timer and slot is given back. */
  close(): Promise<void>;
  /** What is in use, for tests and operators. */
  counts(): {
    /** Open client sockets. */
    connections: number;
    /** Those of them that have asked to log in. */
    clients: number;
    /** The slots of each upstream, by role. */
    upstreams: Record<string, ReturnType<Pool['counts']>>;
  };
}

/** What a proxy may be given beside its configuration. */
export interface ProxyOptions {
  /** Default: JSON lines on standard output. */
  readonly logger?: Logger;
}

// How many sockets may be open beyond `limits.maxClients`: cancels, and those that are to hear that the house is full.
const MAX_STRANGERS = 256;

/** A connection as the proxy keeps it. */
interface Connection {
  /** Ends its session; until there is one, its login. */
  finish: Finish;
  gone: Promise<void>;
}

/**
 * A proxy for this configuration; it opens nothing before `start`.
 *
 * @throws {ConfigError} when a file or secret that the configuration names cannot be read.
 */
export function createProxy(
  config: Config,
  { logger = createLogger(config.log) }: ProxyOptions = {},
): Proxy {
  const verifier = createVerifier(config, {
    onKeyProblem: (provider, problem) => logger.warn({ event: 'key_problem', provider, problem }),
  });
  const pools = new Map(
    Object.entries(config.upstreams).map(([id, upstream]) => [
      id,
      createPool(upstream, `upstreams.${id}`, {
        onQuarantine(slot, error) {
          logger.error({ event: 'slot_quarantined', upstream: id, slot, ...explain(error) });
        },
        onLookupFailed(error) {
          logger.warn({ event: 'lookup_failed', upstream: id, ...explain(error) });
        },
        onHealed(slot) {
          logger.info({ event: 'slot_healed', upstream: id, slot });
        },
        onHealingFailed(slot, error) {
          logger.error({ event: 'slot_not_healed', upstream: id, slot, ...explain(error) });
        },
      }),
    ]),
  );
  const context: ConnectionContext = {
    handshake: {
      tlsMode: clientTlsMode(config),
      secureContext: loadCertificate(config),
      allowParameters: config.startupParameters.allow,
    },
    verifier,
    cancels: createCancels(),
    maxTokenBytes: config.limits.maxTokenBytes,
    loginTimeoutMs: config.limits.loginTimeoutMs,
    expiryGraceMs: config.sessions.graceMs,
    admit() {
      if (leaving) throw new ProxyError('draining');
      if (clients >= config.limits.maxClients) throw new ProxyError('too_many_clients');
      clients++;
      return () => {
        clients--;
      };
    },
    anonymous: (startup) => decideAnonymous(config, startup),
    discovery: (asking) => chooseAuthentication(config, asking),
    authorize: (startup, token) => decide(config, startup, token),
    acquire: (identity, parameters, signal) =>
      (pools.get(identity.upstream) as Pool).acquire(identity, parameters, signal),
  };
  const connections = new Set<Connection>();
  let clients = 0;
  let server: Server | undefined;
  let leaving = false;

  const onArrival = (socket: Socket): void => {
    // Whoever wants to log in is counted when they say so: a cancel must get through when the house is full.
    if (connections.size >= config.limits.maxClients + MAX_STRANGERS) {
      socket.destroy();
      return;
    }
    const address = socket.remoteAddress ?? '';
    const connection: Connection = { finish: () => {}, gone: Promise.resolve() };
    const log = createConnectionLog(logger, address, (finish) => {
      connection.finish = finish;
      if (leaving) finish(new ProxyError('shutdown'), config.sessions.drainTimeoutMs);
    });
    connections.add(connection);
    connection.gone = serve(socket, address, context, log).finally(() => {
      connections.delete(connection);
    });
  };

  const leave = async (graceMs: number): Promise<void> => {
    leaving = true;
    const closed = new Promise<void>((resolve) =>
      server?.listening ? server.close(() => resolve()) : resolve(),
    );
    for (const connection of connections) connection.finish(new ProxyError('shutdown'), graceMs);
    await Promise.all([...connections].map(({ gone }) => gone));
    await closed;
    await Promise.all([...pools.values()].map((pool) => pool.close()));
    verifier.close();
  };

  return {
    async start() {
      const { host, port } = config.listen;
      server = await listen({ host, port }, onArrival, (error) => {
        logger.error({ event: 'accept_failed', cause: error.message });
      });
      return addressOf(server);
    },
    drain: () => leave(config.sessions.drainTimeoutMs),
    close: () => leave(0),
    counts: () => ({
      connections: connections.size,
      clients,
      upstreams: Object.fromEntries([...pools].map(([id, pool]) => [id, pool.counts()])),
    }),
  };
}

/** Writes the log lines of one connection: one for its login, one for its end. */
function createConnectionLog(
  logger: Logger,
  address: string,
  onFinishable: (finish: Finish) => void,
): ConnectionLog {
  const session = randomUUID();
  const arrived = performance.now();
  let who: object = {};
  let identity: Identity | undefined;
  let welcomedAt = arrived;
  const elapsed = (since: number) => Math.round(performance.now() - since);
  const line = () => ({ session, address, ...who, ...describeIdentity(identity) });

  return {
    session,
    onArrival: onFinishable,
    onStartup: ({ user, database }) => {
      who = describeClient(user, database);
    },
    onIdentity: (verified) => {
      identity = verified;
    },
    onWelcome: ({ slot, cancelTarget: { processId: backendPid } }, finish) => {
      welcomedAt = performance.now();
      logger.info({
        event: 'login',
        outcome: 'accepted',
        ...line(),
        slot,
        backendPid,
        durationMs: elapsed(arrived),
      });
      onFinishable(finish);
    },
    onRefusal: (error) => {
      logger[error.spec.log]({
        event: 'login',
        outcome: error.code === 'oauth_discovery' ? 'discovery' : 'refused',
        ...line(),
        ...explain(error),
        durationMs: elapsed(arrived),
      });
    },
    onEnd: ({ endedBy, error, bytes }) => {
      logger[error?.spec.log ?? 'info']({
        event: 'session_end',
        ...line(),
        endedBy,
        ...(error && explain(error)),
        bytes,
        durationMs: elapsed(welcomedAt),
      });
    },
  };
}

function describeIdentity(identity: Identity | undefined): object {
  if (identity === undefined) return {};
  const { provider, issuer, subject, kid, role, upstream } = identity;
  return { provider, issuer, subject, kid, role, upstream };
}

function loadCertificate(config: Config): SecureContext | undefined {
  const { certFile, keyFile } = config.listen.tls;
  if (clientTlsMode(config) === 'disable' || certFile === undefined || keyFile === undefined)
    return undefined;
  try {
    return createSecureContext({
      cert: readFileSync(certFile),
      key: readFileSync(keyFile),
      // Attack A14: a stranger would have us do key exchange after key exchange. PostgreSQL refuses it too.
      secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
    });
  } catch (error) {
    throw new ConfigError([
      {
        path: 'listen.tls',
        message: `certificate or key cannot be used (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`,
      },
    ]);
  }
}
