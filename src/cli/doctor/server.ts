/**
 * Checks of the server itself: its version, room for the slots, and what pg_hba.conf lets in.
 *
 * How we are connected to it is in `connection.ts`.
 */
import type { Client } from 'pg';
import { runChecks, type Check, type Expected } from './check.ts';
import type { Finding } from './finding.ts';

/** By major: the first minor version without CVE-2026-6479 and its kin, and the first without CVE-2025-8713 (RLS statistics). */
const FLOORS: Readonly<Record<number, readonly [patched: number, safe: number]>> = {
  14: [23, 19],
  15: [18, 14],
  16: [14, 10],
  17: [10, 6],
  18: [4, 0],
};

// Beside the slots: the control connections of a few proxies or workers, a superuser's psql, monitoring.
const SPARE_CONNECTIONS = 8;

const SERVER_CHECKS: readonly Check[] = [
  {
    code: 'max_connections',
    severity: 'warning',
    reason: '',
    select: `
      select 'server' as object,
             format('The %s slots and ${SPARE_CONNECTIONS} connections beside them do not fit into the %s that max_connections leaves.',
                    n.slots, n.free) as reason,
             format('alter system set max_connections = %s', n.slots + ${SPARE_CONNECTIONS} + n.reserved) as sql,
             'restart PostgreSQL, or configure fewer slots' as manual
        from (select sum(slots) as slots, r.reserved, current_setting('max_connections')::int4 - r.reserved as free
                from wanted
               cross join (select current_setting('superuser_reserved_connections')::int4
                                  + coalesce(current_setting('reserved_connections', true), '0')::int4) as r (reserved)
               group by r.reserved) n
       where n.slots + ${SPARE_CONNECTIONS} > n.free`,
  },
  {
    code: 'prepared_transactions',
    severity: 'warning',
    reason:
      'Transactions that clients prepare belong to their group role: any of its users may commit or roll back those of others, and one that nobody ends keeps its locks for ever.',
    select: `
      select 'server' as object, 'alter system set max_prepared_transactions = 0' as sql,
             'restart PostgreSQL; standbys after it' as manual
       where current_setting('max_prepared_transactions')::int4 > 0`,
  },
];

const HBA_UNKNOWN = (session: Expected['session']): Finding => ({
  severity: 'advice',
  code: 'hba_unknown',
  object: 'pg_hba.conf',
  reason:
    'Only a superuser can look whether it lets slots and pgjot_control in from elsewhere than the proxy' +
    (session === 'pg_session_jwt'
      ? ', where in this mode a slot can be anybody, and the user of a slot can change its password.'
      : '.'),
  mend: { manual: 'run pgjot doctor as superuser, or look at the rules of the firewall' },
});

const RULE = `
  select h.*, format('pg_hba.conf line %s', h.line_number) as object,
         -- The lines of included files count from one again.
         coalesce((to_jsonb(h) ->> 'rule_number')::int4, h.line_number) as place
    from pg_hba_file_rules h
   where h.error is null and (h.database && array['all', 'sameuser', 'samerole', current_database()::text])
     -- Of one of ours: by name, by membership, by pattern.
     and exists (select from unnest(h.user_name) u
                  where u = 'all' or u ~ '^[+/]' or u in (select rolname from ours))`;

const NAME_PROXIES = 'name the addresses of the proxies there, then: select pg_reload_conf();';

const EVERYWHERE = (rule: string) =>
  `${rule}.address in ('all', '0.0.0.0', '::') and coalesce(${rule}.netmask, '0.0.0.0') in ('0.0.0.0', '::')`;

const MATCHES = (rule: string, slot: string) => `
  exists (select from unnest(${rule}.user_name) u
           where case left(u, 1)
                 when '+' then pg_has_role(${slot}.oid, to_regrole(quote_ident(substr(u, 2))), 'MEMBER')
                 when '/' then ${slot}.rolname ~ substr(u, 2)
                 else u in ('all', ${slot}.rolname) end)`;

