/**
 * Counts what becomes of connections: their logins, phase by phase, the sessions that there are, and the bytes in them.
 *
 * Learns it from what the log of a connection is told. Nothing here runs for a chunk or a statement: a session's bytes are
 * read from its splice when somebody scrapes.
 */
import type { ConnectionLog, Finish, Progress } from './connection.ts';
import type { ProxyError } from './errors.ts';
import type { Asking } from './identity/authentication.ts';
import type { Identity } from './identity/policy.ts';
import type { Metrics, Phase } from './metrics.ts';
import type { Outcome } from './splice/splice.ts';

type Bytes = Outcome['bytes'];

/** A session under way. */
interface Live {
  readonly upstream: string;
  readonly role: string;
  readonly progress: () => Progress;
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
    return new CountingLog(log, this.#metrics, this);
  }

  /** A session has begun. */
  begin({ upstream, role }: Identity, progress: Live['progress']): Live {
    const live = { upstream, role, progress };
    this.#live.add(live);
    this.#metrics.sessions.inc({ upstream, role });
    return live;
  }

  /** And is over. Only the first call for it counts. */
  end(live: Live, endedBy: Outcome['endedBy'], reason: string): void {
    if (!this.#live.delete(live)) return;
    const { upstream, role, progress } = live;
    this.#metrics.sessions.dec({ upstream, role });
    this.#metrics.sessionEnds.inc({ upstream, ended_by: endedBy, reason });
    this.#passed.set(upstream, sum(this.#passed.get(upstream), progress().bytes));
  }

  /** Brings the bytes up to date. */
  collect(): void {
    const { bytes } = this.#metrics;
    const passed = new Map(this.#passed);
    for (const { upstream, progress } of this.#live) {
      passed.set(upstream, sum(passed.get(upstream), progress().bytes));
    }
    bytes.reset();
    for (const [upstream, { clientToUpstream, upstreamToClient }] of passed) {
      bytes.inc({ upstream, direction: 'client_to_upstream' }, clientToUpstream);
      bytes.inc({ upstream, direction: 'upstream_to_client' }, upstreamToClient);
    }
  }
}

/** The log of one connection, which counts. No object of closures, since each session keeps its own. */
class CountingLog implements ConnectionLog {
  readonly #log: ConnectionLog;
  readonly #metrics: Metrics;
  readonly #book: ConnectionMetrics;
  readonly #arrivedAt = performance.now();
  #phaseBegan = this.#arrivedAt;
  #provider = '';
  #identity: Identity | undefined;
  #live: Live | undefined;

  constructor(log: ConnectionLog, metrics: Metrics, book: ConnectionMetrics) {
    this.#log = log;
    this.#metrics = metrics;
    this.#book = book;
  }

  get session(): string {
    return this.#log.session;
  }

  onArrival(finish: Finish): void {
    this.#log.onArrival(finish);
  }

  onLocated(address: string): void {
    this.#log.onLocated(address);
  }

  onStartup(startup: Parameters<ConnectionLog['onStartup']>[0]): void {
    this.#endPhase('handshake');
    this.#log.onStartup(startup);
  }

  onToken(): void {
    this.#endPhase('token');
    this.#log.onToken();
  }

  onIdentity(asking: Asking, identity: Identity): void {
    this.#identity = identity;
    this.#provider = identity.provider ?? '';
    this.#endPhase('verify');
    this.#log.onIdentity(asking, identity);
  }

  onLease(): void {
    this.#endPhase('acquire');
    this.#log.onLease();
  }

  onWelcome(...[lease, finish, progress]: Parameters<ConnectionLog['onWelcome']>): void {
    this.#endPhase('welcome');
    this.#metrics.loginSeconds.observe((this.#phaseBegan - this.#arrivedAt) / 1000);
    this.#metrics.logins.inc({ provider: this.#provider, outcome: 'accepted', reason: '' });
    this.#live = this.#book.begin(this.#identity as Identity, progress);
    this.#identity = undefined;
    this.#log.onWelcome(lease, finish, progress);
  }

  onRenewal(asking: Asking, identity: Identity): void {
    this.#metrics.renewals.inc({ provider: this.#provider, outcome: 'accepted', reason: '' });
    this.#log.onRenewal(asking, identity);
  }

  onRenewalRefused(error: ProxyError): void {
    const { code: reason } = error;
    this.#metrics.renewals.inc({ provider: this.#provider, outcome: 'refused', reason });
    this.#log.onRenewalRefused(error);
  }

  onRefusal(error: ProxyError): void {
    const { code: reason } = error;
    if (this.#live === undefined) {
      const provider = this.#provider || (error.provider ?? '');
      const outcome = reason === 'oauth_discovery' ? 'discovery' : 'refused';
      this.#metrics.logins.inc({ provider, outcome, reason });
      if (isLimit(error)) this.#metrics.limits.inc({ limit: reason });
    } else {
      // A mistake of ours can end what has begun already.
      this.#book.end(this.#live, 'proxy', reason);
    }
    this.#log.onRefusal(error);
  }

  onEnd(outcome: Outcome): void {
    if (this.#live !== undefined) {
      this.#book.end(this.#live, outcome.endedBy, outcome.error?.code ?? '');
    }
    this.#log.onEnd(outcome);
  }

  #endPhase(phase: Phase): void {
    const now = performance.now();
    this.#metrics.loginPhaseSeconds.observe({ phase }, (now - this.#phaseBegan) / 1000);
    this.#phaseBegan = now;
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
