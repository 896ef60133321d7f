/**
 * Who may have a session that another client has left, said in keys: what is kept under a key is for whoever wants that key.
 *
 * A session's settings are part of every key, because they are what RESET returns to; a role's sessions are never mixed with
 * another's. Keeps nothing itself.
 */
import type { UpstreamConfig } from '../config.ts';
import { encodeClaims } from '../identity/session-claims.ts';
import type { Session, SessionIdentity, SessionMode } from './session.ts';
import { spareKey } from './spares.ts';

/** A role's rules. */
export interface Reuse {
  /** Whether the next user of a session may be another one, so that the last one's identity is to be taken off first. */
  readonly forAnybody: boolean;
  /** The keys of sessions that this identity can have, the best first. */
  keysFor(identity: SessionIdentity, settings: string): string[];
  /** The key under which a session is kept for its next user; undefined where there must be none. */
  keyToKeep(session: Session): string | undefined;
}

/** The rules that follow from the configuration and from what the session mode can do. */
export function createReuse(
  configured: UpstreamConfig['pool']['reuse'],
  { adopts, reusable }: SessionMode,
): Reuse {
  const forAnybody = configured === 'any' && adopts;
  const mayReuse = configured !== 'never' && reusable;

  const keyOf = (identity: SessionIdentity, settings: string): string | undefined => {
    if (!mayReuse) return undefined;
    if (forAnybody) return JSON.stringify(['any', settings]);
    const { issuer, subject, claims, expiresAt } = identity;
    // Two clients without an identity are not the same client.
    if (subject === undefined) return undefined;
    // What was in the StartupMessage cannot be replaced, so it must be just that again.
    const exactly = adopts ? [] : [encodeClaims(claims), expiresAt];
    return JSON.stringify(['own', settings, issuer, subject, ...exactly]);
  };

  return {
    forAnybody,
    keysFor(identity, settings) {
      const key = keyOf(identity, settings);
      return [...(key === undefined ? [] : [key]), ...(adopts ? [spareKey(settings)] : [])];
    },
    keyToKeep: ({ identity, settings }) => identity && keyOf(identity, settings),
  };
}

/** Whether what is on a session is exactly what is to be on it. */
export function isSameIdentity(one: SessionIdentity, other: SessionIdentity): boolean {
  return (
    one.expiresAt === other.expiresAt &&
    one.issuer === other.issuer &&
    one.subject === other.subject &&
    one.claims.lookup === other.claims.lookup &&
    (one.claims.claims === other.claims.claims ||
      encodeClaims(one.claims) === encodeClaims(other.claims))
  );
}
