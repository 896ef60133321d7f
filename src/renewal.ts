/**
 * Takes a new token in the middle of a session: for the same issuer, subject, role and upstream, or not at all.
 *
 * It is judged as at a login; the session then has its claims and its end. Whatever it is refused for, the session goes on
 * with the token that it had.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { believedUntil } from './deadline.ts';
import { type ErrorCode, ProxyError } from './errors.ts';
import type { Config } from './config.ts';
import type { Asking } from './identity/authentication.ts';
import type { VerifiedToken, Verifier } from './identity/jwt.ts';
import type { Identity } from './identity/policy.ts';
import type { Refusal, TokenJudge } from './splice/screen.ts';

/** What a renewal needs of the rest of the proxy. */
export interface RenewalContext {
  readonly verifier: Verifier;
  readonly sessions: Config['sessions'];
  readonly loginTimeoutMs: number;
  authorize(asking: Asking, token: VerifiedToken): Identity;
}

/** Whose session it is. */
export interface RenewedSession {
  readonly asking: Asking;
  readonly identity: Identity;
  /** Gives its backend this identity. Undefined where the session mode cannot. */
  readonly bind: ((identity: Identity, signal: AbortSignal) => Promise<void>) | undefined;
  /** The session has this identity now. */
  onRenewal(identity: Identity): void;
  onRefusal(error: ProxyError): void;
}

/** How long a refusal takes at least, in ms: guessing tokens in a session must be no cheaper than at the door. */
const REFUSAL_MS = 200;

const REASONS: ReadonlyMap<ErrorCode, Refusal> = new Map<ErrorCode, Refusal>([
  ['token_expired', 'it has expired'],
  ['token_revoked', 'it was revoked'],
  ['role_forbidden', 'it is for another user, role or database'],
  ['claims_too_large', 'its claims are too many for a session'],
  ['keys_unavailable', 'it cannot be checked at the moment'],
  ['lookup_empty', 'its user has no entry in the database'],
  ['lookup_failed', 'it cannot be checked at the moment'],
  ['upstream_unreachable', 'it cannot be checked at the moment'],
  ['feature_unsupported', 'this session mode takes no new token: reconnect'],
]);

/**
 * The judge of the tokens that this session's client sends. One is judged at a time, by what is configured then: `current`
 * is asked for each.
 */
export function createRenewal(session: RenewedSession, current: () => RenewalContext): TokenJudge {
  return async (token) => {
    try {
      session.onRenewal(await renew(token, session, current()));
      return undefined;
    } catch (thrown) {
      const error = ProxyError.from(thrown);
      session.onRefusal(error);
      await delay(REFUSAL_MS, undefined, { ref: false });
      return REASONS.get(error.code) ?? 'its signature, issuer or claims are not good';
    }
  };
}

async function renew(
  token: string,
  { asking, identity, bind }: RenewedSession,
  context: RenewalContext,
): Promise<Identity> {
  if (bind === undefined || identity.subject === undefined) {
    throw new ProxyError('feature_unsupported', { feature: 'SET pgjot.token' });
  }
  const verified = await context.verifier.verify(token, asking.user);
  const renewed = context.authorize(asking, verified);
  if (!isSame(renewed, identity)) {
    const cause = new Error('the new token is for another issuer, subject or upstream');
    throw new ProxyError('role_forbidden', { role: identity.role }, { cause });
  }
  const expiresAt = believedUntil(renewed.expiresAt, context.sessions);
  await bind({ ...renewed, expiresAt }, AbortSignal.timeout(context.loginTimeoutMs));
  return renewed;
}

function isSame(one: Identity, other: Identity): boolean {
  const names = ['provider', 'issuer', 'subject', 'role', 'upstream'] as const;
  return names.every((name) => one[name] === other[name]);
}
