/**
 * Checks of what the upstream's session mode needs: the extension, a primary or a standby, the key of signed identities.
 *
 * Who may log in past the proxy, which is worse in mode `pg_session_jwt`, is in `server.ts`.
 */
import { createHash } from 'node:crypto';
import type { Client } from 'pg';
import { deriveIdentityKey } from '../../session-sql/credentials.ts';
import type { Secrets } from '../../upstream/secrets.ts';
import type { Check, Expected } from './check.ts';
import type { Finding } from './finding.ts';

/** As `extension.sql` has it. */
const OLDEST_EXTENSION = '0.4.0';

/** A query for the oids of the functions that belong to the extension. */
export const EXTENSION_FUNCTIONS = `
  select d.objid from pg_depend d join pg_extension x on x.oid = d.refobjid and x.extname = 'pg_session_jwt'
   where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'`;

const IN_MODE = (session: Expected['session']) => `((select session from config) = '${session}')`;

// In the mode of the extension it has no rights of its own.
const CLAIMS = `
  select p.prosecdef as definer from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where n.nspname = 'pgjot' and p.proname = 'claims' and p.pronargs = 0`;

const MISSING = `${IN_MODE('pg_session_jwt')} and not exists (select from pg_extension where extname = 'pg_session_jwt')`;
const AVAILABLE = `exists (select from pg_available_extensions where name = 'pg_session_jwt')`;

/** The checks. */
export const MODE_CHECKS: readonly Check[] = [
  {
    code: 'mode_mismatch',
    severity: 'critical',
    reason:
      'The session functions were installed for another mode than the configuration says, so nobody can sign in.',
    select: `
      select 'function pgjot.claims()' as object from (${CLAIMS}) c
       where not ${IN_MODE('replica')} and c.definer = ${IN_MODE('pg_session_jwt')}`,
    setup: true,
  },
  {
    code: 'mode_mismatch',
    severity: 'critical',
    reason:
      'The primary is in mode "pg_session_jwt", so nobody can sign in with a signed identity.',
    select: `
      select 'function pgjot.claims()' as object, '"session": "pg_session_jwt" for this standby as well' as manual
        from (${CLAIMS}) c where ${IN_MODE('replica')} and not c.definer`,
  },
  {
    code: 'extension_missing',
    severity: 'critical',
    reason: 'It is not installed in this database, so nobody can sign in.',
    select: `select 'extension pg_session_jwt' as object where ${MISSING} and ${AVAILABLE}`,
    setup: true,
  },
  {
    code: 'extension_missing',
    severity: 'critical',
    reason: 'The server does not have it, so nobody can sign in.',
    select: `
      select 'extension pg_session_jwt' as object,
             'install its package on the server and run pgjot setup, or use "session": "portable"' as manual
       where ${MISSING} and not ${AVAILABLE}`,
  },
  {
    code: 'extension_outdated',
    severity: 'critical',
    reason: `It is older than version ${OLDEST_EXTENSION}, for which this program was made.`,
    select: `
      select 'extension pg_session_jwt' as object, 'alter extension pg_session_jwt update' as sql
        from pg_extension
       where ${IN_MODE('pg_session_jwt')} and extname = 'pg_session_jwt'
         and coalesce(string_to_array(substring(extversion, '^\\d{1,9}(?:\\.\\d{1,9})*'), '.')::int4[]
                      < string_to_array('${OLDEST_EXTENSION}', '.')::int4[], true)`,
  },
  {
    code: 'extension_unusable',
    severity: 'critical',
    reason: 'Without USAGE on schema auth its clients cannot ask who they are, and cannot sign in.',
    select: `
      select format('role %I', g.name) as object, format('grant usage on schema auth to %I', g.name) as sql
        from grp g
       where ${IN_MODE('pg_session_jwt')} and to_regnamespace('auth') is not null
         and not has_schema_privilege(g.oid, 'auth', 'USAGE')`,
  },
  {
    code: 'server_is_standby',
    severity: 'critical',
    reason: 'Identities cannot be written on a standby, so nobody can sign in.',
    select: `
      select 'server' as object, '"session": "replica", or the address of the primary' as manual
       where ${IN_MODE('portable')} and pg_is_in_recovery()`,
  },
  {
    code: 'server_is_primary',
    severity: 'critical',
    reason: 'Signed identities are believed on standbys alone, so nobody can sign in.',
    select: `
      select 'server' as object, '"session": "portable", or the address of the standby' as manual
       where ${IN_MODE('replica')} and not pg_is_in_recovery()`,
  },
];

