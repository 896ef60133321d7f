/**
 * Checks of what mends slots where the configuration says `healSlots`: role pgjot_healer and its one function.
 *
 * Who may call the function is in `objects.ts`; attributes, memberships and members are in `roles.ts`.
 */
import type { Check } from './check.ts';

// Not to_regprocedure(), which fails where the schema may not be used.
const HEAL = `(
  select p.oid from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where n.nspname = 'pgjot' and p.proname = 'heal' and p.proargtypes = array['name'::regtype, 'text'::regtype]::oidvector)`;
const HEALER = `to_regrole('pgjot_healer')`;

/** The checks. Of a standby whose primary is not in the configuration nobody knows whether it should have this. */
export const HEALING_CHECKS: readonly Check[] = [
  {
    code: 'healer_missing',
    severity: 'warning',
    reason:
      'The proxy cannot mend slots, though the configuration says so: each one that a user spoils rests until the next setup.',
    select: `
      select 'role pgjot_healer' as object
       where (select "healSlots" from config)
         and (${HEALER} is null or ${HEAL} is null
              or not exists (select from pg_roles where rolname = 'pgjot_healer' and rolcreaterole))`,
    setup: true,
  },
  {
    code: 'healer_powerless',
    severity: 'warning',
    reason: '',
    // Since 16 CREATEROLE without ADMIN OPTION on a role does nothing to it.
    select: `
      select 'role pgjot_healer' as object,
             format('It has no ADMIN OPTION on %s of the slots, so it cannot mend them.', count(*)) as reason
        from slot s
       where (select "healSlots" from config) and ${HEALER} is not null and s.rolcanlogin
         and current_setting('server_version_num')::int4 >= 160000
         and not exists (select from pg_auth_members m
                          where m.roleid = s.oid and m.member = ${HEALER} and m.admin_option)
      having count(*) > 0`,
    setup: true,
  },
  {
    code: 'healer_unused',
    severity: 'warning',
    reason:
      'It has CREATEROLE, and the configuration does not say "healSlots": nothing needs it here.',
    select: `
      select 'role pgjot_healer' as object
       where not (select "healSlots" from config) and ${HEALER} is not null
         and (${HEAL} is not null
              or not exists (select from pg_shdepend d
                              where d.refclassid = 'pg_authid'::regclass and d.refobjid = ${HEALER}
                                and d.dbid not in (0, (select oid from pg_database where datname = current_database()))))`,
    setup: true,
  },
  {
    code: 'healer_login',
    severity: 'critical',
    reason: 'Whoever logs in as pgjot_healer can change every slot, and make new roles.',
    select: `
      select 'role pgjot_healer' as object, 'alter role pgjot_healer nologin' as sql
        from pg_roles where rolname = 'pgjot_healer' and rolcanlogin`,
  },
];
