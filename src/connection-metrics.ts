/**
 * Counts what becomes of connections: their logins, phase by phase, the sessions that there are, and the bytes in them.
 *
 * Nothing here runs for a chunk or a statement: a session's bytes are read from its splice when somebody scrapes.
 */
import type { ConnectionListener, ConnectionRecord } from './connection-record.ts';
import type { ProxyError } from './errors.ts';
import type { Metrics, Phase } from './metrics.ts';
import type { Outcome } from './splice/splice.ts';

type Bytes = Outcome['bytes'];

/** The book of all sessions of a proxy. */
export class ConnectionMetrics implements ConnectionListener {
  readonly #metrics: Metrics;
  /** Those under way. */
  readonly #live = new Set<ConnectionRecord>();
  /** What has been passed on in sessions that are over, by upstream. */
  readonly #passed = new Map<string, Bytes>();

  constructor(metrics: Metrics) {
    this.#metrics = metrics;
  }

  onStartup(record: ConnectionRecord): void {
    this.#endPhase(record, 'handshake');
  }

  onToken(record: ConnectionRecord): void {
    this.#endPhase(record, 'token');
  }

  onIdentity(record: ConnectionRecord): void {
    this.#endPhase(record, 'verify');
  }

  onLease(record: ConnectionRecord): void {
    this.#endPhase(record, 'acquire');
  }

  onWelcome(record: ConnectionRecord): void {
    this.#endPhase(record, 'welcome');
    this.#metrics.loginSeconds.observe((record.phaseBeganAt - record.cameAt) / 1000);
    const provider = record.identity?.provider ?? '';
    this.#metrics.logins.inc({ provider, outcome: 'accepted', reason: '' });
    this.#live.add(record);
    this.#metrics.sessions.inc(placeOf(record));
  }

  onRenewal({ identity }: ConnectionRecord): void {
    const provider = identity?.provider ?? '';
    this.#metrics.renewals.inc({ provider, outcome: 'accepted', reason: '' });
  }

  onRenewalRefused({ identity }: ConnectionRecord, { code: reason }: ProxyError): void {
    const provider = identity?.provider ?? '';
    this.#metrics.renewals.inc({ provider, outcome: 'refused', reason });
  }

  onRefusal(record: ConnectionRecord, error: ProxyError): void {
    const { code: reason } = error;
    if (record.live !== undefined) {
      // A mistake of ours can end what has begun already.
      this.#end(record, 'proxy', reason);
      return;
    }
    const provider = record.identity?.provider ?? error.provider ?? '';
    const outcome = reason === 'oauth_discovery' ? 'discovery' : 'refused';
    this.#metrics.logins.inc({ provider, outcome, reason });
    if (isLimit(error)) this.#metrics.limits.inc({ limit: reason });
  }

  onEnd(record: ConnectionRecord, { endedBy, error }: Outcome): void {
    this.#end(record, endedBy, error?.code ?? '');
  }

  /** Brings the bytes up to date. */
  collect(): void {
    const { bytes } = this.#metrics;
    const passed = new Map(this.#passed);
    for (const record of this.#live) addBytes(passed, record);
    bytes.reset();
    for (const [upstream, { clientToUpstream, upstreamToClient }] of passed) {
      bytes.inc({ upstream, direction: 'client_to_upstream' }, clientToUpstream);
      bytes.inc({ upstream, direction: 'upstream_to_client' }, upstreamToClient);
    }
  }

  /** A session is over. Only the first call for it counts. */
  #end(record: ConnectionRecord, endedBy: Outcome['endedBy'], reason: string): void {
    if (!this.#live.delete(record)) return;
    const place = placeOf(record);
    this.#metrics.sessions.dec(place);
    this.#metrics.sessionEnds.inc({ upstream: place.upstream, ended_by: endedBy, reason });
    addBytes(this.#passed, record);
  }

  #endPhase(record: ConnectionRecord, phase: Phase): void {
    const now = performance.now();
    this.#metrics.loginPhaseSeconds.observe({ phase }, (now - record.phaseBeganAt) / 1000);
    record.phaseBeganAt = now;
  }
}

/** Where a session is. A renewal changes neither. */
function placeOf({ identity }: ConnectionRecord): { upstream: string; role: string } {
  return { upstream: identity?.upstream ?? '', role: identity?.role ?? '' };
}

/** Other limits are counted by their names, where they are kept. */
function isLimit({ code }: ProxyError): boolean {
  return code === 'pool_timeout' || code === 'address_denied';
}

function addBytes(passed: Map<string, Bytes>, record: ConnectionRecord): void {
  const bytes = record.live?.progress.bytes;
  if (bytes === undefined) return;
  const { upstream } = placeOf(record);
  const before = passed.get(upstream);
  passed.set(upstream, {
    clientToUpstream: bytes.clientToUpstream + (before?.clientToUpstream ?? 0),
    upstreamToClient: bytes.upstreamToClient + (before?.upstreamToClient ?? 0),
  });
}
