/**
 * Checks of what setup installs: schema `pgjot`, who owns it, who may touch it, and which version it is.
 *
 * Nothing of it is called: a function that somebody else put there would run as the administrator.
 */
import { SESSION_SQL_VERSION } from '../../session-sql/install.ts';
import type { Check } from './check.ts';
import { EXTENSION_FUNCTIONS } from './modes.ts';

const INSTALLED = `
  select substring(pg_get_function_sqlbody(p.oid), '\\d{1,9}')::int4 as version
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where n.nspname = 'pgjot' and p.proname = 'version' and p.pronargs = 0`;

// Not to_regclass(), which fails where the schema may not be used.
const GUARD = `(select oid from pg_class where relnamespace = to_regnamespace('pgjot') and relname = 'drop_owned_guard')`;

/** The checks. */
export const OBJECT_CHECKS: readonly Check[] = [
  {
    code: 'not_installed',
    severity: 'critical',
    reason: 'The session functions are not in this database.',
    select: `select 'schema pgjot' as object where not exists (${INSTALLED})`,
    setup: true,
  },
  {
    code: 'version_older',
    severity: 'warning',
    reason: `The session functions are older than version ${SESSION_SQL_VERSION}, which belongs to this program.`,
    select: `select 'schema pgjot' as object from (${INSTALLED}) i where i.version < ${SESSION_SQL_VERSION}`,
    setup: true,
  },
  {
    code: 'version_newer',
    severity: 'warning',
    reason: `The session functions are newer than version ${SESSION_SQL_VERSION}, which belongs to this program.`,
    select: `
      select 'schema pgjot' as object, 'use the pgjot that installed them, or a later one' as manual
        from (${INSTALLED}) i where i.version > ${SESSION_SQL_VERSION}`,
  },
  {
    code: 'wrong_owner',
    severity: 'critical',
    reason:
      'Whoever owns an object of schema pgjot can replace it, and with it decide who everybody is.',
    select: `
      select 'schema pgjot' as object, 'alter schema pgjot owner to pgjot_owner' as sql
        from pg_namespace where nspname = 'pgjot' and nspowner <> coalesce(to_regrole('pgjot_owner'), 0)
       union all
      select format('table %s', c.oid::regclass), format('alter table %s owner to pgjot_owner', c.oid::regclass)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = 'pgjot' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relowner <> coalesce(to_regrole('pgjot_owner'), 0)
       union all
      select format('function %s', p.oid::regprocedure), format('alter routine %s owner to pgjot_owner', p.oid::regprocedure)
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = 'pgjot' and p.proowner <> coalesce(to_regrole('pgjot_owner'), 0)
         and not (p.proname = 'heal' and p.proowner = coalesce(to_regrole('pgjot_healer'), 0))`,
    // Which puts its own body into the functions it knows, and drops the others.
    setup: true,
  },
  {
    code: 'public_execute',
    severity: 'critical',
    reason: 'Everybody may execute it; where it writes identities, only its second lock is left.',
    select: `
      select format('function %s', p.oid::regprocedure) as object,
             format('revoke all on function %s from public', p.oid::regprocedure) as sql,
             case when p.proowner = to_regrole('pgjot_healer') then 'pgjot_healer' end as owner
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where (n.nspname = 'pgjot' or n.nspname = 'auth' and p.proowner = to_regrole('pgjot_owner'))
         and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)`,
    asOwner: true,
  },
  {
    code: 'control_function_granted',
    severity: 'critical',
    reason:
      'Only pgjot_control may lease and heal slots and write identities; for this role only the second lock is left.',
    select: `
      select format('function %s', p.oid::regprocedure) as object,
             format('revoke all on function %s from %s', p.oid::regprocedure, a.grantee::regrole) as sql,
             case when p.proowner = to_regrole('pgjot_healer') then 'pgjot_healer' end as owner
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       cross join aclexplode(p.proacl) a
       where n.nspname = 'pgjot'
         and p.proname not in ('hello', 'claims', 'user_id', 'uid', 'session', 'jwt', 'version', 'mode')
         and a.grantee not in (0, p.proowner) and a.grantee <> coalesce(to_regrole('pgjot_control'), 0)`,
    asOwner: true,
  },
  {
    code: 'pgjot_table_granted',
    severity: 'critical',
    reason:
      'The tables of schema pgjot are for its owner alone: who can write them is who they please.',
    select: `
      select format('table %s', c.oid::regclass) as object,
             format('revoke %s on %s from %s', string_agg(a.privilege_type, ', '), c.oid::regclass,
                    case a.grantee when 0 then 'public' else a.grantee::regrole::text end) as sql
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       cross join aclexplode(c.relacl) a
       where n.nspname = 'pgjot' and c.relkind in ('r', 'p', 'v', 'm', 'S') and a.grantee <> c.relowner
         and not (c.relname = 'slot' and a.privilege_type = 'SELECT' and a.grantee = coalesce(to_regrole('pgjot_healer'), c.relowner))
       group by c.oid, a.grantee
       union all
      select format('table %s', c.oid::regclass),
             format('revoke all on %s from %s', c.oid::regclass,
                    string_agg(distinct case x.grantee when 0 then 'public' else x.grantee::regrole::text end, ', '))
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid
       cross join aclexplode(a.attacl) x
       where n.nspname = 'pgjot' and c.relname <> 'drop_owned_guard' and x.grantee <> c.relowner
       group by c.oid`,
    asOwner: true,
  },
  {
    code: 'drop_owned_guard',
    severity: 'critical',
    reason:
      'Any client may run DROP OWNED BY this role, which drops every policy that names it alone.',
    select: `
      select format('role %I', r.rolname) as object,
             format('grant select (wire) on pgjot.drop_owned_guard to %I', r.rolname) as sql
        from pg_roles r
        join pg_attribute a on a.attrelid = ${GUARD} and a.attname = 'wire'
       where exists (select from grp g where not g.almighty and pg_has_role(g.oid, r.oid, 'USAGE'))
         and r.rolname !~ '^pg_' and not r.rolsuper
         and not exists (select from aclexplode(a.attacl) x where x.grantee = r.oid)`,
    asOwner: true,
  },
  {
    code: 'drop_owned_guard',
    severity: 'critical',
    reason:
      'Any client may run DROP OWNED BY its group, which drops every policy that names the group alone.',
    select: `
      select 'table pgjot.drop_owned_guard' as object
       where exists (${INSTALLED}) and ${GUARD} is null`,
    setup: true,
  },
  {
    code: 'auth_foreign',
    severity: 'advice',
    reason:
      'This function is not ours, so a policy that calls it asks somebody else who the user is.',
    select: `
      select format('function %s', p.oid::regprocedure) as object,
             format('call pgjot.%I() in policies instead', p.proname) as manual
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = 'auth' and p.proname in ('user_id', 'uid', 'session', 'jwt') and p.pronargs = 0
         and p.proowner <> coalesce(to_regrole('pgjot_owner'), 0)
         -- In that mode they are the ones to call.
         and not ((select session from config) = 'pg_session_jwt' and p.oid in (${EXTENSION_FUNCTIONS}))`,
  },
];
