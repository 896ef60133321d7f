/**
 * Cancel requests among two proxies of two workers each, behind one address: whichever they arrive at, they reach their
 * session and no other, and nobody who listens in on the store can do as much.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cancel, type RawClient } from '../e2e/raw-client.ts';
import { hasRedis, TestRedis } from '../support/redis.ts';
import { until } from '../support/stack.ts';
import { race } from '../workers/cancel-race.ts';
import { type Fleet, type Ground, startFleet, startGround } from '../workers/fleet.ts';

describe.runIf(hasRedis)('a cancel request', () => {
  let folder: string;
  let ground: Ground;
  let redis: TestRedis;
  let fleets: [Fleet, Fleet];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pgjot-shared-'));
    ground = await startGround(60);
    redis = await TestRedis.start();
    const [url, secret] = [join(folder, 'url'), join(folder, 'secret')];
    await writeFile(url, redis.url);
    await writeFile(secret, 'what-all-proxies-have-in-common-0123456789');
    const store = { redis: { url: { file: url }, secret: { file: secret }, timeoutMs: 2_000 } };
    const settings = { limits: { store, missedCancelsPerSecond: 1_000_000 } };
    fleets = [
      await startFleet(ground, { workers: 2, settings }),
      await startFleet(ground, { workers: 2, settings }),
    ];
    await until(() =>
      redis.run(async (client) => {
        const [, count] = (await client.pubsub('NUMSUB', 'pgjot:cancel')) as [string, number];
        return count === 2;
      }),
    );
  });
  afterAll(async () => {
    for (const fleet of fleets) await fleet[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
    await ground[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  /** Sends cancel requests until the query has been answered; resolves with its SQLSTATE. */
  async function cancelled(client: RawClient, at: Fleet): Promise<string | undefined> {
    const answer = client.ask('select pg_sleep(60)');
    const again = setInterval(() => void cancel(at, client.key).catch(() => {}), 300);
    return (await answer.finally(() => clearInterval(again))).sqlstate;
  }

  it('reaches its session through the other proxy, on whichever worker that is', async () => {
    for (const [home, other] of [fleets, fleets.toReversed()] as [Fleet, Fleet][]) {
      const each = await home.onEach();
      for (const client of each.values()) expect(await cancelled(client, other)).toBe('57014');
      for (const client of each.values()) client.destroy();
    }
  });

  it('with a wrong secret reaches nobody, and is closed without waiting', async () => {
    const client = await fleets[0].login();
    const answer = client.ask('select pg_sleep(2)');
    const wrong = { ...client.key, secretKey: Buffer.from('nope') };
    const startedAt = performance.now();
    for (const fleet of fleets) expect(await cancel(fleet, wrong)).toHaveLength(0);

    // Well before the exchange would give up: the others have said that it is none of theirs.
    expect(performance.now() - startedAt).toBeLessThan(11_000);
    expect((await answer).sqlstate).toBeUndefined();
    client.destroy();
  });

  it('is nobody’s who was not meant, in a thousand that race with sessions that come and go', async () => {
    const either = () => fleets[Math.floor(Math.random() * 2)] as Fleet;
    const both: Fleet = Object.defineProperties(Object.create(fleets[0]) as Fleet, {
      port: { get: () => either().port },
      login: { value: (sub?: string) => either().login(sub) },
    });

    const outcome = await race(both, 1_000);

    console.log(JSON.stringify(outcome));
    expect(outcome.faults).toEqual([]);
    expect(outcome.hits).toBeGreaterThan(0);
  }, 240_000);

  it('attack: overheard in the store it shows no key, and sent again it cancels nothing', async () => {
    const overheard: string[] = [];
    const listener = new Redis(redis.url);
    await listener.subscribe('pgjot:cancel');
    listener.on('message', (_, text: string) => overheard.push(text));
    try {
      const client = await fleets[0].login();
      expect(await cancelled(client, fleets[1])).toBe('57014');
      expect(overheard.length).toBeGreaterThan(0);
      const answer = client.ask('select pg_sleep(3)');
      await redis.run(async (writer) => {
        for (const text of [...overheard, 'garbage', '', '{}']) {
          await writer.publish('pgjot:cancel', text);
        }
      });

      expect((await answer).sqlstate).toBeUndefined();
      const key = client.key.secretKey;
      for (const text of overheard) {
        for (const form of ['hex', 'base64', 'latin1'] as const) {
          expect(Buffer.from(text, 'base64').toString('latin1')).not.toContain(key.toString(form));
        }
      }
      client.destroy();
    } finally {
      listener.disconnect();
    }
  });

  it('reaches its session at its own proxy while the store is gone, and through the other one when it is back', async () => {
    await redis.stop();
    const client = await fleets[0].login();
    expect(await cancelled(client, fleets[0])).toBe('57014');
    // Nobody can be asked; the client is not kept waiting.
    expect(await cancel(fleets[1], client.key)).toHaveLength(0);

    await redis.start();
    expect(await cancelled(client, fleets[1])).toBe('57014');
    client.destroy();
  });
});
