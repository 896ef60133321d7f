/**
 * Two proxies behind one address that share a real Redis: their limits together, and what becomes of them when it is gone,
 * slow, full, restarted or talks nonsense. Logins never fail for it.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { digest } from '../../src/limits/setbacks.ts';
import { hasRedis, TestRedis } from '../support/redis.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { Company, SHARED_SECRET } from './company.ts';

describe.runIf(hasRedis)('two proxies with one store', () => {
  let stack: Stack;
  let redis: TestRedis;
  let company: Company;

  beforeAll(async () => {
    stack = await startStack({ slots: 40 });
  });
  afterAll(() => stack.close());

  beforeEach(async () => {
    redis = await TestRedis.start();
    company = new Company(stack, redis);
  });
  afterEach(async () => {
    await company[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
  });

  const start = async (limits: object) => {
    await company.start(limits);
    await company.alive();
  };
  const login = (...given: Parameters<Company['login']>) => company.login(...given);
  const logged = (...given: Parameters<Company['logged']>) => company.logged(...given);
  const leaveAll = () => company.leaveAll();

  it('count clients of an address, and of a subject, together; and those of neither when they have left', async () => {
    const limits = { maxClientsPerAddress: 4, maxClientsPerSubject: 2 };
    await start(limits);
    await start(limits);

    expect([await login(0), await login(1), await login(0), await login(1)]).toEqual([
      'in',
      'in',
      '53300',
      '53300',
    ]);
    expect([await login(0, 'bob'), await login(1, 'bob'), await login(1, 'carol')]).toEqual([
      'in',
      'in',
      '53300',
    ]);
    await leaveAll();
    await until(() =>
      redis.run(async (client) => (await client.keys('pgjot:address:*')).length === 0),
    );
    expect([await login(1), await login(1), await login(0)]).toEqual(['in', 'in', '53300']);
  });

  it('of which one dies: its counts are over when its signs of life are', async () => {
    await start({ maxClientsPerAddress: 1 });
    // As a proxy that was killed has left it: with a count, and without a sign of life.
    await redis.run(async (client) => {
      expect(await login(0)).toBe('in');
      const [name] = await client.keys('pgjot:address:*');
      await client.hset(name as string, 'dead', 5);
      await client.set('pgjot:alive:dead', 1);
    });
    await leaveAll();
    expect(await login(0)).toBe('53300');

    await redis.run((client) => client.del('pgjot:alive:dead'));
    expect(await login(0)).toBe('in');
  });

  it('hold failed logins against an address together, and forget them together', async () => {
    const limits = { failedLogins: { allowed: 3, delayMs: 60_000, maxDelayMs: 60_000 } };
    await start(limits);
    await start(limits);
    const bad = `${(await stack.token('mallory')).slice(0, -8)}AAAAAAAA`;
    const settled = (failures: number) =>
      until(() =>
        redis.run(async (client) => {
          const [name] = await client.keys('pgjot:setback:*');
          const values = name === undefined ? [] : await client.hvals(name);
          return failures === 0 ? values.length === 0 : values[0]?.startsWith(`${failures}:`);
        }),
      );

    for (const [index, failures] of [
      [0, 1],
      [1, 2],
      [0, 3],
    ] as const) {
      expect(await login(index, 'x', bad)).toBe('28P01');
      await settled(failures);
    }
    expect(await login(1, 'good')).toBe('in');
    await settled(0);
    for (const failures of [1, 2, 3, 4]) {
      expect(await login(0, 'x', bad)).toBe('28P01');
      await settled(failures);
    }
    expect(await login(1, 'another')).toBe('53400');
  });

  it('bound logins by the second together', async () => {
    await start({ loginsPerSecond: 3 });
    await start({ loginsPerSecond: 3 });
    const startedAt = performance.now();
    const outcomes = await Promise.all(Array.from({ length: 24 }, (_, i) => login(i % 2)));
    const seconds = Math.floor((performance.now() - startedAt) / 1_000) + 2;

    expect(outcomes.filter((one) => one === 'in').length).toBeLessThanOrEqual(3 * seconds);
    expect(outcomes.filter((one) => one === 'in').length).toBeGreaterThanOrEqual(3);
    expect(outcomes.filter((one) => one !== 'in' && one !== '53400')).toEqual([]);
  });

  it('count alone while it is gone, loudly, and together again when it is back, empty', async () => {
    const limits = { maxClientsPerAddress: 2 };
    await start(limits);
    await start(limits);
    expect([await login(0), await login(1)]).toEqual(['in', 'in']);
    expect(await login(0)).toBe('53300');

    await redis.stop();
    await logged(0, 'limit_store_lost');
    await logged(1, 'limit_store_lost');
    expect([await login(0), await login(0), await login(1), await login(1)]).toEqual([
      'in',
      '53300',
      'in',
      '53300',
    ]);
    await company.leave();
    await company.leave();

    await redis.start();
    await logged(0, 'limit_store_back');
    // Both have said what they have.
    await until(() =>
      redis.run(async (client) => {
        const [name] = await client.keys('pgjot:address:*');
        return name !== undefined && (await client.hlen(name)) === 2;
      }),
    );
    expect([await login(0), await login(1)]).toEqual(['53300', '53300']);
  });

  it('let clients in without it when they start', async () => {
    await redis.stop();
    await start({ maxClientsPerAddress: 1, loginsPerSecond: 100 });

    expect([await login(0), await login(0)]).toEqual(['in', '53300']);
  });

  it('do not wait for it while it hangs', async () => {
    await start({ maxClientsPerAddress: 5, loginsPerSecond: 100 });
    redis.signal('SIGSTOP');
    try {
      // The first finds out, within its timeout of two seconds; the others are not held up.
      expect(await login(0)).toBe('in');
      const startedAt = performance.now();
      expect(await login(0)).toBe('in');
      expect(performance.now() - startedAt).toBeLessThan(10_000);
      await logged(0, 'limit_store_lost');
    } finally {
      redis.signal('SIGCONT');
    }
  });

  it.each<[string, (redis: TestRedis) => Promise<unknown>]>([
    ['full', (one) => one.run((client) => client.config('SET', 'maxmemory', '1'))],
    ['read-only', (one) => one.run((client) => client.replicaof('127.0.0.1', 1))],
    [
      'answering nonsense',
      (one) =>
        one.run(async (client) => {
          for (const name of await client.keys('pgjot:[asr]*')) {
            if (!name.startsWith('pgjot:alive:')) await client.set(name, 'nonsense');
          }
        }),
    ],
  ])('let clients in, counted alone, while it is %s', async (_, spoil) => {
    await start({ maxClientsPerAddress: 3, maxClientsPerSubject: 3, loginsPerSecond: 100 });
    expect(await login(0)).toBe('in');
    await spoil(redis);

    expect([await login(0), await login(0), await login(0)]).toEqual(['in', 'in', '53300']);
    await logged(0, 'limit_store_lost');
  });

  it('count nobody any more who left while it took nothing', async () => {
    await start({ maxClientsPerAddress: 2 });
    await start({ maxClientsPerAddress: 2 });
    expect([await login(0), await login(0), await login(1)]).toEqual(['in', 'in', '53300']);

    await redis.run((client) => client.replicaof('127.0.0.1', 1));
    await leaveAll();
    await logged(0, 'limit_store_lost');
    await redis.run((client) => client.replicaof('NO', 'ONE'));

    await until(async () => (await login(1)) === 'in');
  });

  it('tell nobody who reads there, or in the log, an address, a subject, an issuer or the secret', async () => {
    await start({
      maxClientsPerAddress: 9,
      maxClientsPerSubject: 9,
      loginsPerSecondPerAddress: 99,
    });
    const bad = `${(await stack.token('mallory')).slice(0, -8)}AAAAAAAA`;
    await login(0, 'marked-subject');
    await login(0, 'x', bad);
    await until(() =>
      redis.run(async (client) => (await client.keys('pgjot:setback:*')).length > 0),
    );

    const everything = await redis.run(async (client) => {
      const names = await client.keys('*');
      const values = await Promise.all(
        names.map(async (name) =>
          (await client.type(name)) === 'hash' ? client.hgetall(name) : client.get(name),
        ),
      );
      return JSON.stringify([names, values]);
    });
    expect(everything).toContain('pgjot:subject:');
    const guess = digest(stack.issuer.url);
    for (const mark of ['127.0.0.1', 'marked-subject', stack.issuer.url, guess, SHARED_SECRET]) {
      expect(everything).not.toContain(mark);
    }
    expect(JSON.stringify(company.members[0]?.log)).not.toContain(SHARED_SECRET);
  });
});
