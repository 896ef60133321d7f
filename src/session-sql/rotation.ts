/**
 * Rotates an upstream's secret: every password in one transaction, and what must be known before and after.
 *
 * Proxies that have both secrets notice nothing. What it runs, and why, is in `rotate.sql` and `end-sessions.sql`.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { deriveIdentityKey, derivePassword, scramVerifier } from './credentials.ts';
import { SESSION_SQL_VERSION } from './install.ts';
import { inTransaction, run } from './script.ts';

/** What to rotate to. */
export interface RotateOptions {
  /** The new secret. */
  readonly secret: string;
  /** Whether standbys serve clients of this database: they get the key that derives from it. */
  readonly replicas: boolean;
  /** Whether the previous identity key is to hold no more: what was signed with it is worth nothing then. */
  readonly forget: boolean;
}

/** A control connection of a proxy, as the server sees it. */
export interface ProxyConnection {
  readonly database: string;
  /** Where it comes from; null on a Unix socket. */
  readonly address: string | null;
  /** When it began, as PostgreSQL writes it. */
  readonly since: string;
  /** What it is called in pg_stat_activity. */
  readonly name: string;
}

/** The login roles of pgjot in the cluster, and who is logged in as one. */
export interface Tenancy {
  readonly logins: readonly string[];
  readonly proxies: readonly ProxyConnection[];
  /** Sessions of those roles, the proxies' own among them. */
  readonly sessions: number;
  /** Other databases of the cluster that pgjot is installed in. */
  readonly otherDatabases: readonly string[];
}

/**
 * What a rotation would be about. `admin` as for `install`.
 *
 * @throws {pg.DatabaseError} 42704 where pgjot is not installed.
 */
export async function survey(admin: pg.Client): Promise<Tenancy> {
  let tenancy: Tenancy | undefined;
  await inTransaction(admin, async () => {
    await admin.query('SET LOCAL search_path = pg_catalog, pg_temp');
    // Who else is logged in, and from where, only a member of their roles is told.
    await admin.query('GRANT pgjot_owner TO CURRENT_USER');
    await admin.query('SET LOCAL ROLE pgjot_owner');
    const { rows: logins } = await admin.query<{ name: string }>(
      `SELECT r.rolname AS name FROM pg_roles r WHERE ${IS_LOGIN} ORDER BY 1`,
    );
    const { rows: sessions } = await admin.query<ProxyConnection & { login: string }>(
      `SELECT r.rolname AS login, coalesce(d.datname, '') AS database, host(a.client_addr) AS address,
              a.backend_start::text AS since, coalesce(a.application_name, '') AS name
         FROM pg_stat_get_activity(NULL) a JOIN pg_roles r ON r.oid = a.usesysid LEFT JOIN pg_database d ON d.oid = a.datid
        WHERE a.backend_type = 'client backend' AND ${IS_LOGIN} ORDER BY a.backend_start`,
    );
    const { rows: others } = await admin.query<{ name: string }>(
      `SELECT DISTINCT d.datname AS name FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
        WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = 'pgjot_owner'::regrole AND s.deptype = 'o'
          AND d.datname <> current_database() ORDER BY 1`,
    );
    tenancy = {
      logins: logins.map(({ name }) => name),
      // Not those of proxies that have read another configuration since, and let nobody in by way of it.
      proxies: sessions.filter(
        ({ login, name }) =>
          login === 'pgjot_control' && /^pgjot control(?!.* retired$)/.test(name),
      ),
      sessions: sessions.length,
      otherDatabases: others.map(({ name }) => name),
    };
    await admin.query('RESET ROLE');
    await admin.query('REVOKE pgjot_owner FROM CURRENT_USER');
  });
  return tenancy as Tenancy;
}

const IS_LOGIN = `(r.rolname IN ('pgjot_control', 'pgjot_lookup') OR r.rolname ~ '^pgjot_.+_[0-9]+$')
  AND EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member = 'pgjot_owner'::regrole)`;

/**
 * Gives these roles, which must be all there are, the passwords that derive from the new secret, in one transaction.
 * Sessions go on. May be run again. `admin` as for `install`.
 *
 * @returns what was changed, one line each.
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function rotate(
  admin: pg.Client,
  logins: readonly string[],
  { secret, replicas, forget }: RotateOptions,
): Promise<readonly string[]> {
  const verifiers = await Promise.all(
    logins.map(async (name) => [
      `verifier ${Buffer.from(name).toString('hex')}`,
      await scramVerifier(derivePassword(secret, name)),
    ]),
  );
  return run(admin, {
    settings: {
      'pgjot_rotate.version': String(SESSION_SQL_VERSION),
      'pgjot_rotate.forget': String(forget),
    },
    secrets: {
      ...(Object.fromEntries(verifiers) as Record<string, string>),
      ...(replicas && identityBlocks(secret)),
    },
    files: ['rotate.sql'],
  });
}

/** The key as the two blocks that HMAC (RFC 2104) hashes first. */
function identityBlocks(secret: string): Record<string, string> {
  const key = deriveIdentityKey(secret);
  const padded = (pad: number) => Buffer.from(key.map((byte) => byte ^ pad)).toString('hex');
  return { inner_block: padded(0x36), outer_block: padded(0x5c) };
}

/**
 * Ends every session of pgjot's roles that began before now, and those that were half-way in their login, for which it
 * waits as long as the server does. `onWait` hears how long that is, in ms.
 *
 * @returns how many.
 */
export async function endSessions(admin: pg.Client, onWait: (ms: number) => void): Promise<number> {
  const { rows } = await admin.query<{ now: string; seconds: number }>(
    `SELECT pg_catalog.clock_timestamp()::pg_catalog.text AS now, setting::pg_catalog.int4 AS seconds
       FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) 'authentication_timeout'`,
  );
  const { now = '', seconds = 60 } = rows[0] ?? {};
  const script = { settings: { 'pgjot_end.before': now }, files: ['end-sessions.sql'] };
  const end = async () => Number((await run(admin, script))[0]);
  let ended = await end();
  // A login that had been shown the old verifier may still succeed with the old password.
  onWait(seconds * 1000);
  const deadline = performance.now() + seconds * 1000 + LOOK_AGAIN_MS;
  while (performance.now() < deadline) {
    await delay(LOOK_AGAIN_MS);
    ended += await end();
  }
  return ended;
}

const LOOK_AGAIN_MS = 200;
