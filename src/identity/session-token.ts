/**
 * Mints the token that the extension pg_session_jwt verifies: one key for each connection, which nobody else ever has.
 *
 * The issuer's own token never travels: it may be used elsewhere, and the extension takes Ed25519 alone.
 *
 * https://github.com/neondatabase/pg_session_jwt, https://www.rfc-editor.org/rfc/rfc8037
 */
import { generateKeyPair } from 'node:crypto';
import { promisify } from 'node:util';
import { CompactSign } from 'jose';
import { encodeClaims, type SessionClaims } from './session-claims.ts';

/** A public key, and a token that only its private half can have signed. */
export interface SessionToken {
  /** A public JWK, as JSON. */
  readonly jwk: string;
  /** Undefined for nobody's session. */
  readonly jwt: string | undefined;
}

// What the extension keeps exactly: integers of 64 bits, and what a double has digits for.
const SMALLEST = -(2n ** 63n);
const LARGEST = 2n ** 64n - 1n;
const DOUBLE_DIGITS = 15;

const newKeyPair = promisify(generateKeyPair);

// The extension takes a token only where its jti is greater than that of the one before, so these never fall.
let lastTokenId = 0;

/**
 * Whether every number of a JSON text reaches SQL as it is. The extension reads what has more digits as a double, and
 * would make one tenant of two.
 */
export function isExactForExtension(json: string): boolean {
  const numbers = json.replaceAll(/"(?:[^"\\]|\\.)*"/g, '""').match(/-?\d[\d.eE+-]*/g) ?? [];
  return numbers.every((number) => {
    if (!/^-?\d+$/.test(number)) return number.replaceAll(/[eE].*|\D/g, '').length <= DOUBLE_DIGITS;
    const integer = BigInt(number);
    return integer >= SMALLEST && integer <= LARGEST;
  });
}

/**
 * A key for one connection and, where there are claims, its first token: `exp` is `expiresAt` (ms since the epoch) in whole
 * seconds, and `jti` a number of ours; `nbf` is left out, because the issuer's has been checked with its own tolerance.
 */
export async function mintSessionToken(
  claims: SessionClaims | undefined,
  expiresAt: number,
): Promise<SessionToken> {
  const { publicKey, privateKey } = await newKeyPair('ed25519');
  const jwk = JSON.stringify(publicKey.export({ format: 'jwk' }));
  if (claims === undefined) return { jwk, jwt: undefined };
  const text = encodeClaims(claims, {
    exp: Math.floor(expiresAt / 1000),
    jti: ++lastTokenId,
    nbf: undefined,
  });
  const jwt = await new CompactSign(Buffer.from(text, 'utf8'))
    .setProtectedHeader({ alg: 'EdDSA' })
    .sign(privateKey);
  return { jwk, jwt };
}
