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
import { farewell, type Client } from './client/stream.ts';
import { welcome } from './client/welcome.ts';
import { at, LoginDeadline } from './deadline.ts';
import { ProxyError } from './errors.ts';
import type { Verifier } from './identity/jwt.ts';
import type { Identity } from './identity/policy.ts';
import { splice, type Outcome } from './splice/splice.ts';
import { encodeErrorResponse } from './wire/backend.ts';
import type { Cancels } from './upstream/cancel.ts';
import type { Lease } from './upstream/pool.ts';

/** What a connection needs of the house. */
export interface Surroundings {
  readonly handshake: HandshakeOptions;
  readonly verifier: Verifier;
  readonly cancels: Cancels;
  readonly maxTokenBytes: number;
  readonly loginTimeoutMs: number;
  readonly expiryGraceMs: number;
  /** Counts a client in, and returns how to count it out again. Throws `too_many_clients`, `draining`. */
  admit(): () => void;
  /** Nobody, where this startup needs no token. Throws `role_forbidden`. */
  anonymous(startup: Startup): Identity | undefined;
  /** Who a verified token's holder is for this startup. Throws `role_forbidden`. */
  authorize(startup: Startup, token: Awaited<ReturnType<Verifier['verify']>>): Identity;
  acquire(
    identity: Identity,
    parameters: ReadonlyMap<string, string>,
    signal: AbortSignal,
  ): Promise<Lease>;
}

/** Told what happens, for the log; never shown the token. */
export interface Witness {
  /** The id that joins this connection's log lines. */
  readonly session: string;
  /** Told first of all how to end what is only a login so far. */
  onArrival(abandon: () => void): void;
  onStartup(startup: Startup): void;
  onIdentity(identity: Identity): void;
  onWelcome(finish: (error: ProxyError, graceMs: number) => void): void;
  onRefusal(error: ProxyError): void;
  onEnd(outcome: Outcome): void;
}

/** Serves one client until both its stream and its upstream session are closed. Never throws. */
export async function serve(
  stream: Duplex,
  address: string,
  house: Surroundings,
  witness: Witness,
): Promise<void> {
  const client: Client = { stream, encrypted: false, address };
  const login = new LoginDeadline(house.loginTimeoutMs, stream);
  let leave: (() => void) | undefined;
  witness.onArrival(() => login.abandon());
  try {
    const startup = await handshake(client, house.handshake, login.signal);
    if (startup.kind === 'cancel') {
      login.over();
      return await house.cancels.forward(startup);
    }
    login.audible();
    witness.onStartup(startup);
    leave = house.admit();
    const identity = await identify(client, startup, house, login);
    witness.onIdentity(identity);
    const lease = await house.acquire(identity, startup.parameters, login.signal);
    await converse(client, { startup, identity, lease }, house, witness, login);
  } catch (error) {
    const failure = ProxyError.from(error, witness.session);
    witness.onRefusal(failure);
    await farewell(client.stream, encodeErrorResponse(failure));
  } finally {
    login.over();
    await farewell(client.stream);
    leave?.();
  }
}

/** Who the client is: the holder of a verified token, or nobody where the role that it asks for needs none. */
async function identify(
  client: Client,
  startup: Startup,
  house: Surroundings,
  login: LoginDeadline,
): Promise<Identity> {
  const nobody = house.anonymous(startup);
  if (nobody !== undefined) return nobody;
  const token = await askForToken(client, startup.user, house.maxTokenBytes, login.signal);
  login.watch(client.stream);
  const verified = await login.bound(house.verifier.verify(token, startup.user));
  return house.authorize(startup, verified);
}

/** A client that has been let in: what it asked for, who it is, and the session that is now its own. */
interface Admission {
  readonly startup: Startup;
  readonly identity: Identity;
  readonly lease: Lease;
}

/** From AuthenticationOk to the end of the session; the lease goes back whatever happens. */
async function converse(
  client: Client,
  { startup, identity, lease }: Admission,
  house: Surroundings,
  witness: Witness,
  login: LoginDeadline,
): Promise<void> {
  const cancelKey = house.cancels.register(lease.cancelTarget, startup.minor);
  let outcome: Outcome | undefined;
  try {
    await login.bound(welcome(client, { greeting: lease.greeting, cancelKey }));
    login.over();
    const session = splice(client, lease.peer);
    const expiry = at(identity.expiresAt, () => {
      session.finish(
        new ProxyError('session_expired', { hint: 'Reconnect with a fresh token.' }),
        house.expiryGraceMs,
      );
    });
    witness.onWelcome((error, graceMs) => session.finish(error, graceMs));
    outcome = await session.done;
    expiry.cancel();
    witness.onEnd(outcome);
  } finally {
    const released = house.cancels
      .revoke(cancelKey)
      .then(() => lease.release(outcome?.busy ?? true));
    await farewell(client.stream);
    await released;
  }
}
