/**
 * Takes a compact JWT apart: three canonical base64url parts, and a header and claims that are small, plain JSON objects.
 *
 * Verifies nothing: until `jwt.ts` has checked the signature, whatever comes out of here is what a stranger
 * wrote. All work is linear in a length that was checked first.
 *
 * https://www.rfc-editor.org/rfc/rfc7515#section-7.1 and https://www.rfc-editor.org/rfc/rfc8725
 */
import { printable } from '../errors.ts';

/** Why a token was refused before its signature verified. The message is for the log: never token text, never a claim's value. */
export class TokenRefusal extends Error {
  override readonly name = 'TokenRefusal';
}

/** A JWT Claims Set, frozen and without a prototype at every level, so that no claim can pass for an inherited property. */
export type Claims = Readonly<Record<string, unknown>>;

/** What an unverified token says about itself. */
export interface ParsedToken {
  readonly alg: string;
  readonly kid: string | undefined;
  readonly typ: string | undefined;
  readonly claims: Claims;
}

const MAX_DEPTH = 16;
const MAX_MEMBERS = 200;

// Each of these lets the sender choose the key or change what is signed (attacks C4, C5). No issuer whose
// keys are published needs one, so their mere presence is a refusal.
const REFUSED_HEADER_MEMBERS = ['jku', 'x5u', 'x5c', 'jwk', 'crit', 'b64'];

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const BASE64URL = /^[A-Za-z0-9_-]+$/;
const PRINTABLE_ASCII = /^[\x20-\x7e]{1,256}$/;
// Explicit typing (RFC 8725 section 3.11): at+jwt is an access token; logout+jwt, dpop+jwt, secevent+jwt, dc+sd-jwt … are
// not. Whatever has a suffix is a kind of its own, in any spelling of it.
const ACCESS_TOKEN = /(^|[/-])at\+jwt$/i;

/**
 * Takes `token` apart.
 *
 * @param maxBytes longest token accepted, checked before anything is decoded.
 * @throws {TokenRefusal} with the reason.
 */
export function parseToken(token: string, maxBytes: number): ParsedToken {
  assertLength(token, maxBytes);
  // The limit keeps a password of 16,384 dots from becoming 16,385 strings.
  const parts = token.split('.', 4);
  const [header, payload, signature] = parts;
  if (
    parts.length !== 3 ||
    header === undefined ||
    payload === undefined ||
    signature === undefined
  ) {
    throw new TokenRefusal(
      `the token has ${parts.length > 3 ? 'more than 3' : parts.length} parts, not 3`,
    );
  }
  const headerBytes = decodeBase64url(header, 'header');
  const payloadBytes = decodeBase64url(payload, 'payload');
  decodeBase64url(signature, 'signature');

  return {
    ...readHeader(parseObject(headerBytes, 'header')),
    claims: parseObject(payloadBytes, 'payload'),
  };
}

/** @throws {TokenRefusal} where `token` has more than `maxBytes` bytes. */
export function assertLength(token: string, maxBytes: number): void {
  const bytes = Buffer.byteLength(token);
  if (bytes > maxBytes) {
    throw new TokenRefusal(
      `the token is ${bytes} bytes long, more than limits.maxTokenBytes (${maxBytes})`,
    );
  }
}

// Where tokens are known to be cut, by the length that is left over.
const CUTTERS = new Map([
  [99, "the password prompt of PostgreSQL 13's psql and older, which reads 99 bytes"],
  [
    255,
    'a pooler or client that keeps passwords of at most 255 bytes, such as older versions of pgagroal',
  ],
  [995, 'PostgreSQL 13 or older, whose clients and server keep passwords of at most 995 bytes'],
  [2047, 'PgBouncer 1.25 or older, which keeps passwords of at most 2,047 bytes'],
  [4095, "the terminal at psql's password prompt, which reads lines of at most 4,095 bytes"],
]);

/**
 * A HINT for a token that looks cut off, or undefined.
 *
 * It depends on nothing but the shape of what the client itself sent, so it tells nobody anything about
 * keys, issuers or signatures.
 */
