/**
 * What a session has to prove before it becomes somebody's, and the shape of the ways in which an identity reaches SQL.
 *
 * The ways are `portable.ts`, `pg-session-jwt.ts` and `replica.ts`. Whichever it is, in the end the backend itself says who
 * its user is, and nothing has been asked of it that a client could have prepared an answer for.
 */
import type { UpstreamConfig } from '../config.ts';
import type { SessionClaims } from '../identity/session-claims.ts';
import type { CancelTarget } from './cancel.ts';
import type { StartupParameters, UpstreamConnection } from './connect.ts';
import type { Control, Hello } from './control.ts';
import { createExtensionMode } from './pg-session-jwt.ts';
import { createPortableMode } from './portable.ts';
import { createReplicaMode } from './replica.ts';
import type { Secrets } from './secrets.ts';

/** Whom the session is to belong to; without a subject, to nobody. */
export interface SessionIdentity {
  /** The group role. */
  readonly role: string;
  readonly issuer: string | undefined;
  readonly subject: string | undefined;
  readonly claims: SessionClaims;
  /** When the session must be over, in ms since the epoch. */
  readonly expiresAt: number;
}

/** An upstream session that is logged in. */
export interface Session {
  readonly connection: UpstreamConnection;
  readonly backend: Hello;
  readonly cancelTarget: CancelTarget;
  /** The settings that its login asked for, as a key. */
  readonly settings: string;
  /** When it must be closed for its age, on the clock of `performance.now()`. */
  readonly oldAt: number;
  /** Until when it waits for its next user, once it does, on the same clock. */
  keptUntil: number;
  /** Whom it belongs to as far as SQL is concerned; undefined for nobody, and where that is not certain. */
  identity: SessionIdentity | undefined;
  /** How often the pool had been told to reconnect before it was logged in. */
  readonly era: number;
  /** Whether somebody has had it. */
  used: boolean;
  /** It has been told to clear away what its last user left, and not yet shown that it has: nobody may have it before. */
  unproven: { readonly reported: boolean } | undefined;
  /** Ends the watch over its connection, while it is kept for its next user. */
  unwatch: () => void;
}

/** A way for identities to reach SQL. */
export interface SessionMode {
  /** Whether `install` can put an identity on a session that logged in without one; else it has the one it began with. */
  readonly adopts: boolean;
  /** Whether a session may have another user, or the same one again. */
  readonly reusable: boolean;
  /**
   * What the StartupMessage says of the identity, for one login as `slot` from `localPort` with this secret. It goes
   * last into the packet, where nothing beats it, and RESET ALL and DISCARD ALL return to it.
   */
  startupParameters(
    identity: SessionIdentity,
    slot: string,
    localPort: number,
    secret: string,
  ): Promise<StartupParameters>;
  /**
   * What there is to know of a backend that has just logged in.
   *
   * @throws {ProxyError} upstream_protocol when it is not the one that the login said: then a transaction pooler stands between,
   *   and no identity would be safe; and as `Control.greet`, or `ask`.
   */
  greet(connection: UpstreamConnection, signal: AbortSignal): Promise<Hello>;
  /**
   * Has a backend that is nobody's read all that `install` will need, so that this is at hand when its user comes: it is asked
   * `question` with its login, and `check` reads what it says. Undefined where a session has the identity that it began with.
   */
  readonly rehearsal?: {
    readonly question: Buffer;
    check(connection: UpstreamConnection, backend: Hello, signal: AbortSignal): Promise<void>;
  };
  /**
   * Puts on the backend what was not in its StartupMessage, then has the backend say who its user is.
   *
   * @throws {ProxyError} session_setup_failed when that is not the one who was verified; the caller drops the connection.
   */
  install(
    connection: UpstreamConnection,
    backend: Hello,
    identity: SessionIdentity,
    signal: AbortSignal,
  ): Promise<void>;
  /**
   * Gives a session other claims and another end of its own subject while its client works on. Undefined where what is in
   * the StartupMessage is all there can be.
   */
  renew?(backend: Hello, identity: SessionIdentity): Promise<void>;
}

/** The way that the upstream's configuration names; `secrets` are the upstream's. */
export function createSessionMode(
  { session, database }: UpstreamConfig,
  secrets: Secrets,
  control: Control,
): SessionMode {
  if (session === 'portable') return createPortableMode(control);
  if (session === 'replica') return createReplicaMode(secrets, database);
  return createExtensionMode();
}