const KEY = 'table pgjot.identity_key';
const UNKNOWN_KEY: Finding = {
  severity: 'advice',
  code: 'identity_key_unknown',
  object: KEY,
  reason:
    "Only a superuser can look whether it holds the key that belongs to this upstream's secret.",
  mend: { manual: 'run pgjot doctor as superuser, or sign in once by way of the standby' },
};

const PREVIOUS_KEY: Finding = {
  severity: 'warning',
  code: 'identity_key_previous',
  object: KEY,
  reason:
    'It still holds the key before the last rotation: whoever has the previous secret and a slot can be anybody on standbys.',
  mend: {
    manual:
      'pgjot rotate-secret --finish, as soon as the sessions there from before the rotation have ended',
  },
};

/** Whether the key of signed identities is there, and is ours, exactly where standbys need it. Only its hash travels. */
export async function keyFindings(
  admin: Client,
  { replicas, setup }: Expected,
  secrets: Secrets,
): Promise<Finding[]> {
  const { rows } = await admin.query<{ readable: boolean }>(
    // A view that somebody else put in its place would run as the administrator.
    // Row-Level Security, which it has without a policy, would show it empty.
    `select has_table_privilege(oid, 'SELECT') and has_schema_privilege(relnamespace, 'USAGE')
            and not row_security_active(oid) as readable
       from pg_class
      where relnamespace = to_regnamespace('pgjot') and relname = 'identity_key'
        and relkind = 'r' and relowner = to_regrole('pgjot_owner')`,
  );
  const readable = rows[0]?.readable;
  // Objects of version 1 have no such table, and are told to be old.
  if (readable === undefined) return [];
  if (!readable) return replicas ? [UNKNOWN_KEY] : [];
  const stored = await admin.query<{ hash: string; current: boolean }>(
    // As JSON, because objects of version 2 have no column "current".
    `select encode(sha256(k.inner_block), 'hex') as hash, coalesce((to_jsonb(k) ->> 'current')::bool, true) as current
       from pgjot.identity_key k`,
  );
  const hash = stored.rows.find(({ current }) => current)?.hash;
  const mend = setup;
  const findings: Finding[] = [];
  if (replicas && stored.rows.some(({ current }) => !current)) findings.push(PREVIOUS_KEY);
  if (replicas && hash === undefined) {
    const reason = 'It holds no key, so standbys believe no identity and nobody can sign in there.';
    return [{ severity: 'critical', code: 'identity_key_missing', object: KEY, reason, mend }];
  }
  if (replicas && !secrets.all.some((secret) => hash === hashOfKey(secret))) {
    const reason =
      "Its key is not of this upstream's secret: nobody can sign in on standbys but who has the secret that it is of, and they as anybody.";
    return [{ severity: 'critical', code: 'identity_key_foreign', object: KEY, reason, mend }];
  }
  if (replicas || hash === undefined) return findings;
  const reason =
    'It holds a key, in dumps too, although the configuration names no standby; the next setup removes it.';
  return [{ severity: 'advice', code: 'identity_key_unused', object: KEY, reason, mend }];
}

/** Of the block that HMAC hashes first (RFC 2104), which is what the table has. */
function hashOfKey(secret: string): string {
  const inner = deriveIdentityKey(secret).map((byte) => byte ^ 0x36);
  return createHash('sha256').update(inner).digest('hex');
}
