/**
 * The secret of an upstream is rotated while clients work: nobody notices but who has only the old one.
 */
import { once } from 'node:events';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createProxy, parseConfig, type ConfigInput } from '../../src/proxy.ts';
import { derivePassword } from '../../src/session-sql/credentials.ts';
import { startCli } from '../support/cli.ts';
import { recordedLogger } from '../support/logger.ts';
import { SECRET, until } from '../support/stack.ts';
import { expectNoSecret, NEW_SECRET, Scene, workers } from './rotation.ts';

const CLIENTS = 20;

describe('a database', () => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await Scene.start({ slots: 60, healSlots: true });
  });
  afterAll(() => scene?.stack.close());

  test('is not rotated while a proxy is connected that would be locked out', async () => {
    const client = await scene.stack.connect('alice');

    const alone = await scene.rotate('after');
    const early = await scene.rotate('both');

    expect([alone.status, early.status]).toEqual([64, 64]);
    expect(alone.stderr).toContain('upstreams.main has no previousSecret: put the new secret into');
    expect(early.stderr).toMatch(
      /^pgjot: 1 of 1 proxies have not got these two secrets, .*127\.0\.0\.1 in database app since .*\(one secret\)/,
    );
    expect(await scene.login(SECRET)).toBe('accepted');
    await client.end();
  });

  test(`${CLIENTS} working clients notice nothing, and the old secret is useless afterwards`, async () => {
    const clients = workers(scene, CLIENTS);
    await clients.goOn();
    scene.reload('both');
    await clients.goOn();
    expect(await scene.login(NEW_SECRET)).toBe('28P01');
    const plan = await scene.rotate('both', ['--dry-run']);
    expect(plan.stdout).toContain('would set the passwords of 61 roles, in one transaction');

    const result = await scene.rotate('both');

    expect(result.stderr).toBe('');
    expect(result.status).toBe(0);
    expect(result.stdout).toContain('set the passwords of 60 slots and of 1 other roles');
    expect(result.stdout).toContain(
      'checked: the new secret lets us in\nchecked: the old one is refused\n',
    );
    expect(result.stdout).toMatch(
      /What is left to do:\n1\. Take "previousSecret" out of upstreams\.main,/,
    );
    for (const output of [plan, result]) expectNoSecret(output);
    await clients.goOn();
    scene.reload('after');
    await clients.goOn();
    const { failures } = await clients.stop();
    expect(failures).toEqual([]);
    for (const role of ['pgjot_control', 'pgjot_authenticated_1', 'pgjot_authenticated_60']) {
      expect(await scene.login(SECRET, role)).toBe('28P01');
    }
    expect(await scene.login(NEW_SECRET)).toBe('accepted');
    expect(scene.events('slot_quarantined')).toEqual([]);
    expect(scene.events('secret_refused')).toEqual([]);
    const changes = scene.events('secret_changed').map(({ setting }) => setting);
    expect(changes).toEqual(['upstreams.main.previousSecret', 'upstreams.main.secret']);
  });
});

