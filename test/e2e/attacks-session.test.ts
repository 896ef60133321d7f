/**
 * What the holder of a good token can try in SQL to be somebody else: attacks E1 to E5, E8 and E9, in every session mode.
 *
 * The SQL objects that withstand her are attacked more closely, without a proxy, in `test/session-sql`; here it is that
 * the whole path holds. What is tried where is in `attack-scene.ts`.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { slotName } from '../../src/session-sql/credentials.ts';
import {
  type Attack,
  expectAlice,
  expectRefused,
  GROUND,
  grounds,
  pidOf,
  notTried,
  Scene,
  slotOf,
  value,
} from './attack-scene.ts';

// The settings that carry the identity itself: attacks-replay.test.ts has those.
const CARRIERS = {
  portable: [],
  replica: ['pgjot.identity'],
  pg_session_jwt: ['pg_session_jwt.jwk', 'pg_session_jwt.jwt'],
};

// As each driver does when a connection goes back to its pool.
const ASYNCPG = 'select pg_advisory_unlock_all(); close all; unlisten *; reset all;';
const NPGSQL = [
  'discard all',
  'set session authorization default; reset all; close all; unlisten *; select pg_advisory_unlock_all(); discard sequences; discard temp',
];

describe.each(grounds())(GROUND, (ground) => {
  const { session, version } = ground;
  let scene: Scene;
  let alice: pg.Client;
  let bob: pg.Client;

  const without = (attack: Attack) => notTried(ground, attack);
  // A standby says of much that it cannot be done there, before it looks at who asks.
  const refused = session === 'replica' ? '42501 25006 0A000' : '42501';

  beforeAll(async () => {
    scene = await Scene.open(ground, { healSlots: true, settings: { max_worker_processes: '8' } });
    ({ alice, bob } = scene);
    await scene.stack.change('create role service_role nologin');
  });

  afterAll(() => scene?.close());

  it.skipIf(without('forging'))('E1: settings forge nobody', async () => {
    const claims = '{"sub":"bob","role":"service_role"}';
    const names = [
      'request.jwt.claims',
      'request.jwt.claim.sub',
      'request.jwt',
      'pg_session_jwt.jwk',
      'pg_session_jwt.jwt',
      'pgjot.identity',
      'pgjot.claims',
      'pgjot.user_id',
      'pgjot_install.admin',
      'auth.user_id',
      'app.user_id',
      'app.current_user_id',
      'jwt.claims.sub',
    ];
    const carriers: readonly string[] = CARRIERS[session];
    for (const name of names.filter((one) => !carriers.includes(one))) {
      for (const forged of [claims, 'bob']) {
        for (const local of [false, true]) {
          await alice.query('begin');
          await alice.query('select set_config($1, $2, $3)', [name, forged, local]);
          await expectAlice(alice, `set_config('${name}', …, ${local})`);
          await alice.query('commit');
        }
        await alice.query(`set session ${name} = ${pg.escapeLiteral(forged)}`);
        await expectAlice(alice, `SET ${name}`);
      }
    }
    await alice.query(`set application_name = 'bob'; set timezone = 'UTC'; set search_path = bob`);
    await expectAlice(alice, 'SET search_path');
    await alice.query('reset all');
  });

  it.skipIf(without('becoming another role'))(
    'E2: no other role can be taken that changes who one is',
    async () => {
      const own = await slotOf(alice);
      const others = [1, 2, 3].map((number) => slotName('authenticated', number));
      const roles = ['postgres', 'pgjot_owner', 'pgjot_control', 'pgjot_healer', 'service_role']
        .concat('pg_read_all_data', 'pg_signal_backend', 'pg_monitor', others)
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
      expect(await value(alice, 'select current_user')).toBe('authenticated');
    },
  );

  it.skipIf(without('becoming another role'))(
    'E3: a slot is a member of its group alone',
    async () => {
      const { rows } = await alice.query(
        "select rolname from pg_roles where pg_has_role(session_user, oid, 'MEMBER') order by rolname",
      );

      expect(rows).toEqual([{ rolname: 'authenticated' }, { rolname: await slotOf(alice) }]);
    },
  );

  it.skipIf(without('resetting'))(
    'E4: the identity and the role survive every kind of reset',
    async () => {
      for (const sql of [
        'reset all',
        'discard all',
        'discard temp',
        'discard sequences',
        'discard plans',
        'reset role',
        'begin; set local role none; rollback',
        'set session characteristics as transaction read only; reset all',
        'deallocate all; close all; unlisten *; reset session authorization',
        ASYNCPG,
        ...NPGSQL,
      ]) {
        // DISCARD ALL is not for transactions, as a query of several statements is one.
        for (const one of sql.includes('discard') ? sql.split(';') : [sql]) await alice.query(one);
        await expectAlice(alice, sql);
        expect(await value(alice, 'select current_user')).toBe('authenticated');
      }
    },
  );

  it.skipIf(without('resetting'))(
    'E4: the identity survives a RESET of each setting by its name',
    async () => {
      const { rows } = await alice.query<{ name: string }>(
        "select name from pg_settings where context in ('user', 'superuser', 'backend') order by name",
      );
      for (const { name } of rows) await alice.query(`reset ${name}`).catch(() => {});
      for (const name of [
        'pgjot.identity',
        'pg_session_jwt.jwt',
        'pg_session_jwt.jwk',
        'request.jwt.claims',
      ]) {
        await alice.query(`reset ${name}`).catch(() => {});
      }

      expect(rows.length).toBeGreaterThan(150);
      await expectAlice(alice, 'RESET of everything');
    },
  );

  it.skipIf(without('reaching the machinery'))(
    'E5: the functions and tables of the identity are out of reach, as the group and as the slot',
    async () => {
      const pid = await pidOf(alice);
      for (const become of ['set role authenticated', 'set role none']) {
        await alice.query(become);
        await expectRefused(alice, refused, [
          `select pgjot.bind(${pid}, 1, '{"sub":"bob"}', 4102444800000)`,
          `select pgjot.unbind(${pid}, 1)`,
          `select pgjot.terminate(${await pidOf(bob)}, 1)`,
          'select pgjot.sweep()',
          `select pgjot.lease('authenticated', 100)`,
          `select pgjot.release('${slotName('authenticated', 1)}')`,
          `select pgjot.heal('${await slotOf(alice)}', 'SCRAM-SHA-256$4096:')`,
          'select pgjot.assert_control()',
          'select pgjot.backends(null)',
          'select pgjot.signed_claims()',
          ...['session', 'lease', 'slot', 'slot_group', 'identity_key'].flatMap((table) => [
            `select * from pgjot.${table}`,
            `delete from pgjot.${table}`,
            `truncate pgjot.${table}`,
            `copy pgjot.${table} to stdout`,
            `do $$ begin lock table pgjot.${table} in access share mode; end $$`,
            `alter table pgjot.${table} rename to other`,
            `drop table pgjot.${table}`,
          ]),
          `insert into pgjot.session values (${pid}, 1, null, null, 1, '{"sub":"bob"}', 'infinity', now())`,
          `insert into pgjot.identity_key values ('\\x00', '\\x00')`,
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
          'drop owned by authenticated',
          "load 'pgoutput'",
        ]);
        await expectAlice(alice, become);
      }
      await alice.query('reset role');
    },
  );

  it.skipIf(without('reaching the machinery'))('E5: PUBLIC may execute nothing of it', async () => {
    const { rows } = await scene.admin.query(
      `select p.oid::regprocedure::text as function from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace = 'pgjot'::regnamespace and a.grantee = 0`,
    );
    expect(rows).toEqual([]);
  });

  it.skipIf(without('shadowing by temporary objects'))(
    'E5: temporary objects deceive nothing',
    async () => {
      const eve = await scene.stack.connect('alice');
      await eve.query(`
      create temp table session (pid int, claims jsonb); insert into session values (pg_backend_pid(), '{"sub":"bob"}');
      create temp table todos as select 'bob' as user_id;
      create temp table pg_roles as select 'x' as rolname;
      create temp table identity_key as select '\\x00'::bytea as inner_block, '\\x00'::bytea as outer_block;
      create type pg_temp.jsonb as (sub text);
      create domain pg_temp.text as pg_catalog.text default 'bob';
      create function pg_temp.claims() returns pg_catalog.jsonb language sql as $$ select '{"sub":"bob"}'::pg_catalog.jsonb $$;
      create function pg_temp.user_id() returns pg_catalog.text language sql as $$ select 'bob' $$;
      create function pg_temp.pg_backend_pid() returns int language sql as $$ select ${await pidOf(bob)} $$;
      create function pg_temp.inet_client_port() returns int language sql as $$ select 1 $$;
      create function pg_temp.clock_timestamp() returns timestamptz language sql as $$ select timestamptz 'epoch' $$;
      create function pg_temp.pg_is_in_recovery() returns bool language sql as $$ select true $$;
      create function pg_temp.current_setting(pg_catalog.text, bool) returns pg_catalog.text language sql as $$ select 'bob' $$;
      create function pg_temp.sha256(bytea) returns bytea language sql as $$ select '\\x00'::bytea $$;
      create function pg_temp.always(anyelement, anyelement) returns bool language sql as $$ select true $$;
      create function pg_temp.first(pg_catalog.jsonb, pg_catalog.text) returns pg_catalog.text language sql as $$ select 'bob'::pg_catalog.text $$;
      create operator pg_temp.= (leftarg = anyelement, rightarg = anyelement, function = pg_temp.always);
      create operator pg_temp.->> (leftarg = pg_catalog.jsonb, rightarg = pg_catalog.text, function = pg_temp.first);
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
    },
  );

  it.skipIf(without('shadowing by search_path'))(
    'E5: look-alikes reach neither the login nor the readers',
    async () => {
      await scene.stack.change(`
      create schema trap; grant usage on schema trap to public;
      create function trap.always(text, text) returns bool language sql as $$ select true $$;
      create function trap.never(name, text) returns bool language sql as $$ select false $$;
      create function trap.encode(bytea, text) returns text language sql as $$ select '626f62' $$;
      create function trap.convert_to(text, name) returns bytea language sql as $$ select 'bob'::bytea $$;
      create function trap.current_setting(text, bool) returns text language sql as $$ select 'bob' $$;
      create function trap.pg_is_in_recovery() returns bool language sql as $$ select true $$;
      create function trap.sha256(bytea) returns bytea language sql as $$ select '\\x00'::bytea $$;
      create function trap.user_id() returns text language sql as $$ select 'bob' $$;
      create function trap.init() returns void language sql as $$ $$;
      create function trap.bob(jsonb, text) returns text language sql as $$ select 'bob' $$;
      create operator trap.->> (leftarg = jsonb, rightarg = text, function = trap.bob);
      create operator trap.= (leftarg = text, rightarg = text, function = trap.always);
      create operator trap.= (leftarg = name, rightarg = text, function = trap.never);
    `);
      const path = 'trap,pg_temp,pg_catalog';
      const trapped = await scene.stack.connect('alice', { options: `-c search_path=${path}` });
      await expectAlice(trapped, 'options=-c search_path=trap');
      await trapped.query(`set search_path = ${path}`);
      await expectAlice(trapped, 'SET search_path = trap');

      await trapped.end();
      await scene.stack.change('drop schema trap cascade');
    },
  );

  it.skipIf(without('plan caching'))('E8: a generic plan is nobody’s in particular', async () => {
    for (const mode of ['force_generic_plan', 'force_custom_plan', 'auto']) {
      for (const client of [alice, bob]) {
        await client.query(`set plan_cache_mode = ${mode}`);
        await client.query(
          'prepare mine(int) as select count(distinct user_id)::int as n, min(user_id) as who from public.todos where id > $1',
        );
        for (let i = 0; i < 7; i += 1) {
          const { rows } = await client.query('execute mine(0)');
          expect(rows).toEqual([{ n: 1, who: client === alice ? 'alice' : 'bob' }]);
        }
        await client.query('discard all');
      }
    }
    // A role of two users is one role to the planner: what it folded for one, it would use for the other.
    await alice.query('set role none; set role authenticated');
    await expectAlice(alice, 'SET ROLE between two plans');
    await alice.query('reset all; reset role');
  });

  it.skipIf(without('plan caching'))('E8: a generic plan asks again who it is for', async () => {
    const eve = await scene.stack.connect('alice');
    await eve.query('set plan_cache_mode = force_generic_plan');
    await eve.query('prepare mine as select user_id from public.todos');
    const before = await eve.query('execute mine');
    if (session === 'portable') {
      await scene.admin.query('delete from pgjot.session where pid = $1', [await pidOf(eve)]);
    } else {
      await eve.query(`set ${CARRIERS[session].at(-1)} = 'nobody'`);
    }
    const after = await eve.query('execute mine').then(
      ({ rows }) => rows.length,
      (error: pg.DatabaseError) => error.code,
    );

    expect(before.rows).toEqual(Array.from({ length: 3 }, () => ({ user_id: 'alice' })));
    expect(after).toBe(session === 'pg_session_jwt' ? '42804' : 0);
    await eve.end();
  });

  it.skipIf(without('parallel workers'))(
    'E9: parallel workers lose no row and find no other',
    async () => {
      await scene.stack.change(`
      create table ledger (owner text not null, amount int not null);
      insert into ledger select case when i % 5 = 0 then 'alice' else 'bob' end, 1 from generate_series(1, 20000) i;
      alter table ledger enable row level security;
      create policy own on ledger to authenticated using (owner = (select auth.user_id()));
      grant select on ledger to authenticated; analyze ledger`);
      await alice.query(`
      set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
      set max_parallel_workers_per_gather = 4; set ${version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode'} = on`);
      const count = 'select sum(amount)::int, count(distinct owner)::int as owners from ledger';
      const plan = await alice.query(`explain (analyze, costs off, timing off) ${count}`);
      const wrapped = await alice.query(count);
      await scene.stack.change('alter policy own on ledger using (owner = auth.user_id())');
      const bare = await alice.query(count);
      await alice.query('reset all');

      expect(JSON.stringify(plan.rows)).toMatch(/Workers Launched: [1-4]/);
      expect([wrapped.rows, bare.rows]).toEqual([
        [{ sum: 4_000, owners: 1 }],
        [{ sum: 4_000, owners: 1 }],
      ]);
    },
  );
});
