/** The bound session row: what may be bound, who reads it, and when it stops being believed. */
import { mkdtemp, chmod, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { CONTROL_ROLE } from '../../src/session-sql/credentials.ts';
import { postgresVersions } from '../support/postgres.ts';
import {
  bind,
  Database,
  greet,
  hello,
  outcome,
  signIn,
  unbind,
  until,
  userId,
  value,
} from './database.ts';

const NO_BACKEND = '08003';
const INVALID = '22023';

describe.each(postgresVersions())('the session row on PostgreSQL %i', (version) => {
  let database: Database;
  let control: pg.Client;
  beforeAll(async () => {
    database = await Database.installed(4, { version });
    control = await database.control();
  });
  afterAll(() => database[Symbol.asyncDispose]());
  afterEach(() => database.endSlots());

  it('hello tells pid, start in microseconds, and slot, whatever DateStyle and TimeZone say', async () => {
    const client = await database.slot(1, {
      options:
        '-c role=authenticated -c DateStyle=German -c TimeZone=Asia/Kathmandu -c IntervalStyle=sql_standard',
    });
    const superuser = await database.superuser();

    const said = await hello(client);

    const start = await value(
      superuser,
      `SELECT (extract(epoch FROM backend_start) * 1000000)::int8 FROM pg_stat_activity WHERE pid = $1`,
      [said.pid],
    );
    expect(said).toEqual({
      pid: await value(client, 'SELECT pg_backend_pid()'),
      start,
      slot: 'pgjot_authenticated_1',
      dirty: false,
      in_recovery: false,
    });
    expect(Number(said.start) / 1000).toBeGreaterThan(Date.now() - 60_000);
    await database.end(superuser);
  });

  it('greet says the same to the control connection, of that backend on that slot alone', async () => {
    const said = await hello(await database.slot(1));
    const { start, dirty, in_recovery } = said;

    expect(await greet(control, said)).toEqual({ start, dirty, in_recovery, mode: 'portable' });
    const nobody = { start: null, dirty: null, in_recovery, mode: 'portable' };
    expect(await greet(control, { ...said, slot: 'pgjot_authenticated_2' })).toEqual(nobody);
    expect(await greet(control, { ...said, pid: 2 ** 31 - 1 })).toEqual(nobody);
    const superuser = await database.superuser();
    const pid = (await value(superuser, 'SELECT pg_backend_pid()')) as number;
    expect(await greet(control, { pid, slot: 'pgjot_authenticated_1' })).toEqual(nobody);
    await database.end(superuser);
  });

  it('hello leaves the role as it was', async () => {
    const client = await database.slot(1);

    await hello(client);
    expect(await value(client, 'SELECT current_user')).toBe('authenticated');
    await client.query('RESET ROLE');
    expect(await value(client, 'SELECT current_user')).toBe('authenticated');
  });

  it('gives claims to all readers, and counts the bindings', async () => {
    const client = await database.slot(1);
    const backend = await hello(client);
    const claims = { sub: '6f1f8e2e-6d3f-4f0c-9d3d-0b8f1c1f6a11', org: { id: 7 } };

    expect(await userId(client)).toBeNull();
    expect(await bind(control, backend, claims)).toBe(1);
    expect(await bind(control, backend, claims)).toBe(2);

    for (const schema of ['auth', 'pgjot']) {
      const { rows } = await client.query(
        `SELECT ${schema}.user_id(), ${schema}.uid(), ${schema}.session(), ${schema}.jwt()`,
      );
      expect(rows).toEqual([
        { user_id: claims.sub, uid: claims.sub, session: claims, jwt: claims },
      ]);
    }
  });

  it.each([
    'alice',
    '',
    '6f1f8e2e-6d3f-4f0c-9d3d-0b8f1c1f6a11x',
    '6f1f8e2e6d3f4f0c9d3d0b8f1c1f6a11',
    '6f1f8e2e-6d3f-4f0c-9d3d-0b8f1c1f6a11\n',
  ])('auth.uid() is NULL where sub is %j', async (sub) => {
    const client = await database.slot(1);
    if (sub !== '') await bind(control, await hello(client), sub);

    expect(await value(client, 'SELECT auth.uid()')).toBeNull();
  });

  it('binds no pid that has been given to another backend since', async () => {
    const client = await database.slot(1);
    const { pid, start } = await hello(client);

    const earlier = String(BigInt(start) - 1n);
    expect(await outcome(bind(control, { pid, start: earlier }, 'alice'))).toBe(NO_BACKEND);
    expect(await outcome(bind(control, { pid, start: '0' }, 'alice'))).toBe(NO_BACKEND);
    expect(await userId(client)).toBeNull();
  });

  it('binds no backend that is gone', async () => {
    const client = await database.slot(1);
    const backend = await hello(client);
    await database.end(client);

    expect(await outcome(bind(control, backend, 'alice'))).toBe(NO_BACKEND);
  });

  it('binds no backend in another database', async () => {
    const client = await database.slot(1, { database: 'postgres' });
    const { rows } = await client.query(
      `SELECT pg_backend_pid() AS pid, (extract(epoch FROM backend_start) * 1000000)::int8 AS start
         FROM (SELECT set_config('role', 'none', false)) r, pg_stat_get_activity(pg_backend_pid())`,
    );
    expect(rows[0].start).toMatch(/^\d{16}$/);

    expect(await outcome(bind(control, rows[0], 'alice'))).toBe(NO_BACKEND);
  });

  it.each(['superuser', 'admin', 'control'] as const)('binds no backend of %s', async (who) => {
    const client = await database[who]();
    const superuser = await database.superuser();
    const pid = (await value(client, 'SELECT pg_backend_pid()')) as number;
    const start = (await value(
      superuser,
      'SELECT (extract(epoch FROM backend_start) * 1000000)::int8 FROM pg_stat_activity WHERE pid = $1',
      [pid],
    )) as string;

    expect(await outcome(bind(control, { pid, start }, 'alice'))).toBe(NO_BACKEND);
    await database.end(superuser);
  });

  it.each([
    'null',
    '[]',
    '"alice"',
    '{}',
    '{"sub":null}',
    '{"sub":1}',
    '{"sub":""}',
    '{"sub":["alice"]}',
  ])('refuses the claims %s', async (claims) => {
    const { pid, start } = await hello(await database.slot(1));

    const values = [pid, start, claims, Date.now() + 60_000];
    expect(await outcome(control.query('SELECT pgjot.bind($1, $2, $3, $4)', values))).toBe(INVALID);
  });

  it('refuses NULL for claims and expiry', async () => {
    const client = await database.slot(1);
    const { pid, start } = await hello(client);

    for (const values of [
      [pid, start, null, Date.now() + 1e6],
      [pid, start, '{"sub":"a"}', null],
    ]) {
      expect(await outcome(control.query('SELECT pgjot.bind($1, $2, $3, $4)', values))).toBe(
        INVALID,
      );
    }
  });

  it.each([
    '0',
    '-1',
    '-9223372036854775808',
    '9223372036854775807',
    '253402300800000',
    String(Date.now() - 1),
  ])('refuses %s as expiry', async (expiresAt) => {
    const client = await database.slot(1);

    expect(await outcome(bind(control, await hello(client), 'alice', expiresAt))).toBe(INVALID);
  });

  it('accepts an expiry at the end of the year 9999', async () => {
    const client = await database.slot(1);

    await bind(control, await hello(client), 'alice', '253402300799999');

    expect(await userId(client)).toBe('alice');
  });

  it('keeps claims of hostile strings as they are', async () => {
    const client = await database.slot(1);
    const sub = `'; DROP TABLE x; --"\\ \u{1f600} é $1`;

    await bind(control, await hello(client), { sub, __proto__: null, 'a.b': `"'` });

    expect(await userId(client)).toBe(sub);
  });

  it('unbind says whether the backend is still alive', async () => {
    const client = await signIn(database, control, 1, 'alice');

    expect(await unbind(control, client.hello)).toBe(true);
    expect(await unbind(control, client.hello)).toBe(true);
    expect(await userId(client)).toBeNull();
    await database.end(client);
    expect(await unbind(control, client.hello)).toBe(false);
  });

  it('terminate ends the backend of a slot, whatever its statement catches, and no other', async () => {
    const terminate = (pid: unknown, start: unknown) =>
      value(control, 'SELECT pgjot.terminate($1, $2)', [pid, start]);
    const client = await signIn(database, control, 1, 'alice');
    const stubborn = client
      .query(
        'DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$',
      )
      .catch((error: { code?: string }) => error.code);
    const own = await control.query<{ pid: number; start: string }>(
      `SELECT pid, (extract(epoch FROM backend_start) * 1000000)::int8 AS start
         FROM pg_stat_get_activity(pg_backend_pid())`,
    );

    expect(await terminate(client.hello.pid, '1')).toBe(false);
    expect(await terminate(own.rows[0]?.pid, own.rows[0]?.start)).toBe(false);
    expect(await terminate(client.hello.pid, client.hello.start)).toBe(true);

    expect(await stubborn).toBe('57P01');
  });

  it('unbind leaves the row of a later backend with the same pid', async () => {
    const client = await signIn(database, control, 1, 'alice');

    expect(await unbind(control, { pid: client.hello.pid, start: '1' })).toBe(false);

    expect(await userId(client)).toBe('alice');
  });

  it('lets nobody inherit the row of an earlier backend with the same pid', async () => {
    const client = await signIn(database, control, 1, 'alice');
    const superuser = await database.superuser();
    const disturb = async (change: string) => {
      await superuser.query(`UPDATE pgjot.session SET ${change} WHERE pid = $1`, [
        client.hello.pid,
      ]);
      const seen = await userId(client);
      await bind(control, client.hello, 'alice');
      return seen;
    };

    expect(await disturb('client_port = client_port + 1')).toBeNull();
    expect(await disturb(`client_addr = '127.0.0.2'`)).toBeNull();
    expect(await disturb('client_addr = NULL, client_port = NULL')).toBeNull();
    expect(await disturb(`expires_at = now()`)).toBeNull();
    expect(await disturb('epoch = 99')).toBe('alice');
    await database.end(superuser);
  });

  it('sweeps identities that expired or whose backend is gone, and spares the others', async () => {
    await value(control, 'SELECT pgjot.sweep()');
    const gone = await signIn(database, control, 1, 'user 1');
    const expiring = await signIn(database, control, 2, 'user 2');
    const living = await signIn(database, control, 3, 'user 3');
    const expiresAt = Date.now() + 1_000;
    await bind(control, expiring.hello, 'user 2', expiresAt);
    await database.end(gone);
    await until(async () => (await userId(expiring)) === null);

    expect(await value(control, 'SELECT pgjot.sweep()')).toBe('2');

    expect(await userId(living)).toBe('user 3');
    expect(await value(control, 'SELECT pgjot.sweep()')).toBe('0');
    await bind(control, expiring.hello, 'user 2');
    expect(await userId(expiring)).toBe('user 2');
  });

  it('stays constant within one REPEATABLE READ transaction', async () => {
    const client = await signIn(database, control, 1, 'alice');
    await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    expect(await userId(client)).toBe('alice');

    await bind(control, client.hello, 'bob');

    expect(await userId(client)).toBe('alice');
    await client.query('COMMIT');
    expect(await userId(client)).toBe('bob');
  });

  it('forgets everybody in a crash, and starts again', async () => {
    await using crashing = await Database.installed(1, { version });
    const client = await signIn(crashing, await crashing.control(), 1, 'alice');
    // Written out before the crash: then only being UNLOGGED makes the row go.
    await (await crashing.superuser()).query('CHECKPOINT');

    await crashing.server.restart('immediate');

    const superuser = await crashing.superuser();
    expect(await value(superuser, 'SELECT count(*) FROM pgjot.session')).toBe('0');
    expect(await value(superuser, 'SELECT count(*) FROM pgjot.slot')).toBe('1');
    await expect(userId(client)).rejects.toThrow(/connection/i);
    const again = await signIn(crashing, await crashing.control(), 1, 'bob');
    expect(await userId(again)).toBe('bob');
  });
});

describe('over a Unix socket', () => {
  it('is the start time of the backend that tells it from an earlier one', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-socket-'));
    await chmod(folder, 0o777);
    try {
      await using database = await Database.installed(2, {
        settings: { unix_socket_directories: folder },
      });
      const control = await database.login(CONTROL_ROLE, { host: folder });
      const client = await database.slot(1, { host: folder });
      const backend = await hello(client);
      await bind(control, backend, 'alice');
      expect(await value(client, 'SELECT inet_client_addr()')).toBeNull();
      expect(await userId(client)).toBe('alice');

      const superuser = await database.superuser();
      await superuser.query('UPDATE pgjot.session SET backend_start = backend_start - 1');
      expect(await userId(client)).toBeNull();

      // A row of a TCP connection means nothing on a Unix socket either.
      await superuser.query(
        `UPDATE pgjot.session SET backend_start = backend_start + 1, client_addr = '127.0.0.1', client_port = 1`,
      );
      expect(await userId(client)).toBeNull();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
