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
    const { logins, loginSeconds, loginPhaseSeconds, renewals } = this.#metrics;
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
      onWelcome: (lease, finish, progress) => {
        endPhase('welcome');
        loginSeconds.observe((performance.now() - arrivedAt) / 1000);
        logins.inc({ provider: provider(), outcome: 'accepted', reason: '' });
        live = this.#begin(identity as Identity, () => progress().bytes);
        log.onWelcome(lease, finish, progress);
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
        const { code } = error;
        // A mistake of ours can end what has begun already.
        if (live !== undefined) this.#end(live, 'proxy', code);
        const outcome = code === 'oauth_discovery' ? 'discovery' : 'refused';
        if (live === undefined) logins.inc({ provider: provider(error), outcome, reason: code });
        if (isLimit(error)) this.#metrics.limits.inc({ limit: code });
        log.onRefusal(error);
      },
      onEnd: (outcome) => {
        if (live !== undefined) this.#end(live, outcome.endedBy, outcome.error?.code ?? '');
        log.onEnd(outcome);
      },
    };
  }

  #begin({ upstream, role }: Identity, bytes: Live['bytes']): Live {
    const live = { upstream, role, bytes };
    this.#live.add(live);
    this.#metrics.sessions.inc({ upstream, role });
    return live;
  }

  /** Only the first call for a session counts. */
  #end(live: Live, endedBy: Outcome['endedBy'], reason: string): void {
    if (!this.#live.delete(live)) return;
    const { upstream, role, bytes } = live;
    this.#metrics.sessions.dec({ upstream, role });
    this.#metrics.sessionEnds.inc({ upstream, ended_by: endedBy, reason });
    this.#passed.set(upstream, sum(this.#passed.get(upstream), bytes()));
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
