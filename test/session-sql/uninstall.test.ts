/** Removing what was installed, and refusing to while somebody needs it. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  install,
  installDemo,
  planUninstall,
  SESSION_SQL_VERSION,
  uninstall,
} from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { bind, Database, hello, SECRET, value } from './database.ts';

const ROLES = { authenticated: { slots: 3 } };

const refusal = async (work: Promise<unknown>) =>
  work.then(
    () => 'not refused',
    (error: pg.DatabaseError) => `${error.code} ${error.message} ${error.hint ?? ''}`,
  );

describe.each(postgresVersions())('uninstalling on PostgreSQL %i', (version) => {
  let database: Database;
  let admin: pg.Client;
  beforeAll(async () => {
    database = await Database.start({ version });
    admin = await database.admin();
  });
  afterAll(() => database[Symbol.asyncDispose]());

  const ourRoles = () =>
    value(admin, `SELECT count(*)::int FROM pg_roles WHERE rolname ~ '^pgjot'`);
  const ourSchemas = () =>
    value(admin, `SELECT count(*)::int FROM pg_namespace WHERE nspname IN ('pgjot', 'auth')`);

  it('leaves nothing but the group role, and can be undone and done again', async () => {
    for (const again of [false, true]) {
      const installed = await install(admin, { secret: SECRET, roles: ROLES });
      const removed = await uninstall(admin);

      expect(installed).toEqual([
        ...(again ? [] : ['created role "authenticated"']),
        'created role "pgjot_owner"',
        'created role "pgjot_control"',
        'created 3 slots of role "authenticated"',
        `installed the session functions, version ${SESSION_SQL_VERSION}`,
      ]);
      expect(removed).toEqual([
        'dropped schema pgjot and the session functions',
        'dropped 3 slots, and roles pgjot_control and pgjot_owner',
      ]);
      expect(await ourRoles()).toBe(0);
      expect(await ourSchemas()).toBe(0);
    }
    expect(await uninstall(admin)).toEqual([]);
    expect(await value(admin, `SELECT to_regrole('authenticated')::text`)).toBe('authenticated');
  });

  it('refuses while policies, defaults and views use its functions, and names them', async () => {
    await install(admin, { secret: SECRET, roles: ROLES });
    await installDemo(admin);
    await admin.query('CREATE VIEW public.me AS SELECT pgjot.user_id()');

    const said = await refusal(uninstall(admin));

    expect(said).toMatch(/^2BP01 pgjot: its functions are still used by /);
    for (const object of [
      'policy todos_select on table public.todos',
      'default value for column user_id of table public.todos',
      'rule _RETURN on view public.me',
    ]) {
      expect(said).toContain(object);
    }
    expect(await ourSchemas()).toBe(2);
    expect(await value(admin, 'SELECT count(*)::int FROM pg_policies')).toBe(4);
    await admin.query('DROP VIEW public.me; DROP TABLE public.todos');
  });

  it('refuses while sessions are logged in', async () => {
    const client = await database.slot(2);

    expect(await refusal(uninstall(admin))).toMatch(
      /^55006 pgjot: 1 sessions are logged in with the roles to be removed/,
    );
    await database.end(client);
  });

  it('refuses while another database uses the roles, unless they are to stay', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE second OWNER admin');
    const second = await database.admin('second');
    await install(second, { secret: SECRET, roles: ROLES });
    const control = await database.control();
    const client = await database.slot(1);

    expect(await refusal(uninstall(second))).toMatch(/^55006 pgjot: 2 sessions/);
    const removed = await uninstall(second, { keepRoles: true });
    expect(removed).toEqual(['dropped schema pgjot and the session functions']);
    await bind(control, await hello(client), 'alice');
    expect(await value(client, 'SELECT auth.user_id()')).toBe('alice');

    await database.end(client);
    await database.end(control);
    await install(second, { secret: SECRET, roles: ROLES });
    expect(await refusal(uninstall(admin))).toMatch(
      /^2BP01 pgjot: the roles are still used in other databases: second .*--keep-roles/,
    );
    expect(await ourRoles()).toBe(5);
    await uninstall(second, { keepRoles: true });
    await uninstall(admin);
    expect(await ourRoles()).toBe(0);
    await database.end(second);
    await superuser.query('DROP DATABASE second');
    await database.end(superuser);
  });

  it('takes its functions out of a foreign schema auth and leaves the rest', async () => {
    await admin.query('CREATE SCHEMA auth; CREATE FUNCTION auth.uid() RETURNS int RETURN 1');
    await install(admin, { secret: SECRET, roles: ROLES });

    await uninstall(admin);

    expect(
      await value(
        admin,
        `SELECT array_agg(proname::text) FROM pg_proc WHERE pronamespace = 'auth'::regnamespace`,
      ),
    ).toEqual(['uid']);
    await admin.query('DROP SCHEMA auth CASCADE');
  });

  it('refuses to drop a slot that owns something', async () => {
    await install(admin, { secret: SECRET, roles: ROLES });
    await admin.query('CREATE TABLE public.keepsake ()');
    await admin.query('GRANT SELECT ON public.keepsake TO pgjot_authenticated_1');

    expect(await refusal(uninstall(admin))).toMatch(
      /^2BP01 role "pgjot_authenticated_1" cannot be dropped because some objects depend on it/,
    );
    expect(await ourSchemas()).toBe(2);
    await admin.query('DROP TABLE public.keepsake');
    for (const statement of await planUninstall()) await admin.query(statement);
    expect(await ourRoles()).toBe(0);
  });

  it('works as superuser', async () => {
    const superuser = await database.superuser();
    await install(superuser, { secret: SECRET, roles: ROLES });

    await uninstall(superuser);

    expect(await ourRoles()).toBe(0);
    await database.end(superuser);
  });
});
