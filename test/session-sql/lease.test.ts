/** Leases of slots: never one slot to two, and never lost to a control connection that died. */
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { slotName } from '../../src/session-sql/credentials.ts';
import { install } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { Database, lease, outcome, SECRET, sqlstate, until, value } from './database.ts';

const SLOTS = 60;

describe.each(postgresVersions())('leases on PostgreSQL %i', (version) => {
  let database: Database;
  let one: pg.Client;
  let two: pg.Client;

  beforeAll(async () => {
    database = await Database.installed(SLOTS, { version });
  });
  afterAll(() => database[Symbol.asyncDispose]());
  beforeEach(async () => {
    [one, two] = await Promise.all([database.control(), database.control()]);
  });
  afterEach(async () => {
    await database.end(one);
    await database.end(two);
  });

  const release = (control: pg.Client, slots: readonly string[]) =>
    control.query('SELECT pgjot.release(slot) FROM unnest($1::name[]) AS slot', [slots]);

  it('hands out as many as asked for, lowest numbers first, and then none', async () => {
    expect(await lease(one, 2)).toEqual([
      slotName('authenticated', 1),
      slotName('authenticated', 2),
    ]);
    expect(await lease(one, SLOTS)).toHaveLength(SLOTS - 2);
    expect(await lease(one, 1)).toEqual([]);
    expect(await lease(two, 1)).toEqual([]);
  });

  it('hands out nothing for a count of zero or less', async () => {
    expect(await lease(one, 0)).toEqual([]);
    expect(await lease(one, -1)).toEqual([]);
  });

  it('refuses a role without slots', async () => {
    expect(await outcome(lease(one, 1, 'nobody'))).toBe('42704');
  });

  it.each(['SUPERUSER', 'BYPASSRLS', 'CREATEROLE', 'REPLICATION'])(
    'refuses a role that has become %s since setup',
    async (attribute) => {
      const superuser = await database.superuser();
      await superuser.query(`ALTER ROLE authenticated ${attribute}`);

      const refused = lease(one, 1);

      await expect(refused).rejects.toMatchObject({
        code: '42501',
        message:
          'pgjot: role "authenticated" must neither be SUPERUSER, BYPASSRLS, CREATEROLE or REPLICATION nor a member of a role that is, or that reads or runs files of the server',
      });
      await superuser.query(`ALTER ROLE authenticated NO${attribute}`);
      expect(await lease(one, 1)).toHaveLength(1);
      await database.end(superuser);
    },
  );

  it('gives no slot to two, however they race', async () => {
    const held = new Map<string, pg.Client>();
    let races = 0;
    const take = async (control: pg.Client) => {
      const mine: string[] = [];
      for (let i = 0; i < 200; i += 1) {
        for (const slot of await lease(control, 1)) {
          if (held.has(slot)) throw new Error(`${slot} was leased twice`);
          held.set(slot, control);
          mine.push(slot);
        }
        if (mine.length > SLOTS / 3) {
          // Forgotten here first: from the release on, the other may have it.
          const returned = mine.splice(0, 10);
          for (const slot of returned) held.delete(slot);
          await release(control, returned);
          races += 1;
        }
      }
    };

    await Promise.all([take(one), take(two)]);

    expect(races).toBeGreaterThan(20);
    await one.query('SELECT pgjot.sweep()');
    const { rows } = await (await database.superuser()).query(
      `SELECT slot, control_pid AS pid FROM pgjot.lease`,
    );
    const pids = new Map([
      [one, await value(one, 'SELECT pg_backend_pid()')],
      [two, await value(two, 'SELECT pg_backend_pid()')],
    ]);
    expect(new Map(rows.map(({ slot, pid }) => [slot, pid]))).toEqual(
      new Map([...held].map(([slot, control]) => [slot, pids.get(control)])),
    );
  });

  it('gives no slot to two when many ask for all at the same moment', async () => {
    const controls = await Promise.all(Array.from({ length: 8 }, () => database.control()));

    const answers = await Promise.all(controls.map((control) => lease(control, SLOTS)));

    const slots = answers.flat();
    expect(slots).toHaveLength(SLOTS);
    expect(new Set(slots).size).toBe(SLOTS);
    for (const control of controls) await database.end(control);
  });

  it('waits for a caller in an open transaction and does not take what it took', async () => {
    await one.query('BEGIN');
    const first = await lease(one, 1);
    const second = lease(two, 1);
    await until(
      async () => (await value(one, `SELECT count(*) FROM pg_locks WHERE NOT granted`)) !== '0',
    );
    await one.query('COMMIT');

    expect(await second).not.toEqual(first);
  });

  it.each(['REPEATABLE READ', 'SERIALIZABLE'])(
    'fails rather than lease twice at %s',
    async (level) => {
      await two.query(`BEGIN ISOLATION LEVEL ${level}`);
      await value(two, 'SELECT count(*) FROM pg_class');
      const first = await lease(one, 1);

      expect(await outcome(lease(two, 1))).toBe('40001');

      await two.query('ROLLBACK');
      expect(await lease(two, 1)).not.toEqual(first);
    },
  );

  it('frees the leases of a control backend that died', async () => {
    const slots = await lease(one, 5);
    const superuser = await database.superuser();
    await superuser.query('SELECT pg_terminate_backend($1)', [
      await value(one, 'SELECT pg_backend_pid()'),
    ]);

    await until(async () => (await lease(two, 1)).includes(slots[0] ?? ''));

    expect([slots[0], ...(await lease(two, 4))]).toEqual(slots);
    await database.end(superuser);
  });

  it('does not hand out a slot on which somebody is logged in, in whichever database', async () => {
    const here = await database.slot(1);
    const elsewhere = await database.slot(2, { database: 'postgres' });

    expect(await lease(one, 1)).toEqual([slotName('authenticated', 3)]);

    await database.end(here);
    await database.end(elsewhere);
    expect(await lease(one, 2)).toEqual([
      slotName('authenticated', 1),
      slotName('authenticated', 2),
    ]);
  });

  it('does not hand out a slot that may not log in, or is gone', async () => {
    const admin = await database.admin();
    await admin.query(`ALTER ROLE ${slotName('authenticated', 1)} NOLOGIN`);
    await admin.query(`DROP ROLE ${slotName('authenticated', 2)}`);

    expect(await lease(one, 1)).toEqual([slotName('authenticated', 3)]);

    await install(admin, { secret: SECRET, roles: { authenticated: { slots: SLOTS } } });
    await database.end(admin);
  });

  it('releases what one holds, and nothing that another holds', async () => {
    const [slot = ''] = await lease(one, 1);

    await release(two, [slot]);
    expect(await lease(two, 1)).not.toEqual([slot]);
    await release(one, [slot, slot]);
    expect(await lease(two, 1)).toEqual([slot]);
  });

  it('logs a slot in once and no more, whatever the leases say', async () => {
    const first = await database.slot(1);

    expect(await outcome(database.slot(1))).toBe('53300');

    await database.end(first);
    await database.end(await database.slot(1));
  });

  it('sweeps the leases of the dead and spares those of the living', async () => {
    const superuser = await database.superuser();
    await superuser.query('DELETE FROM pgjot.lease');
    await lease(one, 3);
    const gone = await database.control();
    await lease(gone, 4);
    await database.end(gone);

    expect(await value(two, 'SELECT pgjot.sweep()')).toBe('4');
    expect(await value(two, 'SELECT pgjot.sweep()')).toBe('0');
    expect(await value(superuser, 'SELECT count(*) FROM pgjot.lease')).toBe('3');
    await database.end(superuser);
  });

  it('is refused to all others', async () => {
    const admin = await database.admin();

    expect(await sqlstate(admin, `SELECT pgjot.lease('authenticated', 1)`)).toBe('42501');
    await database.end(admin);
  });
});
