/**
 * Finds the upstream for a client: by the first rule of `routes` that it meets, or by the database that it names.
 *
 * A claim may choose among the upstreams that a rule lists and never name one that it does not. A rule that a client meets
 * but whose claim chooses none of its upstreams is the end: falling through to a later rule would let a tenant who is
 * unknown here in somewhere else.
 */
import type { Config, UpstreamConfig } from '../config.ts';
import { printable } from '../errors.ts';
import { resolvePointer } from './pointer.ts';

/** What rules may ask of a client. Without a provider it is nobody. */
export interface Traveller {
  readonly database: string;
  /** The host name of its TLS handshake, in whatever case. */
  readonly sni: string | undefined;
  readonly provider: string | undefined;
  readonly claims: Readonly<Record<string, unknown>>;
}

/** Where to go and why: `rule` is a path in the configuration. */
export interface Destination {
  readonly upstream: string;
  readonly rule: string;
}

type Rule = NonNullable<Config['routes']>[number];

/** The destination, or why there is none: for the log, and for `pgjot explain`. */
export function findRoute(config: Config, traveller: Traveller): Destination | string {
  if (config.routes === undefined) return routeByDatabase(config, traveller.database);
  const index = config.routes.findIndex((rule) => meets(traveller, rule));
  const rule = config.routes[index];
  if (rule === undefined) return `no route for database "${printable(traveller.database)}"`;
  const path = `routes.${index}`;
  if (rule.upstream !== undefined) return { upstream: rule.upstream, rule: path };
  const value = resolvePointer(traveller.claims, rule.byClaim ?? '');
  const key = typeof value === 'number' ? String(value) : value;
  const among = rule.upstreams ?? {};
  // Own members alone: "constructor" is a tenant's name like any other.
  if (typeof key !== 'string' || !Object.hasOwn(among, key)) {
    return `the claim at ${rule.byClaim} chooses none of ${path}.upstreams`;
  }
  return { upstream: among[key] as string, rule: path };
}

function routeByDatabase(config: Config, database: string): Destination | string {
  const upstreams = Object.entries<UpstreamConfig>(config.upstreams);
  const found = upstreams.find(([, upstream]) => upstream.database === database);
  return found === undefined
    ? `no route for database "${printable(database)}"`
    : { upstream: found[0], rule: `upstreams.${found[0]}.database` };
}

/** Whether the client is one that the rule is for: all that it names must hold. */
function meets({ database, sni, provider, claims }: Traveller, rule: Rule): boolean {
  return (
    (rule.database === undefined || rule.database === database) &&
    (rule.sni === undefined || rule.sni === sni?.toLowerCase()) &&
    (rule.provider === undefined || rule.provider === provider) &&
    Object.entries(rule.claims ?? {}).every(([pointer, wanted]) => {
      const given = resolvePointer(claims, pointer);
      const accepted: readonly unknown[] = Array.isArray(wanted) ? wanted : [wanted];
      return (
        accepted.includes(given) ||
        (Array.isArray(given) && given.some((one) => accepted.includes(one)))
      );
    })
  );
}
