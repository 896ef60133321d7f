/**
 * Writes the log lines of one connection: one for its login, one for each new token, one for its end.
 */
import { randomUUID } from 'node:crypto';
import type { ConnectionLog } from './connection.ts';
import type { Identity } from './identity/policy.ts';
import type { ProxyError } from './errors.ts';
import { describeClient, explain, type Logger } from './log.ts';
import type { LogRation } from './limits/log-ration.ts';

/** The log of a connection from `peer`, which may turn out to be from elsewhere. What is refused it tells while `ration` allows. */
export function createConnectionLog(
  logger: Logger,
  peer: string,
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
    onArrival: () => {},
    onLocated: (located) => {
      address = located;
    },
    onStartup: ({ user, database }) => {
      who = describeClient(user, database);
    },
    onToken: () => {},
    onIdentity: (_, verified) => {
      identity = verified;
    },
    onLease: () => {},
    onWelcome: ({ slot, cancelTarget: { processId: backendPid } }) => {
      welcomedAt = performance.now();
      logger.info({
        event: 'login',
        outcome: 'accepted',
        ...line(),
        slot,
        backendPid,
        durationMs: elapsed(arrived),
      });
    },
    onRenewal: (_, renewed) => {
      identity = renewed;
      logger.info({ event: 'token_renewed', ...line() });
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
