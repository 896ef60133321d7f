/**
 * Decides who a verified token is in PostgreSQL: which role, on which upstream, until when.
 *
 * The client asks for a role and a database; the configuration and the token's claims must both grant them. Verifies no
 * token and opens no connection. A claim may grant a role that the configuration lists, never name one that it does not.
 */
import type { Config, ProviderConfig, UpstreamConfig } from '../config.ts';
import { printable, ProxyError } from '../errors.ts';
import type { VerifiedToken } from './jwt.ts';
import { resolvePointer } from './pointer.ts';

/**
 * Who a session belongs to. Everything in it was signed by the issuer or granted by the configuration.
 * An anonymous one has no provider, issuer, subject or claims, and no end of its own.
 */
export interface Identity {
  readonly provider: string | undefined;
  readonly issuer: string | undefined;
  readonly subject: string | undefined;
  readonly kid: string | undefined;
  /** The SQL role, which policies name. */
  readonly role: string;
  /** The upstream's name in the configuration. */
  readonly upstream: string;
  readonly claims: Readonly<Record<string, unknown>>;
  /** When the session must be over, in milliseconds since the epoch: `exp` plus the provider's tolerance. */
  readonly expiresAt: number;
}

/** What StartupMessage asked for; unverified. */
interface Requested {
  readonly user: string;
  readonly database: string;
}

/**
 * Maps what the client asked for and what it proved to what it gets.
 *
 * @throws {ProxyError} role_forbidden
 */
export function decide(config: Config, startup: Requested, verified: VerifiedToken): Identity {
  const { user: role, database } = startup;
  const { provider: id, issuer, subject, kid, claims } = verified;
  const provider = own(config.providers, id);
  if (provider === undefined) throw forbid(role, `provider "${id}" is no longer configured`);
  if (!provider.roles.includes(role)) {
    throw forbid(role, `role "${printable(role)}" is not in providers.${id}.roles`);
  }
  if (!isGrantedByClaim(provider, claims, role)) {
    throw forbid(
      role,
      `the claim at ${provider.roleClaim} does not name role "${printable(role)}"`,
    );
  }
  const upstream = routeTo(config, role, database);
  const expiresAt = verified.expiresAt + verified.toleranceMs;
  return Object.freeze({ provider: id, issuer, subject, kid, role, upstream, claims, expiresAt });
}

/**
 * Nobody, where the configuration lets clients in without a token and this one asks for their role;
 * else `undefined`: then a token is due.
 *
 * @throws {ProxyError} role_forbidden
 */
export function decideAnonymous(config: Config, startup: Requested): Identity | undefined {
  const { user: role, database } = startup;
  if (!config.anonymous.enabled || role !== config.anonymous.role) return undefined;
  return Object.freeze({
    provider: undefined,
    issuer: undefined,
    subject: undefined,
    kid: undefined,
    role,
    upstream: routeTo(config, role, database),
    claims: {},
    expiresAt: Infinity,
  });
}

function isGrantedByClaim(
  { roleClaim }: ProviderConfig,
  claims: VerifiedToken['claims'],
  role: string,
): boolean {
  if (roleClaim === undefined) return true;
  const granted = resolvePointer(claims, roleClaim);
  return granted === role || (Array.isArray(granted) && granted.includes(role));
}

/** The upstream that has this database and this role. */
function routeTo(config: Config, role: string, database: string): string {
  const upstream = routeByDatabase(config, database);
  if (upstream === undefined) throw forbid(role, `no route for database "${printable(database)}"`);
  if (own(config.upstreams[upstream]?.roles ?? {}, role) === undefined) {
    throw forbid(role, `upstream "${upstream}" has no role "${printable(role)}"`);
  }
  return upstream;
}

function routeByDatabase(config: Config, database: string): string | undefined {
  if (config.routes !== undefined) {
    return config.routes.find((route) => route.database === database)?.upstream;
  }
  const upstreams = Object.entries<UpstreamConfig>(config.upstreams);
  return upstreams.find(([, upstream]) => upstream.database === database)?.[0];
}

function forbid(role: string, reason: string): ProxyError {
  return new ProxyError('role_forbidden', { role }, { cause: new Error(reason) });
}

/** A property that the object itself has: `constructor` and `__proto__` are names that a client may send. */
function own<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}
