/**
 * Logs in to PostgreSQL as a slot: StartupMessage from nothing, SCRAM, until the first ReadyForQuery.
 *
 * Reads bounded frames of our own and leaves what follows in the stream; the arithmetic is in `scram.ts`.
 * A server is trusted no more than a client here: every length is capped, and no order of messages is assumed.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import type { UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import {
  BACKEND,
  decodeBackendKeyData,
  decodeErrorFields,
  decodeParameterStatus,
} from '../wire/backend.ts';
import { InvalidFrameLength, readFrame, takeFrame, type Frame } from '../wire/frame.ts';
import {
  encodePasswordMessage,
  encodeSASLInitialResponse,
  encodeSASLResponse,
  Terminate,
} from '../wire/frontend.ts';
import { EndOfStream, ownCopy } from '../wire/read.ts';
import { encodeStartupMessage, MAX_STARTUP_BYTES } from '../wire/startup.ts';
import { serverEndPoint } from './channel-binding.ts';
import { KEEPALIVES, dial } from './dial.ts';
import {
  asksForAnotherMethod,
  asksInClear,
  isKnownWithoutProof,
  letsUsInUnproven,
  mayHearPassword,
} from './proof.ts';
import { KeyRing, ScramExchange } from './scram.ts';

/** Whom to log in as, and with which settings. */
export interface Credentials {
  /** The LOGIN role: a slot. */
  readonly user: string;
  readonly password: string;
  /** The group role that the session takes in its StartupMessage, so that RESET ROLE and DISCARD ALL return to it. */
  readonly role: string;
  /** The client's own settings, as the startup firewall let them pass. */
  readonly parameters: ReadonlyMap<string, string>;
  /** What the StartupMessage is to say of the identity; it may depend on the port that we come from. */
  identity(localPort: number): Promise<StartupParameters>;
  /**
   * What is asked right behind the login, in the same packet where it can be, so that it costs no round trip. It holds no
   * secret, for the server has not proved itself yet; its answer is the caller's to read.
   */
  readonly question?: Buffer | undefined;
}

/** Startup parameters of our own, in order. */
export type StartupParameters = readonly (readonly [name: string, value: string])[];

/** A session that is logged in and idle. The caller owns `stream` and closes it. */
export interface UpstreamConnection {
  stream: Duplex;
  readonly processId: number;
  /** The cancel key of this backend; never leaves the proxy. */
  readonly secretKey: Buffer;
  /** The server's major version; 0 where it has not said. */
  readonly version: number;
  /**
   * What a client hears before it may speak: in the first buffer a ParameterStatus for each setting, in those behind it
   * what has come with the login or since, whole frames, notices too.
   */
  readonly greeting: Buffer[];
  /** The LOGIN role. */
  readonly slot: string;
  /** What its StartupMessage said of the identity; never logged. */
  readonly identity: StartupParameters;
}

// Far above anything PostgreSQL sends before ReadyForQuery, far below what could hurt.
const MAX_LOGIN_FRAME_BYTES = 65_536;
const MAX_LOGIN_FRAMES = 256;

const TERMINATE_TIMEOUT_MS = 2_000;

const AUTHENTICATION = {
  Ok: 0,
  CleartextPassword: 3,
  SASL: 10,
  SASLContinue: 11,
  SASLFinal: 12,
} as const;

/**
 * Connects and logs in, within the upstream's `connectTimeoutMs`.
 *
 * @throws {ProxyError} upstream_unreachable, upstream_lost, upstream_protocol, upstream_login_rejected,
 *   session_setup_failed, claims_too_large, or upstream_rejected holding the ErrorResponse that PostgreSQL sent.
 */
