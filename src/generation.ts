/**
 * Everything that one version of the configuration brings with it: who verifies tokens, who decides, where sessions come from.
 *
 * A reload makes a new generation beside the old one, or throws and changes nothing. New connections belong to the new
 * one; what the two have in common (upstreams that are configured alike, administrators' revocations) goes over, and the
 * rest of the old one ends when its last session does.
 */
import { constants } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { readSecrets, type Config, type SecretPair, type UpstreamConfig } from './config.ts';
import type { ConnectionContext } from './connection.ts';
import { descriptorLimit, roomFor, type Room } from './descriptors.ts';
import { ProxyError } from './errors.ts';
import { clientTlsMode, upstreamTlsMode } from './exposure.ts';
import { createVerifier } from './identity/jwt.ts';
import { type Asking, chooseAuthentication } from './identity/authentication.ts';
import { decide, decideAnonymous, type Identity, objectionTo } from './identity/policy.ts';
import { Revocations, type Revocation } from './identity/revocations.ts';
import { explain, type Logger } from './log.ts';
import type { Metrics } from './metrics.ts';
import { Probe } from './readiness.ts';
import { logTo, TlsFiles } from './tls-files.ts';
import type { Cancels } from './upstream/cancel.ts';
import { upstreamTlsFiles } from './upstream/dial.ts';
import { createPool, type Lease, type Pool } from './upstream/pool.ts';

/** What outlives every generation. */
export interface House {
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly cancels: Cancels;
  readonly admit: ConnectionContext['admit'];
  readonly cancel: ConnectionContext['cancel'];
  /** What administrators had revoked before the first generation. */
  readonly revocations: readonly Revocation[];
  /** The generation that new connections belong to. */
  current(): Generation;
  /** What is revoked has changed. */
  onRevocation(): void;
}

/** One version of the configuration, at work. */
export interface Generation {
  readonly config: Config;
  readonly context: ConnectionContext;
  /** For how many clients this process has descriptors. */
  readonly room: Room;
  readonly revocations: Revocations;
  readonly pools: ReadonlyMap<string, SharedPool>;
  /** When the certificate that clients are shown expires, in ms since the epoch. */
  readonly certificateExpiresAt: number | undefined;
  /** Why whoever asked for this, and has this identity, may not go on, if they may not: `token_revoked`, `role_forbidden`. */
  objection(asking: Asking, identity: Identity): ProxyError | undefined;
  /** The same, as far as revocations say. Costs less where nothing else has changed, among many sessions and routes. */
  revocation(asking: Asking, identity: Identity): ProxyError | undefined;
  /**
   * Resolves when all that `successor` did not take over is closed: after the last session that uses it, and what verifies
   * tokens after the last login that may be at it, or at once by `closeVerifier`.
   */
  retire(successor?: Generation): Promise<void>;
  /** Closes what verifies tokens: no login is under way any more. */
  closeVerifier(): void;
}

/**
 * Makes a generation, out of its predecessor's parts where they are the same.
 *
 * @throws {ConfigError} when a file or secret that the configuration names cannot be read; nothing has changed then.
 */
