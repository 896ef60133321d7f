/**
 * `pgjot start --workers N` from outside: one port, one limit, one configuration, and what is left when a part of it dies.
 */
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { SSL_REQUEST } from '../e2e/parity/bytes.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { exitOf, runCli } from '../support/cli.ts';
import { withSuperuser } from '../support/postgres.ts';
import { freePort } from '../support/sockets.ts';
import { SECRET, until } from '../support/stack.ts';
import { configOf, isAlive, startFleet, startGround, type Ground } from './fleet.ts';

const SLOTS = 24;

// Each test starts and ends several processes, beside those of other tests.
vi.setConfig({ testTimeout: 60_000 });

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(SLOTS);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

/** Asks the endpoint for administrators. */
async function ask(port: unknown, path: string, body?: object): Promise<number> {
  const { status } = await fetch(`http://127.0.0.1:${port as number}${path}`, {
    method: 'POST',
    ...(body && {
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    }),
  });
  return status;
}

const codeOf = (login: Promise<RawClient>) =>
  login.then(
    (client) => client,
    (error: { code?: string }) => error.code ?? 'closed',
  );

describe('several workers', () => {
  it('share the clients of one port evenly, and say in each line which of them it is', async () => {
    await using fleet = await startFleet(ground, { workers: 4 });
    const clients = await fleet.fill(12);
    const each = new Map<number, number>();
    for (const { key } of clients) {
      const number = key.processId >>> 24;
      each.set(number, (each.get(number) ?? 0) + 1);
    }
    const logins = await until(() => {
      const lines = fleet.log.filter(({ event }) => event === 'login');
      return lines.length === clients.length && lines;
    });

    expect(Object.fromEntries(each)).toEqual({ 1: 3, 2: 3, 3: 3, 4: 3 });
    expect(
      logins.map(({ worker }) => Number(worker)).toSorted((one, other) => one - other),
    ).toEqual([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    expect(fleet.log.filter(({ event }) => event === 'listening')).toMatchObject([{ workers: 4 }]);
    for (const client of clients) client.destroy();
  });

  it('leave the others alone when one is killed, which is soon back with its slots', async () => {
    await using fleet = await startFleet(ground, { workers: 3, pool: { spares: 0 } });
    const clients = await fleet.fill(SLOTS);
    const ofSecond = clients.filter(({ key }) => key.processId >>> 24 === 2);
    const others = clients.filter((client) => !ofSecond.includes(client));
    const working = others.map((client) => client.ask('select pg_sleep(1.5)'));
    const pid = fleet.workers().get(2) as number;
    const killedAt = performance.now();

    process.kill(pid, 'SIGKILL');
    await fleet.logged(({ event, worker }) => event === 'worker_started' && worker === 2);
    const backAfterMs = performance.now() - killedAt;
    await Promise.all(ofSecond.map((client) => client.end()));
    const newcomers = await fleet.fill(ofSecond.length, 'bob');

    // A second, or as long as the whole took to start where other tests are in the way.
    expect(backAfterMs).toBeLessThan(Math.max(1_000, fleet.startedInMs));
    expect(fleet.log.filter(({ event }) => event === 'worker_lost')).toMatchObject([
      { level: 50, worker: 2, code: null, signal: 'SIGKILL', restartInMs: 50 },
    ]);
    expect(ofSecond).toHaveLength(8);
    // The slots of all: there are no others to be had.
    expect(newcomers.map(({ key }) => key.processId >>> 24)).toEqual(ofSecond.map(() => 2));
    expect((await Promise.all(working)).map(({ sqlstate }) => sqlstate)).toEqual(
      others.map(() => undefined),
    );
    for (const client of [...others, ...newcomers]) client.destroy();
  });

  it('hang up on nobody who arrives while one dies and is replaced', async () => {
    await using fleet = await startFleet(ground, { workers: 2 });
    const outcomes: string[] = [];
    let longestMs = 0;
    const progress = { over: false };
    const arriving = Array.from({ length: 8 }, async () => {
      while (!progress.over) {
        const began = performance.now();
        const one = await codeOf(fleet.login());
        longestMs = Math.max(longestMs, performance.now() - began);
        outcomes.push(typeof one === 'string' ? one : 'in');
        if (one instanceof RawClient) one.destroy();
      }
    });

    for (let round = 0; round < 3; round++) {
      const lines = fleet.log.length;
      process.kill(fleet.workers().get(1 + (round % 2)) as number, 'SIGKILL');
      await fleet.logged(({ event }) => event === 'worker_started', lines);
    }
    progress.over = true;
    await Promise.all(arriving);

    // Those in the middle of their login have lost their worker, and heard so.
    const lost = outcomes.filter((one) => one !== 'in');
    expect(outcomes.length).toBeGreaterThan(50);
    expect(lost.length).toBeLessThanOrEqual(3 * 8);
    expect(longestMs).toBeLessThan(10_000);
  });

  it('end with their primary, within two seconds, and leave the port free', async () => {
    await using fleet = await startFleet(ground, { workers: 3 });
    const each = await fleet.onEach();
    const pids = [...fleet.workers().values()];
    // Busy ones too.
    const busy = Promise.allSettled(
      [...each.values()].map((client) => client.ask('select pg_sleep(20)')),
    );
    const killedAt = performance.now();

    fleet.primary.kill('SIGKILL');
    const lost = await busy;
    await until(() => !pids.some(isAlive));
    const afterMs = performance.now() - killedAt;
    const server = createServer().listen(fleet.port, '127.0.0.1');
    await once(server, 'listening');
    server.close();

    expect(pids).toHaveLength(3);
    expect(afterMs).toBeLessThan(2_000);
    expect(lost.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
    for (const client of each.values()) client.destroy();
    await withSuperuser(ground.postgres, (admin) =>
      admin.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename like 'pgjot_%'",
      ),
    );
  });
});

describe('limits.maxClients', () => {
  it('holds for all workers together, exactly, whatever storm comes', async () => {
    await using fleet = await startFleet(ground, {
      workers: 4,
      settings: { limits: { maxClients: 7 } },
    });
    for (let round = 0; round < 6; round++) {
      const results = await Promise.all(Array.from({ length: 40 }, () => codeOf(fleet.login())));
      const clients = results.filter((one) => one instanceof RawClient);
      const refused = results.filter((one) => typeof one === 'string');

      expect(clients).toHaveLength(7);
      expect(refused).toEqual(Array.from({ length: 33 }, () => '53300'));
      // One goes, and there is room for one, on whichever worker it arrives.
      const ended = fleet.log.length;
      clients[round % 7]?.destroy();
      await fleet.logged(({ event }) => event === 'session_end', ended);
      const late = await until(async () => {
        const one = await codeOf(fleet.login());
        return typeof one === 'string' ? undefined : one;
      });
      for (const client of [...clients, late]) client.destroy();
      await until(() => {
        const count = (wanted: string, outcome?: string) =>
          fleet.log.filter(({ event, outcome: found }) => event === wanted && found === outcome)
            .length;
        return count('session_end') === count('login', 'accepted');
      });
    }
  });

  it('does not count the clients of a worker that has died', async () => {
    await using fleet = await startFleet(ground, {
      workers: 2,
      settings: { limits: { maxClients: 4 } },
    });
    const clients = await fleet.fill(4);
    const full = await codeOf(fleet.login());

    process.kill(fleet.workers().get(1) as number, 'SIGKILL');
    await fleet.logged(({ event }) => event === 'worker_started');
    const after = await Promise.all(Array.from({ length: 3 }, () => codeOf(fleet.login())));

    expect(full).toBe('53300');
    expect(after.filter((one) => one instanceof RawClient)).toHaveLength(2);
    expect(after).toContain('53300');
    for (const client of [...clients, ...after]) {
      if (client instanceof RawClient) client.destroy();
    }
  });
});

describe('a change', () => {
  it('of the configuration reaches every worker, one that starts later too', async () => {
    const other = { ...ground.issuer.provider({ roles: ['authenticated'] }) };
    await using fleet = await startFleet(ground, { workers: 3 });
    const each = await fleet.onEach();

    // Another audience: nobody's token is good any more.
    await fleet.configure({ providers: { own: { ...other, audience: 'others' } } });
    fleet.primary.kill('SIGHUP');
    // The workers say it too, at level debug.
    const reloaded = await fleet.logged(({ event, level }) => event === 'reloaded' && level === 30);
    const refused = await Promise.all(Array.from({ length: 9 }, () => codeOf(fleet.login())));
    process.kill(fleet.workers().get(1) as number, 'SIGKILL');
    await fleet.logged(({ event }) => event === 'worker_started');
    const later = await Promise.all(Array.from({ length: 9 }, () => codeOf(fleet.login())));

    expect(reloaded).toMatchObject({ needsRestart: [] });
    expect(reloaded).not.toHaveProperty('worker');
    expect(refused).toEqual(Array.from({ length: 9 }, () => '28P01'));
    expect(later).toEqual(refused);
    for (const client of each.values()) client.destroy();
  });

  it('that takes a provider away ends its sessions in every worker', async () => {
    await using fleet = await startFleet(ground, { workers: 3 });
    const each = await fleet.onEach();
    const elsewhere = {
      ...ground.issuer.provider({ roles: ['authenticated'] }),
      issuer: 'https://other.example',
    };

    await fleet.configure({ providers: { other: elsewhere } });

    await Promise.all([...each.values()].map((client) => client.end()));
    expect(await Promise.all(Array.from({ length: 6 }, () => codeOf(fleet.login())))).toEqual(
      Array.from({ length: 6 }, () => '28P01'),
    );
  });

  it('that is wrong changes nothing in any', async () => {
    await using fleet = await startFleet(ground, { workers: 2 });
    const upstream = configOf(ground).upstreams['main'];

    await fleet.configure({
      upstreams: { main: { ...upstream, secret: { env: 'PGJOT_UNSET' } } } as never,
    });
    fleet.primary.kill('SIGHUP');
    const failed = await fleet.logged(({ event }) => event === 'reload_failed');
    const each = await fleet.onEach();

    expect(failed).toMatchObject({
      level: 50,
      problems: [{ path: 'upstreams.main.secret' }],
    });
    expect(fleet.log.filter(({ event }) => event === 'worker_lost')).toEqual([]);
    for (const client of each.values()) client.destroy();
  });

  it('by an administrator has reached every worker when it is answered', async () => {
    const admin = { port: await freePort() };
    await using fleet = await startFleet(ground, { workers: 3, settings: { admin } });
    const [alices, bobs] = [await fleet.onEach('alice'), await fleet.onEach('bob')];

    const revoked = await ask(admin.port, '/revocations', { sub: 'alice' });
    const newcomers = await Promise.all(
      Array.from({ length: 6 }, () => codeOf(fleet.login('alice'))),
    );
    await Promise.all([...alices.values()].map((client) => client.end(3_000)));
    process.kill(fleet.workers().get(2) as number, 'SIGKILL');
    await fleet.logged(({ event }) => event === 'worker_started');
    const later = await Promise.all(Array.from({ length: 6 }, () => codeOf(fleet.login('alice'))));
    const bad = await ask(admin.port, '/revocations', { iss: 'https://one.example' });
    const reload = await ask(admin.port, '/reload');

    expect([revoked, bad, reload]).toEqual([204, 422, 204]);
    expect(newcomers).toEqual(Array.from({ length: 6 }, () => '28P01'));
    expect(later).toEqual(newcomers);
    for (const [number, bob] of bobs) {
      if (number !== 2) expect((await bob.ask('select 1')).rows).toEqual([['1']]);
      bob.destroy();
    }
  });
});

describe('being asked to stop', () => {
  it('lets every worker drain, although the whole process group is told', async () => {
    await using fleet = await startFleet(ground, { workers: 3 });
    const [idle, busy] = [await fleet.onEach('alice'), await fleet.onEach('bob')];
    const pids = [...fleet.workers().values()];
    const working = [...busy.values()].map((client) =>
      client.ask("select pg_sleep(1)::text || 'done'"),
    );

    for (const pid of pids) process.kill(pid, 'SIGTERM');
    for (const pid of pids) process.kill(pid, 'SIGINT');
    fleet.primary.kill('SIGTERM');
    const status = exitOf(fleet.primary);
    await Promise.all([...idle.values()].map((client) => client.end()));
    const answers = (await Promise.all(working)).map(({ rows }) => rows);

    expect(answers).toEqual([[['done']], [['done']], [['done']]]);
    expect(await status).toBe(0);
    expect(pids.filter(isAlive)).toEqual([]);
    expect(fleet.noise).toEqual([]);
    expect(fleet.log.filter(({ event }) => event === 'session_end')).toHaveLength(
      fleet.log.filter(({ event, outcome }) => event === 'login' && outcome === 'accepted').length,
    );
  });

  it('twice ends every session at once', async () => {
    await using fleet = await startFleet(ground, { workers: 2 });
    const each = await fleet.onEach();
    const working = Promise.allSettled(
      [...each.values()].map((client) => client.ask('select pg_sleep(60)')),
    );
    const startedAt = performance.now();

    fleet.primary.kill('SIGTERM');
    await fleet.logged(({ event }) => event === 'draining');
    fleet.primary.kill('SIGTERM');

    expect(await exitOf(fleet.primary)).toBe(0);
    expect(performance.now() - startedAt).toBeLessThan(5_000);
    for (const one of await working) {
      expect(one).toMatchObject({ status: 'rejected', reason: { code: '57P01' } });
    }
  });

  it('is heard while clients are arriving, and nobody is left hanging', async () => {
    await using fleet = await startFleet(ground, { workers: 2 });
    // Some come before it has stopped listening; whoever comes later is refused by the kernel.
    const closed = Array.from({ length: 60 }, () => {
      const socket = connect({ host: fleet.host, port: fleet.port }).on('error', () => {});
      socket.resume().write(SSL_REQUEST);
      return new Promise((resolve) => socket.once('close', resolve));
    });

    fleet.primary.kill('SIGTERM');

    expect(await exitOf(fleet.primary)).toBe(0);
    await Promise.all(closed);
  });
});

describe('a start that fails', () => {
  const start = async (settings: Parameters<typeof configOf>[1], args: string[], env = {}) => {
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-fleet-'));
    await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(configOf(ground, settings)));
    const result = await runCli(['start', ...args], { cwd: folder, env });
    await rm(folder, { recursive: true });
    return result;
  };

  it.each([
    ['--workers=4', '--workers=1'],
    ['--workers=auto', '--workers=1'],
  ])('says with %s just what %s says', async (...arguments_) => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;

    const [taken, single] = await Promise.all(
      arguments_.map((one) => start({ listen: { port } }, [one], { PGJOT_MAIN_SECRET: SECRET })),
    );
    const [secretless, singleSecretless] = await Promise.all(
      arguments_.map((one) => start({}, [one])),
    );
    const [wrong, singleWrong] = await Promise.all(
      arguments_.map((one) => start({ listen: { port: -1 } }, [one])),
    );
    server.close();

    expect(taken).toEqual(single);
    expect(taken).toMatchObject({
      status: 1,
      stderr: `pgjot: port ${port} on 127.0.0.1 is taken\n`,
    });
    expect(secretless).toEqual(singleSecretless);
    expect(secretless).toMatchObject({
      status: 78,
      stderr:
        'pgjot: upstreams.main.secret: environment variable PGJOT_MAIN_SECRET is not set or empty\n',
    });
    expect(wrong).toEqual(singleWrong);
    expect(wrong).toMatchObject({ status: 78 });
  });

  it.each(['0', '128', '-1', '1.5', 'many', ''])('takes no %j workers', async (number) => {
    const { status, stderr } = await start({}, ['--workers', number]);

    expect(status).toBe(64);
    expect(stderr).toMatch(
      /^pgjot: option '--workers <number>' argument .* is invalid\. It must be/,
    );
  });
});
