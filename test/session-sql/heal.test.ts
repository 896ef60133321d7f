/** `pgjot.heal()`: what it mends, whom it refuses, and that the role which may do it can do nothing else. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { derivePassword, scramVerifier } from '../../src/session-sql/credentials.ts';
import { install, uninstall, type InstallOptions } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { until } from '../support/stack.ts';
import { bind, Database, hello, outcome, SECRET, sqlstate, userId, value } from './database.ts';

// A group whose name has to be quoted, in SQL and inside it.
const ODD = `o'dd "group"`;
const OPTIONS: InstallOptions = {
  secret: SECRET,
  roles: { authenticated: { slots: 2 }, [ODD]: { slots: 1 } },
  healSlots: true,
};
const SLOT = 'pgjot_authenticated_1';
const verifierOf = (slot: string) => scramVerifier(derivePassword(SECRET, slot));

const ROLE_STATE = `
  SELECT r.rolname, r.rolcanlogin, r.rolinherit, r.rolconnlimit, r.rolsuper, r.rolcreaterole,
         r.rolpassword, r.rolvaliduntil::text,
         ARRAY(SELECT s.setconfig::text FROM pg_db_role_setting s WHERE s.setrole = r.oid) AS settings,
         ARRAY(SELECT m.member::regrole::text FROM pg_auth_members m WHERE m.roleid = r.oid ORDER BY 1) AS members
    FROM pg_authid r WHERE r.rolname = $1`;

describe.each(postgresVersions())('pgjot.heal() on PostgreSQL %i', (version) => {
  const serverLog: string[] = [];
  let database: Database;
  let admin: pg.Client;
  let superuser: pg.Client;
  let control: pg.Client;
  beforeAll(async () => {
    database = await Database.start({ version, onLog: (line) => void serverLog.push(line) });
    admin = await database.admin();
    superuser = await database.superuser();
    await install(admin, OPTIONS);
    await superuser.query(
      'CREATE ROLE chief SUPERUSER LOGIN; CREATE ROLE passer_by LOGIN PASSWORD $$p$$; CREATE ROLE spy',
    );
    control = await database.control();
  });
  afterAll(() => database[Symbol.asyncDispose]());

  const state = async (role: string) => (await superuser.query(ROLE_STATE, [role])).rows[0];
  const states = async (roles: readonly string[]) => {
    const found: unknown[] = [];
    for (const role of roles) found.push(await state(role));
    return found;
  };
  const heal = async (slot: string | null, verifier?: string | null) =>
    value(control, 'SELECT pgjot.heal($1, $2)', [
      slot,
      verifier === undefined ? await verifierOf(slot ?? '') : verifier,
    ]);
  const letsIn = async (slot: string, role: string) => {
    const client = await database.login(slot, {
      options: `-c role=${role.replaceAll(/[ \\]/g, '\\$&')}`,
    });
    const { dirty } = await hello(client);
    await database.end(client);
    return !dirty;
  };

  it.each([
    ['password', `PASSWORD 'mine'`, '28P01'],
    ['removed password', 'PASSWORD NULL', '28P01'],
    ['expiry', `VALID UNTIL '2001-01-01'`, '28P01'],
    ['connection limit', 'CONNECTION LIMIT 0', '53300'],
    ['setting that lets nobody in', `SET local_preload_libraries = 'nowhere'`, '58P01'],
  ])('mends a changed %s', async (_, change, refusal) => {
    await superuser.query(`ALTER ROLE ${SLOT} ${change}`);
    expect(await outcome(database.slot(1))).toBe(refusal);

    expect(await heal(SLOT)).toBe(true);

    expect(await letsIn(SLOT, 'authenticated')).toBe(true);
  });

  it.each([
    ['of the role', `ALTER ROLE ${SLOT} SET search_path = evil`],
    ['in this database', `ALTER ROLE ${SLOT} IN DATABASE app SET row_security = off`],
    ['in another database', `ALTER ROLE ${SLOT} IN DATABASE postgres SET work_mem = '64kB'`],
  ])('removes settings %s', async (_, change) => {
    await superuser.query(change);

    expect(await heal(SLOT)).toBe(true);

    expect(await state(SLOT)).toMatchObject({ settings: [] });
    expect(await letsIn(SLOT, 'authenticated')).toBe(true);
  });

  it('takes away what it may of the settings, and leaves the others for the slot itself or a superuser', async () => {
    await superuser.query(`
      ALTER ROLE ${SLOT} SET role = 'none'; ALTER ROLE ${SLOT} SET jit = off;
      ALTER ROLE ${SLOT} IN DATABASE app SET session_authorization = '${SLOT}';
      ALTER ROLE ${SLOT} SET log_statement = 'none'; ALTER ROLE ${SLOT} SET "odd.Name" = 'x'`);

    expect(await heal(SLOT)).toBe(true);

    const { settings } = (await state(SLOT)) as { settings: string[] };
    expect(settings.toSorted()).toEqual([
      '{role=none,log_statement=none,odd.Name=x}',
      `{session_authorization=${SLOT}}`,
    ]);
    await superuser.query(
      `ALTER ROLE ${SLOT} RESET ALL; ALTER ROLE ${SLOT} IN DATABASE app RESET ALL`,
    );
  });

  it('mends everything at once, in a slot of an odd name, and touches nothing else', async () => {
    const slot = `pgjot_${ODD}_1`;
    const quoted = `"${slot.replaceAll('"', '""')}"`;
    const others = [
      'authenticated',
      ODD,
      'pgjot_authenticated_2',
      'pgjot_control',
      'pgjot_owner',
      'pgjot_healer',
    ];
    const before = await states(others);
    await superuser.query(`
      ALTER ROLE ${quoted} NOINHERIT CONNECTION LIMIT 7 PASSWORD 'x' VALID UNTIL '2001-01-01';
      ALTER ROLE ${quoted} SET work_mem = '64kB'; ALTER ROLE ${quoted} IN DATABASE app SET jit = off`);
    const verifier = await verifierOf(slot);

    expect(await heal(slot, verifier)).toBe(true);

    expect(await state(slot)).toMatchObject({
      rolcanlogin: true,
      rolinherit: true,
      rolconnlimit: 1,
      rolsuper: false,
      rolpassword: verifier,
      rolvaliduntil: 'infinity',
      settings: [],
    });
    expect(await letsIn(slot, ODD)).toBe(true);
    expect(await states(others)).toEqual(before);
  });

  it('takes back what a user granted of its slot, where PostgreSQL lets users do that', async () => {
    const client = await database.slot(1);
    await client.query('SET ROLE NONE');
    const granted = await sqlstate(client, `GRANT ${SLOT} TO spy`);
    await database.end(client);
    expect(granted).toBe(version < 15 ? '00000' : '42501');

    expect(await heal(SLOT)).toBe(true);

    const healer = version >= 16 ? ['pgjot_healer'] : [];
    const { members } = (await state(SLOT)) as { members: string[] };
    expect(members.filter((one) => one !== 'admin')).toEqual([...healer, 'pgjot_owner']);
    expect(await letsIn(SLOT, 'authenticated')).toBe(true);
  });

  it('lets a live session of the slot go on, as who it is', async () => {
    const client = await database.slot(2);
    await bind(control, await hello(client), 'alice');

    expect(await heal('pgjot_authenticated_2')).toBe(true);

    expect(await userId(client)).toBe('alice');
    await database.end(client);
  });

  it('gives no login back: setup takes it from slots that retire, an administrator from whom he suspects', async () => {
    await superuser.query(`ALTER ROLE ${SLOT} NOLOGIN`);

    expect(await heal(SLOT)).toBe(false);

    expect(await state(SLOT)).toMatchObject({ rolcanlogin: false });
    await superuser.query(`ALTER ROLE ${SLOT} LOGIN`);
  });

  it.each([
    'postgres',
    'chief',
    'admin',
    'passer_by',
    'authenticated',
    'pgjot_control',
    'pgjot_owner',
    'pgjot_healer',
    'pgjot_authenticated_3',
    `${SLOT} SUPERUSER`,
    'nobody',
    '',
  ])('leaves role "%s", which is no slot, as it is', async (role) => {
    const before = await state(role);

    expect(await heal(role, await verifierOf('x'))).toBe(false);

    expect(await state(role)).toEqual(before);
  });

  it('leaves a superuser alone whose name an administrator has put on the list', async () => {
    await superuser.query(`
      INSERT INTO pgjot.slot VALUES ('chief', 'authenticated', 99);
      ALTER ROLE chief SET work_mem = '64kB'`);
    const before = await state('chief');

    serverLog.length = 0;
    const failure: unknown = await heal('chief', await verifierOf('x')).catch(
      (error: unknown) => error,
    );
    expect(failure).toMatchObject({ code: '42501' });

    // The statement that failed has the verifier in it.
    await until(() => serverLog.some((line) => line.includes('SELECT pgjot.heal($1, $2)')));
    const seen = `${serverLog.join('\n')} ${JSON.stringify(failure)}`;
    expect(seen).not.toContain('SCRAM-SHA-256$');
    expect(await state('chief')).toEqual(before);
    await superuser.query(`DELETE FROM pgjot.slot WHERE slot = 'chief'`);
  });

  it.each([
    null,
    '',
    'a password',
    `md5${'0'.repeat(32)}`,
    'SCRAM-SHA-256',
    `SCRAM-SHA-256$4096:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(42)}=`,
    `SCRAM-SHA-256$4096:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(43)}=\n`,
    `SCRAM-SHA-256$4096:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(43)}=' SUPERUSER --`,
    ` SCRAM-SHA-256$4096:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(43)}=`,
    `SCRAM-SHA-256$1:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(43)}=`,
    `SCRAM-SHA-256$99999999:c2FsdA==$${'A'.repeat(43)}=:${'A'.repeat(43)}=`,
  ])('refuses %j for a verifier, and keeps the password', async (verifier) => {
    const before = await state(SLOT);

    expect(await outcome(heal(SLOT, verifier))).toBe('22023');

    expect(await state(SLOT)).toEqual(before);
  });

  it('is for pgjot_control alone', async () => {
    // Not in the text: PostgreSQL writes down every statement that fails.
    const values = [SLOT, await verifierOf(SLOT)];
    const call = (client: pg.Client) => sqlstate(client, 'SELECT pgjot.heal($1, $2)', values);
    const slot = await database.slot(1);
    const passerBy = await database.connect({ user: 'passer_by', password: 'p' });

    for (const client of [slot, passerBy, admin, superuser]) {
      expect(await call(client)).toBe('42501');
    }
    await slot.query('SET ROLE NONE');
    expect(await call(slot)).toBe('42501');
    // Granted to everybody by mistake, it still asks who has logged in.
    await superuser.query('GRANT EXECUTE ON FUNCTION pgjot.heal(name, text) TO PUBLIC');
    for (const client of [slot, passerBy, admin, superuser]) {
      await client.query('SET search_path = pg_temp');
      expect(await call(client)).toBe('42501');
      await client.query('RESET search_path');
    }
    await superuser.query('REVOKE EXECUTE ON FUNCTION pgjot.heal(name, text) FROM PUBLIC');
    await database.end(slot);
    await database.end(passerBy);
  });

  it('is not led astray by what the caller has in its search_path', async () => {
    await superuser.query(`
      CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC;
      CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql
        AS $$ SELECT 'ALTER ROLE passer_by SUPERUSER' $$`);
    await control
      .query('CREATE TEMP TABLE pg_roles (rolname name, oid oid, rolcanlogin bool)')
      .catch(() => {});
    await control.query('SET search_path = trap, pg_temp, pg_catalog');

    expect(await heal(SLOT)).toBe(true);

    await control.query('RESET search_path');
    expect(await state('passer_by')).toMatchObject({ rolsuper: false });
    await superuser.query('DROP SCHEMA trap CASCADE');
  });

  describe('pgjot_healer', () => {
    it('cannot be logged in as, whatever the password', async () => {
      await superuser.query(`ALTER ROLE pgjot_healer PASSWORD 'known'`);

      const login = database.connect({ user: 'pgjot_healer', password: 'known' });

      expect(await outcome(login)).toBe('28000');
      await superuser.query('ALTER ROLE pgjot_healer PASSWORD NULL');
    });

    it('can be become by nobody whom setup has to do with', async () => {
      const slot = await database.slot(1);
      for (const client of [slot, control]) {
        expect(await sqlstate(client, 'SET ROLE pgjot_healer')).toBe('42501');
        expect(await sqlstate(client, 'SET SESSION AUTHORIZATION pgjot_healer')).toBe('42501');
      }
      await slot.query('SET ROLE NONE');
      expect(await sqlstate(slot, 'SET ROLE pgjot_healer')).toBe('42501');
      await database.end(slot);
      // A CREATEROLE administrator can grant it to himself, as he can every role; setup does not leave it so.
      expect(await sqlstate(admin, 'SET ROLE pgjot_healer')).toBe('42501');
    });

    it('owns one function, and may create nothing', async () => {
      const { rows } = await superuser.query(`
        SELECT pg_describe_object(d.classid, d.objid, 0) AS object FROM pg_shdepend d
         WHERE d.refobjid = 'pgjot_healer'::regrole AND d.deptype = 'o' AND d.dbid <> 0`);

      expect(rows).toEqual([{ object: 'function pgjot.heal(name,text)' }]);
      expect(
        await value(
          superuser,
          `SELECT has_schema_privilege('pgjot_healer', 'pgjot', 'CREATE')
               OR has_table_privilege('pgjot_healer', 'pgjot.slot', 'INSERT, UPDATE, DELETE')
               OR has_table_privilege('pgjot_healer', 'pgjot.session', 'SELECT')`,
        ),
      ).toBe(false);
      expect(await state('pgjot_healer')).toMatchObject({
        rolcanlogin: false,
        rolinherit: false,
        rolsuper: false,
        rolcreaterole: true,
      });
    });

    it('has no power over superusers, and since PostgreSQL 16 over the slots alone', async () => {
      const others = ['admin', 'passer_by', 'authenticated', 'pgjot_control', 'pgjot_owner'];
      const beyond = version >= 16 ? ['postgres', 'chief', ...others] : ['postgres', 'chief'];
      await superuser.query('SET SESSION AUTHORIZATION pgjot_healer');
      try {
        for (const role of beyond) {
          expect(await sqlstate(superuser, `ALTER ROLE ${role} PASSWORD 'x'`)).toBe('42501');
          expect(await sqlstate(superuser, `GRANT ${role} TO pgjot_healer`)).toBe('42501');
        }
        expect(await sqlstate(superuser, `SET ROLE ${SLOT}`)).toBe('42501');
      } finally {
        await superuser.query('RESET SESSION AUTHORIZATION');
      }
    });
  });
});

describe.each(postgresVersions())('setup with "healSlots" on PostgreSQL %i', (version) => {
  const without = { ...OPTIONS, healSlots: false };
  const present = (client: pg.Client) =>
    client
      .query(
        `SELECT to_regprocedure('pgjot.heal(name,text)') IS NOT NULL AS function, to_regrole('pgjot_healer') IS NOT NULL AS role`,
      )
      .then(({ rows }) => rows[0] as unknown);
  const BOTH = { function: true, role: true };
  const NEITHER = { function: false, role: false };
  const heals = async (database: Database, name = 'app') => {
    const control = await database.control(name);
    const state = await sqlstate(control, 'SELECT pgjot.heal($1, $2)', [
      SLOT,
      await verifierOf(SLOT),
    ]);
    await database.end(control);
    return state;
  };

  it.each(['admin', 'superuser'] as const)(
    'comes and goes as often as the configuration says, run by %s',
    async (who) => {
      await using database = await Database.start({ version });
      const client = await database[who]();
      await install(client, without);
      expect(await present(client)).toEqual(NEITHER);

      for (let round = 0; round < 2; round++) {
        for (let again = 0; again < 2; again++) {
          const changes = await install(client, OPTIONS);
          expect(changes.filter((one) => one.includes('pgjot_healer'))).toEqual(
            again === 0 ? ['created role "pgjot_healer"'] : [],
          );
          expect(await present(client)).toEqual(BOTH);
          expect(await heals(database)).toBe('00000');
        }
        for (let again = 0; again < 2; again++) {
          const changes = await install(client, without);
          expect(changes.filter((one) => one.includes('pgjot_healer'))).toEqual(
            again === 0 ? ['dropped role "pgjot_healer"'] : [],
          );
          expect(await present(client)).toEqual(NEITHER);
          expect(await heals(database)).toBe('42883');
        }
      }
    },
  );

  it('covers slots that are added later, and lets go of those that retire', async () => {
    await using database = await Database.start({ version });
    const admin = await database.admin();
    await install(admin, OPTIONS);
    const roles = { ...OPTIONS.roles, authenticated: { slots: 3 } };
    await install(admin, { ...OPTIONS, roles });
    const control = await database.control();
    const heal = async () =>
      value(control, 'SELECT pgjot.heal($1, $2)', [
        'pgjot_authenticated_3',
        await verifierOf('pgjot_authenticated_3'),
      ]);

    expect(await heal()).toBe(true);
    const held = await database.slot(3);
    await install(admin, OPTIONS);
    // In use, so it could not be dropped; it must not come back through the proxy.
    expect(await heal()).toBe(false);
    await database.end(held);
    await install(admin, OPTIONS);
    expect(await value(admin, `SELECT to_regrole('pgjot_authenticated_3')`)).toBeNull();
  });

  it('is uninstalled with everything else', async () => {
    await using database = await Database.start({ version });
    const admin = await database.admin();
    await install(admin, OPTIONS);

    const removed = await uninstall(admin);

    expect(removed).toContain('dropped role "pgjot_healer"');
    const { rows } = await admin.query(`SELECT rolname FROM pg_roles WHERE rolname ~ '^pgjot_'`);
    expect(rows).toEqual([]);
    await install(admin, OPTIONS);
    expect(await heals(database)).toBe('00000');
  });

  it('is for each of two databases, and each lets go of it alone', async () => {
    await using database = await Database.start({ version });
    const superuser = await database.superuser();
    await superuser.query('CREATE DATABASE other OWNER admin');
    const [app, other] = [await database.admin(), await database.admin('other')];
    for (const client of [app, other, app]) await install(client, OPTIONS);
    expect(await heals(database)).toBe('00000');
    expect(await heals(database, 'other')).toBe('00000');

    await install(other, without);
    expect(await heals(database, 'other')).toBe('42883');
    expect(await heals(database)).toBe('00000');
    await install(other, OPTIONS);
    expect(await heals(database, 'other')).toBe('00000');

    await uninstall(other, { keepRoles: true });
    expect(await heals(database)).toBe('00000');
    await uninstall(app);
    const { rows } = await app.query(`SELECT rolname FROM pg_roles WHERE rolname ~ '^pgjot_'`);
    expect(rows).toEqual([]);
  });
});
