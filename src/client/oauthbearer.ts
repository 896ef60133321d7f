/**
 * The messages of SASL OAUTHBEARER: what a client says with its token, and what it is told when that is no good.
 *
 * Takes apart and refuses as PostgreSQL 18's auth-oauth.c does, in the same order and with the same words. Judges no token,
 * and speaks to nobody: the conversation is in `login.ts`.
 *
 * RFC 7628; https://www.postgresql.org/docs/current/sasl-authentication.html#SASL-OAUTHBEARER
 */
import { ProxyError } from '../errors.ts';
import type { Discovery } from '../identity/authentication.ts';
import { decodeString } from '../wire/frame.ts';

/** The mechanism's name. There is no -PLUS: it does not bind to channels. */
export const OAUTHBEARER = 'OAUTHBEARER';

/** Between, before and after the key/value pairs; and all that is left to say for a client that was refused. */
const KVSEP = '\x01';

/**
 * The client's initial response in a SASLInitialResponse; `undefined` where it is yet to come.
 *
 * @returns a view of `body`.
 * @throws {ProxyError} unexpected_message
 */
export function decodeSASLInitialResponse(body: Buffer): Buffer | undefined {
  const mechanism = decodeString(body, 0);
  if (mechanism === undefined) throw unexpected('invalid string in message');
  // A PasswordMessage has the same type, and ends here: with a token for a mechanism.
  if (mechanism.text !== OAUTHBEARER) {
    throw unexpected('client selected an invalid SASL authentication mechanism');
  }
  const start = mechanism.next + 4;
  if (start > body.length) throw unexpected('insufficient data left in message');
  const length = body.readInt32BE(mechanism.next);
  const end = length === -1 ? start : start + length;
  if (end < start || end > body.length) throw unexpected('insufficient data left in message');
  if (end < body.length) throw unexpected('invalid message format');
  return length === -1 ? undefined : body.subarray(start, end);
}

/**
 * The value of `auth` in a client's response: a scheme and a token, or nothing, which asks where to get one.
 *
 * @throws {ProxyError} unexpected_message, authzid_unsupported
 */
export function parseClientResponse(response: Buffer): string {
  if (response.length === 0) throw malformed('The message is empty.');
  // Attack: what follows a NUL would be seen by some readers and not by others.
  if (response.includes(0)) throw malformed('Message length does not match input length.');
  const text = response.toString('latin1');
  skipGs2Header(text);
  return findAuth(text, GS2_HEADER_BYTES + KVSEP.length);
}

/** The answer to `KVSEP`, which alone may follow a failure. @throws {ProxyError} unexpected_message */
export function assertConcession(response: Buffer): void {
  if (response.length === 0) throw malformed('The message is empty.');
  if (response.toString('latin1') !== KVSEP) {
    throw malformed('Client did not send a kvsep response.');
  }
}

/**
 * The token in a value of `auth` that is not empty.
 *
 * @throws {ProxyError} token_missing, token_rejected: to the client the same as for any other token that is no good.
 */
export function parseBearer(auth: string, user: string): string {
  // RFC 7235: the scheme may be in any case.
  const [, token] = /^bearer +([\s\S]*)$/i.exec(auth) ?? [];
  if (token === undefined) {
    const cause = new Error('the client chose an authentication scheme that is not Bearer');
    throw new ProxyError('token_rejected', { user }, { cause });
  }
  if (token === '') {
    throw new ProxyError('token_missing', { user }, { cause: new Error('no token after Bearer') });
  }
  // b64token of RFC 6750, which is token68 of RFC 7235.
  if (!/^[\w.~+/-]+=*$/.test(token)) {
    const cause = new Error('the token holds characters that a bearer token cannot have');
    throw new ProxyError('token_rejected', { user }, { cause });
  }
  return token;
}

/** What a client hears whose token is no good, or who has none (RFC 7628 section 3.2.2). */
export function encodeFailure({ openidConfiguration, scope }: Discovery): string {
  return JSON.stringify({
    status: 'invalid_token',
    'openid-configuration': openidConfiguration,
    scope,
  });
}

// "n,,": no channel binding, no authorization identity.
const GS2_HEADER_BYTES = 3;

/** Allows the one header that there is, and `y`, by which a client says that it could have bound a channel. */
function skipGs2Header(text: string): void {
  const [flag, comma, attribute, separator] = [text[0], text[1], text[2], text[3]];
  if (flag === 'p') {
    throw malformed(
      'The server does not support channel binding for OAuth, but the client message includes channel binding data.',
    );
  }
  if (flag !== 'n' && flag !== 'y') {
    throw malformed(`Unexpected channel-binding flag "${shown(flag)}".`);
  }
  if (comma !== ',') throw malformed(`Comma expected, but found character "${shown(comma)}".`);
  if (attribute === 'a') throw new ProxyError('authzid_unsupported');
  if (attribute !== ',') {
    throw malformed(`Unexpected attribute "${shown(attribute)}" in client-first-message.`);
  }
  if (separator !== KVSEP) {
    throw malformed(`Key-value separator expected, but found character "${shown(separator)}".`);
  }
}

/** Walks the key/value pairs from `start` to the end; of those that are not `auth` it only sees that they are well-formed. */
function findAuth(text: string, start: number): string {
  let auth: string | undefined;
  let at = start;
  while (text[at] !== KVSEP) {
    if (at >= text.length) throw malformed('Message did not contain a final terminator.');
    const end = text.indexOf(KVSEP, at);
    if (end === -1) throw malformed('Message contains an unterminated key/value pair.');
    const [key, value] = splitPair(text.slice(at, end));
    if (key === 'auth') {
      if (auth !== undefined) throw malformed('Message contains multiple auth values.');
      auth = value;
    }
    at = end + 1;
  }
  if (auth === undefined) throw malformed('Message does not contain an auth value.');
  if (at + 1 < text.length) {
    throw malformed('Message contains additional data after the final terminator.');
  }
  return auth;
}

function splitPair(pair: string): [key: string, value: string] {
  const equals = pair.indexOf('=');
  if (equals === -1) throw malformed('Message contains a key without a value.');
  const [key, value] = [pair.slice(0, equals), pair.slice(equals + 1)];
  if (key === '') throw malformed('Message contains an empty key name.');
  if (!/^[A-Za-z]+$/.test(key)) throw malformed('Message contains an invalid key name.');
  if (!/^[\x20-\x7e\t\r\n]*$/.test(value)) throw malformed('Message contains an invalid value.');
  return [key, value];
}

/** One character, as sanitize_char() of PostgreSQL shows it. */
function shown(character: string | undefined): string {
  if (character !== undefined && /[!-~]/.test(character)) return `'${character}'`;
  return `0x${(character?.charCodeAt(0) ?? 0).toString(16).padStart(2, '0')}`;
}

function malformed(detail: string): ProxyError {
  return new ProxyError(
    'unexpected_message',
    { problem: 'malformed OAUTHBEARER message' },
    { detail },
  );
}

function unexpected(problem: string): ProxyError {
  return new ProxyError('unexpected_message', { problem });
}
