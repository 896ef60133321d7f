/**
 * Mends one slot, as `pgjot setup` would: its password, attributes and settings, over logins that last no longer than that.
 *
 * Not over the control connection. That may be older than a secret which setup has been given since, and would lock
 * everybody out who has the new one, slot by slot; and no login's question shall wait for this. Bounds nothing.
 */
import pg from 'pg';
import type { UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { CONTROL_ROLE, derivePassword, scramVerifier } from '../session-sql/credentials.ts';
import { asRole } from './errand.ts';

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
  const errand = { name: 'pgjot healing', upstream, secret };
  try {
    const verifier = await scramVerifier(derivePassword(secret, slot));
    const found = await asRole({ ...errand, user: CONTROL_ROLE }, async (control) => {
      if (!(await yes(control, HEAL, [slot, verifier]))) {
        throw refused(`${slot} is no slot of this database that may log in`);
      }
      return yes(control, HAS_SETTINGS, [slot]);
    });
    if (!found) return;
    // Some settings, "role" for instance, no function may touch that runs as its owner. They keep nobody out.
    const left = await asRole({ ...errand, user: slot }, async (itself) => {
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

function refused(why: string): ProxyError {
  return new ProxyError('upstream_login_rejected', { cause: new Error(why) });
}
