/**
 * Who asks something of the administrators' endpoint, and what they may therefore: by a bearer token, or on this machine.
 *
 * Answers nothing to a browser's page: what it sends carries an Origin, or says that it is of another site; and where there
 * is no token, a name of its own in Host, or a type that a form can have.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { readSecret, type Config } from '../config.ts';
import { ConfigError } from '../errors.ts';
import { isLoopback } from '../exposure.ts';
import { Refusal, type Permission, type Route } from './routes.ts';

/** What has to be shown. Neither, and whoever is on this machine may do anything. */
export interface Credentials {
  /** For whoever may change things. */
  readonly token: string | undefined;
  /** For whoever may only look. */
  readonly readToken: string | undefined;
}

/** @throws {ConfigError} when a token cannot be read, or the two are the same. */
export function readCredentials(config: NonNullable<Config['admin']>): Credentials {
  const token = config.token && readSecret(config.token, 'admin.token');
  const readToken = config.readToken && readSecret(config.readToken, 'admin.readToken');
  if (token !== undefined && token === readToken) {
    throw new ConfigError([{ path: 'admin.readToken', message: 'is the same as admin.token' }]);
  }
  return { token, readToken };
}

/** What this request may, as far as it shows who sends it. */
export function permissionOf(request: IncomingMessage, credentials: Credentials): Permission {
  const { token, readToken } = credentials;
  if (token === undefined) return isForThisMachine(request) ? 'write' : 'public';
  const given = bearerOf(request);
  if (isSame(given, token)) return 'write';
  return readToken !== undefined && isSame(given, readToken) ? 'read' : 'public';
}

/** @throws {Refusal} when whoever may do this much may not have this route's answer. */
export function assertPermitted(
  { permission: needed }: Pick<Route, 'permission'>,
  permission: Permission,
  { token }: Credentials,
): void {
  if (needed === 'public' || permission === 'write' || permission === needed) return;
  if (permission === 'read') {
    throw new Refusal(403, 'admin.readToken is for reading alone');
  }
  if (token === undefined) {
    const problem = 'Host: must be a loopback address where admin.token is not configured';
    throw new Refusal(403, problem);
  }
  throw new Refusal(401, 'Authorization: Bearer … is missing or wrong');
}

/** @throws {Refusal} when it is a page that asks, and not a person or a program. */
export function assertNoPage(
  { headers }: IncomingMessage,
  { takesBody }: Pick<Route, 'takesBody'>,
  { token }: Credentials,
): void {
  const site = headers['sec-fetch-site'];
  const isForeign = site !== undefined && site !== 'same-origin' && site !== 'none';
  if (headers.origin !== undefined || isForeign) throw new Refusal(403, 'not for browsers');
  if (token !== undefined) return;
  // What a page may send without asking is typed as a form's, or as text.
  const type = headers['content-type'];
  const fits = type === undefined ? takesBody !== true : /^application\/json\s*(;|$)/i.test(type);
  if (fits) return;
  const problem = 'Content-Type: must be application/json where admin.token is not configured';
  throw new Refusal(415, problem);
}

/** A page may have its own name lead to this machine (DNS rebinding), and is of one origin with us then. */
function isForThisMachine({ headers }: IncomingMessage): boolean {
  return isLoopback(hostnameOf(headers.host));
}

/** Without its port; empty where it is none. */
function hostnameOf(host: string | undefined): string {
  try {
    return new URL(`http://${host}`).hostname.replace(/^\[(.*)\]$/, '$1');
  } catch {
    return '';
  }
}

function bearerOf({ headers }: IncomingMessage): string {
  return /^Bearer ([^\s]+)$/i.exec(headers.authorization ?? '')?.[1] ?? '';
}

/** Compared by digests, whose comparison takes the same time whatever they are. */
function isSame(given: string, token: string): boolean {
  const [one, other] = [given, token].map((text) => createHash('sha256').update(text).digest());
  return timingSafeEqual(one as Buffer, other as Buffer);
}