// In mode pg_session_jwt: a rule (r) by which a slot gets in from everywhere with a password, and not past a rule that
// rejects it from everywhere before. A certificate is nothing that its user can change.
const FORGEABLE = `
  (select session from config) = 'pg_session_jwt'
  and r.auth_method not in ('reject', 'cert') and ${EVERYWHERE('r')}
  and 'clientcert=verify-full' <> all (coalesce(r.options, '{}'))
  and exists (select from slot s
               where s.rolcanlogin and ${MATCHES('r', 's')}
                 and not exists (select from (${RULE}) e
                                  where e.auth_method = 'reject' and e.place < r.place
                                    and 'all' = any (e.database) and e.type in ('host', r.type)
                                    and ${EVERYWHERE('e')} and e.address in ('all', r.address)
                                    and ${MATCHES('e', 's')}))`;

const HBA_CHECKS: readonly Check[] = [
  {
    code: 'hba_trust',
    severity: 'critical',
    reason:
      'Whoever reaches the server by this rule is any role it likes, pgjot_control among them.',
    select: `
      select r.object, 'name scram-sha-256 there instead of trust, then: select pg_reload_conf();' as manual
        from (${RULE}) r where r.auth_method = 'trust'`,
  },
  {
    code: 'hba_open',
    severity: 'advice',
    reason:
      'It lets slots and pgjot_control in from every address, with nothing but their passwords in the way.',
    select: `
      select r.object, '${NAME_PROXIES}' as manual
        from (${RULE}) r
       where r.auth_method <> 'reject' and ${EVERYWHERE('r')} and not (${FORGEABLE})`,
  },
  {
    code: 'hba_slots_open',
    severity: 'warning',
    reason:
      'Whoever logs in as a slot past the proxy brings a key of his own and can be anybody, and the user of a slot can change its password; this rule lets slots in from every address.',
    select: `select r.object, '${NAME_PROXIES}' as manual from (${RULE}) r where ${FORGEABLE}`,
  },
];

/** Everything about the server that a query can tell. */
export async function serverFindings(admin: Client, expected: Expected): Promise<Finding[]> {
  const { rows } = await admin.query<{ version: number; hba: boolean }>(
    `select current_setting('server_version_num')::int4 as version,
            has_table_privilege('pg_hba_file_rules', 'SELECT')
            and has_function_privilege('pg_hba_file_rules()', 'EXECUTE') as hba`,
  );
  const { version = 0, hba = false } = rows[0] ?? {};
  return [
    ...versionFindings(version),
    ...(await runChecks(admin, SERVER_CHECKS, expected)),
    ...(hba ? await runChecks(admin, HBA_CHECKS, expected) : [HBA_UNKNOWN(expected.session)]),
  ];
}

/** What to say of a `server_version_num`. */
export function versionFindings(version: number): Finding[] {
  const [major, minor] = [Math.floor(version / 10_000), version % 10_000];
  const newest = Math.max(...Object.keys(FLOORS).map(Number));
  // Newer than this program; it is for its own doctor to know about.
  if (major > newest) return [];
  const floors = FLOORS[major];
  const say = (severity: Finding['severity'], code: string, reason: string, to: string) => [
    { severity, code, object: 'server', reason, mend: { manual: `upgrade PostgreSQL to ${to}` } },
  ];
  if (floors === undefined) {
    const reason = `PostgreSQL ${major} gets no security fixes, and pgjot does not support it.`;
    return say('critical', 'server_unsupported', reason, '14 or later');
  }
  const [patched, safe] = floors;
  const is = `PostgreSQL ${major}.${minor}`;
  const to = `${major}.${patched} or later`;
  if (minor < safe) {
    const reason = `${is} shows rows that Row-Level Security hides, by their statistics (CVE-2025-8713).`;
    return say('critical', 'server_outdated', reason, to);
  }
  if (minor >= patched) return [];
  return say('warning', 'server_outdated', `${is} lacks security fixes (CVE-2026-6479).`, to);
}
