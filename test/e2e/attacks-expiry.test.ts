/**
 * What a client can try to stay signed in when its token has expired: attacks E8 and E10, in every session mode.
 *
 * Each test waits for a token to expire, so they wait together. What is tried where is in `attack-scene.ts`.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Attack, GROUND, grounds, notTried, Scene } from './attack-scene.ts';

const GRACE_MS = 1_500;

describe.each(grounds())(GROUND, (ground) => {
  const without = (attack: Attack) => notTried(ground, attack);
  // The extension forgives 60 s and looks at a token once; what reads through it here does neither.
  const userId = ground.session === 'pg_session_jwt' ? 'pgjot.user_id()' : 'auth.user_id()';
  let scene: Scene;

  beforeAll(async () => {
    scene = await Scene.open(ground, {
      provider: { clockToleranceMs: 0 },
      sessions: { graceMs: GRACE_MS },
    });
  });

  afterAll(() => scene?.close());

  /** Alice, with a token for two seconds; `expiresAt` in ms since the epoch. */
  async function briefly(): Promise<
    pg.Client & { readonly failure: Promise<pg.DatabaseError>; readonly expiresAt: number }
  > {
    const password = await scene.stack.token('alice', {}, { expiresIn: 2 });
    const payload = Buffer.from(password.split('.')[1] ?? '', 'base64url').toString();
    const expiresAt = (JSON.parse(payload) as { exp: number }).exp * 1_000;
    const client = new pg.Client({ ...scene.stack.as('alice'), password });
    const failure = new Promise<pg.DatabaseError>((resolve) => {
      client.on('error', (error) => 'code' in error && resolve(error as pg.DatabaseError));
    });
    await client.connect();
    return Object.assign(client, { failure, expiresAt });
  }

  it.skipIf(without('outliving the token'))(
    'E8: a transaction whose snapshot is older than the end of its token ends all the same',
    { concurrent: true },
    async () => {
      const eve = await briefly();
      await eve.query('set plan_cache_mode = force_generic_plan');
      await eve.query('prepare mine as select count(*)::int as n from todos');
      const before = await eve.query('execute mine');
      await eve.query('begin isolation level repeatable read');
      const within = await eve.query('execute mine');
      const failure = await eve.failure;
      const after = await eve.query('execute mine').catch((error: Error) => error.message);

      expect([before.rows, within.rows]).toEqual([[{ n: 3 }], [{ n: 3 }]]);
      expect(failure).toMatchObject({ code: '57P01' });
      expect(after).toMatch(/not queryable/);
    },
  );

  it.skipIf(without('outliving the token'))(
    'E10: an idle session ends when its token does, and says why',
    { concurrent: true },
    async () => {
      const eve = await briefly();

      expect(await eve.failure).toMatchObject({
        severity: 'FATAL',
        code: '57P01',
        message: 'terminating connection because the token expired',
      });
      await scene.stack.logged(
        (line) => line['event'] === 'session_end' && line['reason'] === 'session_expired',
      );
    },
  );

  it.skipIf(without('outliving the token'))(
    'E10: an idle transaction ends when its grace does, whatever it has set',
    { concurrent: true },
    async () => {
      const eve = await briefly();
      await eve.query('begin; set local idle_in_transaction_session_timeout = 0');
      await eve.query('declare mine cursor with hold for select * from todos');

      expect(await eve.failure).toMatchObject({ severity: 'FATAL', code: '57P01' });
    },
  );

  it.skipIf(without('outliving the token'))(
    'E10: a statement that outlives the token is over when the grace is',
    { concurrent: true },
    async () => {
      const eve = await briefly();
      const loop = eve.query(
        `do $$ begin while ${userId} is not null loop perform pg_sleep(0.02); end loop; end $$`,
      );

      // At the same moment it is nobody's and cut off; which of them it sees is chance.
      await loop.catch(() => {});
      const lateMs = Date.now() - eve.expiresAt - GRACE_MS;
      // The extension's tokens count whole seconds.
      expect(lateMs).toBeGreaterThanOrEqual(ground.session === 'pg_session_jwt' ? -1_000 : -10);
      expect(lateMs).toBeLessThan(900);
    },
  );

  it.skipIf(without('outliving the token'))('E10: an expired token does not log in', async () => {
    const password = await scene.stack.token('alice', {}, { expiresIn: -1 });

    await expect(scene.stack.connect('alice', { password })).rejects.toMatchObject({
      code: '28P01',
      detail: 'The token has expired.',
    });
  });
});
