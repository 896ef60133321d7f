/**
 * What the configuration's schema alone cannot say: settings that must agree with each other.
 */
import { isDeepStrictEqual } from 'node:util';
import { perIssuer } from './config-provider.ts';
import type { Config } from './config.ts';
import type { ConfigProblem } from './errors.ts';
import { clientTlsMode, isLoopback } from './exposure.ts';

/** Startup parameters that no configuration can let pass: they say who somebody is, or load code. */
export const RESERVED_PARAMETERS =
  /^(role|session_authorization|replication|is_superuser|user|database|options|(session|local|shared)_preload_libraries|dynamic_library_path|jit_provider|(pgjot|request|pg_session_jwt|_pq_)\..*)$/;

// NAMEDATALEN - 1: PostgreSQL cuts longer names, so two slots would become one role.
const MAX_NAME_BYTES = 63;

type Report = (path: string, message: string) => void;

/** Every rule that this configuration breaks, each at its path. */
export function crossChecks(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const report: Report = (path, message) => problems.push({ path, message });
  checkListener(config, report);
  checkAuthentication(config, report);
  checkProviders(config, report);
  checkAnonymous(config, report);
  checkUpstreams(config, report);
  checkRoutes(config, report);
  checkStartupParameters(config, report);
  checkAdmin(config, report);
  return problems;
}

function checkListener(config: Config, report: Report): void {
  const { host, tls, allowPlaintext } = config.listen;
  const mode = clientTlsMode(config);
  if (mode === 'require' && tls.certFile === undefined) {
    report(
      'listen.tls.certFile',
      `is missing: ${host} is not a loopback address, so clients must use TLS`,
    );
  }
  if (mode !== 'require' && !isLoopback(host) && !allowPlaintext) {
    report(
      'listen.tls.mode',
      `must be "require" on ${host}, or listen.allowPlaintext true: tokens would cross the network readable`,
    );
  }
  checkPair(tls, 'listen.tls', report);
}

function checkAuthentication(config: Config, report: Report): void {
  const { authentication, authenticationRules, oauth } = config.listen;
  if (authentication === 'oauth') checkDiscovery(config, oauth, 'listen.oauth', report);
  for (const [index, rule] of authenticationRules.entries()) {
    const path = `listen.authenticationRules.${index}`;
    if (rule.user === undefined && rule.database === undefined && rule.sni === undefined) {
      report(path, 'needs user, database or sni: what is asked of all is listen.authentication');
    }
    if (rule.sni !== undefined && clientTlsMode(config) === 'disable') {
      report(`${path}.sni`, 'never matches, because listen.tls.mode is "disable"');
    }
    if (rule.method === 'oauth') checkDiscovery(config, rule, path, report);
    else if (rule.provider !== undefined || rule.scope !== undefined) {
      report(path, 'has a provider or scope, which are for method "oauth"');
    }
  }
}

function checkDiscovery(config: Config, told: Discovery, path: string, report: Report): void {
  const id = discoveryProvider(config, told);
  const provider = id === undefined ? undefined : own(config.providers, id);
  if (id === undefined) {
    report(`${path}.provider`, 'is missing: say where clients are to get their tokens');
  } else if (provider === undefined) {
    report(`${path}.provider`, `"${id}" is not a provider`);
  } else if (!isDiscoverable(provider.issuer)) {
    report(
      `${path}.provider`,
      `"${id}" has an issuer that is not an https URL without query, so clients cannot find it`,
    );
  }
}

/** Where a client is told to get a token. */
type Discovery = Pick<Config['listen']['oauth'], 'provider'>;

/** The provider where a client is told to get its token; `undefined` where there are several and none is named. */
export function discoveryProvider(config: Config, told: Discovery): string | undefined {
  const named = told.provider ?? config.listen.oauth.provider;
  if (named !== undefined) return named;
  const ids = Object.keys(config.providers);
  return ids.length === 1 ? ids[0] : undefined;
}