export async function connect(
  upstream: UpstreamConfig,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<UpstreamConnection> {
  const attempt = new AbortController();
  const onAbort = () => attempt.abort(signal.reason);
  // A host that swallows packets must not use up the time in which another attempt could succeed.
  const timer = setTimeout(() => {
    const cause = new Error(`no answer within ${upstream.connectTimeoutMs} ms`);
    attempt.abort(new ProxyError('upstream_unreachable', { cause }));
  }, upstream.connectTimeoutMs);
  signal.addEventListener('abort', onAbort);
  try {
    signal.throwIfAborted();
    return await open(upstream, credentials, attempt.signal);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  }
}

async function open(
  upstream: UpstreamConfig,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<UpstreamConnection> {
  const stream = await dial(upstream, signal);
  try {
    const identity = await credentials.identity(localPortOf(stream));
    const packet = encodeStartupMessage([
      ['user', credentials.user],
      ['database', upstream.database],
      ...KEEPALIVES,
      ...credentials.parameters,
      // Last, because PostgreSQL lets the last of two spellings of a setting win.
      ['role', credentials.role],
      ...identity,
    ]);
    // PostgreSQL would close the connection without a word.
    if (packet.length - 4 > MAX_STARTUP_BYTES) {
      const cause = new Error(`a startup packet of ${packet.length} bytes`);
      throw new ProxyError('claims_too_large', { cause });
    }
    stream.write(packet);
    const session = await logIn(stream, upstream, credentials, signal);
    return { ...session, slot: credentials.user, identity };
  } catch (error) {
    stream.destroy();
    signal.throwIfAborted();
    throw asProxyError(error);
  }
}

/** The port that we come from, as the server sees it where no address is translated on the way. */
function localPortOf(stream: Duplex): number {
  return stream instanceof Socket ? (stream.localPort ?? 0) : 0;
}

/** What a failed read or an impossible frame means for the one who waits for this upstream. */
export function asProxyError(error: unknown): ProxyError {
  if (error instanceof EndOfStream) return new ProxyError('upstream_lost', { cause: error });
  if (error instanceof InvalidFrameLength)
    return new ProxyError('upstream_protocol', { cause: error });
  return ProxyError.from(error);
}

async function logIn(
  stream: Duplex,
  upstream: UpstreamConfig,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<Omit<UpstreamConnection, 'slot' | 'identity'>> {
  const authentication = new Authentication(stream, upstream, credentials);
  const settings: Buffer[] = [];
  const notices: Buffer[] = [];
  let version: number | undefined;
  let key: { processId: number; secretKey: Buffer } | undefined;
  for (let frames = 0; frames < MAX_LOGIN_FRAMES; frames++) {
    const frame =
      takeFrame(stream, MAX_LOGIN_FRAME_BYTES) ??
      (await readFrame(stream, MAX_LOGIN_FRAME_BYTES, signal));
    switch (frame.type) {
      case BACKEND.Authentication:
        await authentication.answer(frame);
        signal.throwIfAborted();
        break;
      case BACKEND.ParameterStatus:
        settings.push(frame.bytes);
        version ??= versionIn(frame);
        break;
      case BACKEND.NoticeResponse:
        notices.push(frame.bytes);
        break;
      case BACKEND.BackendKeyData:
        key = decodeBackendKeyData(frame);
        break;
      case BACKEND.ErrorResponse:
        throw loginError(frame, credentials.role);
      case BACKEND.ReadyForQuery: {
        if (!authentication.complete || key === undefined) throw unexpected(frame);
        // One buffer for as long as the session lasts, not a dozen.
        const greeting = [ownCopy(Buffer.concat(settings)), ...notices];
        return { stream, ...key, version: version ?? 0, greeting };
      }
      default:
        throw unexpected(frame);
    }
  }
  throw new ProxyError('upstream_protocol', { cause: new Error('the login never ended') });
}

/** The server's major version, if it is what this ParameterStatus is about. */
function versionIn({ body }: Frame): number | undefined {
  const status = decodeParameterStatus(body);
  return status?.name === 'server_version' ? Number.parseInt(status.value, 10) || 0 : undefined;
}

/** One authentication exchange: SCRAM-SHA-256, with channel binding over TLS; a clear password only where nobody can read it. */
class Authentication {
  complete = false;
  readonly #stream: Duplex;
  readonly #upstream: UpstreamConfig;
  readonly #credentials: Credentials;
  #exchange: ScramExchange | undefined;
  #serverProven = false;
  #unasked: Buffer | undefined;

  constructor(stream: Duplex, upstream: UpstreamConfig, credentials: Credentials) {
    this.#stream = stream;
    this.#upstream = upstream;
    this.#credentials = credentials;
    this.#unasked = credentials.question;
  }

  async answer(frame: Frame): Promise<void> {
    if (this.complete || frame.body.length < 4) throw unexpected(frame);
    const exchange = this.#exchange;
    const said = frame.body.subarray(4);
    switch (frame.body.readInt32BE(0)) {
      case AUTHENTICATION.Ok:
        return this.#finish(frame);
      case AUTHENTICATION.CleartextPassword:
        if (exchange !== undefined) throw unexpected(frame);
        return this.#sendClearPassword();
      case AUTHENTICATION.SASL:
        if (exchange !== undefined) throw unexpected(frame);
        return this.#beginScram(said.toString('latin1').split('\0').filter(Boolean));
      case AUTHENTICATION.SASLContinue: {
        if (exchange === undefined) throw unexpected(frame);
        this.#send(encodeSASLResponse(await exchange.respond(said)));
        return;
      }
      case AUTHENTICATION.SASLFinal: {
        if (exchange === undefined) throw unexpected(frame);
        exchange.assertProof(said);
        this.#serverProven = true;
        return;
      }
      default:
        throw asksForAnotherMethod();
    }
  }

  #finish(frame: Frame): void {
    // A server that skips the proof after SCRAM began is not the one that knows our verifier.
    if (this.#exchange !== undefined && !this.#serverProven) throw unexpected(frame);
    if (!this.#serverProven && !isKnownWithoutProof(this.#upstream)) throw letsUsInUnproven();
    this.complete = true;
    this.#send();
  }

  /** Says this, and asks what has not been asked yet. */
  #send(...words: readonly Buffer[]): void {
    const all = this.#unasked === undefined ? words : [...words, this.#unasked];
    this.#unasked = undefined;
    if (all.length > 0) this.#stream.write(Buffer.concat(all));
  }

  #beginScram(mechanisms: readonly string[]): void {
    const { user, password } = this.#credentials;
    const keyRing = keyRingOf(this.#upstream);
    const exchange = new ScramExchange({
      mechanisms,
      binding: bindingOf(this.#stream),
      keys: (salting) => keyRing.keysOf(user, password, salting),
    });
    this.#exchange = exchange;
    this.#stream.write(encodeSASLInitialResponse(exchange.mechanism, exchange.clientFirst));
  }

  #sendClearPassword(): void {
    if (!mayHearPassword(this.#stream, this.#upstream)) throw asksInClear();
    this.#stream.write(encodePasswordMessage(this.#credentials.password));
  }
}

/** What a login over this stream is to be bound to. */
function bindingOf(stream: Duplex): Buffer | 'impossible' | undefined {
  if (!(stream instanceof TLSSocket)) return undefined;
  // Without a hash to bind to it depends on TLS alone whether somebody is in between.
  return serverEndPoint(stream) ?? (stream.authorized ? undefined : 'impossible');
}

/** What we log in to each upstream with, for as long as its configuration lives. */
const keyRings = new WeakMap<UpstreamConfig, KeyRing>();

function keyRingOf(upstream: UpstreamConfig): KeyRing {
  let keyRing = keyRings.get(upstream);
  if (keyRing === undefined) {
    const logins = Object.values(upstream.roles).map(({ slots }) => Math.max(slots, 1));
    keyRing = new KeyRing(logins.reduce((sum, one) => sum + one, 0));
    keyRings.set(upstream, keyRing);
  }
  return keyRing;
}

/**
 * What an ErrorResponse during the login means.
 *
 * Class 28 never reaches a client: it would blame the user's token for our password. The role that the
 * policy granted is refused with 42501 (not a member) or 22023 (no such role), and named in the message; so are the
 * client's own settings, which are for the client to read about.
 */
function loginError(frame: Frame, role: string): ProxyError {
  const fields = decodeErrorFields(frame.body);
  const sqlstate = fields.get('C') ?? '';
  const cause = new UpstreamError(fields);
  if (sqlstate.startsWith('28')) return new ProxyError('upstream_login_rejected', { cause });
  const aboutRole =
    (sqlstate === '42501' || sqlstate === '22023') && (fields.get('M') ?? '').includes(`"${role}"`);
  if (aboutRole) return new ProxyError('session_setup_failed', { role }, { cause });
  return new ProxyError('upstream_rejected', { cause, frame: frame.bytes });
}

/** An ErrorResponse of the upstream, for the log and for those who decide by its SQLSTATE. */
export class UpstreamError extends Error {
  override readonly name = 'UpstreamError';
  readonly sqlstate: string;
  /** The C function that raised it: the one field that tells errors of one SQLSTATE apart in any language. */
  readonly routine: string;

  constructor(fields: ReadonlyMap<string, string>) {
    super(`${fields.get('C') ?? '?????'} ${fields.get('M') ?? 'no message'}`);
    this.sqlstate = fields.get('C') ?? '';
    this.routine = fields.get('R') ?? '';
  }
}

function unexpected(frame: Frame): ProxyError {
  return new ProxyError('upstream_protocol', {
    cause: new Error(`unexpected message type ${frame.type} while logging in`),
  });
}

/** Says goodbye and waits for PostgreSQL to close, which it does when the backend has left its tables. */
export async function disconnect(stream: Duplex): Promise<void> {
  if (stream.destroyed) return;
  const timer = setTimeout(() => stream.destroy(), TERMINATE_TIMEOUT_MS);
  const closed = new Promise<void>((resolve) => stream.once('close', () => resolve()));
  stream.resume();
  if (stream.writableEnded) stream.destroy();
  else stream.end(Terminate);
  await closed;
  clearTimeout(timer);
}
