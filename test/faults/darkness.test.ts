/**
 * Networks in which packets vanish and nobody is told: whoever is cut off is given up within three minutes, whatever it was at.
 *
 * By the kernel's own times, so this takes a minute and a half; both sides go dark at once in two houses.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { query } from '../e2e/parity/bytes.ts';
import type { RawClient } from '../e2e/raw-client.ts';
import { withSuperuser } from '../support/postgres.ts';
import { until } from '../support/stack.ts';
import { startGround, type Ground } from '../workers/fleet.ts';
import { openHouse, type House } from './house.ts';
import { missing } from './machine.ts';
import { NEEDED } from './namespace.ts';

const absent = missing(...NEEDED);
if (absent !== undefined) console.error(`a network that goes dark is ${absent}`);

const GIVEN_UP_MS = 180_000;

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(12);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

const running = (marker: string) =>
  withSuperuser(ground.postgres, async (admin) => {
    const sql =
      "select from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid()";
    return (await admin.query(sql, [`%${marker}%`])).rowCount;
  });

/** A session of the house in the middle of something, by the name of its user. */
const STATES: Record<string, (client: RawClient) => void> = {
  idle: () => {},
  waiting: (client) => client.send(query("select pg_sleep(600), 'darkness'")),
  answered: (client) => client.send(query("select pg_sleep(2), 'soon'")),
  flooded: (client) => {
    client.socket.pause();
    client.send(query("select repeat('x', 10000) from generate_series(1, 1000000)"));
  },
};

/** When the session of each user has ended, in ms since `cutAt`; of those that do within the time. */
async function endings(house: House, users: readonly string[], cutAt: number) {
  const ends = new Map<string, number>();
  await until(() => {
    for (const { event, subject } of house.fleet.log) {
      const user = String(subject);
      if (event === 'session_end' && users.includes(user) && !ends.has(user))
        ends.set(user, Math.round(performance.now() - cutAt));
    }
    return ends.size === users.length;
  }, GIVEN_UP_MS).catch(() => {});
  return Object.fromEntries(ends);
}

describe.skipIf(absent !== undefined)('a network that goes dark', { concurrent: true }, () => {
  it('takes clients away: each is given up, its query cancelled and its slot freed, and others notice nothing', {
    timeout: 300_000,
  }, async () => {
    await using house = await openHouse(ground);
    const other = house.namespace.lay();
    using witness = await house.login('witness', other);
    const clients: RawClient[] = [];
    for (const [user, begin] of Object.entries(STATES)) {
      const client = await house.login(user);
      clients.push(client);
      begin(client);
    }
    await until(async () => (await running('darkness')) === 1);

    house.toClients.cut();
    const cutAt = performance.now();
    const ends = await endings(house, Object.keys(STATES), cutAt);
    const left = await until(async () => (await running('darkness')) === 0, 5_000);

    console.error('clients that vanished were given up after, in ms:', ends);
    expect(Object.keys(ends).toSorted()).toEqual(Object.keys(STATES).toSorted());
    expect(left).toBe(true);
    expect((await witness.ask('select auth.user_id()')).rows).toEqual([['witness']]);
    for (const client of clients) client.destroy();
  });

  it('takes PostgreSQL away: clients hear 08006, newcomers 08001 in time, and all is well when it is back', {
    timeout: 300_000,
  }, async () => {
    await using house = await openHouse(ground);
    using idle = await house.login('idle');
    using waiting = await house.login('waiting');
    using asking = await house.login('asking');
    waiting.send(query("select pg_sleep(600), 'eclipse'"));
    await until(async () => (await running('eclipse')) === 1);

    house.toPostgres.cut();
    const cutAt = performance.now();
    asking.send(query('select 1'));
    const newcomer = await house.login('newcomer').catch((error: { code: string }) => error.code);
    const refusedMs = performance.now() - cutAt;
    const ends = await endings(house, ['idle', 'waiting', 'asking'], cutAt);
    house.toPostgres.mend();
    const mendedAt = performance.now();
    const again = await until(() => house.login('again').catch(() => undefined));
    const backMs = performance.now() - mendedAt;

    console.error('sessions of a PostgreSQL that vanished ended after, in ms:', ends, {
      refusedMs: Math.round(refusedMs),
      backMs: Math.round(backMs),
    });
    expect(newcomer).toBe('08001');
    expect(refusedMs).toBeLessThan(15_000);
    expect(Object.keys(ends).toSorted()).toEqual(['asking', 'idle', 'waiting']);
    for (const client of [idle, waiting, asking]) {
      await client.end();
      expect(client.heard.at(-1)?.reply).toMatchObject({ sqlstate: '08006' });
    }
    expect(backMs).toBeLessThan(10_000);
    again.destroy();
  });
});
