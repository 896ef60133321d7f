/**
 * Decides who a verified token is in PostgreSQL: which role, on which upstream, until when.
 *
 * The client asks for a role and a database; the configuration and the token's claims must both grant them. Verifies no
 * token and opens no connection. A claim may grant a role that the configuration lists, never name one that it does not.
 */
import { perIssuer } from '../config-provider.ts';
import type { Config, ProviderConfig } from '../config.ts';
import { printable, ProxyError } from '../errors.ts';
import type { Asking } from './authentication.ts';
import type { VerifiedToken } from './jwt.ts';
import { resolvePointer } from './pointer.ts';
import { findRoute, type Traveller } from './route.ts';

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

/**
 * Maps what the client asked for and what it proved to what it gets.
 *
 * @throws {ProxyError} role_forbidden
 */
export function decide(config: Config, asking: Asking, verified: VerifiedToken): Identity {
  const { provider, issuer, subject, kid, claims } = verified;
  const upstream = upstreamOf(config, asking, provider, claims);
  const expiresAt = verified.expiresAt + verified.toleranceMs;
  return Object.freeze({
    provider,
    issuer,
    subject,
    kid,
    role: asking.user,
    upstream,
    claims,
    expiresAt,
  });
}

// One object, by which whoever comes back is known as the same.
const NO_CLAIMS = Object.freeze({});

/**
 * Nobody, where the configuration lets clients in without a token and this one asks for their role;
 * else `undefined`: then a token is due.
 *
 * @throws {ProxyError} role_forbidden
 */
export function decideAnonymous(config: Config, asking: Asking): Identity | undefined {
  const upstream = upstreamOfNobody(config, asking);
  if (upstream === undefined) return undefined;
  return Object.freeze({
    provider: undefined,
    issuer: undefined,
    subject: undefined,
    kid: undefined,
    role: asking.user,
    upstream,
    claims: NO_CLAIMS,
    expiresAt: Infinity,
  });
}

/**
 * Decides again, for a client that has its identity already: why this configuration would not give it the same one for the
 * same token, if it would not. What the token itself must be like was seen when it came, and is not looked at again.
 *
 * @returns `role_forbidden`, with the reason as its cause.
 */
export function objectionTo(
  config: Config,
  asking: Asking,
  { provider, issuer, claims, upstream }: Identity,
): ProxyError | undefined {
  const role = asking.user;
  try {
    const granted =
      provider === undefined
        ? upstreamOfNobody(config, asking)
        : upstreamOf(config, asking, provider, claims);
    if (granted === undefined) return forbid(role, 'nobody is let in any more');
    if (granted !== upstream) return forbid(role, `it leads to upstream "${granted}" now`);
    return provider === undefined || trusts(own(config.providers, provider), issuer)
      ? undefined
      : forbid(role, `an issuer of provider "${provider}" is no longer configured`);
  } catch (error) {
    if (ProxyError.is(error, 'role_forbidden')) return error;
    throw error;
  }
}

function trusts(provider: ProviderConfig | undefined, issuer: string | undefined): boolean {
  if (provider === undefined) return false;
  return provider.issuer === issuer || perIssuer(provider).some((one) => one.issuer === issuer);
}

/** Where the holder of a token with these claims goes. @throws {ProxyError} role_forbidden */
function upstreamOf(
  config: Config,
  { user: role, database, sni }: Asking,
  id: string,
  claims: VerifiedToken['claims'],
): string {
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
  return routeTo(config, role, { database, sni, provider: id, claims });
}

/** Where nobody goes; `undefined` where a token is due. @throws {ProxyError} role_forbidden */
function upstreamOfNobody(
  config: Config,
  { user: role, database, sni }: Asking,
): string | undefined {
  if (!config.anonymous.enabled || role !== config.anonymous.role) return undefined;
  return routeTo(config, role, { database, sni, provider: undefined, claims: {} });
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

/** The upstream that this client is sent to, and that has this role. */
function routeTo(config: Config, role: string, traveller: Traveller): string {
  const route = findRoute(config, traveller);
  if (typeof route === 'string') throw forbid(role, route);
  if (own(config.upstreams[route.upstream]?.roles ?? {}, role) === undefined) {
    throw forbid(role, `upstream "${route.upstream}" has no role "${printable(role)}"`);
  }
  return route.upstream;
}

function forbid(role: string, reason: string): ProxyError {
  return new ProxyError('role_forbidden', { role }, { cause: new Error(reason) });
}

/** A property that the object itself has: `constructor` and `__proto__` are names that a client may send. */
function own<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}
