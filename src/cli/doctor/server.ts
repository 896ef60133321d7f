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
];

const HBA_UNKNOWN: Finding = {
  severity: 'advice',
  code: 'hba_unknown',
  object: 'pg_hba.conf',
  reason:
    'Only a superuser can look whether it lets slots and pgjot_control in from elsewhere than the proxy.',
  mend: { manual: 'run pgjot doctor as superuser, or look at the rules of the firewall' },
};

const RULE = `
  select h.*, format('pg_hba.conf line %s', h.line_number) as object
    from pg_hba_file_rules h
   where h.error is null and (h.database && array['all', 'sameuser', 'samerole', current_database()::text])
     -- Of one of ours: by name, by membership, by pattern.
     and exists (select from unnest(h.user_name) u
                  where u = 'all' or u ~ '^[+/]' or u in (select rolname from ours))`;

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
      select r.object, 'name the addresses of the proxies there, then: select pg_reload_conf();' as manual
        from (${RULE}) r
       where r.auth_method <> 'reject' and (r.address in ('all', '0.0.0.0', '::') and coalesce(r.netmask, '0.0.0.0') in ('0.0.0.0', '::'))`,
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
    ...(hba ? await runChecks(admin, HBA_CHECKS, expected) : [HBA_UNKNOWN]),
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
