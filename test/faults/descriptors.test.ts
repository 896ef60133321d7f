/**
 * A process that runs out of file descriptors, or of ports to connect from.
 */
import { readdirSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RawClient } from '../e2e/raw-client.ts';
import { until } from '../support/stack.ts';
import { startFleet, startGround, type Fleet, type Ground } from '../workers/fleet.ts';
import { openHouse } from './house.ts';
import { missing, run } from './machine.ts';
import { NEEDED } from './namespace.ts';

const unlimited = missing('prlimit');
if (unlimited !== undefined) console.error(`a lack of descriptors is ${unlimited}`);
const disconnected = missing(...NEEDED);
if (disconnected !== undefined) console.error(`a lack of ports is ${disconnected}`);

const LIMIT = 256;
const SLOTS = 12;

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(SLOTS);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

const startLimited = (workers: number): Promise<Fleet> =>
  startFleet(ground, {
    workers,
    pool: { spares: 0, reuse: 'never' },
    settings: { limits: { maxClients: 2_000, loginTimeoutMs: 60_000 } },
    under: ['prlimit', `--nofile=${LIMIT}:${LIMIT}`],
  });

/** Sets the limit of a process that is running. */
const setLimit = (pid: number, limit: number) =>
  run('prlimit', '--pid', String(pid), `--nofile=${limit}:`);

/** The limit with which it could open so many more: it is one of the numbers, which have gaps. */
function limitFor(pid: number, more: number): number {
  const used = new Set(readdirSync(`/proc/${pid}/fd`).map(Number));
  let limit = 0;
  for (let free = 0; free <= more; limit++) if (!used.has(limit)) free++;
  return limit - 1;
}

const open = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;

/** So many connections that say nothing; those that are sent away are counted. */
async function arrive(fleet: Fleet, count: number) {
  const arrivals = { sockets: [] as Socket[], sentAway: 0, settled: 0 };
  for (let n = 0; n < count; n++) {
    const socket = connect({ host: fleet.host, port: fleet.port });
    socket.on('error', () => {}).on('connect', () => arrivals.settled++);
    socket.on('close', () => arrivals.sentAway++).resume();
    arrivals.sockets.push(socket);
  }
  await until(() => arrivals.settled + arrivals.sentAway >= count);
  return arrivals;
}

const outcome = (login: Promise<RawClient>) =>
  login.then(
    (client) => {
      client.destroy();
      return 'in';
    },
    (error: { code?: string }) => error.code ?? 'closed',
  );

describe.skipIf(unlimited !== undefined)('descriptors that are few', () => {
  it.each([1, 2])(
    'let in fewer clients than configured, which is said once; nobody inside notices a thousand who come (%i workers)',
    { timeout: 120_000 },
    async (workers) => {
      await using fleet = await startLimited(workers);
      const pids = workers === 1 ? [fleet.primary.pid as number] : [...fleet.workers().values()];
      using inside = await fleet.login();

      const arrivals = await arrive(fleet, 1_000);
      // Each process has room for two hundred at most.
      await until(() => arrivals.sentAway >= 1_000 - 200 * workers, 30_000);
      const { sentAway } = arrivals;
      const full = Math.max(...pids.map(open));
      const answer = await inside.ask('select 1');
      for (const socket of arrivals.sockets) socket.destroy();
      const goneAt = performance.now();
      await until(async () => (await outcome(fleet.login('bob'))) === 'in');
      const recoveredMs = performance.now() - goneAt;

      const warnings = fleet.log.filter(({ event }) => event === 'few_descriptors');
      expect(warnings[0]).toMatchObject({ level: 40, limit: LIMIT, maxClients: 2_000 });
      expect(warnings).toHaveLength(workers === 1 ? 1 : workers + 1);
      expect(full).toBeLessThan(LIMIT);
      expect(answer.rows).toEqual([['1']]);
      expect(fleet.log.filter(({ event }) => event === 'worker_lost')).toEqual([]);
      console.error(
        `descriptors: ${full} of ${LIMIT} open, ${sentAway} of 1000 sent away, a login ${Math.round(recoveredMs)} ms after they left`,
      );
      // A second, or a few times what a start takes on a machine that is busy.
      expect(recoveredMs).toBeLessThan(Math.max(1_000, 3 * fleet.startedInMs));
    },
  );

  it('and then gone altogether: a login hears 53300, those inside work on, and all is well when some are free', async () => {
    await using fleet = await startLimited(1);
    const pid = fleet.primary.pid as number;
    using inside = await fleet.login();
    await fleet.logged(({ event }) => event === 'login');
    const before = open(pid);
    setLimit(pid, limitFor(pid, 1));

    const refused = await outcome(fleet.login('bob'));
    const answer = await inside.ask('select 1');
    const line = await fleet.logged(({ outcome: found }) => found === 'refused');
    setLimit(pid, LIMIT);
    const raisedAt = performance.now();
    await until(async () => (await outcome(fleet.login('bob'))) === 'in');
    const recoveredMs = performance.now() - raisedAt;

    expect(refused).toBe('53300');
    expect(line).toMatchObject({
      reason: 'too_many_clients',
      cause: expect.stringContaining('EMFILE') as string,
    });
    expect(answer.rows).toEqual([['1']]);
    console.error(`descriptors: a login ${Math.round(recoveredMs)} ms after there were some again`);
    expect(recoveredMs).toBeLessThan(Math.max(1_000, 3 * fleet.startedInMs));
    await until(() => open(pid) <= before);
  });
});

describe.skipIf(disconnected !== undefined)('ports to connect from', () => {
  it('that are used up: a login hears 53300, and gets in when one is free', async () => {
    // Five, one of which is the control connection's.
    await using house = await openHouse(ground, {}, (namespace) => {
      namespace.sysctl('net.ipv4.ip_local_port_range', '50000 50004');
      namespace.sysctl('net.ipv4.tcp_tw_reuse', '1');
    });
    const inside: RawClient[] = [];
    const refused = await (async () => {
      for (;;) inside.push(await house.login('alice'));
    })().catch((error: { code: string }) => error.code);
    const line = await house.fleet.logged(({ outcome: found }) => found === 'refused');
    const answers = await Promise.all(inside.map((client) => client.ask('select 1')));
    inside.pop()?.destroy();
    // A port that was closed from here is in TIME_WAIT for a minute, unless the kernel finds that it can be used before.
    await until(async () => (await outcome(house.login('bob'))) === 'in', 90_000);

    expect(refused).toBe('53300');
    expect(line['cause']).toContain('EADDRNOTAVAIL');
    expect(answers.map(({ rows }) => rows)).toEqual(answers.map(() => [['1']]));
    for (const client of inside) client.destroy();
  }, 150_000);
});
