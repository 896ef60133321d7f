/**
 * Takes a new token in the middle of a session: for the same issuer, subject, role and upstream, or not at all.
 *
 * It is judged as at a login; the session then has its claims and its end. Whatever it is refused for, the session goes on
 * with the token that it had.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { type ErrorCode, ProxyError } from './errors.ts';
import type { Asking } from './identity/authentication.ts';
import type { VerifiedToken, Verifier } from './identity/jwt.ts';
import type { Identity } from './identity/policy.ts';
import type { Refusal, TokenJudge } from './splice/screen.ts';

/** What a renewal needs of the rest of the proxy. */
export interface RenewalContext {
  readonly verifier: Verifier;
  readonly loginTimeoutMs: number;
  authorize(asking: Asking, token: VerifiedToken): Identity;
}

/** Whose session it is. */
export interface RenewedSession {
  readonly asking: Asking;
  readonly identity: Identity;
  /** Gives its backend this identity, if `assertGood` lets it. Undefined where the session mode cannot. */
  readonly bind:
    | ((identity: Identity, signal: AbortSignal, assertGood: () => void) => Promise<void>)
    | undefined;
  /** What the session is ending for, whatever tokens still come. */
  readonly ending: ProxyError | undefined;
  /** Until when SQL may believe a token that expires at `expiresAt`; both in ms since the epoch. */
  believedUntil(expiresAt: number): number;
  /** The session has this identity now. */
  onRenewal(identity: Identity): void;
  onRefusal(error: ProxyError): void;
}

/** How long a refusal takes at least, in ms: guessing tokens in a session must be no cheaper than at the door. */
const REFUSAL_MS = 200;

const REASONS: ReadonlyMap<ErrorCode, Refusal> = new Map<ErrorCode, Refusal>([
  ['token_missing', 'its signature, issuer or claims are not good'],
  ['token_rejected', 'its signature, issuer or claims are not good'],
  ['claims_rejected', 'its signature, issuer or claims are not good'],
  ['token_expired', 'it has expired'],
  ['token_revoked', 'it was revoked'],
  ['role_forbidden', 'it is for another user, role or database'],
  ['claims_too_large', 'its claims are too many for a session'],
  ['lookup_empty', 'its user has no entry in the database'],
  ['feature_unsupported', 'this session mode takes no new token: reconnect'],
  ['session_expired', 'it came too late: the session is ending'],
  ['lifetime_over', 'it came too late: the session is ending'],
  ['shutdown', 'it came too late: the session is ending'],
  ['session_revoked', 'it came too late: the session is ending'],
]);

/** How far apart the tokens of a session are put on its backend, in ms: each costs the one control connection a question. */
const PAUSE_MS = 1_000;

/**
 * The judge of the tokens that this session's client sends. One is judged at a time, by what is configured then: `current`
 * is asked for each.
 */
export function createRenewal(session: RenewedSession, current: () => RenewalContext): TokenJudge {
  let held = session.identity;
  let nextAt = Number.NEGATIVE_INFINITY;

  const take = async (token: string): Promise<void> => {
    const { asking, identity, bind } = session;
    if (bind === undefined || identity.subject === undefined) {
      throw new ProxyError('feature_unsupported', { feature: 'SET pgjot.token' });
    }
    const { verifier, loginTimeoutMs } = current();
    const verified = await verifier.verify(token, asking.user);
    // Asked twice, since a lookup may take its time: what has been revoked meanwhile must not be put on a session.
    const authorize = () => authorizeFor(session, verified, current());
    const renewed = authorize();
    if (isSameToken(renewed, held)) return;
    const pause = nextAt - performance.now();
    if (pause > 0) await delay(pause, undefined, { ref: false });
    const expiresAt = session.believedUntil(renewed.expiresAt);
    await bind({ ...renewed, expiresAt }, AbortSignal.timeout(loginTimeoutMs), authorize);
    nextAt = performance.now() + PAUSE_MS;
    held = renewed;
    session.onRenewal(renewed);
  };

  return async (token) => {
    try {
      await take(token);
      return undefined;
    } catch (thrown) {
      const error = ProxyError.from(thrown);
      session.onRefusal(error);
      await delay(REFUSAL_MS, undefined, { ref: false });
      return REASONS.get(error.code) ?? 'it cannot be checked at the moment';
    }
  };
}

/** Who the session is with this token. Throws what speaks against it now. */
function authorizeFor(
  session: RenewedSession,
  verified: VerifiedToken,
  context: RenewalContext,
): Identity {
  const { asking, identity } = session;
  const end = session.ending;
  if (end !== undefined) throw end;
  const renewed = context.authorize(asking, verified);
  if (!isSame(renewed, identity)) {
    const cause = new Error('the new token is for another issuer, subject or upstream');
    throw new ProxyError('role_forbidden', { role: identity.role }, { cause });
  }
  return renewed;
}

function isSame(one: Identity, other: Identity): boolean {
  const names = ['provider', 'issuer', 'subject', 'role', 'upstream'] as const;
  return names.every((name) => one[name] === other[name]);
}

/** Told by what it says, since tokens are not kept: one that says the same does the same to a session. */
function isSameToken(one: Identity, other: Identity): boolean {
  return one.expiresAt === other.expiresAt && isDeepStrictEqual(one.claims, other.claims);
}
