/**
 * What the holder of a good token can try in SQL: attacks E1 to E13, each by its name, on every PostgreSQL here, over TCP and TLS.
 *
 * Alice attacks, Bob is at work beside her. The objects that withstand her are attacked more closely, without
 * a proxy, in `test/session-sql`; here it is that the whole path holds.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { derivePassword, slotName } from '../../src/session-sql/credentials.ts';
import { postgresVersions } from '../support/postgres.ts';
import { SECRET, startStack, until, type Stack } from '../support/stack.ts';
import { inTurns } from './attack-stack.ts';

const SLOTS = 12;
// Stands in Bob's SQL and claims: nobody else may ever read it.
const MARK = 'bobs-secret-5309';

const targets = postgresVersions().flatMap((version) => [
  { version, tls: false },
  { version, tls: true },
]);

describe.each(targets)('on PostgreSQL $version (tls: $tls)', ({ version, tls }) => {
  let stack: Stack;
  let alice: pg.Client;
  let bob: pg.Client;
  let admin: pg.Client;
  const serverLog: string[] = [];

  beforeAll(async () => {
    stack = await startStack({
      version,
      tls,
      slots: SLOTS,
      settings: { log_statement: 'all', max_worker_processes: '8' },
      onLog: (line) => serverLog.push(line),
      provider: { clockToleranceMs: 0 },
      sessions: { graceMs: 3_000 },
    });
    admin = new pg.Client(stack.admin);
    await admin.connect();
    await admin.query('create role service_role nologin');
    alice = await stack.connect('alice');
    bob = await stack.connect('bob');
  });

  afterAll(async () => {
    for (const client of [alice, bob, admin]) await client.end();
    await stack.close();
  });

  const busy = () => stack.proxy.counts().upstreams['main']?.['authenticated']?.busy;

  async function pidOf(client: pg.Client): Promise<number> {
    return (await client.query<{ pid: number }>('select pg_catalog.pg_backend_pid() as pid'))
      .rows[0]?.pid as number;
  }

  async function slotOf(client: pg.Client): Promise<string> {
    return (await client.query<{ slot: string }>('select session_user as slot')).rows[0]
      ?.slot as string;
  }

  /** Expects that this session is Alice's and sees her rows and no others, whatever she has done to it. */
  async function expectAlice(client: pg.Client, after: string): Promise<void> {
    const { rows } = await client.query(
      'select pgjot.user_id() as a, auth.user_id() as b, auth.session() operator(pg_catalog.->>) $1 as c,' +
        ' (select pg_catalog.string_agg(distinct user_id, $2) from public.todos) as owners',
      ['sub', ','],
    );
    expect({ after, ...rows[0] }).toEqual({
      after,
      a: 'alice',
      b: 'alice',
      c: 'alice',
      owners: 'alice',
    });
  }

  /** Runs what must be refused, and says with which SQLSTATE it was. */
  async function refusal(client: pg.Client, sql: string): Promise<string> {
    try {
      await client.query(sql);
    } catch (error) {
      return (error as pg.DatabaseError).code ?? String(error);
    }
    return `accepted: ${sql}`;
  }

  async function expectRefused(client: pg.Client, sqlstate: string, statements: string[]) {
    for (const sql of statements) {
      expect(`${await refusal(client, sql)} ${sql}`).toBe(`${sqlstate} ${sql}`);
    }
  }

  it('E1: settings forge nobody', async () => {
    const claims = '{"sub":"bob","role":"service_role"}';
    const names = [
      'request.jwt.claims',
      'request.jwt.claim.sub',
      'request.jwt',
      'pg_session_jwt.jwt',
      'pgjot.claims',
      'pgjot.user_id',
      'pgjot_install.admin',
      'auth.user_id',
      'app.user_id',
      'app.current_user_id',
      'jwt.claims.sub',
    ];
    for (const name of names) {
      for (const value of [claims, 'bob']) {
        for (const local of [false, true]) {
          await alice.query('begin');
          await alice.query('select set_config($1, $2, $3)', [name, value, local]);
          await expectAlice(alice, `set_config('${name}', …, ${local})`);
          await alice.query('commit');
        }
        await alice.query(`set session ${name} = ${pg.escapeLiteral(value)}`);
        await expectAlice(alice, `SET ${name}`);
      }
    }
    await alice.query(`set application_name = 'bob'; set timezone = 'UTC'; set search_path = bob`);
    await expectAlice(alice, 'SET search_path');
    await alice.query('reset all');
  });

  it('E2: no other role can be taken, and none that can changes who one is', async () => {
    const own = await slotOf(alice);
    const others = [
      slotName('authenticated', 1),
      slotName('authenticated', 2),
      slotName('authenticated', 3),
    ];
    const roles = ['postgres', 'pgjot_owner', 'pgjot_control', 'service_role', 'pg_read_all_data']
      .concat('pg_signal_backend', 'pg_monitor', others)
      .filter((role) => role !== own);
    for (const role of roles) {
      await expectRefused(alice, '42501', [
        `set role ${role}`,
        `set session authorization ${role}`,
        `set local role ${role}`,
        `select set_config('role', '${role}', false)`,
        `select set_config('session_authorization', '${role}', false)`,
      ]);
    }
    await expectRefused(alice, '42501', ['set session authorization authenticated']);

    for (const sql of [
      'reset role',
      'set role none',
      `set role ${own}`,
      'reset session authorization',
      'set session authorization default',
      `set session authorization ${own}`,
      'set role authenticated',
    ]) {
      await alice.query(sql);
      await expectAlice(alice, sql);
    }
    await alice.query('set role none; reset role');
    const { rows } = await alice.query('select current_user::text');
    expect(rows).toEqual([{ current_user: 'authenticated' }]);
  });

  it('E3: the login role is a member of its group and of nothing else', async () => {
    const { rows } = await alice.query(
      "select rolname from pg_roles where pg_has_role(session_user, oid, 'MEMBER') order by rolname",
    );

    expect(rows).toEqual([{ rolname: 'authenticated' }, { rolname: await slotOf(alice) }]);
  });

  it('E4: the identity and the role survive every kind of reset', async () => {
    for (const sql of [
      'reset all',
      'discard all',
      'discard temp',
      'discard sequences',
      'reset role',
      'begin; set local role none; rollback',
      'set session characteristics as transaction read only; reset all',
    ]) {
      await alice.query(sql);
      await expectAlice(alice, sql);
      const { rows } = await alice.query('select current_user::text');
      expect(rows).toEqual([{ current_user: 'authenticated' }]);
    }
  });

  it('E5: the functions and tables of the identity are out of reach, as the group and as the slot', async () => {
    const pid = await pidOf(alice);
    for (const become of ['set role authenticated', 'set role none']) {
      await alice.query(become);
      await expectRefused(alice, '42501', [
        `select pgjot.bind(${pid}, 1, '{"sub":"bob"}', 4102444800000)`,
        `select pgjot.unbind(${pid}, 1)`,
        'select pgjot.sweep()',
        `select pgjot.lease('authenticated', 100)`,
        `select pgjot.release('${slotName('authenticated', 1)}')`,
        'select pgjot.assert_control()',
        'select pgjot.backends(null)',
        ...['session', 'lease', 'slot', 'slot_group'].flatMap((table) => [
          `select * from pgjot.${table}`,
          `delete from pgjot.${table}`,
          `truncate pgjot.${table}`,
          `copy pgjot.${table} to stdout`,
          `do $$ begin lock table pgjot.${table} in access share mode; end $$`,
          `alter table pgjot.${table} rename to other`,
          `drop table pgjot.${table}`,
        ]),
        `insert into pgjot.session values (${pid}, 1, null, null, 1, '{"sub":"bob"}', 'infinity', now())`,
        `update pgjot.session set claims = '{"sub":"bob"}'`,
        `create or replace function pgjot.claims() returns jsonb language sql as $$ select '{"sub":"bob"}'::jsonb $$`,
        `create or replace function auth.user_id() returns text language sql as $$ select 'bob' $$`,
        `create function auth.evil() returns text language sql as $$ select 'bob' $$`,
        'drop function pgjot.claims() cascade',
        'alter function pgjot.claims() security invoker',
        'alter function pgjot.claims() owner to authenticated',
        'grant execute on function pgjot.bind(int4, int8, jsonb, int8) to public',
        'create table pgjot.mine ()',
        'alter schema pgjot rename to other',
        'drop schema auth cascade',
        'alter table public.todos disable row level security',
        'alter table public.todos no force row level security',
        'create policy mine on public.todos using (true)',
        'drop policy todos_select on public.todos',
        'alter role authenticated bypassrls',
        'alter role authenticated superuser',
        'create role mallory',
        'create database mine',
        'grant pgjot_owner to authenticated',
        'grant service_role to authenticated',
        'drop owned by pgjot_owner',
        'reassign owned by pgjot_owner to authenticated',
        'select rolpassword from pg_authid',
        'select passwd from pg_shadow',
        `select pg_read_file('pg_hba.conf')`,
        `select pg_ls_dir('.')`,
        `select lo_import('/etc/passwd')`,
        `copy public.todos from program 'id'`,
        `copy public.todos to '/tmp/todos'`,
        'select pg_reload_conf()',
        `alter system set log_statement = 'none'`,
        `load '/tmp/evil.so'`,
        'create extension file_fdw',
      ]);
    }
    await alice.query('reset role');
    await expectAlice(alice, 'all of that');
  });

  it('E5: objects of the same names in pg_temp and on the search_path shadow nothing', async () => {
    const eve = await stack.connect('alice');
    await eve.query(`
      create temp table session (pid int, claims jsonb); insert into session values (pg_backend_pid(), '{"sub":"bob"}');
      create temp table todos as select 'bob' as user_id;
      create temp table pg_roles as select 'x' as rolname;
      create function pg_temp.claims() returns jsonb language sql as $$ select '{"sub":"bob"}'::jsonb $$;
      create function pg_temp.user_id() returns text language sql as $$ select 'bob' $$;
      create function pg_temp.pg_backend_pid() returns int language sql as $$ select ${await pidOf(bob)} $$;
      create function pg_temp.inet_client_port() returns int language sql as $$ select 1 $$;
      create function pg_temp.clock_timestamp() returns timestamptz language sql as $$ select timestamptz 'epoch' $$;
      create function pg_temp.always(anyelement, anyelement) returns bool language sql as $$ select true $$;
      create function pg_temp.first(jsonb, text) returns text language sql as $$ select 'bob' $$;
      create operator pg_temp.= (leftarg = anyelement, rightarg = anyelement, function = pg_temp.always);
      create operator pg_temp.->> (leftarg = jsonb, rightarg = text, function = pg_temp.first);
    `);
    for (const path of [
      'pg_temp, pg_catalog',
      'pg_temp',
      'pg_temp, public, auth, pgjot, pg_catalog',
    ]) {
      await eve.query(`set search_path = ${path}`);
      await expectAlice(eve, `SET search_path = ${path}`);
    }
    await eve.end();
  });

  it('E5: a search_path in the startup packet full of look-alikes does not reach the SQL of the login', async () => {
    await admin.query(
      'create schema if not exists trap; grant create, usage on schema trap to public',
    );
    const eve = await stack.connect('alice');
    await eve.query(`
      create function trap.always(text, text) returns bool language sql as $$ select true $$;
      create function trap.encode(bytea, text) returns text language sql as $$ select '626f62' $$;
      create function trap.convert_to(text, name) returns bytea language sql as $$ select 'bob'::bytea $$;
      create function trap.bob(jsonb, text) returns text language sql as $$ select 'bob' $$;
      create operator trap.->> (leftarg = jsonb, rightarg = text, function = trap.bob);
      create operator trap.= (leftarg = text, rightarg = text, function = trap.always);
    `);
    const trapped = await stack.connect('alice', {
      options: '-c search_path=trap,pg_temp,pg_catalog',
    });

    await expectAlice(trapped, 'options=-c search_path=trap');
    await trapped.end();
    await eve.end();
    await admin.query('drop schema trap cascade');
  });

  it('E6: nothing is left in the session that could be replayed', async () => {
    const token = await stack.token('alice');
    const eve = await stack.connect('alice', { password: token });
    const { rows } = await eve.query("select name || '=' || setting as pair from pg_settings");
    const pid = await pidOf(eve);
    await eve.end();

    const parts = token.split('.').slice(1);
    expect(rows.filter(({ pair }) => parts.some((part) => String(pair).includes(part)))).toEqual(
      [],
    );
    await until(async () => {
      const left = await admin.query('select from pgjot.session where pid = $1', [pid]);
      return left.rowCount === 0;
    });
  });

  it('E7: nobody reads the SQL or the claims of another', async () => {
    const pid = await pidOf(bob);
    const sleeping = bob.query(`select '${MARK}', pg_sleep(0.3)`);
    for (const become of ['set role authenticated', 'set role none']) {
      await alice.query(become);
      for (const sql of [
        'select * from pg_stat_activity',
        'select * from pg_stat_get_activity(null)',
        'select pg_stat_get_backend_activity(i) from pg_stat_get_backend_idset() i',
        'select * from pg_prepared_statements',
        'select * from pg_cursors',
        'select * from pg_locks',
        'select * from pg_stat_ssl',
        'select * from pg_settings',
      ]) {
        const { rows } = await alice.query(sql);
        expect(`${sql}: ${JSON.stringify(rows)}`).not.toContain(MARK);
      }
      const { rows } = await alice.query('select query from pg_stat_activity where pid = $1', [
        pid,
      ]);
      expect(rows).toEqual([{ query: '<insufficient privilege>' }]);
    }
    await alice.query('reset role');

    expect((await sleeping).rows).toHaveLength(1);
  });

  it('E7: what the proxy itself runs shows no value to anybody', async () => {
    const { rows } = await admin.query(
      "select query from pg_stat_activity where usename = 'pgjot_control' and backend_type = 'client backend'",
    );

    expect(rows.length).toBeGreaterThan(0);
    for (const { query } of rows) expect(query).toMatch(/^select pgjot\.\w+\([$\d, ]*\)/);
  });

  it('E9: parallel workers lose no row and find no other', async () => {
    await admin.query(`
      create table ledger (owner text not null, amount int not null);
      insert into ledger select case when i % 5 = 0 then 'alice' else 'bob' end, 1 from generate_series(1, 20000) i;
      alter table ledger enable row level security;
      create policy own on ledger to authenticated using (owner = (select auth.user_id()));
      create policy unwrapped on ledger to service_role using (owner = auth.user_id());
      grant select on ledger to authenticated; analyze ledger`);
    await alice.query(`
      set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
      set max_parallel_workers_per_gather = 4; set ${version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode'} = on`);
    const plan = await alice.query('explain select sum(amount) from ledger');
    const { rows } = await alice.query(
      'select sum(amount)::int, count(distinct owner)::int as owners from ledger',
    );
    await alice.query('reset all');

    expect(JSON.stringify(plan.rows)).toContain('Gather');
    expect(rows).toEqual([{ sum: 4_000, owners: 1 }]);
  });

  // Each waits for a token to expire, so they wait together.
  it.concurrent('E8: a cached plan asks again who it is for', async () => {
    const eve = await stack.connect('alice', {
      password: () => stack.token('alice', {}, { expiresIn: 2 }),
    });
    await eve.query('set plan_cache_mode = force_generic_plan');
    await eve.query('prepare mine as select count(*)::int as n from todos');
    const before = await eve.query('execute mine');
    await eve.query('begin isolation level repeatable read');
    const within = await eve.query('execute mine');
    await until(
      async () => (await eve.query('select auth.user_id() is null as gone')).rows[0].gone,
      5_000,
    );
    const after = await eve.query('execute mine');

    expect([before.rows, within.rows, after.rows]).toEqual([[{ n: 3 }], [{ n: 3 }], [{ n: 0 }]]);
    await eve.end();
  });

  it.concurrent('E10: an idle session ends when its token does, and says why', async () => {
    const eve = new pg.Client({
      ...stack.as('alice'),
      password: await stack.token('alice', {}, { expiresIn: 2 }),
    });
    const failure = new Promise<pg.DatabaseError>((resolve) => {
      eve.on('error', (error) => 'code' in error && resolve(error as pg.DatabaseError));
    });
    await eve.connect();
    const error = await failure;

    expect(error).toMatchObject({
      severity: 'FATAL',
      code: '57P01',
      message: 'terminating connection because the token expired',
    });
    await stack.logged(
      (line) => line['event'] === 'session_end' && line['reason'] === 'session_expired',
    );
  });

  it.concurrent('E10: a statement that outlives the token loses its identity at that instant', async () => {
    const eve = await stack.connect('alice', {
      password: await stack.token('alice', {}, { expiresIn: 2 }),
    });
    const failure = new Promise((resolve) => eve.on('error', resolve));
    const { rows } = await eve.query<{ expires: number }>(
      `select (auth.session() ->> 'exp')::int as expires`,
    );
    await eve.query(
      'do $$ begin while auth.user_id() is not null loop perform pg_sleep(0.02); end loop; end $$',
    );
    const lateMs = Date.now() - (rows[0]?.expires as number) * 1_000;

    expect(lateMs).toBeGreaterThanOrEqual(0);
    expect(lateMs).toBeLessThan(900);
    expect(await failure).toMatchObject({ code: '57P01' });
  });

  it('E11: a slot that its user spoilt is put aside, and nobody is locked out', async () => {
    const poisons = [
      ["password 'mine'"],
      ["set local_preload_libraries = 'no-such-library'"],
      ['set statement_timeout = 1', 'set idle_session_timeout = 1'],
      ["set role = 'none'", 'set search_path = pg_temp', 'set row_security = off'],
    ];
    const spoilt: string[] = [];
    for (const poison of poisons) {
      const eve = await stack.connect('alice');
      const slot = await slotOf(eve);
      await eve.query('set role none');
      for (const change of poison) await eve.query(`alter role ${slot} ${change}`);
      // Bound to its pid, not to its role: what was done to the role changes nothing about who this is.
      await expectAlice(eve, poison.join());
      await eve.end();
      spoilt.push(slot);
    }
    await until(() => busy() === 2);

    // Every slot that is not spoilt, at once: so none is met that was tried and passed over.
    const crowd = await Promise.all(
      Array.from({ length: SLOTS - spoilt.length - 2 }, () => stack.connect('bob')),
    );
    for (const one of crowd) expect(spoilt).not.toContain(await slotOf(one));
    expect(stack.proxy.counts().upstreams['main']?.['authenticated']).toMatchObject({
      busy: SLOTS - spoilt.length,
      quarantined: spoilt.length,
    });
    for (const slot of spoilt) {
      await stack.logged((line) => line['event'] === 'slot_quarantined' && line['slot'] === slot);
    }
    for (const one of crowd) await one.end();
    await until(() => busy() === 2);
  });

  it('E11: a client whose own settings make its login fail spoils no slot by it', async () => {
    const before = stack.proxy.counts().upstreams['main']?.['authenticated']?.quarantined;
    for (const setting of ['statement_timeout=1', 'idle_session_timeout=1', 'lock_timeout=1']) {
      await stack
        .connect('alice', { options: `-c ${setting}` })
        .then((client) => client.end())
        .catch(() => {});
    }
    await until(() => busy() === 2);

    expect(stack.proxy.counts().upstreams['main']?.['authenticated']?.quarantined).toBe(before);
  });

  it('E12: nobody cancels or terminates the session of another', async () => {
    const pid = await pidOf(bob);
    const { rows: controls } = await admin.query<{ pid: number }>(
      "select pid from pg_stat_activity where usename in ('pgjot_control', 'postgres') and backend_type = 'client backend'",
    );
    const sleeping = bob.query('select pg_sleep(0.3)');
    for (const become of ['set role authenticated', 'set role none']) {
      await alice.query(become);
      for (const victim of [pid, ...controls.map((one) => one.pid)]) {
        await expectRefused(alice, '42501', [
          `select pg_cancel_backend(${victim})`,
          `select pg_terminate_backend(${victim})`,
          `select pg_log_backend_memory_contexts(${victim})`,
        ]);
      }
    }
    await alice.query('reset role');

    expect((await sleeping).rows).toHaveLength(1);
    expect(await pidOf(bob)).toBe(pid);
  });

  it.skipIf(version < 16)('E12: a slot cannot be granted to another session', async () => {
    const second = await stack.connect('alice');
    const [mine, hers] = [await slotOf(alice), await slotOf(second)];
    await alice.query('set role none');
    await expectRefused(alice, '42501', [
      `grant ${mine} to ${hers}`,
      `grant ${mine} to authenticated`,
    ]);
    await alice.query('reset role');
    await second.end();
  });

  it('E13: locks, notifications and sleeps of one user keep nobody from logging in', async () => {
    const eve = await stack.connect('alice');
    await eve.query('begin');
    await eve.query('select pg_advisory_lock(i) from generate_series(1, 1000) i');
    await eve.query("listen everything; notify everything, 'x'");
    for (const table of ['pg_authid', 'pg_auth_members', 'pg_db_role_setting', 'pg_database']) {
      const mode = 'access share';
      await eve.query('savepoint s');
      await eve.query(`lock table pg_catalog.${table} in ${mode} mode`).catch(() => {});
      await eve.query('rollback to s');
    }
    const other = await stack.connect('bob');
    const { rows } = await other.query('select count(*)::int as n from todos');

    expect(rows).toEqual([{ n: 2 }]);
    await other.end();
    await eve.end();
  });

  it('keeps sixty users apart who come and go at once over a few slots', async () => {
    const mistaken: string[] = [];
    const users = Array.from({ length: 60 }, (_, i) => `user-${i}`);
    await inTurns(15, users, async (sub) => {
      const client = await stack.connect(sub);
      await client.query("insert into todos (task) values ('mine')");
      const { rows } = await client.query(
        "select auth.user_id() as me, string_agg(distinct user_id, ',') as owners, count(*)::int as n from todos",
      );
      if (rows[0].me !== sub || rows[0].owners !== sub || rows[0].n !== 1) {
        mistaken.push(`${sub}: ${JSON.stringify(rows[0])}`);
      }
      await client.end();
    });

    expect(mistaken).toEqual([]);
    await admin.query("delete from todos where user_id like 'user-%'");
  });

  it('guesses no password of a slot, and lets nobody ask for one by name', async () => {
    const slot = slotName('authenticated', SLOTS);
    const guesses = ['', slot, 'postgres', SECRET, derivePassword(SECRET, 'authenticated')];
    for (const password of guesses) {
      const direct = new pg.Client({ ...stack.admin, user: slot, password });
      direct.on('error', () => {});
      await expect(direct.connect()).rejects.toThrow(/password/);
    }
    for (const user of [slot, 'pgjot_control', 'pgjot_owner', 'postgres', 'service_role']) {
      await expect(stack.connect('alice', { user })).rejects.toMatchObject({
        code: '28000',
        message: `role "${user}" is not permitted to log in`,
      });
    }
  });

  it('shows no token to PostgreSQL, in any line that it logs', async () => {
    const token = await stack.token('bob', { note: MARK });
    const client = await stack.connect('bob', { password: token });
    await client.query('select auth.session()');
    await client.end();
    await admin.query("select 'the log has come so far'");
    await until(() => serverLog.some((line) => line.includes('the log has come so far')));

    expect(serverLog.join('\n')).not.toContain('eyJ');
    for (const part of token.split('.')) expect(serverLog.join('\n')).not.toContain(part);
    expect(stack.logs.join('\n')).not.toContain('eyJ');
  });
});
