/**
 * One client's life, from its first byte to its last. Start reading here.
 *
 *   handshake ─▶ login ─▶ acquire ─▶ welcome ─▶ splice ─▶ release
 *       │ a CancelRequest        every stage may throw: one ErrorResponse, then the end
 *       └─▶ cancel
 *
 * Nothing upstream is dialled before the token is good, and the client hears AuthenticationOk only
 * when the session behind it is ready and known to be its own.
 */
import type { Duplex } from 'node:stream';
import { handshake, type HandshakeOptions, type Startup } from './client/handshake.ts';
import { askForToken } from './client/login.ts';
import { farewell, FLUSH_MS, sniOf, type Client } from './client/stream.ts';
import { welcome } from './client/welcome.ts';
import type { Config } from './config.ts';
import { believedUntil, LoginDeadline } from './deadline.ts';
import { ProxyError } from './errors.ts';
import type { Asking, Discovery } from './identity/authentication.ts';
import type { VerifiedToken, Verifier } from './identity/jwt.ts';
import type { Identity } from './identity/policy.ts';
import type { Admission } from './limits/ledger.ts';
import { LiveSession } from './live-session.ts';
import type { RenewalContext } from './renewal.ts';
import type { Outcome, Progress } from './splice/splice.ts';
import { encodeErrorResponse } from './wire/backend.ts';
import type { CancelKey, Cancels } from './upstream/cancel.ts';
import type { Lease } from './upstream/pool.ts';

/** Who has come, as far as the listener knows. */
export interface Arrival {
  /**
   * The client's address, canonical; reads what comes before the client's first byte, where there is any. Throws
   * `proxy_header_invalid`, `address_denied`, `probe`, or the signal's reason.
   */
  locate(stream: Duplex, signal: AbortSignal): Promise<string>;
}

export type { Progress } from './splice/splice.ts';

/** What a connection needs of the rest of the proxy. */
export interface ConnectionContext {
  readonly handshake: HandshakeOptions;
  readonly verifier: Verifier;
  readonly cancels: Cancels;
  readonly maxTokenBytes: number;
  readonly loginTimeoutMs: number;
  readonly sessions: Config['sessions'];
  /** Counts a client in. Throws `too_many_clients`, `too_many_attempts`, `draining`, or the signal's reason. */
  admit(this: void, address: string, signal: AbortSignal): Promise<Admission>;
  /** Cancels what the key's session runs, if it is any session's; resolves when PostgreSQL has taken the request. */
  cancel(this: void, key: CancelKey, address: string): Promise<void>;
  /** Nobody, where this startup needs no token. Throws `role_forbidden`. */
  anonymous(asking: Asking): Identity | undefined;
  /** What a client hears that signs in by OAUTHBEARER and has no token yet; `undefined` for one that signs in by password. */
  discovery(asking: Asking): Discovery | undefined;
  /** Who a verified token's holder is for this startup. Throws `role_forbidden`. */
  authorize(asking: Asking, token: VerifiedToken): Identity;
  /** What judges new tokens of sessions that are under way: the same, until the configuration is another. */
  current(): RenewalContext;
  acquire(
    identity: Identity,
    parameters: ReadonlyMap<string, string>,
    signal: AbortSignal,
    session: string,
  ): Promise<Lease>;
}

/** A login or a session, as those see it who may end it. */
export interface Endable {
  /**
   * Ends a login at once, a session when it is idle or `graceMs` are over. `error` is `shutdown`, `terminated`, or the
   * objection to who it is: then its identity is taken off first.
   */
  end(error: ProxyError, graceMs: number): void;
}

/** Told what happens; never shown the token. */
export interface ConnectionLog {
  /** The id that joins this connection's log lines. */
  readonly session: string;
  onArrival(login: Endable): void;
  onLocated(address: string): void;
  onStartup(startup: Startup): void;
  /** The client has sent its token. */
  onToken(): void;
  /** From now on until the end, whatever is said against it must end it. */
  onIdentity(asking: Asking, identity: Identity): void;
  /** It has an upstream session, of which it hears next. */
  onLease(): void;
  onWelcome(lease: Lease, session: Endable & { readonly progress: Progress }): void;
  onRenewal(identity: Identity): void;
  onRenewalRefused(error: ProxyError): void;
  onRefusal(error: ProxyError): void;
  onEnd(outcome: Outcome): void;
}

