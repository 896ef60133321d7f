/**
 * The client is hostile and runs any SQL it likes: the attacks on the session's identity, by name.
 *
 * Section E of the attack catalogue, on the SQL objects alone: slots log in directly, no proxy between.
 */
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { install } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import {
  bind,
  Database,
  greet,
  hello,
  SECRET,
  signIn,
  sqlstate,
  unbind,
  userId,
  value,
} from './database.ts';

const ANALYSTS = { authenticated: { slots: 6 }, analyst: { slots: 1 } };

describe.each(postgresVersions())('a hostile client on PostgreSQL %i', (version) => {
  let database: Database;
  let control: pg.Client;
  let mallory: Awaited<ReturnType<typeof signIn>>;

  beforeAll(async () => {
    database = await Database.installed(6, { version });
    const admin = await database.admin();
    await install(admin, { secret: SECRET, roles: ANALYSTS });
    await database.end(admin);
    control = await database.control();
    mallory = await signIn(database, control, 1, 'mallory');
  });
  afterAll(() => database[Symbol.asyncDispose]());

  // One backend for all: what one attack leaves behind must not help the next either.
  beforeEach(async () => {
    await mallory.query('ROLLBACK');
    await mallory.query('DISCARD ALL');
    await bind(control, mallory.hello, 'mallory');
  });

  /** What E11 leaves behind is what a repeated setup mends. */
  const repair = async () => {
    const admin = await database.admin();
    await install(admin, { secret: SECRET, roles: ANALYSTS });
    await database.end(admin);
  };

  it.each([
    `SET request.jwt.claims = '{"sub":"alice"}'`,
    `SET request.jwt.claim.sub = 'alice'`,
    `SELECT set_config('request.jwt.claims', '{"sub":"alice"}', false)`,
    `SET pgjot.claims = '{"sub":"alice"}'`,
    `SET pgjot.user_id = 'alice'`,
    `SET pg_session_jwt.jwt = 'eyJ'`,
  ])('E1: is not believed: %s', async (statement) => {
    await mallory.query(statement);

    expect(await userId(mallory)).toBe('mallory');
    expect(await tasks(mallory)).toEqual([]);
  });

  it.each([
    'SET ROLE pgjot_control',
    'SET ROLE pgjot_owner',
    'SET ROLE pgjot_authenticated_2',
    'SET ROLE admin',
    'SET ROLE postgres',
    'SET ROLE pg_read_all_data',
    'SET SESSION AUTHORIZATION pgjot_control',
    'SET SESSION AUTHORIZATION postgres',
    `SELECT set_config('role', 'pgjot_control', false)`,
    'CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET role = pgjot_control AS $$ SELECT 1 $$; SELECT pg_temp.f()',
  ])('E2: becomes nobody by %s', async (statement) => {
    expect(await sqlstate(mallory, statement)).toBe('42501');
    expect(await userId(mallory)).toBe('mallory');
  });

  it.each([
    ['RESET ROLE', 'authenticated'],
    ['SET ROLE NONE', 'pgjot_authenticated_1'],
    ['SET SESSION AUTHORIZATION DEFAULT', undefined],
  ])('E2: stays who it is after %s', async (statement, role) => {
    await mallory.query(statement);

    expect(await userId(mallory)).toBe('mallory');
    if (role !== undefined) expect(await value(mallory, 'SELECT current_user')).toBe(role);
  });

  it.each([
    'SET ROLE analyst',
    'GRANT analyst TO authenticated',
    'GRANT authenticated TO analyst',
    'GRANT authenticated TO pgjot_analyst_1',
    'GRANT pgjot_control TO authenticated',
  ])('E3: reaches no other group by %s', async (statement) => {
    expect(await sqlstate(mallory, statement)).toBe('42501');
    await mallory.query('SET ROLE NONE');
    expect(await sqlstate(mallory, statement)).toBe('42501');
  });

  it.each([
    'RESET ALL',
    'DISCARD ALL',
    'DISCARD TEMP',
    'DISCARD PLANS',
    'DISCARD SEQUENCES',
    'ROLLBACK',
  ])('E4: keeps its identity and role over %s', async (statement) => {
    await mallory.query('SET ROLE NONE');

    await mallory.query(statement);
    await mallory.query('RESET ROLE');

    expect(await userId(mallory)).toBe('mallory');
    expect(await value(mallory, 'SELECT current_user')).toBe('authenticated');
  });

  it('E4: DISCARD ALL itself returns to the role of the StartupMessage', async () => {
    await mallory.query('SET ROLE NONE');

    await mallory.query('DISCARD ALL');

    expect(await value(mallory, 'SELECT current_user')).toBe('authenticated');
  });

  it.each([
    `SELECT pgjot.bind(pg_backend_pid(), 1, '{"sub":"alice"}', 4102444800000)`,
    'SELECT pgjot.unbind(pg_backend_pid(), 1)',
    'SELECT pgjot.terminate(pg_backend_pid(), 1)',
    `SELECT pgjot.lease('authenticated', 1)`,
    `SELECT pgjot.release('pgjot_authenticated_1')`,
    'SELECT pgjot.sweep()',
    `SELECT pgjot.greet(pg_backend_pid(), 'pgjot_authenticated_1')`,
    'SELECT pgjot.assert_control()',
    'SELECT pgjot.backends(NULL)',
    'SELECT * FROM pgjot.session',
    `UPDATE pgjot.session SET claims = '{"sub":"alice"}'`,
    `INSERT INTO pgjot.session SELECT 1, 1, NULL, NULL, 1, '{}', now(), now()`,
    'DELETE FROM pgjot.session',
    'TRUNCATE pgjot.session',
    'BEGIN; LOCK TABLE pgjot.session IN ACCESS SHARE MODE',
    'COPY pgjot.session TO STDOUT',
    'SELECT * FROM pgjot.lease',
    'SELECT 1 FROM pgjot.slot_group FOR UPDATE',
    'DELETE FROM pgjot.slot',
    'CREATE TABLE pgjot.mine ()',
    'CREATE FUNCTION auth.mine() RETURNS int LANGUAGE sql RETURN 1',
    'CREATE OR REPLACE FUNCTION pgjot.claims() RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb $$',
    `CREATE OR REPLACE FUNCTION auth.user_id() RETURNS text LANGUAGE sql AS $$ SELECT 'alice' $$`,
    'DROP FUNCTION auth.user_id() CASCADE',
    'DROP SCHEMA pgjot CASCADE',
    'ALTER FUNCTION pgjot.claims() SET search_path = evil',
    'ALTER FUNCTION pgjot.claims() OWNER TO authenticated',
    'ALTER TABLE pgjot.session DISABLE TRIGGER ALL',
    'CREATE TRIGGER t BEFORE INSERT ON pgjot.session EXECUTE FUNCTION suppress_redundant_updates_trigger()',
    'CREATE POLICY p ON public.todos USING (true)',
    'ALTER TABLE public.todos DISABLE ROW LEVEL SECURITY',
    'GRANT EXECUTE ON FUNCTION pgjot.sweep() TO authenticated',
  ])('E5: is refused %s', async (statement) => {
    const refused = ['42501', '01007'];
    expect(refused).toContain(await sqlstate(mallory, statement));
    await mallory.query('ROLLBACK');
    await mallory.query('SET ROLE NONE');
    expect(refused).toContain(await sqlstate(mallory, statement));
    await mallory.query('ROLLBACK');
    expect(await userId(mallory)).toBe('mallory');
  });

  it('E5: does not deceive the readers with temporary objects and search_path', async () => {
    await mallory.query(`
      CREATE TEMP TABLE session AS
        SELECT pg_backend_pid() AS pid, '{"sub":"alice"}'::jsonb AS claims, 'infinity'::timestamptz AS expires_at,
               inet_client_addr() AS client_addr, inet_client_port() AS client_port, 1::int8 AS backend_start;
      CREATE FUNCTION pg_temp.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 1';
      CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '-infinity'::timestamptz $$;
      CREATE FUNCTION pg_temp.claims() RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"sub":"alice"}'::jsonb $$;
      CREATE FUNCTION pg_temp.user_id() RETURNS text LANGUAGE sql AS $$ SELECT 'alice' $$;
      CREATE FUNCTION pg_temp.always(anyelement, anyelement) RETURNS bool LANGUAGE sql AS 'SELECT true';
      CREATE FUNCTION pg_temp.alice(jsonb, text) RETURNS text LANGUAGE sql AS $$ SELECT 'alice' $$;
      CREATE OPERATOR pg_temp.= (LEFTARG = anyelement, RIGHTARG = anyelement, FUNCTION = pg_temp.always);
      CREATE OPERATOR pg_temp.> (LEFTARG = anyelement, RIGHTARG = anyelement, FUNCTION = pg_temp.always);
      CREATE OPERATOR pg_temp.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = pg_temp.alice);
      SET search_path = pg_temp, pg_catalog`);

    expect(await userId(mallory)).toBe('mallory');
    expect(await value(mallory, 'SELECT pgjot.uid()')).toBeNull();
    expect(await value(mallory, `SELECT auth.jwt() OPERATOR(pg_catalog.->>) 'sub'`)).toBe(
      'mallory',
    );
    expect(await value(mallory, 'SELECT pid FROM pgjot.hello()')).toBe(mallory.hello.pid);
    expect(await tasks(mallory)).toEqual([]);
  });

  it('E5: does not deceive the readers with a schema of its own in front of pg_catalog', async () => {
    const alice = await signIn(database, control, 2, 'alice');
    const superuser = await database.superuser();
    await superuser.query('GRANT CREATE ON DATABASE app TO authenticated');
    // As strong as it gets: it knows alice's pid and port, and whoever runs may use the schema.
    const port = await value(alice, 'SELECT inet_client_port()');
    await mallory.query(`
      CREATE SCHEMA evil;
      GRANT USAGE ON SCHEMA evil TO PUBLIC;
      CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT ${alice.hello.pid}';
      CREATE FUNCTION evil.inet_client_port() RETURNS int LANGUAGE sql AS 'SELECT ${String(port)}';
      CREATE FUNCTION evil.alice(jsonb, text) RETURNS text LANGUAGE sql AS $$ SELECT 'alice' $$;
      CREATE OPERATOR evil.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = evil.alice);
      SET search_path = evil, pg_catalog`);
    expect(await value(mallory, 'SELECT pg_backend_pid()')).toBe(alice.hello.pid);

    expect(await userId(mallory)).toBe('mallory');
    expect(await tasks(mallory)).toEqual([]);
    const { pid, start } = mallory.hello;
    expect(await hello(mallory)).toMatchObject({ pid, start });
    await mallory.query('DROP SCHEMA evil CASCADE');
    await superuser.query('REVOKE CREATE ON DATABASE app FROM authenticated');
    await database.end(superuser);
    await database.end(alice);
  });

  it('E6: cannot go back to an identity that was replaced, not by ROLLBACK either', async () => {
    await mallory.query('BEGIN');
    await mallory.query('SAVEPOINT before');
    expect(await userId(mallory)).toBe('mallory');
    await bind(control, mallory.hello, 'bob');

    expect(await userId(mallory)).toBe('bob');
    await mallory.query('ROLLBACK TO before');
    expect(await userId(mallory)).toBe('bob');
    await mallory.query('ROLLBACK');
    expect(await userId(mallory)).toBe('bob');
  });

  it('E7: reads nothing of what others run, and finds no claims where the proxy spoke', async () => {
    const alice = await signIn(database, control, 2, { sub: 'alice', secret: 'claim-of-alice' });
    await alice.query(`SELECT 'sql-of-alice'`);

    const { rows } = await mallory.query(
      `SELECT usename, query, client_addr, backend_start FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND usename ~ '^pgjot_'`,
    );
    expect(rows.length).toBeGreaterThanOrEqual(2);
    for (const row of rows) {
      expect(row).toMatchObject({
        query: '<insufficient privilege>',
        client_addr: null,
        backend_start: null,
      });
    }
    const superuser = await database.superuser();
    const seen = JSON.stringify((await superuser.query('SELECT * FROM pg_stat_activity')).rows);
    expect(seen).toContain('sql-of-alice');
    expect(seen).toContain('pgjot.bind($1, $2, $3, $4)');
    expect(seen).not.toContain('claim-of-alice');
    await database.end(superuser);
    await database.end(alice);
  });

  it.each(['auto', 'force_generic_plan'])(
    'E8: a cached plan follows the identity (%s)',
    async (mode) => {
      await mallory.query(`SET plan_cache_mode = ${mode}`);
      await mallory.query('PREPARE mine AS SELECT task FROM public.todos WHERE id > $1');
      const run = async () => (await mallory.query('EXECUTE mine(0)')).rowCount;
      for (let i = 0; i < 6; i += 1) expect(await run()).toBe(0);

      await bind(control, mallory.hello, 'alice');
      expect(await run()).toBe(3);
      await bind(control, mallory.hello, 'bob');
      expect(await run()).toBe(2);
      await unbind(control, mallory.hello);
      expect(await run()).toBe(0);
    },
  );

  it('E9: parallel plans see the same rows, wrapped or not', async () => {
    const superuser = await database.superuser();
    await superuser.query(`
      CREATE TABLE wide AS
        SELECT i AS id, CASE WHEN i % 4 = 0 THEN 'mallory' ELSE 'alice' END AS user_id, repeat('x', 200) AS filler
          FROM generate_series(1, 40000) i;
      ALTER TABLE wide ENABLE ROW LEVEL SECURITY;
      GRANT SELECT ON wide TO authenticated;
      ANALYZE wide`);
    await mallory.query(`
      SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
      SET max_parallel_workers_per_gather = 2`);

    const counts: unknown[] = [];
    const plans: string[] = [];
    for (const who of ['(SELECT auth.user_id())', 'auth.user_id()']) {
      await superuser.query('DROP POLICY IF EXISTS own ON wide');
      await superuser.query(
        `CREATE POLICY own ON wide FOR SELECT TO authenticated USING (user_id = ${who})`,
      );
      const { rows } = await mallory.query(
        'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(*) FROM wide',
      );
      plans.push(rows.map((row) => String(row['QUERY PLAN'])).join('\n'));
      counts.push(await value(mallory, 'SELECT count(*) FROM wide'));
    }

    expect(counts).toEqual(['10000', '10000']);
    expect(plans[0]).toMatch(/Workers Launched: [12]/);
    expect(plans[1]).not.toMatch(/Workers/);
    await superuser.query('DROP TABLE wide');
    await database.end(superuser);
  });

  it('E10: is nobody once its token has expired, in the middle of one statement too', async () => {
    const expiresAt = Date.now() + 1_000;
    await bind(control, mallory.hello, 'alice', expiresAt);

    await mallory.query(`DO $$
      BEGIN
        ASSERT auth.user_id() = 'alice', 'was alice';
        WHILE clock_timestamp() <= to_timestamp(${expiresAt} / 1000.0) LOOP PERFORM pg_sleep(0.01); END LOOP;
        ASSERT auth.user_id() IS NULL, 'is nobody';
        ASSERT (SELECT count(*) FROM public.todos) = 0, 'sees nothing';
      END $$`);

    expect(await userId(mallory)).toBeNull();
    expect(await sqlstate(mallory, `INSERT INTO public.todos (task) VALUES ('late')`)).toMatch(
      /^(42501|23502)$/,
    );
  });

  it('E10: is nobody from the statement after an unbind', async () => {
    await mallory.query('BEGIN');
    expect(await userId(mallory)).toBe('mallory');

    expect(await unbind(control, mallory.hello)).toBe(true);

    expect(await userId(mallory)).toBeNull();
    expect(await tasks(mallory)).toEqual([]);
    await mallory.query('ROLLBACK');
  });

  it.each([
    `ALTER ROLE pgjot_authenticated_1 SET search_path = evil`,
    `ALTER ROLE pgjot_authenticated_1 IN DATABASE app SET statement_timeout = 1000`,
    `ALTER ROLE CURRENT_USER SET role = 'pgjot_authenticated_1'`,
    `ALTER ROLE CURRENT_USER SET session_preload_libraries = ''`,
  ])('E11: spoils its slot visibly by %s', async (statement) => {
    await mallory.query('SET ROLE NONE');
    const spoilt = await sqlstate(mallory, statement);
    await database.end(mallory);

    mallory = await signIn(database, control, 1, 'mallory');
    // session_preload_libraries is not for everybody to set; then nothing may have changed.
    expect(mallory.hello.dirty).toBe(spoilt === '00000');
    expect((await greet(control, mallory.hello)).dirty).toBe(spoilt === '00000');
    expect(['00000', '42501']).toContain(spoilt);
    expect(await value(mallory, 'SELECT current_user')).toBe('authenticated');
    expect(await userId(mallory)).toBe('mallory');
    await repair();
  });

  it.each([
    `ALTER ROLE pgjot_authenticated_1 VALID UNTIL 'infinity'`,
    'ALTER ROLE pgjot_authenticated_1 CONNECTION LIMIT 10',
    'ALTER ROLE pgjot_authenticated_1 CREATEROLE',
    'ALTER ROLE pgjot_authenticated_1 BYPASSRLS',
    'ALTER ROLE pgjot_authenticated_2 RENAME TO mine',
    `ALTER ROLE pgjot_authenticated_2 PASSWORD 'mine'`,
    'ALTER ROLE pgjot_authenticated_2 SET search_path = evil',
    `ALTER ROLE pgjot_control PASSWORD 'mine'`,
    'ALTER DATABASE app SET search_path = evil',
    'DROP ROLE pgjot_authenticated_2',
  ])('E11: is refused %s', async (statement) => {
    expect(await sqlstate(mallory, statement)).toBe('42501');
    await mallory.query('SET ROLE NONE');
    expect(await sqlstate(mallory, statement)).toBe('42501');
  });

  it.each([
    'GRANT pgjot_authenticated_1 TO pgjot_authenticated_2',
    'GRANT pgjot_authenticated_1 TO pgjot_authenticated_2 WITH ADMIN OPTION',
    'REVOKE pgjot_authenticated_1 FROM pgjot_owner',
  ])('E11: before version 15, spoils its slot visibly by %s', async (statement) => {
    await mallory.query('SET ROLE NONE');

    const spoilt = await sqlstate(mallory, statement);

    expect(spoilt).toBe(version >= 15 ? '42501' : '00000');
    expect((await hello(mallory)).dirty).toBe(version < 15);
    expect((await greet(control, mallory.hello)).dirty).toBe(version < 15);
    await repair();
    expect((await hello(mallory)).dirty).toBe(false);
    expect((await greet(control, mallory.hello)).dirty).toBe(false);
  });

  it.each([
    'DROP OWNED BY authenticated',
    'DROP OWNED BY authenticated CASCADE',
    'DROP OWNED BY CURRENT_USER',
    'DROP OWNED BY authenticated, pgjot_authenticated_1 CASCADE',
    'DROP OWNED BY parent',
  ])('E11: deletes no policy by %s', async (statement) => {
    const admin = await database.admin();
    await admin.query('CREATE ROLE parent; GRANT parent TO authenticated');
    await repair();
    const policies = 'SELECT array_agg(polname::text ORDER BY 1) FROM pg_policy';
    const before = await value(admin, policies);

    expect(await sqlstate(mallory, statement)).toBe('42501');
    await mallory.query('SET ROLE NONE');
    expect(await sqlstate(mallory, statement.replace('CURRENT_USER', 'authenticated'))).toBe(
      '42501',
    );
    await mallory.query('DROP OWNED BY pgjot_authenticated_1 CASCADE');

    expect(before).toHaveLength(4);
    expect(await value(admin, policies)).toEqual(before);
    expect(await userId(mallory)).toBe('mallory');
    expect((await hello(mallory)).dirty).toBe(false);
    await admin.query('REVOKE parent FROM authenticated');
    await database.end(admin);
    const superuser = await database.superuser();
    await superuser.query('DROP OWNED BY parent; DROP ROLE parent');
    await database.end(superuser);
  });

  it('E11: cannot disarm what keeps the policies', async () => {
    const statement = 'REVOKE ALL (wire) ON pgjot.drop_owned_guard FROM authenticated';
    await sqlstate(mallory, statement);
    await sqlstate(mallory, statement.replace(' (wire)', ''));

    expect(await sqlstate(mallory, 'DROP OWNED BY authenticated')).toBe('42501');
  });

  it('E11: ALTER ROLE on the group has no effect on anybody', async () => {
    const changed = await sqlstate(mallory, `ALTER ROLE authenticated SET search_path = evil`);
    const alice = await signIn(database, control, 2, 'alice');

    expect(await value(alice, 'SHOW search_path')).toBe('"$user", public');
    expect(alice.hello.dirty).toBe(false);

    expect(changed).toBe('00000');
    await mallory.query('ALTER ROLE authenticated RESET ALL');
    await database.end(alice);
  });

  it('E12: ends and cancels nobody else', async () => {
    const alice = await signIn(database, control, 2, 'alice');
    const superuser = await database.superuser();
    const victims = [
      alice.hello.pid,
      await value(control, 'SELECT pg_backend_pid()'),
      await value(superuser, 'SELECT pg_backend_pid()'),
    ];

    for (const pid of victims) {
      expect(await sqlstate(mallory, 'SELECT pg_terminate_backend($1)', [pid])).toBe('42501');
      expect(await sqlstate(mallory, 'SELECT pg_cancel_backend($1)', [pid])).toBe('42501');
    }
    expect(await userId(alice)).toBe('alice');
    await database.end(alice);
    await database.end(superuser);
  });

  it('E13: squatting advisory locks keeps nobody from a slot', async () => {
    await mallory.query(`
      SELECT count(pg_advisory_lock(i)) FROM generate_series(-500, 500) i;
      SELECT count(pg_advisory_lock(oid::int8)) FROM pg_roles;
      SELECT count(pg_advisory_lock(hashtext(rolname))) FROM pg_roles`);
    const worker = await database.control();
    await worker.query(`SET statement_timeout = '2s'`);

    const { rows } = await worker.query(`SELECT pgjot.lease('authenticated', 10) AS slot`);

    expect(rows.length).toBeGreaterThanOrEqual(4);
    await database.end(worker);
  });

  it('sees its own rows and nobody else’s, and cannot write in another name', async () => {
    const alice = await signIn(database, control, 2, 'alice');
    await alice.query('BEGIN');

    expect(await tasks(alice)).toHaveLength(3);
    await alice.query(`INSERT INTO public.todos (task) VALUES ('mine')`);
    expect(await tasks(alice)).toContain('mine');
    expect(
      (await alice.query(`UPDATE public.todos SET done = true WHERE user_id = 'bob'`)).rowCount,
    ).toBe(0);
    expect(
      await sqlstate(alice, `INSERT INTO public.todos (user_id, task) VALUES ('bob', 'forged')`),
    ).toBe('42501');
    await alice.query('ROLLBACK');
    await database.end(alice);
  });

  it('finds its rows by the index', async () => {
    const superuser = await database.superuser();
    await superuser.query('BEGIN');
    await superuser.query(
      `INSERT INTO public.todos (user_id, task) SELECT 'user ' || i, 'x' FROM generate_series(1, 20000) i`,
    );
    await superuser.query('COMMIT');
    await superuser.query('ANALYZE public.todos');

    const { rows } = await mallory.query('EXPLAIN (COSTS OFF) SELECT * FROM public.todos');

    const plan = rows.map((row) => String(row['QUERY PLAN'])).join('\n');
    expect(plan).toMatch(/Index.* using todos_user_id|Bitmap Index Scan on todos_user_id/);
    await superuser.query(`DELETE FROM public.todos WHERE user_id LIKE 'user %'`);
    await database.end(superuser);
  });
});