export function truncationHint(token: string): string | undefined {
  const cutter = CUTTERS.get(Buffer.byteLength(token));
  if (cutter !== undefined) {
    return `The token may have been cut off by ${cutter}. PGPASSWORD and a password file do not cut it.`;
  }
  const [, , signature] = token.split('.', 3);
  // "eyJ" is how {" begins in base64url. An ordinary password is not a token that was cut.
  const tokenLike = token.startsWith('eyJ') || token.includes('.');
  if (!tokenLike || (signature !== undefined && signature !== '')) return undefined;
  return (
    'The token has no third part: it was probably cut off on its way here. ' +
    "psql's password prompt cuts at 4,095 bytes, PgBouncer 1.25 and older at 2,047; PGPASSWORD does not."
  );
}

function decodeBase64url(text: string, part: string): Buffer {
  if (!BASE64URL.test(text)) throw new TokenRefusal(`the ${part} is empty or not base64url`);
  const bytes = Buffer.from(text, 'base64url');
  // Attack C15: sixteen spellings of the last character decode to the same signature. One token, one spelling.
  if (bytes.toString('base64url') !== text) {
    throw new TokenRefusal(`the ${part} is not canonical base64url`);
  }
  return bytes;
}

function parseObject(bytes: Buffer, part: string): Claims {
  let text: string;
  let value: unknown;
  try {
    text = UTF8.decode(bytes);
    value = JSON.parse(text);
  } catch {
    // The parser's own message quotes its input, so it goes no further.
    throw new TokenRefusal(`the ${part} is not JSON in UTF-8`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TokenRefusal(`the ${part} is not a JSON object`);
  }
  assertPlainStructure(text, part);
  return withoutPrototype(value) as Claims;
}

// A string, with the colon that makes it a member's name, or a bracket. Exact and linear on text that JSON.parse accepted.
const JSON_TOKENS = /("(?:[^"\\]|\\.)*")\s*(:)?|[{}[\]]/g;

/**
 * Refuses what two JSON parsers may read differently (attacks C6, C7) and what would cost too much (C8). JSON.parse
 * keeps the last of two equal names and says nothing, hence this second look at the text.
 */
function assertPlainStructure(text: string, part: string): void {
  const open: Set<string>[] = [];
  for (const [token, quoted, colon] of text.matchAll(JSON_TOKENS)) {
    if (token === '{' || token === '[') {
      open.push(new Set());
      if (open.length > MAX_DEPTH) {
        throw new TokenRefusal(`the ${part} is nested more than ${MAX_DEPTH} deep`);
      }
    } else if (token === '}' || token === ']') {
      open.pop();
    } else if (quoted !== undefined && colon !== undefined) {
      const names = open.at(-1) ?? new Set();
      const name = JSON.parse(quoted) as string;
      if (name === '__proto__') throw new TokenRefusal(`the ${part} has a member "__proto__"`);
      if (names.has(name)) {
        throw new TokenRefusal(`the ${part} has two members "${printable(name)}" in one object`);
      }
      names.add(name);
      if (names.size > MAX_MEMBERS) {
        throw new TokenRefusal(`the ${part} has an object of more than ${MAX_MEMBERS} members`);
      }
    }
  }
}

/** A frozen deep copy without prototypes. The depth was bounded by `assertPlainStructure`. */
function withoutPrototype(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return Object.freeze(value.map(withoutPrototype));
  const copy = Object.create(null) as Record<string, unknown>;
  for (const [name, inner] of Object.entries(value)) copy[name] = withoutPrototype(inner);
  return Object.freeze(copy);
}

function readHeader(header: Claims): Omit<ParsedToken, 'claims'> {
  for (const name of REFUSED_HEADER_MEMBERS) {
    if (Object.hasOwn(header, name)) throw new TokenRefusal(`the header has a member "${name}"`);
  }
  const { alg, kid, typ } = header;
  if (typeof alg !== 'string' || alg === '') throw new TokenRefusal('the header names no alg');
  if (kid !== undefined && (typeof kid !== 'string' || !PRINTABLE_ASCII.test(kid))) {
    throw new TokenRefusal('the kid is not a string of 1 to 256 printable ASCII characters');
  }
  if (typ !== undefined && typeof typ !== 'string') {
    throw new TokenRefusal('the typ is not a string');
  }
  if (typ !== undefined && typ.includes('+') && !ACCESS_TOKEN.test(typ)) {
    throw new TokenRefusal(`typ "${printable(typ)}" is another kind of token`);
  }
  return { alg, kid, typ };
}