/** Whether an issuer can be followed to its metadata, as RFC 8414 has it; http on loopback, for development. */
function isDiscoverable(issuer: string): boolean {
  return URL.canParse(issuer) && !/[?#]/.test(issuer) && isSafeUri(issuer);
}

function checkProviders(config: Config, report: Report): void {
  const issuers = new Map<string, string>();
  for (const [id, one] of Object.entries(config.providers)) {
    const path = `providers.${id}`;
    if ((one.jwksUri === undefined) === (one.jwksFile === undefined)) {
      report(path, 'needs exactly one of jwksUri and jwksFile');
    }
    if (one.jwksUri !== undefined && !isSafeUri(one.jwksUri)) {
      report(
        `${path}.jwksUri`,
        'must be https without user information (http only on a loopback address)',
      );
    }
    for (const { issuer } of perIssuer(one)) {
      const other = issuers.get(issuer);
      if (other !== undefined) report(`${path}.issuer`, `is the issuer of providers.${other} too`);
      issuers.set(issuer, id);
    }
    for (const role of one.roles) {
      if (!isRoleOfSomeUpstream(config, role)) {
        report(`${path}.roles`, `"${role}" is not a role of any upstream`);
      }
    }
  }
}

function checkAnonymous(config: Config, report: Report): void {
  const { enabled, role } = config.anonymous;
  if (!enabled) return;
  if (!isRoleOfSomeUpstream(config, role)) {
    report('anonymous.role', `"${role}" is not a role of any upstream`);
  }
  // Nobody is asked for a token who asks for this role, so a provider's users would be nobody too.
  for (const [id, { roles }] of Object.entries(config.providers)) {
    if (roles.includes(role)) {
      report(`providers.${id}.roles`, `"${role}" is the role of clients without a token`);
    }
  }
}

function checkUpstreams(config: Config, report: Report): void {
  for (const [id, one] of Object.entries(config.upstreams)) {
    checkPair(one.tls, `upstreams.${id}.tls`, report);
    if (one.healSlots && one.session === 'replica') {
      report(
        `upstreams.${id}.healSlots`,
        'is for the primary: nothing can be mended on a standby, and what the primary mends is mended there too',
      );
    }
    if (isDeepStrictEqual(one.secret, one.previousSecret)) {
      report(`upstreams.${id}.previousSecret`, 'is where the secret itself is');
    }
    for (const [role, { slots }] of Object.entries(one.roles)) {
      // As `session-sql/credentials.ts` makes them; the last has the longest number.
      const slot = `pgjot_${role}_${slots}`;
      if (Buffer.byteLength(slot) > MAX_NAME_BYTES) {
        report(
          `upstreams.${id}.roles.${role}`,
          `is too long a name for ${slots} slots: "${slot}" exceeds ${MAX_NAME_BYTES} bytes`,
        );
      }
    }
  }
}

function checkRoutes(config: Config, report: Report): void {
  let catchAll: string | undefined;
  for (const [index, route] of (config.routes ?? []).entries()) {
    const path = `routes.${index}`;
    if (catchAll !== undefined) report(path, `is never reached: ${catchAll} is for every client`);
    const { upstream, byClaim, upstreams, ...conditions } = route;
    if (Object.values(conditions).every((one) => one === undefined)) catchAll ??= path;
    if ((upstream === undefined) === (byClaim === undefined)) {
      report(path, 'needs exactly one of upstream and byClaim');
    }
    if ((byClaim === undefined) !== (upstreams === undefined)) {
      report(path, 'needs both byClaim and upstreams, or neither');
    }
    const targets = Object.entries(upstreams ?? {}).map(([value, id]) => [
      `upstreams.${value}`,
      id,
    ]);
    if (upstream !== undefined) targets.push(['upstream', upstream]);
    for (const [at, id = ''] of targets) {
      if (!Object.hasOwn(config.upstreams, id)) {
        report(`${path}.${at}`, `"${id}" is not an upstream`);
      }
    }
    if (route.provider !== undefined && !Object.hasOwn(config.providers, route.provider)) {
      report(`${path}.provider`, `"${route.provider}" is not a provider`);
    }
  }
}

function checkStartupParameters(config: Config, report: Report): void {
  for (const [index, name] of config.startupParameters.allow.entries()) {
    if (RESERVED_PARAMETERS.test(name)) {
      report(
        `startupParameters.allow.${index}`,
        `"${name}" can never pass: it says who somebody is, or loads code`,
      );
    }
  }
}

function checkAdmin({ admin, ...config }: Config, report: Report): void {
  if (admin === undefined) return;
  if (admin.token === undefined && admin.tls?.clientCaFile === undefined) {
    if (!isLoopback(admin.host)) {
      report(
        'admin.token',
        `or admin.tls.clientCaFile is missing: ${admin.host} is not a loopback address`,
      );
    }
    if (admin.readToken !== undefined) {
      report(
        'admin.token',
        'is missing: with admin.readToken alone anybody here could change things',
      );
    }
  }
  for (const kind of ['upstreams', 'providers'] as const) {
    for (const [index, id] of (admin.readiness?.[kind] ?? []).entries()) {
      if (!Object.hasOwn(config[kind], id)) {
        report(`admin.readiness.${kind}.${index}`, `"${id}" is none of the ${kind}`);
      }
    }
  }
}

function isRoleOfSomeUpstream(config: Config, role: string): boolean {
  return Object.values(config.upstreams).some(({ roles }) => Object.hasOwn(roles, role));
}

/** Whether what comes from `uri` can be believed: https without user information, or http on a loopback address. */
export function isSafeUri(uri: string): boolean {
  const url = new URL(uri);
  if (url.username !== '' || url.password !== '') return false;
  return (
    url.protocol === 'https:' ||
    (url.protocol === 'http:' && isLoopback(url.hostname.replaceAll(/^\[|\]$/g, '')))
  );
}

function own<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}

function checkPair(
  tls: { certFile?: string | undefined; keyFile?: string | undefined },
  path: string,
  report: Report,
): void {
  if ((tls.certFile === undefined) !== (tls.keyFile === undefined)) {
    report(path, 'needs both certFile and keyFile, or neither');
  }
}
