/**
 * What happens to identities when PostgreSQL restarts, crashes, or stops being a standby, in every session mode.
 *
 * Nobody may come out of it as somebody else, and who signs in afterwards must be who she is. What is tried where is in
 * `attack-scene.ts`.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createProxy, parseConfig } from '../../src/proxy.ts';
import { recordedLogger } from '../support/logger.ts';
import { until } from '../support/stack.ts';
import {
  answers,
  type Attack,
  expectAlice,
  GROUND,
  grounds,
  notTried,
  pidOf,
  refusal,
  Scene,
  value,
} from './attack-scene.ts';

/** What a client is told when its server goes away: the server's own word, or that there was none. */
const GONE = /^(57P01|57P02|57P03|08006|ECONNRESET|EPIPE)$|terminated|closed|ended/;

describe.each(grounds())(GROUND, (ground) => {
  const { session } = ground;
  const without = (attack: Attack) => notTried(ground, attack);
  const carrier = session === 'replica' ? 'pgjot.identity' : 'pg_session_jwt.jwt';
  let scene: Scene;

  beforeAll(async () => {
    scene = await Scene.open(ground);
  });

  afterAll(() => scene?.close());

  /** Alice and Bob, as far as they get: the server may still be on its way. */
  async function signIn(sub: string): Promise<pg.Client> {
    return until(() => scene.stack.connect(sub).catch(() => undefined), 15_000);
  }

  /** Expects that both sessions end with `upheaval`, and that the identity of one is no use to the other afterwards. */
  async function expectNobodyElseAfter(
    upheaval: (victim: pg.Client) => Promise<void>,
  ): Promise<void> {
    const [alice, bob] = [await signIn('alice'), await signIn('bob')];
    const identity = session === 'portable' ? undefined : await identityOf(bob);
    await alice.query(
      'prepare mine as select user_id from public.todos; set search_path = nowhere',
    );
    const working = alice.query('select pg_sleep(60)').then(
      () => 'completed',
      (error: pg.DatabaseError) => error.code ?? error.message,
    );
    await upheaval(bob);

    expect(await working).toMatch(GONE);
    expect(await refusal(bob, 'select 1')).not.toBe('accepted');
    const [again, other] = [await signIn('alice'), await signIn('bob')];
    await expectAlice(again, 'the upheaval');
    expect(await value(other, 'select auth.user_id()')).toBe('bob');
    expect(await refusal(again, 'execute mine')).toBe('26000');
    if (identity !== undefined) {
      await again.query(`set ${carrier} = ${pg.escapeLiteral(identity)}`);
      expect(await answers(again)).not.toContain('bob');
      await again.query('reset all');
      await expectAlice(again, 'the identity of Bob before the upheaval');
    }
    for (const client of [alice, bob, again, other]) await client.end().catch(() => {});
  }

  async function identityOf(client: pg.Client): Promise<string> {
    return String(await value(client, `select pg_catalog.current_setting('${carrier}')`));
  }

  it.skipIf(without('restart'))(
    'a restart ends every session, and leaves nobody’s identity behind',
    async () => {
      await expectNobodyElseAfter(() => scene.stack.postgres.restart('fast'));
    },
  );

  it.skipIf(without('crash'))(
    'a crash of one backend ends every session, and leaves nobody’s identity behind',
    async () => {
      // PostgreSQL ends all its backends then, recovers, and goes on.
      await expectNobodyElseAfter(async (victim) => {
        process.kill(await pidOf(victim), 'SIGKILL');
      });
    },
  );

  it.skipIf(without('crash'))(
    'a crash of the server ends every session, and leaves nobody’s identity behind',
    async () => {
      await expectNobodyElseAfter(() => scene.stack.postgres.restart('immediate'));
    },
  );

  it.skipIf(without('crash'))('the rows of identities do not outlive a crash', async () => {
    const client = await signIn('bob');
    await scene.stack.primary.restart('immediate');
    const admin = new pg.Client({ ...scene.stack.primary.superuser, database: 'app' });
    await admin.connect();
    // The proxy's connection is back as soon as somebody signs in; none has, so there is none but ours.
    const { rows } = await admin.query(
      `select (select count(*)::int from pgjot.session) as sessions, (select count(*)::int from pgjot.lease l
         where not exists (select from pg_stat_activity a where a.pid = l.control_pid)) as leases`,
    );

    expect(rows).toEqual([{ sessions: 0, leases: 0 }]);
    await admin.end();
    await client.end().catch(() => {});
  });
});

describe.each(grounds().filter((ground) => !notTried(ground, 'standby promotion')))(
  `${GROUND}, promoted`,
  (ground) => {
    let scene: Scene;
    let inTransaction: pg.Client;
    let bobs: string;

    beforeAll(async () => {
      scene = await Scene.open(ground);
      inTransaction = await scene.stack.connect('alice');
      await inTransaction.query(
        'begin isolation level repeatable read; select * from public.todos',
      );
      await inTransaction.query('declare mine cursor for select user_id from public.todos');
      for (const client of [scene.alice, scene.bob]) {
        await client.query('set plan_cache_mode = force_generic_plan');
        await client.query('prepare mine as select user_id from public.todos');
        await client.query('execute mine');
      }
      bobs = String(await value(scene.bob, `select current_setting('pgjot.identity')`));
      await scene.stack.primary.stop();
      await scene.stack.standby?.promote();
    });

    afterAll(async () => {
      await inTransaction?.end();
      await scene?.close();
    });

    it('sessions of the standby are nobody’s, and say so', async () => {
      for (const client of [scene.alice, scene.bob]) {
        expect(await answers(client)).toEqual(['55000']);
        expect(await refusal(client, 'execute mine')).toBe('55000');
        expect(await refusal(client, "insert into public.todos (task) values ('late')")).toMatch(
          /55000|25006/,
        );
      }
    });

    it('a transaction from before ends with an error at its next row', async () => {
      // What the cursor had begun with it may end with; nothing new is read.
      expect(await refusal(inTransaction, 'select * from public.todos')).toBe('55000');
      await inTransaction.query('rollback');
    });

    it('no identity of the standby is worth anything, whoever has it', async () => {
      for (const identity of [bobs, '', 'bob', bobs.slice(0, -10)]) {
        await scene.alice.query(`set pgjot.identity = ${pg.escapeLiteral(identity)}`);
        const said = await answers(scene.alice);
        expect(said.filter((one) => one !== '55000' && one !== 'null')).toEqual([]);
        await scene.alice.query('reset all');
      }
    });

    it('a new login fails, and the log says what to change', async () => {
      await expect(scene.stack.connect('alice')).rejects.toMatchObject({
        severity: 'FATAL',
        code: '42501',
      });
      const line = await scene.stack.logged((one) => one['reason'] === 'session_setup_failed');

      expect(JSON.stringify(line)).toContain('the server is no standby');
    });

    it('a proxy that takes it for the primary signs everybody in as who they are', async () => {
      const { upstreams } = scene.stack.config;
      const main = { ...upstreams['main'], session: 'portable' } as (typeof upstreams)[string];
      const config = parseConfig({ ...scene.stack.config, upstreams: { main } });
      const proxy = createProxy(config, { logger: recordedLogger() });
      const { host, port } = await proxy.start();
      const alice = await scene.stack.connect('alice', { host, port });

      await expectAlice(alice, 'the promotion');
      await alice.query("insert into public.todos (task) values ('on the new primary')");
      // Side by side with a session that was Bob's on the standby.
      expect(await answers(scene.bob)).toEqual(['55000']);
      await alice.end();
      await proxy.close();
    });
  },
);
