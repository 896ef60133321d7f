/**
 * Mends one slot, as `pgjot setup` would: its password, attributes and settings, over logins that last no longer than that.
 *
 * Not over the control connection. That may be older than a secret which setup has been given since, and would lock
 * everybody out who has the new one, slot by slot; and no login's question shall wait for this. Bounds nothing.
 */
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { upstreamTlsMode } from '../exposure.ts';
import { CONTROL_ROLE, derivePassword, scramVerifier } from '../session-sql/credentials.ts';
import { upstreamTlsOptions } from './dial.ts';

const GOODBYE_MS = 2_000;

/**
 * Mends a slot of this upstream, which the caller has leased; `secret` is the upstream's.
 *
 * @throws {ProxyError} upstream_login_rejected where PostgreSQL will not have it, upstream_unreachable where it does
 *   not answer.
 */
export async function mendSlot(
  upstream: UpstreamConfig,
  secret: string,
  slot: string,
): Promise<void> {
  try {
    const verifier = await scramVerifier(derivePassword(secret, slot));
    const found = await asRole(CONTROL_ROLE, upstream, secret, async (control) => {
      if (!(await yes(control, HEAL, [slot, verifier]))) {
        throw refused(`${slot} is no slot of this database that may log in`);
      }
      return yes(control, HAS_SETTINGS, [slot]);
    });
    if (!found) return;
    // Some settings, "role" for instance, no function may touch that runs as its owner. They keep nobody out.
    const left = await asRole(slot, upstream, secret, async (itself) => {
      // Loads the library: before, its settings are nobody's to reset but a superuser's.
      if (upstream.session === 'pg_session_jwt') await itself.query('select auth.user_id()');
      await itself.query(RESET_MINE);
      return yes(itself, HAS_SETTINGS, [slot]);
    });
    if (left) throw refused(`${slot} has settings that only a superuser can reset`);
  } catch (error) {
    if (error instanceof ProxyError) throw error;
    if (!(error instanceof pg.DatabaseError)) {
      throw new ProxyError('upstream_unreachable', { cause: error });
    }
    if (error.code === '42883') error.message += ' (run pgjot setup with "healSlots": true)';
    throw new ProxyError('upstream_login_rejected', { cause: error });
  }
}

// What the slot's last user left for whoever logs in with it must not hold for us.
const SETTINGS = '-c role=none -c search_path=pg_catalog,pg_temp';

const HEAL = 'select pgjot.heal($1, $2)';
const HAS_SETTINGS =
  'select exists (select from pg_db_role_setting s join pg_roles r on r.oid = s.setrole where r.rolname = $1)';
const RESET_MINE = `
  do $$
  declare
    scope text;
  begin
    for scope in
      select coalesce(' in database ' || quote_ident(d.datname), '')
        from pg_db_role_setting s
        join pg_roles r on r.oid = s.setrole and r.rolname = session_user
        left join pg_database d on d.oid = s.setdatabase
    loop
      execute 'alter role session_user' || scope || ' reset all';
    end loop;
  end
  $$`;

/** The one value of a question that is answered with yes or no. */
async function yes(client: pg.Client, text: string, values: string[]): Promise<boolean> {
  const { rows } = await client.query<[boolean]>({ text, values, rowMode: 'array' });
  return rows[0]?.[0] === true;
}

/** Lets `work` use a login as one of our roles. PostgreSQL has ended it when this resolves. */
async function asRole<T>(
  user: string,
  upstream: UpstreamConfig,
  secret: string,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const { host, port, database, connectTimeoutMs } = upstream;
  const socket = new Socket();
  const client = new pg.Client({
    host,
    port,
    database,
    user,
    password: derivePassword(secret, user),
    ssl: upstreamTlsMode(upstream) === 'disable' ? false : upstreamTlsOptions(upstream),
    stream: () => socket,
    application_name: 'pgjot healing',
    options: SETTINGS,
    connectionTimeoutMillis: connectTimeoutMs,
    // Whoever filled a slot with settings by the thousand must not keep a backend busy: it gives up as well as we do.
    statement_timeout: connectTimeoutMs,
    query_timeout: connectTimeoutMs,
  });
  client.on('error', () => {});
  try {
    await client.connect();
    const result = await work(client);
    await Promise.race([client.end(), delay(GOODBYE_MS, undefined, { ref: false })]);
    return result;
  } finally {
    socket.destroy();
  }
}

function refused(why: string): ProxyError {
  return new ProxyError('upstream_login_rejected', { cause: new Error(why) });
}
