/** Roles above Row-Level Security: refused, unless the configuration names the very attribute. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ROLE_ATTRIBUTES } from '../../src/config-upstream.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { bind, Database, hello, lease, outcome, SECRET, value } from './database.ts';

describe.each(postgresVersions())('a privileged role on PostgreSQL %i', (version) => {
  let database: Database;
  let superuser: pg.Client;

  // Only a superuser may hand such roles out.
  const setUp = (attributes: readonly string[]) =>
    install(superuser, {
      secret: SECRET,
      roles: { authenticated: { slots: 1 }, auditor: { slots: 1, attributes } },
    });
  const leased = async (role: string) => {
    const control = await database.control();
    try {
      return await lease(control, 1, role);
    } finally {
      await database.end(control);
    }
  };

  beforeAll(async () => {
    database = await Database.start({ version });
    superuser = await database.superuser();
  });
  afterAll(() => database?.[Symbol.asyncDispose]());

  it.each(ROLE_ATTRIBUTES)('that is %s is refused, and let in where that is named', async (one) => {
    await superuser.query(`DROP ROLE IF EXISTS auditor`);
    await superuser.query(`CREATE ROLE auditor ${one}`);
    // A superuser is everything, so naming that names all of them.
    const others = ROLE_ATTRIBUTES.filter((other) => other !== one && other !== 'SUPERUSER');
    const more = ROLE_ATTRIBUTES.filter((other) => other !== one);
    try {
      expect(await outcome(setUp([]))).toBe('42501');
      expect(await outcome(setUp(others))).toBe('42501');

      await setUp([one]);
      expect(await leased('auditor')).toHaveLength(1);

      // It becomes more than what was named, and what was named is named no more.
      await superuser.query(`ALTER ROLE auditor ${more.join(' ')}`);
      expect(await outcome(leased('auditor'))).toBe(one === 'SUPERUSER' ? '00000' : '42501');
      await superuser.query(`ALTER ROLE auditor ${more.map((other) => `NO${other}`).join(' ')}`);
      expect(await outcome(setUp([]))).toBe('42501');
      expect(await leased('auditor')).toHaveLength(1);
    } finally {
      await superuser.query(`ALTER ROLE auditor NO${one}`);
      await install(superuser, { secret: SECRET, roles: { authenticated: { slots: 1 } } });
      await superuser.query('DROP OWNED BY auditor');
    }
  });

  it('is refused where its clients could only become one by SET ROLE', async () => {
    await superuser.query('CREATE ROLE chief BYPASSRLS');
    try {
      await superuser.query('GRANT chief TO authenticated');
      expect(await outcome(leased('authenticated'))).toBe('42501');
      expect(await outcome(setUp([]))).toBe('42501');
    } finally {
      await superuser.query('DROP ROLE chief');
    }
    expect(await leased('authenticated')).toHaveLength(1);
  });

  it.each(['pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'])(
    'is refused where it is a member of %s, which makes a superuser of whoever has it',
    async (role) => {
      await superuser.query(`GRANT ${role} TO authenticated`);
      try {
        expect(await outcome(leased('authenticated'))).toBe('42501');
        expect(await outcome(setUp([]))).toBe('42501');
      } finally {
        await superuser.query(`REVOKE ${role} FROM authenticated`);
      }
    },
  );

  it('that reads and writes all data still sees and changes no identity', async () => {
    await superuser.query('GRANT pg_read_all_data, pg_write_all_data TO authenticated');
    const control = await database.control();
    const [slot] = await lease(control, 1, 'authenticated');
    const eve = await database.login(slot as string, { options: '-c role=authenticated' });
    try {
      await bind(control, await hello(eve), 'eve');

      for (const table of ['session', 'lease', 'slot_group', 'identity_key']) {
        expect(await value(eve, `SELECT count(*)::int FROM pgjot.${table}`)).toBe(0);
      }
      const { rowCount } = await eve.query(`UPDATE pgjot.session SET claims = '{"sub": "alice"}'`);
      expect(rowCount).toBe(0);
      expect(
        await outcome(eve.query("INSERT INTO pgjot.identity_key VALUES ('\\x00', '\\x00')")),
      ).toBe('42501');
      expect(await value(eve, 'SELECT auth.user_id()')).toBe('eve');
    } finally {
      await database.end(eve);
      await database.end(control);
      await superuser.query('REVOKE pg_read_all_data, pg_write_all_data FROM authenticated');
    }
  });

  it('sees what Row-Level Security hides from others, and nobody else gains by it', async () => {
    await superuser.query('DROP ROLE IF EXISTS auditor');
    await superuser.query('CREATE ROLE auditor BYPASSRLS');
    await setUp(['BYPASSRLS']);
    await installDemo(superuser);
    await superuser.query('GRANT SELECT ON todos TO auditor');
    const control = await database.control();
    const auditor = await database.login('pgjot_auditor_1', { options: '-c role=auditor' });
    const alice = await database.slot(1);
    await bind(control, await hello(auditor), 'eve');
    await bind(control, await hello(alice), 'alice');

    expect(await value(auditor, 'SELECT count(*)::int FROM todos')).toBe(5);
    expect(await value(alice, 'SELECT count(*)::int FROM todos')).toBe(3);
    expect(await outcome(alice.query('SET ROLE auditor'))).toBe('42501');
  });
});