export function createGeneration(
  config: Config,
  house: House,
  predecessor?: Generation,
): Generation {
  const { logger, metrics } = house;
  const certificate = loadCertificate(config);
  // All that may fail comes first; then parts are made that would have to be closed again.
  const secrets = new Map(
    Object.entries(config.upstreams).map(([id, upstream]) => [
      id,
      readSecrets(upstream, `upstreams.${id}`),
    ]),
  );
  for (const [id, pair] of secrets) {
    const upstream = config.upstreams[id] as UpstreamConfig;
    const known = poolKnown(id, upstream, pair, predecessor);
    if (upstreamTlsMode(upstream) !== 'disable')
      upstreamTlsFiles(known?.upstream ?? upstream, id).refresh();
  }
  const watching = certificate?.watch(logTo(logger, 'listen.tls'));
  const revocations = new Revocations(
    config.revocations.file,
    predecessor?.revocations.added ?? house.revocations,
    {
      onChange: () => house.onRevocation(),
      onProblem: (problem) => logger.error({ event: 'revocations_unreadable', problem }),
    },
  );
  const pools = new Map(
    [...secrets].map(([id, pair]) => [
      id,
      poolFor(id, config.upstreams[id] as UpstreamConfig, pair, house, predecessor),
    ]),
  );
  const verifier = createVerifier(config, {
    onKeyProblem: (provider, problem) => logger.warn({ event: 'key_problem', provider, problem }),
    onKeysChange: (provider, change) => logger.info({ event: 'keys_changed', provider, ...change }),
    onFetch: (provider, outcome) => metrics.keyFetches.inc({ provider, outcome }),
    onVerified: (provider, cache) => metrics.tokens.inc({ provider, cache }),
    predecessor: predecessor?.context.verifier,
  });

  const revocation: Generation['revocation'] = ({ user }, token) =>
    token.provider !== undefined && revocations.covers(token)
      ? new ProxyError('token_revoked', { user }, { cause: new Error('revoked') })
      : undefined;
  const room = roomFor(config);
  const { maxClients } = config.limits;
  if (room.clients < maxClients)
    logger.warn({ event: 'few_descriptors', limit: descriptorLimit(), maxClients, ...room });
  const context: ConnectionContext = {
    handshake: {
      tlsMode: clientTlsMode(config),
      get secureContext() {
        return certificate?.context;
      },
      allowParameters: config.startupParameters.allow,
    },
    verifier,
    cancels: house.cancels,
    maxTokenBytes: config.limits.maxTokenBytes,
    loginTimeoutMs: config.limits.loginTimeoutMs,
    sessions: config.sessions,
    admit: house.admit,
    cancel(key, address) {
      metrics.cancelRequests.inc();
      return house.cancel(key, address);
    },
    current: () => house.current().context,
    anonymous: (asking) => decideAnonymous(config, asking),
    discovery: (asking) => chooseAuthentication(config, asking),
    authorize(asking, token) {
      const identity = decide(config, asking, token);
      const objection = revocation(asking, identity);
      if (objection !== undefined) throw objection;
      return identity;
    },
    async acquire(identity, parameters, signal, session) {
      // Of the generation that has judged the identity, or one that is newer still.
      const current = () => house.current().pools.get(identity.upstream);
      for (;;) {
        const pool = current();
        if (pool === undefined) throw new ProxyError('role_forbidden', { role: identity.role });
        try {
          return await pool.acquire(identity, parameters, signal, session);
        } catch (error) {
          // Another one may have taken its place meanwhile, perhaps for the very reason that this one failed.
          if (signal.aborted || pool === current()) throw error;
        }
      }
    },
  };

  const verifying = closing(() => verifier.close());

  return {
    config,
    context,
    room,
    revocations,
    pools,
    get certificateExpiresAt() {
      return certificate?.expiresAt;
    },
    objection: (asking, identity) =>
      revocation(asking, identity) ?? objectionTo(config, asking, identity),
    revocation,
    async retire(successor) {
      revocations.close();
      watching?.[Symbol.dispose]();
      if (successor === undefined) verifying.close();
      else verifying.closeIn(config.limits.loginTimeoutMs);
      const kept = new Set(successor?.pools.values());
      const left = [...pools.values()].filter((pool) => !kept.has(pool));
      await Promise.all([...left.map((pool) => pool.retire()), verifying.closed]);
    },
    closeVerifier: () => verifying.close(),
  };
}

/** What is closed once: at once, or in a while, which holds no process up. */
function closing(close: () => void) {
  let timer: NodeJS.Timeout | undefined;
  let settle: (() => void) | undefined;
  const closed = new Promise<void>((resolve) => {
    settle = resolve;
  });
  const closeNow = () => {
    clearTimeout(timer);
    if (settle === undefined) return;
    close();
    settle();
    settle = undefined;
  };
  return {
    closed,
    close: closeNow,
    closeIn(ms: number): void {
      timer = setTimeout(closeNow, ms).unref();
    },
  };
}

/** A pool that generations hand on, and that closes when nobody has a session of it any more. */
export class SharedPool {
  readonly upstream: UpstreamConfig;
  /** By these a rotated secret is told. Not logged. */
  readonly secrets: SecretPair;
  /** Why it cannot be had, where it cannot. */
  readonly probe: Probe;
  readonly #pool: Pool;
  /** Its certificates on disk. */
  readonly #watching: Disposable | undefined;
  #leases = 0;
  readonly #giveBack = (): void => {
    this.#leases--;
    if (this.#leases === 0) this.#whenUnused?.();
  };
  #whenUnused: (() => void) | undefined;

