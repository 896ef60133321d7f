/**
 * Who asks something of the administrators' endpoint, and what they may therefore: by a bearer token, a certificate, or on this machine.
 *
 * Answers nothing to another site's page: what it sends carries an Origin, or says that it is of another site; and where
 * nothing has to be shown, a name of its own in Host, or a type that a form can have.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { TLSSocket } from 'node:tls';
import { readSecret, type Config } from '../config.ts';
import { ConfigError } from '../errors.ts';
import { isLoopback } from '../exposure.ts';
import { TlsFiles } from '../tls-files.ts';
import { Refusal, type Permission, type Route } from './routes.ts';

/** What has to be shown. Nothing at all, and whoever is on this machine may do anything. */
export interface Credentials {
  /** For whoever may change things. */
  readonly token: string | undefined;
  /** For whoever may only look. */
  readonly readToken: string | undefined;
  /** Our certificate, and who signs those of administrators. */
  readonly tls: TlsFiles | undefined;
  /** Whether administrators may have a certificate, with which they may change things. */
  readonly takesCertificates: boolean;
}

/** @throws {ConfigError} when a token, certificate or key cannot be read or used, or the two tokens are the same. */
export function readCredentials(config: NonNullable<Config['admin']>): Credentials {
  const token = config.token && readSecret(config.token, 'admin.token');
  const readToken = config.readToken && readSecret(config.readToken, 'admin.readToken');
  if (token !== undefined && token === readToken) {
    throw new ConfigError([{ path: 'admin.readToken', message: 'is the same as admin.token' }]);
  }
  const tls = config.tls && new TlsFiles(config.tls, TLS_PATH);
  return { token, readToken, tls, takesCertificates: config.tls?.clientCaFile !== undefined };
}

/** Where the configuration has the endpoint's certificates. */
export const TLS_PATH = 'admin.tls';

/** Who asks. */
export interface Principal {
  readonly permission: Permission;
  /** Whether a browser would show it for any page that asks, without anybody's doing. */
  readonly ambient: boolean;
}

/** Whether nothing can be shown, so that being on this machine is enough. */
function isOpen({ token, takesCertificates }: Credentials): boolean {
  return token === undefined && !takesCertificates;
}

/** Who sends this request, as far as it shows. */
export function principalOf(request: IncomingMessage, credentials: Credentials): Principal {
  const { token, readToken, takesCertificates } = credentials;
  const as = (permission: Permission, ambient = false) => ({ permission, ambient });
  if (isOpen(credentials)) return as(isForThisMachine(request) ? 'write' : 'public', true);
  const given = bearerOf(request);
  if (token !== undefined && isSame(given, token)) return as('write');
  if (readToken !== undefined && isSame(given, readToken)) return as('read');
  const { socket } = request;
  const isCertified = takesCertificates && socket instanceof TLSSocket && socket.authorized;
  return isCertified ? as('write', true) : as('public');
}

/** @throws {Refusal} when this principal may not have this route's answer. */
export function assertPermitted(
  { permission: needed }: Pick<Route, 'permission'>,
  { permission }: Principal,
  credentials: Credentials,
): void {
  if (needed === 'public' || permission === 'write' || permission === needed) return;
  if (permission === 'read') {
    throw new Refusal(403, 'admin.readToken is for reading alone');
  }
  if (isOpen(credentials)) {
    const problem = 'Host: must be a loopback address where admin.token is not configured';
    throw new Refusal(403, problem);
  }
  throw new Refusal(401, 'Authorization: Bearer … is missing or wrong');
}

/** @throws {Refusal} when it is a page that asks, and not a person or a program. */
export function assertNoPage(
  { headers, method }: IncomingMessage,
  { takesBody }: Pick<Route, 'takesBody'>,
  { ambient }: Principal,
): void {
  const site = headers['sec-fetch-site'];
  const isForeign = site !== undefined && site !== 'same-origin' && site !== 'none';
  // A link may be followed from anywhere: only the person who does so sees what is there.
  const isVisit =
    method === 'GET' &&
    headers['sec-fetch-mode'] === 'navigate' &&
    headers['sec-fetch-dest'] === 'document';
  if (headers.origin !== undefined || (isForeign && !isVisit)) {
    throw new Refusal(403, 'not for browsers');
  }
  if (!ambient) return;
  // What a page may send without asking is typed as a form's, or as text.
  const type = headers['content-type'];
  const fits = type === undefined ? takesBody !== true : /^application\/json\s*(;|$)/i.test(type);
  if (fits) return;
  const problem = 'Content-Type: must be application/json where no token is sent';
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
