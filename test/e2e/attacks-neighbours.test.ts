/**
 * What one user can do to the others, and to the slot that is hers for now: attacks E7 and E11 to E13, in every session mode.
 *
 * Bob must not be read, cancelled, terminated or locked out, and who comes after Alice must not find what she left. What
 * is tried where is in `attack-scene.ts`.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { derivePassword, slotName } from '../../src/session-sql/credentials.ts';
import { ANY_TOKEN } from '../support/issuer.ts';
import { SECRET, until } from '../support/stack.ts';
import {
  type Attack,
  expectAlice,
  expectRefused,
  GROUND,
  grounds,
  notTried,
  pidOf,
  Scene,
  slotOf,
  value,
} from './attack-scene.ts';
import { inTurns } from './attack-stack.ts';
import { cancel, RawClient } from './raw-client.ts';

// Stands in Bob's SQL and claims: nobody else may ever read it.
const MARK = 'bobs-secret-5309';

// What a user can do to the role that she is logged in as.
const POISONS = [
  ["password 'mine'"],
  ["set local_preload_libraries = 'no-such-library'"],
  ['set statement_timeout = 1', 'set idle_session_timeout = 1'],
  ["set role = 'none'", 'set search_path = pg_temp', 'set row_security = off'],
];

describe.each(grounds())(GROUND, (ground) => {
  const { session, version } = ground;
  const without = (attack: Attack) => notTried(ground, attack);
  let scene: Scene;
  let alice: pg.Client;
  let bob: pg.Client;

  beforeAll(async () => {
    scene = await Scene.open(ground, { settings: { log_statement: 'all' } });
    ({ alice, bob } = scene);
    await scene.stack.change('create role service_role nologin');
  });

  afterAll(() => scene?.close());

  /** Waits until only Alice and Bob are there. */
  const quiet = () => until(() => scene.slots().busy === 2);

  /** Signs in on every slot at once that is not spoilt, so that none is met that was tried and passed over. */
  async function expectCrowdOutside(spoilt: readonly string[]): Promise<void> {
    const free = scene.slots().all - spoilt.length - 2;
    const crowd = await Promise.all(Array.from({ length: free }, () => scene.stack.connect('bob')));
    for (const one of crowd) expect(spoilt).not.toContain(await slotOf(one));
    expect(scene.slots()).toMatchObject({ busy: free + 2, quarantined: spoilt.length });
    for (const slot of spoilt) {
      await scene.stack.logged(
        (line) => line['event'] === 'slot_quarantined' && line['slot'] === slot,
      );
    }
    for (const one of crowd) await one.end();
    await quiet();
  }

  it.skipIf(without('reading the neighbours'))(
    'E7: nobody reads the SQL or the claims of another',
    async () => {
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
          'select * from pg_stat_replication',
          'select * from pg_stat_wal_receiver',
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
    },
  );

  it.skipIf(without('reading the neighbours'))(
    'E7: what the proxy itself runs shows no value to anybody',
    async () => {
      const { rows } = await scene.admin.query(
        "select query from pg_stat_activity where usename = 'pgjot_control' and backend_type = 'client backend'",
      );

      expect(rows.length).toBeGreaterThan(0);
      for (const { query } of rows)
        expect(query).toMatch(/^select (slot from )?pgjot\.\w+\(([$\d, ]*|b\.pid[\w:., ]*)\)/);
    },
  );

  it.skipIf(without('reading the neighbours'))(
    'shows no token to PostgreSQL, in any line that it logs',
    async () => {
      const token = await scene.stack.token('bob', { note: MARK });
      const client = await scene.stack.connect('bob', { password: token });
      await client.query('select auth.session()');
      await client.end();
      await scene.admin.query("select 'the log has come so far'");
      await until(() => scene.serverLog.some((line) => line.includes('the log has come so far')));

      // Neither the issuer's nor one that the proxy signs.
      expect(scene.serverLog.join('\n')).not.toMatch(ANY_TOKEN);
      for (const part of token.split('.')) expect(scene.serverLog.join('\n')).not.toContain(part);
      expect(scene.stack.logs.join('\n')).not.toMatch(ANY_TOKEN);
    },
  );

  it.skipIf(without('ending the neighbours'))(
    'E12: nobody cancels or terminates the session of another',
    async () => {
      const pid = await pidOf(bob);
      const { rows: controls } = await scene.admin.query<{ pid: number }>(
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
        await expectRefused(
          alice,
          '42501',
          [
            'select pg_promote()',
            'select pg_wal_replay_pause()',
            'select pg_reload_conf()',
            'select pg_switch_wal()',
          ].filter((sql) => session === 'replica' || !sql.includes('replay')),
        );
      }
      await alice.query('reset role');

      expect((await sleeping).rows).toHaveLength(1);
      expect(await pidOf(bob)).toBe(pid);
    },
  );

  it.skipIf(without('cancelling the neighbours'))(
    'G1: a key of hers ends her own query and no other',
    async () => {
      const { host, port } = scene.stack;
      const to = { host, port, tls: ground.tls };
      using hers = await RawClient.login(to, await scene.stack.token('alice'));
      using his = await RawClient.login(to, await scene.stack.token('bob'));
      const sleeping = his.ask('select pg_sleep(0.4)');
      const working = hers.ask('select pg_sleep(20)');
      await until(async () => {
        await cancel(to, hers.key);
        return hers.heard.some(({ type }) => type === 'E');
      });

      expect(await working).toMatchObject({ sqlstate: '57014' });
      expect(await sleeping).toMatchObject({ sqlstate: undefined });
      expect(await hers.ask('select auth.user_id()')).toMatchObject({ rows: [['alice']] });
    },
  );

  it.skipIf(without('spoiling a slot'))(
    'E11: a slot that its user spoilt is put aside, and nobody is locked out',
    async () => {
      const spoilt: string[] = [];
      for (const poison of POISONS) {
        const eve = await scene.stack.connect('alice');
        const slot = await slotOf(eve);
        await eve.query('set role none');
        for (const change of poison) await eve.query(`alter role ${slot} ${change}`);
        // What was done to the role changes nothing about who this is.
        await expectAlice(eve, poison.join());
        await eve.end();
        spoilt.push(slot);
      }
      await quiet();

      await expectCrowdOutside(spoilt);
    },
  );

  it.skipIf(without('spoiling a slot on the primary'))(
    'E11: a slot that was spoilt on the primary is put aside on the standby',
    // It starts a stack of its own.
    { timeout: 60_000 },
    async () => {
      await using small = await Scene.open(ground, {
        slots: POISONS.length + 3,
        upstream: { acquireTimeoutMs: 2_000 },
      });
      const good = new Set([await slotOf(small.alice), await slotOf(small.bob)]);
      const [spare, ...spoilt] = Array.from({ length: small.slots().all }, (_, i) =>
        slotName('authenticated', i + 1),
      ).filter((slot) => !good.has(slot));
      for (const [i, poison] of POISONS.entries()) {
        for (const change of poison) await small.stack.change(`alter role ${spoilt[i]} ${change}`);
      }

      const last = await small.stack.connect('bob');
      // Whoever comes now finds no slot but spoilt ones, each once.
      await expect(small.stack.connect('bob')).rejects.toMatchObject({
        code: expect.stringMatching(/08004|53300/),
      });

      expect(await slotOf(last)).toBe(spare);
      expect(small.slots()).toMatchObject({ busy: 3, quarantined: spoilt.length });
      const lines = small.stack.logs.map((line) => JSON.parse(line) as Record<string, unknown>);
      const quarantined = lines.filter((line) => line['event'] === 'slot_quarantined');
      expect(quarantined.map((line) => String(line['slot'])).toSorted()).toEqual(spoilt.toSorted());
      await expectAlice(small.alice, 'the spoiling of other slots');
      await last.end();
    },
  );

  it.skipIf(without('spoiling a slot'))(
    'E11: a client whose own settings make its login fail spoils no slot by it',
    async () => {
      const before = scene.slots().quarantined;
      for (const setting of ['statement_timeout=1', 'idle_session_timeout=1', 'lock_timeout=1']) {
        await scene.stack
          .connect('alice', { options: `-c ${setting}` })
          .then((client) => client.end())
          .catch(() => {});
      }
      await quiet();

      expect(scene.slots().quarantined).toBe(before);
    },
  );

  it.skipIf(version < 16 || without('granting a slot away'))(
    'E12: a slot cannot be granted to another session',
    async () => {
      const second = await scene.stack.connect('alice');
      const [mine, hers] = [await slotOf(alice), await slotOf(second)];
      await alice.query('set role none');
      await expectRefused(alice, '42501', [
        `grant ${mine} to ${hers}`,
        `grant ${mine} to authenticated`,
      ]);
      await alice.query('reset role');
      await second.end();
    },
  );

  it.skipIf(without('locking the others out'))(
    'E13: locks, notifications and sleeps of one user keep nobody from logging in',
    async () => {
      const eve = await scene.stack.connect('alice');
      await eve.query('begin');
      await eve.query('select pg_advisory_lock(i) from generate_series(1, 1000) i');
      for (const sql of [
        'listen everything',
        "notify everything, 'x'",
        ...['pg_authid', 'pg_auth_members', 'pg_db_role_setting', 'pg_database'].map(
          (table) => `lock table pg_catalog.${table} in access share mode`,
        ),
      ]) {
        // Some of it is refused, on a standby more.
        await eve.query('savepoint s');
        await eve.query(sql).catch(() => eve.query('rollback to s'));
      }
      const other = await scene.stack.connect('bob');

      expect(await value(other, 'select count(*)::int from todos')).toBe(2);
      await other.end();
      await eve.end();
    },
  );

  it.skipIf(without('locking the others out'))(
    'keeps sixty users apart who come and go at once over a few slots',
    async () => {
      const users = Array.from({ length: 60 }, (_, i) => `user-${i}`);
      const mistaken: string[] = [];
      if (session === 'replica') {
        await scene.stack.change(
          "insert into todos (user_id, task) select 'user-' || i, 'mine' from generate_series(0, 59) i",
        );
      }
      await inTurns(15, users, async (sub) => {
        const client = await scene.stack.connect(sub);
        if (session !== 'replica') await client.query("insert into todos (task) values ('mine')");
        const { rows } = await client.query(
          "select auth.user_id() as me, string_agg(distinct user_id, ',') as owners, count(*)::int as n from todos",
        );
        if (rows[0].me !== sub || rows[0].owners !== sub || rows[0].n !== 1) {
          mistaken.push(`${sub}: ${JSON.stringify(rows[0])}`);
        }
        await client.end();
      });

      expect(mistaken).toEqual([]);
      await scene.stack.change("delete from todos where user_id like 'user-%'");
    },
  );

  it.skipIf(without('guessing a password'))(
    'guesses no password of a slot, and lets nobody ask for one by name',
    async () => {
      const slot = slotName('authenticated', scene.slots().all);
      const guesses = ['', slot, 'postgres', SECRET, derivePassword(SECRET, 'authenticated')];
      for (const password of guesses) {
        const direct = new pg.Client({ ...scene.stack.admin, user: slot, password });
        direct.on('error', () => {});
        await expect(direct.connect()).rejects.toThrow(/password/);
      }
      for (const user of [
        slot,
        'pgjot_control',
        'pgjot_owner',
        'pgjot_lookup',
        'postgres',
        'service_role',
      ]) {
        await expect(scene.stack.connect('alice', { user })).rejects.toMatchObject({
          code: '28000',
          message: `role "${user}" is not permitted to log in`,
        });
      }
    },
  );
});