  constructor(
    pool: Pool,
    upstream: UpstreamConfig,
    secrets: SecretPair,
    watching: Disposable | undefined,
  ) {
    this.#pool = pool;
    this.#watching = watching;
    this.probe = new Probe(() => pool.ping());
    this.upstream = upstream;
    this.secrets = secrets;
  }

  async acquire(...given: Parameters<Pool['acquire']>): Promise<Lease> {
    this.#leases++;
    try {
      const lease = await this.#pool.acquire(...given);
      lease.onReleased = this.#giveBack;
      return lease;
    } catch (error) {
      this.#giveBack();
      throw error;
    }
  }

  state(): ReturnType<Pool['state']> {
    return this.#pool.state();
  }

  reconnect(): ReturnType<Pool['reconnect']> {
    return this.#pool.reconnect();
  }

  counts(): ReturnType<Pool['counts']> {
    return this.#pool.counts();
  }

  /** Closes the pool when its last session is released; until then it keeps no slot that its successor could use. */
  async retire(): Promise<void> {
    this.#pool.retire();
    this.#watching?.[Symbol.dispose]();
    if (this.#leases > 0) {
      await new Promise<void>((resolve) => {
        this.#whenUnused = resolve;
      });
    }
    await this.#pool.close();
  }
}

/** The predecessor's pool of this upstream, if that is configured as it was. */
function poolKnown(
  id: string,
  upstream: UpstreamConfig,
  secrets: SecretPair,
  predecessor: Generation | undefined,
): SharedPool | undefined {
  const known = predecessor?.pools.get(id);
  if (known === undefined) return undefined;
  const same = isDeepStrictEqual([known.secrets, known.upstream], [secrets, upstream]);
  return same ? known : undefined;
}

function poolFor(
  id: string,
  upstream: UpstreamConfig,
  secrets: SecretPair,
  { logger, metrics }: House,
  predecessor: Generation | undefined,
): SharedPool {
  const known = poolKnown(id, upstream, secrets, predecessor);
  if (known !== undefined) return known;
  const pool = createPool(upstream, secrets, {
    onEntered: (role, source) => metrics.leases.inc({ upstream: id, role, source }),
    onWaited: (role, ms) => metrics.waitSeconds.observe({ upstream: id, role }, ms / 1000),
    onQuarantine(slot, error) {
      metrics.quarantines.inc({ upstream: id });
      logger.error({ event: 'slot_quarantined', upstream: id, slot, ...explain(error) });
    },
    onMoved(addresses) {
      logger.warn({ event: 'upstream_moved', upstream: id, addresses });
    },
    onLookupFailed(error) {
      metrics.lookupFailures.inc({ upstream: id });
      logger.warn({ event: 'lookup_failed', upstream: id, ...explain(error) });
    },
    onHealed(slot) {
      metrics.healings.inc({ upstream: id });
      logger.info({ event: 'slot_healed', upstream: id, slot });
    },
    onHealingFailed(slot, error) {
      logger.error({ event: 'slot_not_healed', upstream: id, slot, ...explain(error) });
    },
    onSecretChange(setting) {
      logger.info({ event: 'secret_changed', upstream: id, setting: `upstreams.${id}.${setting}` });
    },
    onSecretsRefused() {
      logger.error({ event: 'secret_refused', upstream: id, advice: SECRET_ADVICE });
    },
  });
  const path = `upstreams.${id}.tls`;
  const watching =
    upstreamTlsMode(upstream) === 'disable'
      ? undefined
      : upstreamTlsFiles(upstream, id).watch(logTo(logger, path));
  return new SharedPool(pool, upstream, secrets, watching);
}

const SECRET_ADVICE =
  'the server has another secret, by pgjot rotate-secret or setup: give this proxy the new one and reload it';

/** What clients are shown, where there is TLS. @throws {ConfigError} */
function loadCertificate(config: Config): TlsFiles | undefined {
  const { certFile, keyFile } = config.listen.tls;
  if (clientTlsMode(config) === 'disable' || certFile === undefined || keyFile === undefined)
    return undefined;
  return new TlsFiles({ certFile, keyFile }, 'listen.tls', {
    // Attack A14: a stranger would have us do key exchange after key exchange. PostgreSQL refuses it too.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
  });
}
