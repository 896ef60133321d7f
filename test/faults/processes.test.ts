/**
 * What becomes of the clients when a process of pgjot is out of memory, does not answer for a while, or has made a mistake.
 */
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { exitOf } from '../support/cli.ts';
import { freePort } from '../support/sockets.ts';
import { until } from '../support/stack.ts';
import { isAlive, startFleet, startGround, type Fleet, type Ground } from '../workers/fleet.ts';

const PRELOAD = fileURLToPath(new URL('inject.mjs', import.meta.url));

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(12);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

type Fault = 'stall' | 'heap' | 'throw' | 'reject';

/** A fleet in whose processes SIGUSR2 is this fault. */
const startFaulty = (fault: Fault, workers: number, nodeOptions = ''): Promise<Fleet> =>
  startFleet(ground, {
    workers,
    env: { PGJOT_FAULT: fault, NODE_OPTIONS: `--import ${PRELOAD} ${nodeOptions}` },
  });

/** A worker is given the fault while every worker has a session at work; what is known of all that afterwards. */
async function breakOneOf(fleet: Fleet) {
  const each = await fleet.onEach();
  const [victim, ...others] = [...each];
  const [number, client] = victim as (typeof others)[number];
  const working = others.map(([, other]) => other.ask('select pg_sleep(1)'));

  process.kill(fleet.workers().get(number) as number, 'SIGUSR2');
  await client.end();
  const lost = await fleet.logged(({ event }) => event === 'worker_lost');
  await fleet.logged(({ event, worker }) => event === 'worker_started' && worker === number);
  const newcomers = await fleet.onEach('bob');

  const answers = await Promise.all(working);
  for (const one of [...each.values(), ...newcomers.values()]) one.destroy();
  return { client, lost, answers, newcomers };
}

describe('a worker', () => {
  it('that is out of memory ends, alone, and is replaced', async () => {
    await using fleet = await startFaulty('heap', 3, '--max-old-space-size=64');

    const { lost, answers, newcomers } = await breakOneOf(fleet);

    expect(lost['code'] ?? lost['signal']).toSatisfy((end) => end === 134 || end === 'SIGABRT');
    expect(answers.map(({ sqlstate }) => sqlstate)).toEqual([undefined, undefined]);
    expect(newcomers.size).toBe(3);
  });

  it.each(['throw', 'reject'] as const)(
    'in which something is thrown (%s) says so in one line, tells its clients, and is replaced',
    async (fault) => {
      await using fleet = await startFaulty(fault, 3);

      const { client, lost, answers } = await breakOneOf(fleet);
      const crashes = fleet.log.filter(({ event }) => event === 'crashed');

      expect(client.heard.at(-1)?.reply).toMatchObject({ sqlstate: '57P01' });
      expect(lost).toMatchObject({ code: 70 });
      expect(crashes).toMatchObject([
        { level: 60, cause: expect.stringContaining('of nobody in particular') as string },
      ]);
      expect(JSON.stringify(crashes)).not.toContain('eyJ');
      expect(fleet.noise).toEqual([]);
      expect(answers.map(({ sqlstate }) => sqlstate)).toEqual([undefined, undefined]);
    },
  );
});

describe('a worker that hangs', () => {
  it('is ended by a revocation that it does not hear, which its successor knows', async () => {
    const admin = { port: await freePort() };
    await using fleet = await startFleet(ground, { workers: 2, settings: { admin } });
    const each = await fleet.onEach('mallory');
    process.kill(fleet.workers().get(2) as number, 'SIGSTOP');

    const { status } = await fetch(`http://127.0.0.1:${admin.port}/revocations`, {
      method: 'POST',
      body: JSON.stringify({ sub: 'mallory' }),
      headers: { 'content-type': 'application/json' },
    });

    expect(status).toBe(204);
    for (const client of each.values()) await client.end(1_000);
    expect(await fleet.logged(({ event }) => event === 'worker_failed')).toMatchObject({
      worker: 2,
      cause: 'has not answered within 10000 ms',
    });
    await fleet.logged(({ event, worker }) => event === 'worker_started' && worker === 2);
    const bobs = await fleet.onEach('bob');
    // Whoever has fewest clients gets the next.
    bobs.get(2)?.destroy();
    await until(async () => {
      await expect(fleet.login('mallory')).rejects.toMatchObject({ code: '28P01' });
      return fleet.log.some(({ outcome, worker }) => outcome === 'refused' && worker === 2);
    });
    bobs.get(1)?.destroy();
  });

  it('does not keep a drain from ending', async () => {
    await using fleet = await startFleet(ground, {
      workers: 2,
      settings: { sessions: { drainTimeoutMs: 100 } },
    });
    const each = await fleet.onEach();
    process.kill(fleet.workers().get(2) as number, 'SIGSTOP');

    fleet.primary.kill('SIGTERM');

    expect(await exitOf(fleet.primary)).toBe(0);
    for (const client of each.values()) await client.end(1_000);
  });
});

describe('a proxy of one process', () => {
  it('in which something is thrown says so in one line, tells its clients, and exits with 70', async () => {
    await using fleet = await startFaulty('throw', 1);
    using idle = await fleet.login();
    using busy = await fleet.login();
    const working = busy.ask('select pg_sleep(20)').catch((error: { code: string }) => error.code);

    fleet.primary.kill('SIGUSR2');

    expect(await exitOf(fleet.primary)).toBe(70);
    await idle.end();
    expect(idle.heard.at(-1)?.reply).toMatchObject({ sqlstate: '57P01' });
    expect(await working).toBe('57P01');
    expect(fleet.log.filter(({ event }) => event === 'crashed')).toHaveLength(1);
    expect(fleet.noise).toEqual([]);
  });

  it('that does not answer for two seconds lets in who came meanwhile, and ends nobody', async () => {
    await using fleet = await startFaulty('stall', 1);
    using inside = await fleet.login();
    const working = inside.ask("select pg_sleep(0.5)::text || 'done'");
    const stalledAt = performance.now();

    fleet.primary.kill('SIGUSR2');
    const arrivals = await Promise.all(Array.from({ length: 8 }, () => fleet.login('bob')));
    const afterMs = performance.now() - stalledAt;
    const logins = await until(() => {
      const lines = fleet.log.filter(({ event }) => event === 'login');
      return lines.length === 9 && lines;
    });

    expect(afterMs).toBeGreaterThan(1_500);
    expect((await working).rows).toEqual([['done']]);
    expect(logins.map(({ outcome }) => outcome)).toEqual(logins.map(() => 'accepted'));
    for (const one of arrivals) {
      expect((await one.ask('select auth.user_id()')).rows).toEqual([['bob']]);
      one.destroy();
    }
  });
});

describe('a primary', () => {
  it('in which something is thrown ends its workers in good order, and leaves the port free', async () => {
    await using fleet = await startFaulty('throw', 2);
    const each = await fleet.onEach();
    const pids = [...fleet.workers().values()];

    fleet.primary.kill('SIGUSR2');

    expect(await exitOf(fleet.primary)).toBe(70);
    for (const client of each.values()) {
      await client.end();
      expect(client.heard.at(-1)?.reply).toMatchObject({ sqlstate: '57P01' });
    }
    expect(pids.filter(isAlive)).toEqual([]);
  });
});
