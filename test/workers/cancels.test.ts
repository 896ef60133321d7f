/**
 * Cancel requests among four workers: attack G7, and races with sessions that end and are used again.
 *
 * `PGJOT_CANCELS=100000 npx vitest run test/workers/cancels.test.ts` for as many as that.
 */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inTurns } from '../e2e/attack-stack.ts';
import { cancel, type Key } from '../e2e/raw-client.ts';
import { race } from './cancel-race.ts';
import { startFleet, startGround, type Fleet, type Ground } from './fleet.ts';

const CANCELS = Number(process.env['PGJOT_CANCELS'] ?? 2_000);
const PATIENCE_MS = 60_000 + CANCELS * 60;
// Half of them for each way of reuse.
const REUSES = ['same-identity', 'any'] as const;

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(60);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

describe('G7: a cancel request', () => {
  it('reaches its session in whichever worker it arrives, and no other', async () => {
    await using fleet = await startFleet(ground, { workers: 4 });
    const sessions = [...(await fleet.onEach('alice')).values()];
    const neighbours = [...(await fleet.onEach('bob')).values()];
    const undisturbed = neighbours.map((one) => one.ask('select pg_sleep(2)'));
    const results: (string | undefined)[] = [];

    await Promise.all(
      sessions.map(async (session) => {
        for (let round = 0; round < 25; round++) {
          const progress = { over: false };
          const answer = session.ask('select pg_sleep(60)').finally(() => {
            progress.over = true;
          });
          // The first may overtake the statement on its way.
          while (!progress.over) await cancel(fleet, session.key);
          results.push((await answer).sqlstate);
        }
      }),
    );

    expect(results).toEqual(Array.from({ length: 100 }, () => '57014'));
    expect((await Promise.all(undisturbed)).map(({ sqlstate }) => sqlstate)).toEqual(
      neighbours.map(() => undefined),
    );
    for (const client of [...sessions, ...neighbours]) client.destroy();
  }, 60_000);

  it('with a wrong secret or of no worker is closed without a word, and so is one whose worker has died', async () => {
    await using fleet = await startFleet(ground, { workers: 4 });
    const each = await fleet.onEach();
    const busy = [...each].filter(([number]) => number !== 2).map(([, one]) => one);
    const working = busy.map((one) => one.ask('select pg_sleep(1)'));
    const second = each.get(2)?.key as Key;
    process.kill(fleet.workers().get(2) as number, 'SIGKILL');
    const wrong = busy.map(({ key }) => ({ ...key, secretKey: randomBytes(4) }));
    const strange = [0, 1, 77, 127].map((worker) => ({
      processId: worker * 2 ** 24 + 1,
      secretKey: randomBytes(4),
    }));
    const keys = Array.from({ length: 20 }, () => [...wrong, ...strange, second]).flat();
    const heard: Buffer[] = [];

    await inTurns(16, keys, async (key) => {
      heard.push(await cancel(fleet, key));
    });

    expect(Buffer.concat(heard)).toHaveLength(0);
    expect((await Promise.all(working)).map(({ sqlstate }) => sqlstate)).toEqual(
      busy.map(() => undefined),
    );
    for (const client of each.values()) client.destroy();
  });
});

describe.each(REUSES)('with reuse %s', (reuse) => {
  it(
    `no statement is cancelled that its own client did not want to be, in ${CANCELS / 2} cancels`,
    async () => {
      await using fleet = await startFleet(ground, { workers: 4, pool: { reuse } });

      const outcome = await race(fleet, CANCELS / 2);

      console.log(JSON.stringify({ reuse, ...outcome, reused: reusedIn(fleet) }));
      expect(outcome.faults).toEqual([]);
      expect(outcome.cancels).toBeGreaterThanOrEqual(CANCELS / 2);
      // Else it would not have been much of a race.
      expect(Math.min(outcome.hits, outcome.late, reusedIn(fleet))).toBeGreaterThan(CANCELS / 200);
      expect(fleet.noise).toEqual([]);
      expect(fleet.log.filter(({ level }) => (level as number) >= 50)).toEqual([]);
    },
    PATIENCE_MS,
  );
});

/** How many logins were to a backend that somebody had been on before. */
function reusedIn({ log }: Fleet): number {
  const backends = log.flatMap(({ event, backendPid }) => (event === 'login' ? [backendPid] : []));
  return backends.length - new Set(backends).size;
}