describe('a rotation', () => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await Scene.start({
      slots: 8,
      settings: { authentication_timeout: '2s' },
      upstream: { acquireTimeoutMs: 2_000 },
    });
  });
  afterAll(() => scene?.stack.close());

  test('that is interrupted has changed nothing, and can be done again; it needs no password of anybody logged in', async () => {
    const client = await scene.stack.connect('alice');
    scene.reload('both');
    await using blocker = await begun(scene, "alter role pgjot_authenticated_8 password 'x'");
    const child = startCli(...(await scene.command([], scene.config('both'))));
    await until(async () => (await blocker.waiting()) > 0);
    child.kill('SIGINT');
    await once(child, 'exit');

    await blocker.rollback();

    expect(await scene.login(SECRET)).toBe('accepted');
    expect(await scene.login(SECRET, 'pgjot_authenticated_7')).toBe('accepted');
    const again = await scene.rotate('both');
    expect(again.status).toBe(0);
    const { rows } = await client.query('select auth.user_id() as me');
    expect(rows).toEqual([{ me: 'alice' }]);
    await client.end();
    // What is done already may be done again: with sessions, and with proxies that have the new secret alone.
    scene.reload('after');
    await (await scene.stack.connect('bob')).end();
    expect((await scene.rotate('after')).status).toBe(0);
    await (await scene.stack.connect('bob')).end();
  });

  test('cannot be held up by a user who keeps a lock on the role of his slot', async () => {
    const eve = await scene.stack.connect('eve');
    const bob = await scene.stack.connect('bob');
    await eve.query('begin; set role none; alter role session_user password null');

    const result = await scene.rotate('after');

    expect(result.status).toBe(0);
    expect(result.stdout).toMatch(
      /^ended 1 session of "pgjot_authenticated_\d", whose user held a lock on that role$/m,
    );
    await expect(eve.query('select 1')).rejects.toThrow(/terminat|ended|closed|queryable/i);
    expect((await bob.query('select auth.user_id() as me')).rows).toEqual([{ me: 'bob' }]);
    await bob.end();
  });

  test('tells a proxy that has only the old secret what to do, and costs no slot there', async () => {
    const lines: string[] = [];
    const late = createProxy(parseConfig(scene.config('after')), {
      logger: recordedLogger((line) => void lines.push(line)),
    });
    const { port } = await late.start();
    const early = await scene.stack.connect('early', { port });
    const [from, to] = [scene.newFile, scene.oldFile];
    const back: ConfigInput = scene.config('after');
    Object.assign(back.upstreams['main'] as object, {
      secret: { file: to },
      previousSecret: { file: from },
    });
    expect((await scene.rotate('after', ['--force'], back)).status).toBe(0);

    const refusals = await Promise.all(
      Array.from({ length: 5 }, (_, n) =>
        scene.stack
          .connect(`late ${n}`, { port })
          .catch((error: unknown) => error as pg.DatabaseError),
      ),
    );

    for (const refusal of refusals) {
      expect(refusal).toMatchObject({
        code: '08004',
        message: 'the server rejected the connection',
      });
    }
    const events = lines.map((line) => JSON.parse(line) as Record<string, string>);
    const secretRefused = events.filter(({ event }) => event === 'secret_refused');
    expect(secretRefused).toHaveLength(1);
    expect(secretRefused[0]?.['advice']).toContain('give this proxy the new one and reload it');
    expect(events.filter(({ event }) => event === 'slot_quarantined')).toEqual([]);
    const refused = events.find(({ outcome }) => outcome === 'refused');
    expect(refused?.['cause']).toContain('the server refuses the secret of this proxy');
    // Who was in is still in.
    expect((await early.query('select auth.user_id() as me')).rows).toEqual([{ me: 'early' }]);
    late.reload(parseConfig(back));
    const healed = await scene.stack.connect('healed', { port });
    expect((await healed.query('select auth.user_id() as me')).rows).toEqual([{ me: 'healed' }]);
    await Promise.all([early.end(), healed.end()]);
    await late.close();
    scene.reload('both');
    expect((await scene.rotate('both')).status).toBe(0);
  });

  test('after a leak ends every session, and logins with the old password that were half-way', async () => {
    scene.reload('after');
    const client = await scene.stack.connect('alice');
    const { host, port } = scene.stack.primary;
    const leaked = derivePassword(NEW_SECRET, 'pgjot_control');
    let speak = () => {};
    const spoken = new Promise<void>((resolve) => {
      speak = resolve;
    });
    const thief = new pg.Client({
      host,
      port,
      database: 'app',
      user: 'pgjot_control',
      // Asked for when the server has begun the exchange, and answered when it is too late.
      password: async () => {
        await spoken;
        return leaked;
      },
    });
    thief.on('error', () => {});
    // Not once(): it rejects for what the server says before it hangs up.
    const thrownOut = new Promise((resolve) => thief.once('end', resolve));
    const robbed = thief.connect().then(
      () =>
        thief.query('select 1').then(
          () => 'in',
          () => 'ended',
        ),
      () => 'refused',
    );
    const inside = new pg.Client({
      host,
      port,
      database: 'app',
      user: 'pgjot_control',
      password: leaked,
    });
    inside.on('error', () => {});
    await inside.connect();
    const next: ConfigInput = scene.config('after');
    Object.assign(next.upstreams['main'] as object, {
      secret: { file: scene.oldFile },
      previousSecret: { file: scene.newFile },
    });
    scene.stack.proxy.reload(parseConfig(next));

    const running = scene.rotate('after', ['--end-sessions'], next);
    await until(async () => (await scene.login(SECRET)) === 'accepted');
    speak();
    const result = await running;

    expect(result.stderr).toBe('');
    expect(result.stdout).toMatch(/^ended [1-9]\d* sessions$/m);
    expectNoSecret(result);
    await expect(inside.query('select 1')).rejects.toThrow(/terminat|ended|closed|queryable/i);
    await expect(client.query('select 1')).rejects.toThrow(/terminat|ended|closed|queryable/i);
    // It may have been in for a moment.
    await Promise.all([robbed, thrownOut]);
    await (await scene.stack.connect('alice')).end();
  });
});

/** A superuser's transaction that holds a lock, and how many wait for it. */
async function begun(scene: Scene, sql: string) {
  const client = new pg.Client({ ...scene.stack.admin });
  const other = new pg.Client({ ...scene.stack.admin });
  await Promise.all([client.connect(), other.connect()]);
  await client.query(`begin; ${sql}`);
  return {
    async waiting(): Promise<number> {
      const { rows } = await other.query(
        'select count(*)::int as n from pg_locks where not granted',
      );
      return (rows[0] as { n: number }).n;
    },
    async rollback() {
      await client.query('rollback');
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([client.end(), other.end()]);
    },
  };
}
