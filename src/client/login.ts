/**
 * Asks the client for its token: as its password, or by SASL OAUTHBEARER, and nothing else.
 *
 * Judges no token: it hands over the text exactly as it came, and a way to refuse it that the client understands.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { ProxyError } from '../errors.ts';
import type { Discovery } from '../identity/authentication.ts';
import {
  AuthenticationCleartextPassword,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
} from '../wire/backend.ts';
import { FRONTEND } from '../wire/frontend.ts';
import { EndOfStream, readExactly, skip } from '../wire/read.ts';
import {
  assertConcession,
  decodeSASLInitialResponse,
  encodeFailure,
  OAUTHBEARER,
  parseBearer,
  parseClientResponse,
} from './oauthbearer.ts';
import { send, type Client } from './stream.ts';

// PG_MAX_AUTH_TOKEN_LENGTH of PostgreSQL's auth.h: what any client may send as a password message.
const MAX_PASSWORD_MESSAGE_BYTES = 65_535;
// What surrounds the token in an OAUTHBEARER message: libpq needs 34 bytes, and others may add their host and port.
const MAX_ENVELOPE_BYTES = 1_024;

/** What a client is asked for. */
export interface Question {
  /** What StartupMessage said; unverified, for the messages of refusals alone. */
  readonly user: string;
  readonly maxTokenBytes: number;
  /** The client is to sign in by OAUTHBEARER, and this is what it hears that has no token, or a bad one. Else by password. */
  readonly discovery: Discovery | undefined;
}

/** What a client answered. */
export interface Presented {
  readonly token: string;
  /**
   * Turns what is wrong with the token into what the client is to hear at last, and says what its method has to say before.
   *
   * @throws {ProxyError} always: what it was given, in the words of the method.
   */
  refuse(this: void, error: unknown): Promise<never>;
}

/**
 * Asks, and returns the token.
 *
 * One of more than `maxTokenBytes` is read and forgotten, never held.
 *
 * @throws {ProxyError} unexpected_message, token_missing, token_rejected, oauth_discovery, authzid_unsupported,
 *   client_lost, or the signal's reason.
 */
export async function askForToken(
  client: Client,
  question: Question,
  signal: AbortSignal,
): Promise<Presented> {
  const { discovery } = question;
  try {
    if (discovery === undefined) return await askForPassword(client, question, signal);
    return await askForBearerToken(client, { ...question, discovery }, signal);
  } catch (error) {
    if (error instanceof EndOfStream) throw new ProxyError('client_lost', { cause: error });
    throw error;
  }
}

async function askForPassword(
  client: Client,
  question: Question,
  signal: AbortSignal,
): Promise<Presented> {
  await send(client.stream, AuthenticationCleartextPassword);
  const length = await readLength(client, 'password', signal);
  const body = await readBody(client, length, 1, question, signal);
  // Attack A7: exactly one NUL, at the very end, as recv_password_packet() insists on.
  if (length === 0 || body.indexOf(0) !== length - 1) {
    throw new ProxyError('unexpected_message', { problem: 'invalid password packet size' });
  }
  const token = body.toString('latin1', 0, length - 1);
  body.fill(0);
  if (token === '') throw new ProxyError('token_missing', question);
  return { token, refuse: refuseAtOnce };
}

/** A refused password has no ceremony. */
function refuseAtOnce(error: unknown): Promise<never> {
  return Promise.reject(error);
}

type BearerQuestion = Question & { readonly discovery: Discovery };

async function askForBearerToken(
  client: Client,
  question: BearerQuestion,
  signal: AbortSignal,
): Promise<Presented> {
  const refuse = (error: unknown) => refuseBearer(client, question, error, signal);
  try {
    await send(client.stream, encodeAuthenticationSASL([OAUTHBEARER]));
    const auth = await readAuth(client, question, signal);
    if (auth === '') throw new ProxyError('oauth_discovery', question);
    return { token: parseBearer(auth, question.user), refuse };
  } catch (error) {
    return await refuse(error);
  }
}