describe('an administrator who makes a mistake', () => {
  it('has not given bind away by granting it to PUBLIC (finding 4)', async () => {
    await using database = await Database.installed(2);
    const superuser = await database.superuser();
    await superuser.query('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgjot TO PUBLIC');
    const control = await database.control();
    const mallory = await signIn(database, control, 1, 'mallory');
    const { pid, start } = mallory.hello;

    const claims = '{"sub":"alice"}';
    const inAYear = Date.now() + 31_536_000_000;
    expect(
      await sqlstate(mallory, 'SELECT pgjot.bind($1, $2, $3, $4)', [pid, start, claims, inAYear]),
    ).toBe('42501');
    expect(await sqlstate(mallory, 'SELECT pgjot.unbind($1, $2)', [pid, start])).toBe('42501');
    expect(await sqlstate(mallory, 'SELECT pgjot.terminate($1, $2)', [pid, start])).toBe('42501');
    expect(await sqlstate(mallory, `SELECT pgjot.lease('authenticated', 2)`)).toBe('42501');
    expect(await sqlstate(mallory, `SELECT pgjot.release('pgjot_authenticated_1')`)).toBe('42501');
    expect(await sqlstate(mallory, 'SELECT pgjot.sweep()')).toBe('42501');
    expect(
      await sqlstate(superuser, 'SELECT pgjot.bind($1, $2, $3, $4)', [pid, start, claims, inAYear]),
    ).toBe('42501');
    expect(await userId(mallory)).toBe('mallory');
  });
});

async function tasks(client: pg.Client): Promise<unknown[]> {
  const { rows } = await client.query('SELECT task FROM public.todos ORDER BY id');
  return rows.map(({ task }: { task: string }) => task);
}
