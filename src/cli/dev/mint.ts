/**
 * The development issuer's key and the tokens signed with it.
 *
 * For this machine alone: the key lies in `.pgjot`, and only a proxy that `pgjot dev` configured trusts it.
 * Serving the public half is `issuer.ts`.
 *
 * https://www.rfc-editor.org/rfc/rfc7519
 */
import { readFile } from 'node:fs/promises';
import {
  calculateJwkThumbprint,
  exportJWK,
  generateKeyPair,
  importJWK,
  SignJWT,
  type JWK,
} from 'jose';
import { CommandError } from '../failure.ts';
import { replaceFile, type State } from './state.ts';

/** The audience of every development token. */
export const DEV_AUDIENCE = 'pgjot-dev';

const ALGORITHM = 'ES256';

/** An issuer: where it serves, and the private key (with `kid` and `alg`) that it signs with. */
export interface DevIssuer {
  readonly port: number;
  readonly privateKey: JWK;
}

/** What the token's `iss` says. */
export function issuerUrl({ port }: DevIssuer): string {
  return `http://127.0.0.1:${port}`;
}

/** The half of the key that everybody may know. */
export function publicKey({ privateKey }: DevIssuer): JWK {
  const { kty, crv, x, y, kid, alg } = privateKey as Required<JWK>;
  return { kty, crv, x, y, kid, alg, use: 'sig' };
}

/** The issuer of this state folder, or undefined before the first `pgjot dev`. */
export async function readIssuer(state: State): Promise<DevIssuer | undefined> {
  const text = await readFile(state.issuerFile, 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as DevIssuer;
  } catch {
    throw new CommandError('failure', `${state.issuerFile} is damaged; start with --reset`);
  }
}

/** Makes an issuer with a new key and remembers it. */
export async function createIssuer(state: State, port: number): Promise<DevIssuer> {
  const pair = await generateKeyPair(ALGORITHM, { extractable: true });
  const jwk = await exportJWK(pair.privateKey);
  const issuer = {
    port,
    privateKey: { ...jwk, kid: await calculateJwkThumbprint(jwk), alg: ALGORITHM },
  };
  await replaceFile(state.issuerFile, `${JSON.stringify(issuer)}\n`);
  return issuer;
}

/** What the token shall say. */
export interface TokenRequest {
  readonly subject: string;
  /** Further claims; they win over ours, so that a refusal can be tried out. */
  readonly claims?: Readonly<Record<string, unknown>>;
  /** From now, in milliseconds; negative for a token that has expired. */
  readonly expiresInMs?: number;
}

/** The default lifetime of a token. */
export const TOKEN_LIFETIME_MS = 3_600_000;

/** Signs a token. */
export async function mintToken(issuer: DevIssuer, request: TokenRequest): Promise<string> {
  const { subject, claims = {}, expiresInMs = TOKEN_LIFETIME_MS } = request;
  const now = Math.floor(Date.now() / 1000);
  const payload = {
    iss: issuerUrl(issuer),
    aud: DEV_AUDIENCE,
    sub: subject,
    iat: now,
    exp: now + Math.round(expiresInMs / 1000),
    ...claims,
  };
  return new SignJWT(payload)
    .setProtectedHeader({ alg: ALGORITHM, kid: issuer.privateKey.kid ?? '', typ: 'JWT' })
    .sign(await importJWK(issuer.privateKey, ALGORITHM));
}

/**
 * Signs a token with the issuer of this state folder.
 *
 * @throws {CommandError} when `pgjot dev` has never run here.
 */
export async function mintHere(state: State, request: TokenRequest): Promise<string> {
  const issuer = await readIssuer(state);
  if (issuer === undefined) {
    throw new CommandError('unavailable', 'no development issuer here: run "pgjot dev" first');
  }
  return mintToken(issuer, request);
}
