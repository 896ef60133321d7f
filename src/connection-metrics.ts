/**
 * Counts what becomes of connections: their logins, phase by phase, the sessions that there are, and the bytes in them.
 *
 * Learns it from what the log of a connection is told. Nothing here runs for a chunk or a statement: a session's bytes are
 * read from its splice when somebody scrapes.
 */
import type { ConnectionLog } from './connection.ts';
import type { ProxyError } from './errors.ts';
import type { Identity } from './identity/policy.ts';
import type { Metrics, Phase } from './metrics.ts';
import type { Outcome } from './splice/splice.ts';

type Bytes = Outcome['bytes'];

/** A session under way. */
interface Live {
  readonly upstream: string;
  readonly role: string;
  readonly bytes: () => Bytes;
}

/** The book of all sessions of a proxy. */
export class ConnectionMetrics {
  readonly #metrics: Metrics;
  readonly #live = new Set<Live>();
  /** What has been passed on in sessions that are over, by upstream. */
  readonly #passed = new Map<string, Bytes>();

  constructor(metrics: Metrics) {
    this.#metrics = metrics;
  }

  /** A log that counts what it is told before it passes it on. One for each connection, made when that arrives. */
  count(log: ConnectionLog): ConnectionLog {
    const { logins, loginSeconds, loginPhaseSeconds, renewals, sessions } = this.#metrics;
    const arrivedAt = performance.now();
    let phaseBegan = arrivedAt;
    let identity: Identity | undefined;
    let live: Live | undefined;
    const endPhase = (phase: Phase) => {
      const now = performance.now();
      loginPhaseSeconds.observe({ phase }, (now - phaseBegan) / 1000);
      phaseBegan = now;
    };
    const provider = (error?: ProxyError) => identity?.provider ?? error?.provider ?? '';
    return {
      ...log,
      onStartup: (startup) => {
        endPhase('handshake');
        log.onStartup(startup);
      },
      onToken: () => {
        endPhase('token');
        log.onToken();
      },
      onIdentity: (asking, verified) => {
        identity = verified;
        endPhase('verify');
        log.onIdentity(asking, verified);
      },
      onLease: () => {
        endPhase('acquire');
        log.onLease();
      },
      onWelcome: (lease, finish, bytes) => {
        endPhase('welcome');
        loginSeconds.observe((performance.now() - arrivedAt) / 1000);
        logins.inc({ provider: provider(), outcome: 'accepted', reason: '' });
        const { upstream, role } = identity as Identity;
        sessions.inc({ upstream, role });
        live = { upstream, role, bytes };
        this.#live.add(live);
        log.onWelcome(lease, finish, bytes);
      },
      onRenewal: (asking, renewed) => {
        renewals.inc({ provider: provider(), outcome: 'accepted', reason: '' });
        log.onRenewal(asking, renewed);
      },
      onRenewalRefused: (error) => {
        renewals.inc({ provider: provider(), outcome: 'refused', reason: error.code });
        log.onRenewalRefused(error);
      },
      onRefusal: (error) => {
        const outcome = error.code === 'oauth_discovery' ? 'discovery' : 'refused';
        logins.inc({ provider: provider(error), outcome, reason: error.code });
        if (isLimit(error)) this.#metrics.limits.inc({ limit: error.code });
        log.onRefusal(error);
      },
      onEnd: (outcome) => {
        if (live !== undefined) {
          const { upstream, role } = live;
          sessions.dec({ upstream, role });
          const reason = outcome.error?.code ?? '';
          this.#metrics.sessionEnds.inc({ upstream, ended_by: outcome.endedBy, reason });
          this.#passed.set(upstream, sum(this.#passed.get(upstream), outcome.bytes));
          this.#live.delete(live);
        }
        log.onEnd(outcome);
      },
    };
  }

  /** Brings the bytes up to date. */
  collect(): void {
    const { bytes } = this.#metrics;
    const passed = new Map(this.#passed);
    for (const { upstream, bytes: bytesNow } of this.#live) {
      passed.set(upstream, sum(passed.get(upstream), bytesNow()));
    }
    bytes.reset();
    for (const [upstream, { clientToUpstream, upstreamToClient }] of passed) {
      bytes.inc({ upstream, direction: 'client_to_upstream' }, clientToUpstream);
      bytes.inc({ upstream, direction: 'upstream_to_client' }, upstreamToClient);
    }
  }
}

/** Other limits are counted by their names, where they are kept. */
function isLimit({ code }: ProxyError): boolean {
  return code === 'pool_timeout' || code === 'address_denied';
}

function sum(one: Bytes | undefined, other: Bytes): Bytes {
  if (one === undefined) return other;
  return {
    clientToUpstream: one.clientToUpstream + other.clientToUpstream,
    upstreamToClient: one.upstreamToClient + other.upstreamToClient,
  };
}
