/** From one version of the SQL objects to another. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { install, SESSION_SQL_VERSION } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { bind, Database, hello, outcome, SECRET, userId, value } from './database.ts';

const OPTIONS = { secret: SECRET, roles: { authenticated: { slots: 2 } } };

const setVersion = (superuser: pg.Client, version: number) =>
  superuser.query(
    `CREATE OR REPLACE FUNCTION pgjot.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '${version}'`,
  );

describe.each(postgresVersions())('upgrading on PostgreSQL %i', (version) => {
  let database: Database;
  let admin: pg.Client;
  let superuser: pg.Client;
  beforeAll(async () => {
    database = await Database.installed(2, { version });
    admin = await database.admin();
    superuser = await database.superuser();
  });
  afterAll(() => database[Symbol.asyncDispose]());

  it('replaces what an older version left, under live sessions and policies', async () => {
    const control = await database.control();
    const client = await database.slot(1);
    await bind(control, await hello(client), 'alice');
    // What version 0 might have been: no expiry looked at, and a bind() of another shape, open to everybody.
    await setVersion(superuser, 0);
    await superuser.query(`
      SET ROLE pgjot_owner;
      CREATE OR REPLACE FUNCTION pgjot.claims() RETURNS jsonb LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER
        AS 'SELECT claims FROM pgjot.session WHERE pid = pg_backend_pid()';
      CREATE FUNCTION pgjot.bind(int4, text) RETURNS void LANGUAGE sql RETURN NULL;
      GRANT EXECUTE ON FUNCTION pgjot.bind(int4, text) TO PUBLIC;
      RESET ROLE`);

    const changes = await install(admin, OPTIONS);

    expect(changes).toEqual([
      'dropped function pgjot.bind(integer,text), which this version does not have',
      `upgraded the session functions from version 0 to ${SESSION_SQL_VERSION}`,
    ]);
    expect(await value(admin, 'SELECT pgjot.version()')).toBe(String(SESSION_SQL_VERSION));
    expect(
      await value(
        admin,
        `SELECT string_agg(pg_get_functiondef(oid), '') FROM pg_proc WHERE pronamespace = 'pgjot'::regnamespace AND proname ~ '^claims'`,
      ),
    ).toContain('expires_at > clock_timestamp()');
    expect(await userId(client)).toBe('alice');
    expect(await value(client, 'SELECT count(*)::int FROM public.todos')).toBe(3);
    await database.end(client);
    await database.end(control);
  });

  it('fails rather than drop a function that a policy uses', async () => {
    await superuser.query(`
      SET ROLE pgjot_owner;
      CREATE FUNCTION pgjot.former() RETURNS text LANGUAGE sql STABLE RETURN 'x';
      RESET ROLE;
      CREATE POLICY former ON public.todos USING (user_id = pgjot.former())`);

    expect(await outcome(install(admin, OPTIONS))).toBe('2BP01');

    await superuser.query('DROP POLICY former ON public.todos');
    expect(await install(admin, OPTIONS)).toEqual([
      'dropped function pgjot.former(), which this version does not have',
    ]);
  });

  it('refuses to go back from a newer version, and changes nothing', async () => {
    await setVersion(superuser, SESSION_SQL_VERSION + 1);

    await expect(
      install(admin, { ...OPTIONS, roles: { authenticated: { slots: 9 } } }),
    ).rejects.toMatchObject({
      code: '55000',
      message: `pgjot: version ${SESSION_SQL_VERSION + 1} of the session functions is installed, newer than version ${SESSION_SQL_VERSION} of this program`,
    });

    expect(
      await value(admin, `SELECT count(*)::int FROM pg_roles WHERE rolname ~ '_authenticated_'`),
    ).toBe(2);
    await setVersion(superuser, SESSION_SQL_VERSION);
  });

  it('says which functions and slots it put right, and the next time nothing', async () => {
    await superuser.query('GRANT EXECUTE ON FUNCTION pgjot.sweep() TO PUBLIC');
    await admin.query(`
      ALTER ROLE pgjot_authenticated_1 SET work_mem = '1MB';
      ALTER ROLE pgjot_authenticated_1 CONNECTION LIMIT 5;
      ALTER ROLE pgjot_authenticated_2 VALID UNTIL '2030-01-01';
      REVOKE authenticated FROM pgjot_authenticated_2`);

    expect(await install(admin, OPTIONS)).toEqual([
      'reset the settings of slot "pgjot_authenticated_1"',
      'gave slot "pgjot_authenticated_1" its attributes back',
      'let slot "pgjot_authenticated_2" expire no more',
      'made slot "pgjot_authenticated_2" a member of "authenticated" again',
      'installed function pgjot.sweep() anew',
    ]);
    expect(await install(admin, OPTIONS)).toEqual([]);
  });

  it('never calls a version() that somebody else put there', async () => {
    await superuser.query('CREATE DATABASE trapped OWNER admin');
    const inside = await database.superuser('trapped');
    await inside.query(`
      CREATE ROLE trapper; CREATE SCHEMA pgjot AUTHORIZATION trapper;
      CREATE FUNCTION pgjot.version() RETURNS text LANGUAGE plpgsql AS $$ BEGIN ALTER ROLE trapper SUPERUSER; RETURN '0'; END $$`);

    expect(await outcome(install(inside, OPTIONS))).toBe('42P06');

    expect(await value(superuser, `SELECT rolsuper FROM pg_roles WHERE rolname = 'trapper'`)).toBe(
      false,
    );
    await database.end(inside);
  });
});
