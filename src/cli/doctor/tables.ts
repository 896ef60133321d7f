/**
 * Checks of what clients can reach of the application: schemas, tables, views, functions.
 *
 * Whether a policy says the right thing is in `policies.ts`.
 */
import type { Check } from './check.ts';

// Whether the owner of the view (r) is held by the policies of a table (t) that it reads.
const BYPASSES = `(o.rolsuper or o.rolbypassrls or not t.relforcerowsecurity and pg_has_role(o.oid, t.relowner, 'USAGE'))`;

const READS_SECURED = `exists (
  select from reads x join pg_class t on t.oid = x.relation where x.view = r.oid and t.relrowsecurity)`;

/** The checks. */
export const TABLE_CHECKS: readonly Check[] = [
  {
    code: 'schema_create',
    severity: 'warning',
    reason:
      "A client can put a table or a function there that somebody's unqualified name finds first (CVE-2018-1058).",
    select: `
      select format('schema %I', n.nspname) as object,
             format('revoke create on schema %I from %s', n.nspname, string_agg(g.name, ', ')) as sql
        from pg_namespace n
       cross join aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
        join grantee g on g.oid = a.grantee
       where a.privilege_type = 'CREATE' and n.nspname !~ '^pg_'
       group by n.nspname`,
  },
  {
    code: 'database_create',
    severity: 'warning',
    reason:
      'A client can create schemas of its own, for others to find things in, and trusted extensions.',
    select: `
      select format('database %I', d.datname) as object,
             format('revoke create on database %I from %s', d.datname, string_agg(g.name, ', ')) as sql
        from pg_database d
       cross join aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
        join grantee g on g.oid = a.grantee
       where a.privilege_type = 'CREATE' and d.datname = current_database()
       group by d.datname`,
  },
  {
    code: 'table_without_rls',
    severity: 'critical',
    reason: 'Every client reads or changes all of its rows.',
    select: `
      select format('table %s', name) as object,
             format('alter table %s enable row level security, force row level security', name) as sql
        from relation where relkind in ('r', 'p') and not relrowsecurity`,
  },
  {
    code: 'table_not_forced',
    severity: 'warning',
    reason: 'Its owner can log in, and reads past the policies.',
    select: `
      select format('table %s', r.name) as object, format('alter table %s force row level security', r.name) as sql
        from relation r join pg_roles o on o.oid = r.relowner
       where r.relkind in ('r', 'p') and r.relrowsecurity and not r.relforcerowsecurity
         and o.rolcanlogin and not o.rolsuper and not o.rolbypassrls`,
  },
  {
    code: 'table_owned_by_client',
    severity: 'critical',
    reason:
      'A client has the rights of its owner, and with them can switch Row-Level Security off.',
    select: `
      select format('table %s', c.oid::regclass) as object, format('alter table %s owner to current_user', c.oid::regclass) as sql
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where c.relkind in ('r', 'p') and c.relpersistence <> 't' and n.nspname !~ '^pg_'
         and (c.relowner in (select oid from slot)
              or exists (select from grp g where not g.almighty and pg_has_role(g.oid, c.relowner, 'MEMBER')))`,
  },
  {
    code: 'table_power_granted',
    severity: 'critical',
    reason:
      "No policy holds TRUNCATE, and a client's trigger runs with the rights of whoever sets it off.",
    select: `
      select format('table %s', c.oid::regclass) as object,
             format('revoke truncate, trigger on %s from %s', c.oid::regclass, string_agg(distinct g.name, ', ')) as sql
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       cross join aclexplode(c.relacl) a
        join grantee g on g.oid = a.grantee
       where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
         and a.privilege_type in ('TRUNCATE', 'TRIGGER') and a.grantee <> c.relowner
       group by c.oid`,
  },
  {
    // From 15 on a view can be told to ask as its reader, and it is simplest when all do.
    code: 'view_as_owner',
    severity: 'warning',
    reason: "It reads its tables as its owner, whose policies are not the reader's.",
    select: `
      select format('view %s', r.name) as object,
             case when v.major >= 15 then format('alter view %s set (security_invoker = true)', r.name)
                  else format('revoke all on %s from %s', r.name, r.grantees) end as sql,
             case when b.bypasses then 'critical' else 'warning' end as severity,
             case when b.bypasses then 'It reads its tables as its owner, whom their policies do not hold, so it shows all of their rows.'
                  else 'It reads its tables as its owner, for whom other policies hold than for the reader.' end as reason
        from relation r
        join pg_roles o on o.oid = r.relowner
       cross join (select current_setting('server_version_num')::int4 / 10000) as v (major)
       cross join lateral (select count(*) > 0, coalesce(bool_or(t.relrowsecurity and ${BYPASSES}), false)
                             from reads x
                             join pg_class t on t.oid = x.relation
                             join pg_namespace n on n.oid = t.relnamespace and n.nspname not in ('pg_catalog', 'information_schema')
                            where x.view = r.oid) as b (reads, bypasses)
       where r.relkind = 'v' and not r.invoker and (b.bypasses or b.reads and v.major >= 15)`,
  },
  {
    code: 'matview_readable',
    severity: 'warning',
    reason: '',
    select: `
      select format('materialized view %s', r.name) as object, format('revoke all on %s from %s', r.name, r.grantees) as sql,
             case when s.secured then 'critical' else 'warning' end as severity,
             case when s.secured then 'It keeps rows of tables under Row-Level Security, and shows all of them to every client.'
                  else 'Row-Level Security cannot be had for it: every client reads all of its rows.' end as reason
        from relation r cross join lateral (select ${READS_SECURED}) as s (secured)
       where r.relkind = 'm'`,
  },
  {
    code: 'foreign_table_readable',
    severity: 'warning',
    reason:
      'Row-Level Security cannot be had for a foreign table: every client reads all of its rows.',
    select: `
      select format('foreign table %s', name) as object, format('revoke all on %s from %s', name, grantees) as sql
        from relation where relkind = 'f'`,
  },
  {
    code: 'definer_search_path',
    severity: 'warning',
    reason: '',
    select: `
      select format('function %s', p.oid::regprocedure) as object,
             format('alter routine %s set search_path = %s, pg_temp', p.oid::regprocedure,
                    coalesce(substr(s.path, 13), 'pg_catalog, ' || quote_ident(n.nspname))) as sql,
             case when s.path is null
                  then 'It runs as its owner and finds its names by the search_path of the client who calls it.'
                  else 'It runs as its owner and looks first among the temporary tables of the client who calls it.' end as reason
        from pg_proc p
        join pg_namespace n on n.oid = p.pronamespace
        left join lateral (select x.path from unnest(p.proconfig) as x (path) where x.path ~ '^search_path=') s on true
       where p.prosecdef and n.nspname not in ('pg_catalog', 'information_schema', 'pgjot')
         and (s.path is null or s.path not in ('search_path=', 'search_path=""') and s.path !~ '\\mpg_temp\\M')
         and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a join grantee g on g.oid = a.grantee)
         and exists (select from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                       join grantee g on g.oid = a.grantee where a.privilege_type = 'USAGE')
         and not exists (select from pg_depend d
                          where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')`,
  },
];
