/**
 * Writes the log lines of connections: one for each login, one for each new token, one for each session's end.
 */
import type { ConnectionListener, ConnectionRecord } from './connection-record.ts';
import type { ProxyError } from './errors.ts';
import { explain, type Logger } from './log.ts';
import type { LogRation } from './limits/log-ration.ts';
import type { Outcome } from './splice/splice.ts';

/** The log of all connections. What is refused it tells while its ration allows. */
export class ConnectionLines implements ConnectionListener {
  readonly #logger: Logger;
  readonly #ration: LogRation;

  constructor(logger: Logger, ration: LogRation) {
    this.#logger = logger;
    this.#ration = ration;
  }

  onWelcome(record: ConnectionRecord): void {
    const { slot, backendPid, cameAt, welcomedAt } = record;
    const durationMs = Math.round(welcomedAt - cameAt);
    const said = { event: 'login', outcome: 'accepted' };
    this.#logger.info(lineOf(said, record, { slot, backendPid, durationMs }));
  }

  onRenewal(record: ConnectionRecord): void {
    this.#logger.info(lineOf({ event: 'token_renewed' }, record, {}));
  }

  onRenewalRefused(record: ConnectionRecord, error: ProxyError): void {
    if (!this.#mayTell(record, error)) return;
    this.#logger[error.spec.log](lineOf({ event: 'token_refused' }, record, explain(error)));
  }

  onRefusal(record: ConnectionRecord, error: ProxyError): void {
    if (!this.#mayTell(record, error)) return;
    const outcome = error.code === 'oauth_discovery' ? 'discovery' : 'refused';
    const why = { ...explain(error), durationMs: elapsed(record.cameAt) };
    this.#logger[error.spec.log](lineOf({ event: 'login', outcome }, record, why));
  }

  onEnd(record: ConnectionRecord, { endedBy, error, bytes }: Outcome): void {
    const how = {
      endedBy,
      ...(error && explain(error)),
      bytes,
      durationMs: elapsed(record.welcomedAt),
    };
    this.#logger[error?.spec.log ?? 'info'](lineOf({ event: 'session_end' }, record, how));
  }

  /** Lines that nobody wants to read are written by nobody, and count for nothing. */
  #mayTell({ address }: ConnectionRecord, error: ProxyError): boolean {
    return !this.#logger.isLevelEnabled(error.spec.log) || this.#ration.allows(address, error.code);
  }
}

/** What happened, of which connection, and how. What is undefined is not written. */
function lineOf(
  what: { readonly event: string; readonly outcome?: string },
  { session, address, user, database, identity }: ConnectionRecord,
  how: object,
): object {
  return {
    event: what.event,
    outcome: what.outcome,
    session,
    address,
    user,
    database,
    provider: identity?.provider,
    issuer: identity?.issuer,
    subject: identity?.subject,
    kid: identity?.kid,
    role: identity?.role,
    upstream: identity?.upstream,
    ...how,
  };
}

function elapsed(since: number): number {
  return Math.round(performance.now() - since);
}
