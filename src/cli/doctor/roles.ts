/**
 * Checks of the roles: what clients are logged in as, what they can become, and who can become them.
 *
 * What the roles may do with tables is in `tables.ts`.
 */
import type { Check } from './check.ts';

// A standby has the slots of its primary, however many its own clients may take.
const COUNTED = `(select session from config) <> 'replica'`;

const PRIVILEGED = `
  select r.rolname, a.name as attribute,
         exists (select from wanted w where w.oid = r.oid and upper(a.name) = any (w.attributes)) as configured
    from pg_roles r
   cross join (values ('superuser'), ('bypassrls'), ('createrole'), ('createdb'), ('replication')) as a (name)
   where (r.oid in (select oid from grp) or r.oid in (select oid from ours))
     and case a.name when 'superuser' then r.rolsuper when 'bypassrls' then r.rolbypassrls
                     when 'createrole' then r.rolcreaterole when 'createdb' then r.rolcreatedb
                     else r.rolreplication end`;

/** The checks. */
export const ROLE_CHECKS: readonly Check[] = [
  {
    code: 'group_missing',
    severity: 'critical',
    reason: 'The configuration names this role, and no client can sign in to it.',
    select: `select format('role %I', role) as object from wanted where oid is null`,
    setup: true,
  },
  {
    code: 'slots_missing',
    severity: 'warning',
    reason: '',
    select: `
      select format('role %I', w.role) as object,
             format('Only %s of its %s slots can log in, so fewer clients can at once than the configuration says.',
                    count(s.oid), w.slots) as reason
        from wanted w left join slot s on s.role_oid = w.oid and s.rolcanlogin and s.number between 1 and w.slots
       where w.oid is not null and ${COUNTED}
       group by w.role, w.slots having count(s.oid) < w.slots`,
    setup: true,
  },
  {
    code: 'slots_surplus',
    severity: 'warning',
    reason: '',
    select: `
      select format('role %I', role) as object,
             format('Beyond the %s slots of the configuration %s can still log in.', slots, count(*)) as reason,
             string_agg(format('alter role %I nologin', rolname), E';\\n' order by number) as sql
        from slot where rolcanlogin and number not between 1 and slots and ${COUNTED} group by role, slots`,
    // Which drops them, where they are its own.
    setup: true,
  },
  {
    code: 'group_login',
    severity: 'warning',
    reason:
      'Whoever logs in as the group itself shares it: sees the SQL of the others who do, ends their sessions, changes its password.',
    select: `
      select format('role %I', rolname) as object, format('alter role %I nologin', rolname) as sql
        from pg_roles where rolcanlogin and oid in (select oid from grp)`,
  },
  {
    code: 'owner_login',
    severity: 'critical',
    reason: 'Whoever logs in as pgjot_owner can write every identity.',
    select: `
      select 'role pgjot_owner' as object, 'alter role pgjot_owner nologin' as sql
        from pg_roles where rolname = 'pgjot_owner' and rolcanlogin`,
  },
  {
    code: 'role_privileged',
    severity: 'critical',
    reason:
      'A role with such an attribute is not held by Row-Level Security, or can make one that is not.',
    select: `
      select format('role %I', r.rolname) as object, format('alter role %I %s', r.rolname, string_agg('no' || r.attribute, ' ')) as sql
        from (${PRIVILEGED}) r
       where not r.configured and not (r.rolname = 'pgjot_healer' and r.attribute = 'createrole')
       group by r.rolname`,
  },
  {
    code: 'role_privileged',
    severity: 'advice',
    reason: '',
    select: `
      select format('role %I', r.rolname) as object,
             format('Its clients may be %s, as the configuration says: Row-Level Security does not hold for them, or they can make it so.',
                    string_agg(upper(r.attribute), ', ')) as reason,
             'see that its policies and grants are not what keeps its users apart' as manual
        from (${PRIVILEGED}) r
       where r.configured
       group by r.rolname`,
  },
  {
    code: 'group_membership',
    severity: 'critical',
    reason:
      'Through this membership clients reach another group, a role of PostgreSQL or pgjot, or one that Row-Level Security does not hold.',
    select: `
      select format('role %I in %s', g.name, e.roleid::regrole) as object, e.revoke as sql
        from edge e join grp g on g.oid = e.member
       where exists (select from pg_roles x
                      where pg_has_role(e.roleid, x.oid, 'MEMBER') and 'SUPERUSER' <> all (g.attributes)
                        and (x.rolsuper or x.rolcreatedb
                             or x.rolbypassrls and 'BYPASSRLS' <> all (g.attributes)
                             or x.rolcreaterole and 'CREATEROLE' <> all (g.attributes)
                             or x.rolreplication and 'REPLICATION' <> all (g.attributes)
                             or x.rolname ~ '^pg_' or x.oid in (select oid from ours)
                             or x.oid in (select oid from grp where oid <> g.oid)))`,
  },
  {
    code: 'role_membership',
    severity: 'critical',
    reason:
      'A slot is a member of its group alone, pgjot_control of nothing, the other roles of pgjot of no group: more is more than is needed.',
    select: `
      select format('role %I in %s', o.rolname, e.roleid::regrole) as object, e.revoke as sql
        from edge e join ours o on o.oid = e.member
        join pg_roles r on r.oid = e.roleid
       -- Of one in another of our roles more is said below.
       where not case o.kind when 'slot' then e.roleid = o.role_oid
                             -- Slots of other databases' groups as well.
                             when 'owner' then r.rolname ~ '^pgjot_(control|lookup|healer|.+_\\d+)$'
                             when 'healer' then r.rolname ~ '^pgjot_.+_\\d+$'
                             -- What the query reads is for the administrator to say.
                             when 'lookup' then e.roleid in (select oid from ours) or not exists (
                               select from pg_roles x
                                where pg_has_role(e.roleid, x.oid, 'MEMBER')
                                  and (x.oid in (select oid from grp) or x.oid in (select oid from ours)
                                       or x.rolsuper or x.rolbypassrls or x.rolcreaterole or x.rolcreatedb or x.rolreplication
                                       or x.rolname in ('pg_write_all_data', 'pg_execute_server_program',
                                                        'pg_read_server_files', 'pg_write_server_files')))
                             else false end`,
  },
  {
    code: 'slot_not_in_group',
    severity: 'critical',
    reason: 'Without the membership nobody can sign in on this slot.',
    select: `
      select format('role %I', s.rolname) as object, format('grant %I to %I', s.role, s.rolname) as sql
        from slot s
       where s.rolcanlogin and not exists (select from edge e where e.member = s.oid and e.roleid = s.role_oid)`,
  },
  {
    code: 'slot_not_watched',
    severity: 'critical',
    reason:
      'Unless pgjot_owner is a member of the slot it cannot see its backend, and nobody can sign in on it.',
    select: `
      select format('role %I', s.rolname) as object,
             format('grant %I to pgjot_owner', s.rolname)
             || case when current_setting('server_version_num')::int4 >= 160000 then ' with inherit true, set false' else '' end as sql
        from slot s
       where s.rolcanlogin and to_regrole('pgjot_owner') is not null
         and not exists (select from edge e where e.roleid = s.oid and e.member = to_regrole('pgjot_owner') and e.effective)`,
  },
  {
    code: 'role_granted',
    severity: 'critical',
    reason:
      "A member of a slot watches and ends its sessions; a member of pgjot_control or pgjot_owner writes everybody's identity; one of pgjot_healer can change every slot.",
    select: `
      select format('role %I in %s', m.rolname, e.roleid::regrole) as object, e.revoke as sql
        from edge e
        join ours o on o.oid = e.roleid
        join pg_roles m on m.oid = e.member
       where e.effective and not m.rolsuper and (o.kind in ('owner', 'healer') or m.rolname <> 'pgjot_owner')
         and o.kind <> 'lookup'`,
  },
  {
    code: 'slot_settings',
    severity: 'critical',
    reason:
      'Settings of a login role hold for whoever logs in with it next: its last user may have left them.',
    select: `
      select format('role %I', o.rolname) as object,
             format('alter role %I%s reset all', o.rolname, coalesce(' in database ' || quote_ident(d.datname), '')) as sql
        from pg_db_role_setting s
        join ours o on o.oid = s.setrole and o.kind <> 'lookup'
        left join pg_database d on d.oid = s.setdatabase`,
  },
  {
    code: 'slot_expiry',
    severity: 'warning',
    reason: 'Its password expires, and then nobody can log in with it.',
    select: `
      select format('role %I', rolname) as object, format('alter role %I valid until ''infinity''', rolname) as sql
        from pg_roles where rolvaliduntil < 'infinity' and oid in (select oid from ours)`,
  },
  {
    code: 'slot_connection_limit',
    severity: 'warning',
    reason:
      'With CONNECTION LIMIT 1 PostgreSQL itself keeps a second session off a slot that somebody uses.',
    select: `
      select format('role %I', rolname) as object, format('alter role %I connection limit 1', rolname) as sql
        from slot where rolcanlogin and rolconnlimit <> 1`,
  },
];
