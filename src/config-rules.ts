/**
 * What the configuration's schema alone cannot say: settings that must agree with each other.
 */
import type { Config } from './config.ts';
import type { ConfigProblem } from './errors.ts';
import { clientTlsMode, isLoopback } from './exposure.ts';

/** Every rule that this configuration breaks, each at its path. */
export function crossChecks(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const report = (path: string, message: string) => problems.push({ path, message });

  const { listen: listener } = config;
  const mode = clientTlsMode(config);
  if (mode === 'require' && listener.tls.certFile === undefined) {
    report(
      'listen.tls.certFile',
      `is missing: ${listener.host} is not a loopback address, so clients must use TLS`,
    );
  }
  if (mode !== 'require' && !isLoopback(listener.host) && !listener.allowPlaintext) {
    report(
      'listen.tls.mode',
      `must be "require" on ${listener.host}, or listen.allowPlaintext true: tokens would cross the network readable`,
    );
  }
  pairs(listener.tls, 'listen.tls', report);

  const issuers = new Map<string, string>();
  for (const [id, one] of Object.entries(config.providers)) {
    const path = `providers.${id}`;
    if ((one.jwksUri === undefined) === (one.jwksFile === undefined)) {
      report(path, 'needs exactly one of jwksUri and jwksFile');
    }
    if (one.jwksUri !== undefined && !isSafeJwksUri(one.jwksUri)) {
      report(
        `${path}.jwksUri`,
        'must be https without user information (http only on a loopback address)',
      );
    }
    if ((one.audience === undefined) === !one.anyAudience) {
      report(
        `${path}.audience`,
        'is missing: say which audience its tokens must have (or, knowing what it means, "anyAudience": true, never both)',
      );
    }
    const other = issuers.get(one.issuer);
    if (other !== undefined) report(`${path}.issuer`, `is the issuer of providers.${other} too`);
    issuers.set(one.issuer, id);
    for (const role of one.roles) {
      if (!Object.values(config.upstreams).some((up) => Object.hasOwn(up.roles, role))) {
        report(`${path}.roles`, `"${role}" is not a role of any upstream`);
      }
    }
  }
  const { anonymous } = config;
  if (anonymous.enabled) {
    if (!Object.values(config.upstreams).some((up) => Object.hasOwn(up.roles, anonymous.role))) {
      report('anonymous.role', `"${anonymous.role}" is not a role of any upstream`);
    }
    // Nobody is asked for a token who asks for this role, so a provider's users would be nobody too.
    for (const [id, one] of Object.entries(config.providers)) {
      if (one.roles.includes(anonymous.role)) {
        report(
          `providers.${id}.roles`,
          `"${anonymous.role}" is the role of clients without a token`,
        );
      }
    }
  }
  for (const [id, one] of Object.entries(config.upstreams)) {
    pairs(one.tls, `upstreams.${id}.tls`, report);
  }
  for (const [index, route] of (config.routes ?? []).entries()) {
    if (!Object.hasOwn(config.upstreams, route.upstream)) {
      report(`routes.${index}.upstream`, `"${route.upstream}" is not an upstream`);
    }
  }
  return problems;
}

function isSafeJwksUri(uri: string): boolean {
  const url = new URL(uri);
  if (url.username !== '' || url.password !== '') return false;
  return (
    url.protocol === 'https:' ||
    (url.protocol === 'http:' && isLoopback(url.hostname.replaceAll(/^\[|\]$/g, '')))
  );
}

function pairs(
  tls: { certFile?: string | undefined; keyFile?: string | undefined },
  path: string,
  report: (path: string, message: string) => void,
): void {
  if ((tls.certFile === undefined) !== (tls.keyFile === undefined)) {
    report(path, 'needs both certFile and keyFile, or neither');
  }
}