/** The value of `auth`, which may come with the name of the mechanism or, after an empty challenge, behind it. */
async function readAuth(
  client: Client,
  question: BearerQuestion,
  signal: AbortSignal,
): Promise<string> {
  const initial = await readSASLResponse(client, question, signal);
  let response = decodeSASLInitialResponse(initial);
  if (response === undefined) {
    await send(client.stream, encodeAuthenticationSASLContinue(''));
    response = await readSASLResponse(client, question, signal);
  }
  try {
    return parseClientResponse(response);
  } finally {
    response.fill(0);
  }
}

/**
 * The end of an exchange that has failed: a challenge with what the client should have, its one byte of consent, and the
 * error, in OAuth's words. An error that is not about the token is passed on as it is, without a challenge.
 */
async function refuseBearer(
  client: Client,
  question: BearerQuestion,
  error: unknown,
  signal: AbortSignal,
): Promise<never> {
  const refusal = inOAuthWords(error, question.user);
  if (refusal === undefined) throw error;
  try {
    await send(client.stream, encodeAuthenticationSASLContinue(encodeFailure(question.discovery)));
    assertConcession(await readSASLResponse(client, question, signal));
  } catch (failure) {
    const gone = failure instanceof EndOfStream || ProxyError.is(failure, 'client_lost');
    // Attack: a token was tried and was bad, and no way of taking that makes it any less of a failed login.
    if (refusal.code === 'oauth_discovery' && !gone) throw failure;
  }
  throw refusal;
}

/** The same refusal for a client that has no password; `undefined` for what is no refusal of a token. */
function inOAuthWords(error: unknown, user: string): ProxyError | undefined {
  if (ProxyError.is(error, 'oauth_discovery')) return error;
  if (!(error instanceof ProxyError) || error.spec.sqlstate !== '28P01') return undefined;
  // Whichever refusal of a token it is: their messages name the same.
  const { code, cause, detail, hint } = error as ProxyError<'token_rejected'>;
  const said = { ...(detail && { detail }), ...(hint && { hint }) };
  return new ProxyError(code, { user }, { cause, method: 'oauth', ...said });
}

async function readSASLResponse(
  client: Client,
  question: Question,
  signal: AbortSignal,
): Promise<Buffer> {
  const length = await readLength(client, 'SASL', signal);
  return readBody(client, length, MAX_ENVELOPE_BYTES, question, signal);
}

/** The length of the message's body. The type is judged before the length is waited for, as PostgreSQL does. */
async function readLength(
  client: Client,
  expected: 'password' | 'SASL',
  signal: AbortSignal,
): Promise<number> {
  const [type] = await readExactly(client.stream, 1, signal);
  if (type !== FRONTEND.PasswordMessage) {
    throw new ProxyError('unexpected_message', {
      problem: `expected ${expected} response, got message type ${type}`,
    });
  }
  const length = (await readExactly(client.stream, 4, signal)).readInt32BE(0);
  if (length < 4 || length > MAX_PASSWORD_MESSAGE_BYTES) {
    throw new ProxyError('unexpected_message', { problem: 'invalid message length' });
  }
  return length - 4;
}

/** The message's body, unless it is too long even for the longest token with `envelopeBytes` around it. */
async function readBody(
  client: Client,
  length: number,
  envelopeBytes: number,
  { user, maxTokenBytes }: Question,
  signal: AbortSignal,
): Promise<Buffer> {
  const tokenBytes = length - envelopeBytes;
  if (tokenBytes <= maxTokenBytes) return readExactly(client.stream, length, signal);
  await skip(client.stream, length, signal);
  const cause = new Error(
    `the token has at least ${tokenBytes} bytes, more than limits.maxTokenBytes (${maxTokenBytes})`,
  );
  throw new ProxyError('token_rejected', { user }, { cause });
}
