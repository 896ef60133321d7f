/** The installer: as an ordinary administrator and as superuser, again and again, and in bad neighbourhoods. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { derivePassword } from '../../src/session-sql/credentials.ts';
import { install, installDemo, planInstall } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import {
  bind,
  Database,
  hello,
  lease,
  outcome,
  SECRET,
  signIn,
  sqlstate,
  until,
  userId,
  value,
} from './database.ts';

const options = (slots: number) => ({ secret: SECRET, roles: { authenticated: { slots } } });

const slotsOf = async (client: pg.Client) =>
  value(
    client,
    `SELECT array_agg(rolname::text ORDER BY rolname) FROM pg_roles WHERE rolname ~ '^pgjot_authenticated_\\d+$' AND rolcanlogin`,
  );

describe.each(postgresVersions())('installing on PostgreSQL %i', (version) => {
  let database: Database;
  beforeAll(async () => {
    database = await Database.start({ version });
  });
  afterAll(() => database[Symbol.asyncDispose]());

  it('makes a slot anew whose settings only its own sessions could reset', async () => {
    const superuser = await database.superuser();
    const { rows: known } = await superuser.query(
      "SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'",
    );
    if (known.length === 0) return console.log(`no pg_trgm on PostgreSQL ${version}: not tried`);
    const admin = await database.admin();
    await install(admin, options(2));
    await superuser.query('CREATE EXTENSION pg_trgm');
    const eve = await database.login('pgjot_authenticated_1');
    // Loads the library, which makes the setting one that she may set.
    await eve.query("SELECT similarity('a', 'b')");
    await eve.query('ALTER ROLE pgjot_authenticated_1 SET pg_trgm.similarity_threshold = 0.5');
    await database.end(eve);

    const changes = await install(admin, options(2));

    const { rows } = await superuser.query(
      `SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname LIKE 'pgjot%'`,
    );
    expect(rows).toEqual([]);
    expect(changes).toContain(
      'made slot "pgjot_authenticated_1" anew, whose settings nobody can reset',
    );
    const next = await database.slot(1);
    expect((await hello(next)).dirty).toBe(false);
    await database.end(next);
    await superuser.query('DROP EXTENSION pg_trgm');
    await database.end(superuser);
    await database.end(admin);
  });

  it('works as an ordinary administrator, twice', async () => {
    const admin = await database.admin();

    await install(admin, options(3));
    await install(admin, options(3));

    expect(await slotsOf(admin)).toEqual([1, 2, 3].map((i) => `pgjot_authenticated_${i}`));
    expect(await value(admin, 'SELECT pgjot.version()')).toBe('4');
    await database.end(admin);
  });

  it('gives every login role the password that the secret derives', async () => {
    const control = await database.control();
    const slot = await database.slot(2);

    expect(await value(control, 'SELECT session_user')).toBe('pgjot_control');
    expect(await value(slot, 'SELECT session_user')).toBe('pgjot_authenticated_2');
    await database.end(control);
    await database.end(slot);
  });

  it('leaves the administrator able to write policies and unable to bind', async () => {
    const admin = await database.admin();

    expect(await userId(admin)).toBeNull();
    expect(await sqlstate(admin, `SELECT pgjot.bind(1, 1, '{}', 1)`)).toBe('42501');
    expect(await sqlstate(admin, 'SELECT * FROM pgjot.session')).toBe('42501');
    await database.end(admin);
  });

  it('makes slots and control members of what they must be and of nothing else', async () => {
    const admin = await database.admin();

    const { rows } = await admin.query({
      rowMode: 'array',
      text: `SELECT m.member::regrole::text, array_agg(m.roleid::regrole::text ORDER BY 1)
               FROM pg_auth_members m
              WHERE m.member::regrole::text ~ '^pgjot' AND m.member <> 'pgjot_owner'::regrole GROUP BY 1 ORDER BY 1`,
    });
    expect(rows).toEqual([1, 2, 3].map((i) => [`pgjot_authenticated_${i}`, ['authenticated']]));
    await database.end(admin);
  });

  it('leaves no function of ours to PUBLIC (finding 4)', async () => {
    const admin = await database.admin();

    const { rows } = await admin.query(
      `SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace IN ('pgjot'::regnamespace, 'auth'::regnamespace)
          AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))`,
    );
    expect(rows).toEqual([]);
    await database.end(admin);
  });

  it('pins the search_path of every SECURITY DEFINER function and owns them all', async () => {
    const admin = await database.admin();

    const { rows } = await admin.query(
      `SELECT p.proname, p.proowner::regrole::text AS owner, p.proconfig[1] AS setting FROM pg_proc p
        WHERE p.prosecdef AND p.pronamespace = 'pgjot'::regnamespace ORDER BY 1`,
    );
    expect(rows.map(({ proname }) => proname)).toEqual([
      'bind',
      'claims',
      ...(version >= 18 ? ['claims_otherwise'] : []),
      'greet',
      'lease',
      'release',
      'signed_claims',
      'sweep',
      'terminate',
      'unbind',
    ]);
    for (const row of rows) {
      expect(row).toMatchObject({
        owner: 'pgjot_owner',
        setting: 'search_path=pg_catalog, pg_temp',
      });
    }
    await database.end(admin);
  });

  it('raises and lowers the number of slots, sparing those that are in use', async () => {
    const admin = await database.admin();
    await install(admin, options(6));
    const control = await database.control();
    const client = await signIn(database, control, 5, 'alice');

    await install(admin, options(4));

    expect(await slotsOf(admin)).toEqual([1, 2, 3, 4].map((i) => `pgjot_authenticated_${i}`));
    expect(
      await value(
        admin,
        `SELECT rolcanlogin FROM pg_roles WHERE rolname = 'pgjot_authenticated_5'`,
      ),
    ).toBe(false);
    expect(
      await value(admin, `SELECT count(*) FROM pg_roles WHERE rolname = 'pgjot_authenticated_6'`),
    ).toBe('0');
    expect(await userId(client)).toBe('alice');
    expect(await bind(control, client.hello, 'alice')).toBe(2);
    expect(await lease(control, 10)).toHaveLength(4);
    await database.end(client);
    await until(
      async () =>
        (await value(
          admin,
          `SELECT count(*) FROM pg_stat_activity WHERE usename = 'pgjot_authenticated_5'`,
        )) === '0',
    );
    await install(admin, options(4));
    expect(
      await value(admin, `SELECT count(*) FROM pg_roles WHERE rolname = 'pgjot_authenticated_5'`),
    ).toBe('0');
    await database.end(control);
    await database.end(admin);
  });

  it('keeps a surplus slot that owns something, without login', async () => {
    const admin = await database.admin();
    await install(admin, options(5));
    await admin.query('CREATE SCHEMA keepsake');
    await admin.query('GRANT USAGE ON SCHEMA keepsake TO pgjot_authenticated_5');

    await install(admin, options(4));

    expect(
      await value(
        admin,
        `SELECT rolcanlogin FROM pg_roles WHERE rolname = 'pgjot_authenticated_5'`,
      ),
    ).toBe(false);
    await admin.query('DROP SCHEMA keepsake');
    await install(admin, options(4));
    expect(
      await value(admin, `SELECT count(*) FROM pg_roles WHERE rolname = 'pgjot_authenticated_5'`),
    ).toBe('0');
    await database.end(admin);
  });

  it('is not held up by clients in open transactions', async () => {
    const control = await database.control();
    const client = await signIn(database, control, 1, 'alice');
    await client.query('BEGIN ISOLATION LEVEL SERIALIZABLE');
    expect(await userId(client)).toBe('alice');
    const admin = await database.admin();
    await admin.query(`SET lock_timeout = '5s'`);

    await install(admin, options(4));

    expect(await userId(client)).toBe('alice');
    await database.end(client);
    await database.end(control);
    await database.end(admin);
  });

  it('sets another secret, and repairs a slot whose tenant changed its password and settings', async () => {
    const tenant = await database.slot(3);
    await tenant.query('SET ROLE NONE');
    await tenant.query(`ALTER ROLE pgjot_authenticated_3 SET search_path = evil`);
    await tenant.query(`ALTER ROLE pgjot_authenticated_3 IN DATABASE app SET search_path = evil`);
    await tenant.query(`ALTER ROLE pgjot_authenticated_3 PASSWORD 'mine'`);
    await database.end(tenant);
    expect(await outcome(database.slot(3))).toBe('28P01');

    const admin = await database.admin();
    await install(admin, options(4));

    const again = await database.slot(3);
    expect(await hello(again)).toMatchObject({ slot: 'pgjot_authenticated_3', dirty: false });
    await database.end(again);
    await install(admin, { ...options(4), secret: 'another secret of thirty-two chars' });
    expect(await outcome(database.slot(3))).toBe('28P01');
    await install(admin, options(4));
    await database.end(admin);
  });

  it('installs in a second database of the cluster, and neither takes the slots of the other away', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE second OWNER admin');
    const first = await database.admin();
    const second = await database.admin('second');

    await install(first, options(4));
    await install(second, options(4));
    await install(second, options(2));

    expect(await slotsOf(first)).toHaveLength(4);
    const control = await database.control('second');
    expect(await lease(control, 10)).toHaveLength(2);
    for (const client of [control, first, second]) await database.end(client);
    await superuser.query('DROP DATABASE second');
    await database.end(superuser);
  });

  it('retires a group that is no longer named', async () => {
    const admin = await database.admin();
    await install(admin, {
      secret: SECRET,
      roles: { authenticated: { slots: 4 }, analyst: { slots: 2 } },
    });

    await install(admin, options(4));

    expect(
      await value(admin, `SELECT count(*) FROM pg_roles WHERE rolname ~ '^pgjot_analyst'`),
    ).toBe('0');
    expect(await value(admin, `SELECT has_schema_privilege('analyst', 'pgjot', 'USAGE')`)).toBe(
      false,
    );
    expect(
      await value(admin, `SELECT has_function_privilege('analyst', 'pgjot.claims()', 'EXECUTE')`),
    ).toBe(false);
    await database.end(admin);
  });

  it('quotes group names', async () => {
    const admin = await database.admin();
    const role = `x"; DROP ROLE admin; --'\\ü`;

    await install(admin, {
      secret: SECRET,
      roles: { authenticated: { slots: 4 }, [role]: { slots: 1 } },
    });

    const slot = `pgjot_${role}_1`;
    const client = await database.login(slot);
    expect(await hello(client)).toMatchObject({ slot });
    await database.end(client);
    await install(admin, options(4));
    await database.end(admin);
  });

  it.each([
    ['SUPERUSER', '42501'],
    ['BYPASSRLS', '42501'],
    ['CREATEROLE', '42501'],
    ['REPLICATION', '42501'],
  ])('refuses a %s role as a group', async (attribute, code) => {
    const superuser = await database.superuser();
    await superuser.query(`CREATE ROLE strong ${attribute}`);
    const admin = await database.admin();

    expect(await outcome(install(admin, { secret: SECRET, roles: { strong: { slots: 1 } } }))).toBe(
      code,
    );

    await superuser.query('DROP ROLE strong');
    await database.end(superuser);
    await database.end(admin);
  });

  it('refuses roles of PostgreSQL and its own as groups', async () => {
    const admin = await database.admin();

    for (const role of ['pg_read_all_data', 'pgjot_control', 'public']) {
      expect(
        await outcome(install(admin, { secret: SECRET, roles: { [role]: { slots: 1 } } })),
      ).toBe('42939');
    }
    await database.end(admin);
  });

  it('refuses slots that are members of anything but their group', async () => {
    const admin = await database.admin();
    await admin.query('CREATE ROLE stronger');
    await admin.query('GRANT stronger TO pgjot_authenticated_1');

    expect(await outcome(install(admin, options(4)))).toBe('42501');

    await admin.query('DROP ROLE stronger');
    await install(admin, options(4));
    await database.end(admin);
  });

  it('changes nothing when it fails', async () => {
    const admin = await database.admin();
    const before = await slotsOf(admin);

    const failing = {
      secret: SECRET,
      roles: { authenticated: { slots: 9 }, pg_monitor: { slots: 1 } },
    };
    expect(await outcome(install(admin, failing))).toBe('42939');

    expect(await slotsOf(admin)).toEqual(before);
    expect(await value(admin, 'SELECT 1')).toBe(1);
    await database.end(admin);
  });

  it('adds the demo rows once, and its owner cannot read them', async () => {
    const admin = await database.admin();
    await installDemo(admin);
    await installDemo(admin);
    const superuser = await database.superuser();

    const { rows } = await superuser.query({
      rowMode: 'array',
      text: 'SELECT user_id, count(*)::int FROM public.todos GROUP BY 1 ORDER BY 1',
    });
    expect(rows).toEqual([
      ['alice', 3],
      ['bob', 2],
    ]);
    expect(await value(admin, 'SELECT count(*) FROM public.todos')).toBe('0');
    await database.end(superuser);
    await database.end(admin);
  });

  it('works as superuser, and with CONNECT revoked from PUBLIC', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE hardened');
    await superuser.query('REVOKE ALL ON DATABASE hardened FROM PUBLIC');
    const inside = await database.superuser('hardened');

    await install(inside, options(4));
    await installDemo(inside);

    const control = await database.control('hardened');
    const client = await database.slot(1, { database: 'hardened' });
    await bind(control, await hello(client), 'bob');
    expect(await value(client, 'SELECT count(*) FROM public.todos')).toBe('2');
    for (const one of [control, client, inside]) await database.end(one);
    await superuser.query('DROP DATABASE hardened');
    await database.end(superuser);
  });
});

describe('a bad neighbourhood', () => {
  let database: Database;
  beforeAll(async () => {
    database = await Database.start();
  });
  afterAll(() => database[Symbol.asyncDispose]());

  it('refuses a schema pgjot that somebody else made first', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE squatted OWNER admin');
    await superuser.query('CREATE ROLE squatter LOGIN');
    const inside = await database.superuser('squatted');
    await inside.query('CREATE SCHEMA pgjot AUTHORIZATION squatter');
    const admin = await database.admin('squatted');

    expect(await outcome(install(admin, options(2)))).toBe('42P06');

    await database.end(inside);
    await database.end(admin);
    await database.end(superuser);
  });

  it('keeps the functions of a foreign schema auth and adds what is missing', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE neighbour OWNER admin');
    const admin = await database.admin('neighbour');
    await admin.query('CREATE SCHEMA auth');
    await admin.query(
      `CREATE FUNCTION auth.uid() RETURNS text LANGUAGE sql AS $$ SELECT 'foreign' $$`,
    );
    const warnings: string[] = [];
    admin.on('notice', ({ severity, message = '' }) => {
      if (severity === 'WARNING') warnings.push(message);
    });

    await install(admin, options(2));
    await install(admin, options(2));

    expect(warnings).toHaveLength(2);
    expect(warnings[0]).toMatch(
      /auth\.uid\(\) belongs to another role and stays as it is; use pgjot\.uid\(\)/,
    );
    expect(await value(admin, 'SELECT auth.uid()')).toBe('foreign');
    expect(await value(admin, `SELECT has_schema_privilege('pgjot_owner', 'auth', 'CREATE')`)).toBe(
      false,
    );
    const client = await database.slot(1, { database: 'neighbour' });
    const control = await database.control('neighbour');
    await bind(control, await hello(client), 'alice');
    expect(await userId(client)).toBe('alice');
    for (const one of [control, client, admin, superuser]) await database.end(one);
  });

  it('leaves a schema auth alone in which the administrator may not create (Supabase)', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE supabase OWNER admin');
    const inside = await database.superuser('supabase');
    await inside.query('CREATE SCHEMA auth');
    const admin = await database.admin('supabase');

    await install(admin, options(2));

    expect(
      await value(inside, `SELECT count(*) FROM pg_proc WHERE pronamespace = 'auth'::regnamespace`),
    ).toBe('0');
    expect(await value(admin, 'SELECT pgjot.user_id()')).toBeNull();
    for (const one of [inside, admin, superuser]) await database.end(one);
  });

  it('is not misled by operators in the search_path of the administrator', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE trapped OWNER admin');
    const inside = await database.superuser('trapped');
    await inside.query('CREATE SCHEMA trap');
    await inside.query(
      `CREATE FUNCTION trap.spring(name, name) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung'; END $$`,
    );
    await inside.query(
      'CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = name, FUNCTION = trap.spring)',
    );
    await inside.query(
      'CREATE OPERATOR trap.<> (LEFTARG = name, RIGHTARG = name, FUNCTION = trap.spring)',
    );
    await inside.query('GRANT USAGE ON SCHEMA trap TO PUBLIC');
    const admin = await database.admin('trapped');
    await admin.query('SET search_path = trap, pg_catalog');
    expect(await sqlstate(admin, `SELECT 'a'::name = 'b'::name`)).toBe('P0001');

    await install(admin, options(2));
    await installDemo(admin);

    for (const one of [inside, admin, superuser]) await database.end(one);
  });
});

describe('planInstall', () => {
  it('holds neither the secret nor a password', async () => {
    const plan = (await planInstall(options(3))).join('\n');

    expect(plan).not.toContain(SECRET);
    for (const role of ['pgjot_control', 'pgjot_authenticated_1', 'pgjot_authenticated_3']) {
      expect(plan).not.toContain(derivePassword(SECRET, role));
    }
    expect(plan.match(/SCRAM-SHA-256\$4096:[A-Za-z\d+/=]{24}\$/g)).toHaveLength(4);
  });

  it('is a script that does what install does', async () => {
    await using database = await Database.start();
    const admin = await database.admin();

    for (const statement of await planInstall(options(2))) await admin.query(statement);

    expect(await slotsOf(admin)).toEqual(['pgjot_authenticated_1', 'pgjot_authenticated_2']);
    const control = await database.control();
    const client = await signIn(database, control, 2, 'alice');
    expect(await userId(client)).toBe('alice');
  });

  it.each([0, -1, 1.5, 10_001])('refuses %s slots', async (slots) => {
    await expect(planInstall(options(slots))).rejects.toThrow(/between 1 and 10000 slots/);
  });

  it('refuses a group whose slots would have too long a name', async () => {
    await expect(
      planInstall({ secret: SECRET, roles: { ['r'.repeat(56)]: { slots: 1 } } }),
    ).rejects.toThrow(TypeError);
  });
});

describe('the log of the server', () => {
  it('shows no verifier where DDL is logged', async () => {
    const lines: string[] = [];
    await using database = await Database.start({
      settings: { log_statement: 'ddl' },
      onLog: (line) => lines.push(line),
    });
    const admin = await database.admin();

    await install(admin, options(2));
    await admin.query('CREATE TABLE the_end ()');
    await until(async () => lines.some((line) => line.includes('the_end')));

    expect(lines.some((line) => line.includes('CREATE UNLOGGED TABLE'))).toBe(true);
    expect(lines.filter((line) => line.includes('SCRAM-SHA-256$4096'))).toEqual([]);
  });
});
