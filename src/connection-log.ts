/**
 * Writes the log lines of one connection: one for its login, one for each new token, one for its end.
 *
 * Tells its owner what else is to be known of the connection while it lasts: whose it is, and how to end it.
 */
import { randomUUID } from 'node:crypto';
import type { ConnectionLog, Finish } from './connection.ts';
import type { Asking } from './identity/authentication.ts';
import type { Identity } from './identity/policy.ts';
import type { ProxyError } from './errors.ts';
import { describeClient, explain, type Logger } from './log.ts';
import type { LogRation } from './limits/log-ration.ts';

/** Who keeps the book of connections. */
export interface ConnectionKeeper {
  /** How to end the connection has changed. */
  onFinishable(finish: Finish): void;
  /** Who asked for this is known to be this identity; for a session, whose it is from now on. */
  onIdentity(asking: Asking, identity: Identity): void;
}

/** The log of a connection from `peer`, which may turn out to be from elsewhere. What is refused it tells while `ration` allows. */
export function createConnectionLog(
  logger: Logger,
  peer: string,
  keeper: ConnectionKeeper,
  ration: LogRation,
): ConnectionLog {
  const session = randomUUID();
  const arrived = performance.now();
  let address = peer;
  let who: object = {};
  let identity: Identity | undefined;
  let welcomedAt = arrived;
  const elapsed = (since: number) => Math.round(performance.now() - since);
  const line = () => ({ session, address, ...who, ...describeIdentity(identity) });

  /** Lines that nobody wants to read are written by nobody, and count for nothing. */
  const mayTell = (error: ProxyError) =>
    !logger.isLevelEnabled(error.spec.log) || ration.allows(address, error.code);

  return {
    session,
    onArrival: (finish) => keeper.onFinishable(finish),
    onLocated: (located) => {
      address = located;
    },
    onStartup: ({ user, database }) => {
      who = describeClient(user, database);
    },
    onToken: () => {},
    onIdentity: (asked, verified) => {
      identity = verified;
      keeper.onIdentity(asked, verified);
    },
    onLease: () => {},
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
      keeper.onFinishable(finish);
    },
    onRenewal: (asked, renewed) => {
      identity = renewed;
      logger.info({ event: 'token_renewed', ...line() });
      keeper.onIdentity(asked, renewed);
    },
    onRenewalRefused: (error) => {
      if (!mayTell(error)) return;
      logger[error.spec.log]({ event: 'token_refused', ...line(), ...explain(error) });
    },
    onRefusal: (error) => {
      if (!mayTell(error)) return;
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
