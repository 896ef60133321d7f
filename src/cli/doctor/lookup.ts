/**
 * Checks of the lookup: the role that its query runs as has just what that needs, and the query runs.
 *
 * Of which roles it may be a member is in `roles.ts`.
 */
import type { UpstreamConfig } from '../../config.ts';
import { createLookupQuery } from '../../upstream/lookup-query.ts';
import type { Secrets } from '../../upstream/secrets.ts';
import type { Check } from './check.ts';
import type { Finding } from './finding.ts';

/** The checks. */
export const LOOKUP_CHECKS: readonly Check[] = [
  {
    code: 'lookup_missing',
    severity: 'critical',
    reason: 'The configuration has a lookup, and nobody can log in as the role that it runs as.',
    select: `
      select 'role pgjot_lookup' as object
       where (select lookup from config)
         and not exists (select from pg_roles where rolname = 'pgjot_lookup' and rolcanlogin)`,
    setup: true,
  },
  {
    code: 'lookup_writes',
    severity: 'warning',
    reason:
      'The lookup only reads; what else its role may do, a function that its query calls may do as well.',
    select: `
      select format('table %s', c.oid::regclass) as object,
             format('revoke insert, update, delete, truncate on %s from ', c.oid::regclass) || g.names as sql,
             case when g.names is null then 'take this right from the role through which pgjot_lookup has it' end as manual
        from pg_roles l
       cross join pg_class c
        join pg_namespace n on n.oid = c.relnamespace
       cross join lateral (
         select string_agg(distinct case a.grantee when 0 then 'public' else 'pgjot_lookup' end, ', ')
           from (select c.relacl as acl union all
                 select t.attacl from pg_attribute t where t.attrelid = c.oid and not t.attisdropped) s,
                aclexplode(s.acl) a
          where a.grantee in (0, l.oid) and a.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')) as g (names)
       where l.rolname = 'pgjot_lookup' and not l.rolsuper
         and c.relkind in ('r', 'p', 'v', 'f') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'pgjot')
         -- Which is said of the membership.
         and not pg_has_role(l.oid, 'pg_write_all_data', 'USAGE')
         and (has_table_privilege(l.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
              or has_any_column_privilege(l.oid, c.oid, 'INSERT, UPDATE'))
         and has_schema_privilege(l.oid, n.oid, 'USAGE')`,
  },
];

/**
 * Whether the query can be run, asked as the proxy runs it, by everything but running it.
 *
 * `secrets` are the upstream's, and `path` where it stands in the configuration.
 */
export async function queryFindings(
  upstream: UpstreamConfig,
  secrets: Secrets,
  path: string,
): Promise<Finding[]> {
  if (upstream.lookup === undefined) return [];
  const query = createLookupQuery(upstream, upstream.lookup, secrets);
  try {
    await query.check();
    return [];
  } catch (error) {
    const { required } = upstream.lookup;
    const without = required ? 'nobody can sign in' : 'sessions have no looked-up claims';
    return [
      {
        severity: required ? 'critical' : 'warning',
        code: 'lookup_query',
        object: `${path}.lookup.sql`,
        reason: `It cannot be run, so ${without}: ${(error as Error).message}.`,
        mend: { manual: 'change the query, or grant pgjot_lookup what it reads' },
      },
    ];
  } finally {
    await query.close();
  }
}
