/**
 * A check of the database: one query of the catalogs whose rows are the findings.
 *
 * The queries call no function of the database that is examined, and name what they want in the terms that
 * `TERMS` defines. They run in one read-only transaction with `search_path` pinned.
 */
import type { Client } from 'pg';
import type { UpstreamConfig } from '../../config.ts';
import type { Finding, Mend, Severity } from './finding.ts';

/** A query and what its rows mean. */
export interface Check {
  readonly code: string;
  readonly severity: Severity;
  /** One sentence; a row may have a `reason` of its own. */
  readonly reason: string;
  /** A SELECT over `TERMS` with the columns of `Row`. */
  readonly select: string;
  /** The row's SQL has to be run as pgjot_owner, or whom the row names, whom nobody else can be for longer than a transaction. */
  readonly asOwner?: true;
  /** `pgjot setup` mends it, after the row's SQL where there is any. */
  readonly setup?: true;
}

/** What a check selects. */
interface Row {
  readonly object: string;
  readonly sql?: string | null;
  readonly owner?: string | null;
  readonly reason?: string;
  readonly severity?: Severity;
  readonly manual?: string;
}

/** What the database should be like. */
export interface Expected {
  readonly session: UpstreamConfig['session'];
  readonly roles: UpstreamConfig['roles'];
  /** Unknown of a standby whose primary is not in the configuration. */
  readonly healSlots: boolean | undefined;
  readonly lookup: boolean;
  /** Whether standbys of this database serve clients; it may be one itself. */
  readonly replicas: boolean;
  /** How `pgjot setup` is run for this upstream, or for its primary. */
  readonly setup: Pick<Mend, 'shell' | 'manual'>;
}

/**
 * The words that the queries are written in. PostgreSQL computes only those that a query uses.
 *
 *   config     the rest of `Expected`
 *   wanted     the configuration's roles           grp        those of them that exist
 *   slot       login roles with a slot's name      ours       slots, pgjot_control, _owner, _lookup and _healer
 *   edge       memberships, and how to revoke one
 *   grantee    everybody whose privileges a client has: PUBLIC, groups, what groups inherit from, slots
 *   relation   tables and views of the application that a client can reach, and by whose grants
 *   reads      what a view reads, through other views too
 */
const TERMS = `
with recursive config as (
  select * from jsonb_to_record($2::jsonb) as c (session text, "healSlots" bool, lookup bool, replicas bool)
), wanted as (
  select w.role, w.slots, w.attributes, r.oid, r.rolsuper
    from jsonb_to_recordset($1::jsonb) as w (role name, slots int4, attributes text[])
    left join pg_roles r on r.rolname = w.role
), grp as (
  select oid, role as name, coalesce(attributes, '{}') as attributes, rolsuper as almighty from wanted where oid is not null
), slot as (
  select r.*, w.role, w.oid as role_oid, w.slots, substr(r.rolname, length(w.role) + 8)::int8 as number
    from wanted w
    join pg_roles r on starts_with(r.rolname, 'pgjot_' || w.role || '_')
                   and substr(r.rolname, length(w.role) + 8) ~ '^\\d{1,9}$'
), ours as (
  select oid, rolname, 'slot' as kind, role_oid from slot
   union all
  select oid, rolname, substr(rolname, 7), null from pg_roles
   where rolname in ('pgjot_control', 'pgjot_owner', 'pgjot_lookup', 'pgjot_healer')
), edge as (
  select m.roleid, m.member,
         format('revoke %s from %s', m.roleid::regrole, m.member::regrole)
         || case when current_setting('server_version_num')::int4 >= 160000
                 then format(' granted by %s', m.grantor::regrole) else '' end as revoke,
         -- Both columns are new in 16; before, every membership was of this kind.
         coalesce((to_jsonb(m) ->> 'inherit_option')::bool or (to_jsonb(m) ->> 'set_option')::bool, true) as effective
    from pg_auth_members m
), grantee as (
  select 0::oid as oid, 'public' as name
   union all
  select r.oid, quote_ident(r.rolname)
    from pg_roles r
   where r.oid in (select oid from slot) or exists (select from grp g where not g.almighty and pg_has_role(g.oid, r.oid, 'USAGE'))
      or r.oid in (select oid from grp)
), relation as (
  select * from (
    select c.oid, c.oid::regclass as name, c.relkind, c.relowner, c.relrowsecurity, c.relforcerowsecurity,
           exists (select from pg_options_to_table(c.reloptions) o
                    where o.option_name = 'security_invoker' and o.option_value::bool) as invoker,
           (select string_agg(distinct g.name, ', ')
              from (select coalesce(c.relacl, acldefault('r', c.relowner)) as acl
                     union all
                    select a.attacl from pg_attribute a where a.attrelid = c.oid and not a.attisdropped) l,
                   aclexplode(l.acl) x join grantee g on g.oid = x.grantee
             where x.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')) as grantees
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't'
       and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'pgjot')
       and exists (select from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x
                     join grantee g on g.oid = x.grantee where x.privilege_type = 'USAGE')) r
   where grantees is not null
), reads as (
  select w.ev_class as view, d.refobjid as relation
    from pg_rewrite w
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
                    and d.refclassid = 'pg_class'::regclass and d.refobjid <> w.ev_class
   where w.rulename = '_RETURN'
   union
  select r.view, d.refobjid
    from reads r
    join pg_rewrite w on w.ev_class = r.relation and w.rulename = '_RETURN'
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
                    and d.refclassid = 'pg_class'::regclass and d.refobjid <> w.ev_class
)`;

/** Runs the checks and returns what they found, in their order. The client must be in `examine`'s transaction. */
export async function runChecks(
  admin: Client,
  checks: readonly Check[],
  expected: Expected,
): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const check of checks) {
    for (const row of await select<Row>(admin, check.select, expected)) {
      findings.push(findingOf(check, row, expected));
    }
  }
  return findings;
}

/** The rows of a SELECT over `TERMS`. */
export async function select<R extends object>(
  admin: Client,
  text: string,
  { roles, ...config }: Expected,
): Promise<R[]> {
  const wanted = Object.entries(roles).map(([role, more]) => ({ role, ...more }));
  const { rows } = await admin.query<R>(`${TERMS}\n${text}`, [
    JSON.stringify(wanted),
    JSON.stringify(config),
  ]);
  return rows;
}

/** Runs `work` in one read-only transaction in which names mean what PostgreSQL means by them. */
export async function examine<T>(admin: Client, work: () => Promise<T>): Promise<T> {
  await admin.query('begin isolation level repeatable read read only');
  try {
    await admin.query('set local search_path = pg_catalog, pg_temp');
    return await work();
  } finally {
    await admin.query('rollback').catch(() => {});
  }
}

function findingOf(check: Check, row: Row, { setup }: Expected): Finding {
  const { code, severity, reason } = check;
  const sql = row.sql ? `${row.sql};` : undefined;
  return {
    severity: row.severity ?? severity,
    code,
    object: row.object,
    reason: row.reason ?? reason,
    mend: {
      ...(sql !== undefined && {
        sql: check.asOwner ? runAs(row.owner ?? 'pgjot_owner', sql) : sql,
      }),
      ...(check.setup && setup),
      ...(row.manual && { manual: row.manual }),
    },
  };
}

function runAs(owner: string, sql: string): string {
  return [
    'begin;',
    `grant ${owner} to current_user;`,
    `set local role ${owner};`,
    sql,
    'reset role;',
    `revoke ${owner} from current_user;`,
    'commit;',
  ].join('\n');
}