/** Serves one client until both its stream and its upstream session are closed. Never throws. */
export function serve(
  stream: Duplex,
  arrival: Arrival,
  context: ConnectionContext,
  log: ConnectionLog,
): Promise<void> {
  const client: Client = { stream, encrypted: false };
  // From here on nobody holds the stream that came: the splice will have another one in its place.
  return live(client, arrival, new LoginDeadline(context.loginTimeoutMs, stream), context, log);
}

async function live(
  client: Client,
  arrival: Arrival,
  login: LoginDeadline,
  context: ConnectionContext,
  log: ConnectionLog,
): Promise<void> {
  let admission: Admission | undefined;
  let released: Promise<unknown> | undefined;
  let outcome: Outcome | undefined;
  try {
    log.onArrival(login);
    const address = await arrival.locate(client.stream, login.signal);
    log.onLocated(address);
    const startup = await handshake(client, context.handshake, login.signal);
    if (startup.kind === 'cancel') return await login.bound(context.cancel(startup, address));
    login.audible();
    log.onStartup(startup);
    admission = await context.admit(address, login.signal);
    const { user, database } = startup;
    const asking = { user, database, sni: sniOf(client) };
    const identity = await identify(client, asking, admission, context, login, log);
    log.onIdentity(asking, identity);
    if (identity.subject !== undefined) await admission.claim(identity);
    const expiresAt = believedUntil(identity.expiresAt, context.sessions);
    const lease = await context.acquire(
      { ...identity, expiresAt },
      startup.parameters,
      login.signal,
      log.session,
    );
    const cancelKey = context.cancels.register(lease.cancelTarget, startup.minor);
    try {
      log.onLease();
      // It may have been revoked, or the house be closing, since it was authorized.
      login.signal.throwIfAborted();
      await login.bound(welcome(client, { greeting: lease.greeting, cancelKey }));
      login.over();
      const session = new LiveSession(client, { asking, identity, lease }, context, log);
      try {
        log.onWelcome(lease, session);
        outcome = await session.done;
      } finally {
        session.close();
      }
      log.onEnd(outcome);
    } finally {
      const { busy = true, idle = false, reported = true } = outcome ?? {};
      const cancelled = context.cancels.revoke(cancelKey);
      released = Promise.all([lease.release({ busy, idle, reported, cancelled }), cancelled]);
    }
  } catch (error) {
    const failure = ProxyError.from(error, log.session);
    try {
      log.onRefusal(failure);
    } catch {
      // A mistake in saying so: whoever else is told has been, and thrown on it would end the process.
    }
    admission?.failed(failure);
    await farewell(client.stream, encodeErrorResponse(failure));
  } finally {
    login.over();
    // The end of an answer is let through to a slow client, unless something broke or it is we who end the session.
    const orderly = outcome !== undefined && outcome.error === undefined;
    await farewell(client.stream, undefined, orderly ? FLUSH_MS : undefined);
    admission?.leave();
    await released;
  }
}

/** Who the client is: the holder of a verified token, or nobody where the role that it asks for needs none. */
async function identify(
  client: Client,
  asking: Asking,
  admission: Admission,
  context: ConnectionContext,
  login: LoginDeadline,
  log: ConnectionLog,
): Promise<Identity> {
  const nobody = context.anonymous(asking);
  if (nobody !== undefined) {
    login.watch(client.stream);
    return nobody;
  }
  const { user } = asking;
  const discovery = context.discovery(asking);
  const question = { user, maxTokenBytes: context.maxTokenBytes, discovery };
  const { token, refuse } = await askForToken(client, question, login.signal);
  log.onToken();
  login.watch(client.stream);
  try {
    // By what is configured now: a client may have been at its password prompt when that was another.
    const now = context.current();
    const verified = await login.bound(now.verifier.verify(token, user, admission.attempt));
    const identity = now.authorize(asking, verified);
    admission.succeeded(verified.issuer);
    return identity;
  } catch (error) {
    return await refuse(error);
  }
}
