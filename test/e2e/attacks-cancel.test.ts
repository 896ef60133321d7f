/**
 * Cancel requests as a weapon and as a right: attacks G1 to G8, each by its name, in clear and with TLS.
 *
 * What the registry of keys does by itself is in `test/upstream`, races in `cancel-races.test.ts`, floods in `test/faults/guessing.test.ts`; here it is
 * sockets, a real PostgreSQL, and whose query ended. What is tried where is in `attack-scene.ts`.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createProxy, parseConfig } from '../../src/proxy.ts';
import { recordedLogger } from '../support/logger.ts';
import { startStack, until, untilRunning, type Stack } from '../support/stack.ts';
import { GROUND, grounds, notTried } from './attack-scene.ts';
import { inTurns, randomKey } from './attack-stack.ts';
import { CODES, int32, packet, passwordMessage, startup } from './parity/bytes.ts';
import { cancel, RawClient } from './raw-client.ts';
import { Relay } from './relay.ts';

const NOTHING = Buffer.alloc(0);

const hasPsql = await promisify(execFile)('psql', ['--version']).then(
  () => true,
  () => false,
);
if (!hasPsql) console.error('there is no psql here, so its Ctrl-C is not tested');

describe.each(grounds().filter((ground) => !notTried(ground, 'cancelling')))(GROUND, (ground) => {
  const { tls } = ground;
  let relay: Relay;
  let stack: Stack;
  let to: { host: string; port: number; tls: boolean };
  let token: string;

  beforeAll(async () => {
    relay = await Relay.open();
    stack = await startStack({
      ...ground,
      upstreamTls: tls,
      slots: 6,
      upstream: { port: relay.port },
    });
    relay.toward(stack.postgres.port);
    to = { host: stack.host, port: stack.port, tls };
    token = await stack.token('alice');
  });

  afterAll(async () => {
    await stack.close();
    await relay[Symbol.asyncDispose]();
  });

  const busy = () => stack.proxy.counts().upstreams['main']?.['authenticated']?.busy;

  const running = (marker: string) => untilRunning(stack.postgres, marker);

  it('a right key ends the query that runs, and says nothing', async () => {
    using client = await RawClient.login(to, token);
    const answer = client.ask('select pg_sleep(30)');
    await running('pg_sleep(30)');

    expect(await cancel(to, client.key)).toEqual(NOTHING);
    expect(await answer).toMatchObject({ sqlstate: '57014' });
    expect(await client.ask('select 1')).toEqual({ rows: [['1']], sqlstate: undefined });
  });

  it('G1: the keys that clients see are random, and never those of PostgreSQL', async () => {
    const keys = new Set<string>();
    for (let round = 0; round < 5; round++) {
      using client = await RawClient.login(to, token);
      const { rows } = await client.ask('select pg_backend_pid()');
      expect(Number(rows[0]?.[0])).not.toBe(client.key.processId);
      keys.add(`${client.key.processId} ${client.key.secretKey.toString('hex')}`);
      client.send(Buffer.from('5800000004', 'hex'));
      await client.end();
    }
    expect(keys.size).toBe(5);
  });

  it('G1: the right process id with a wrong secret, and PostgreSQL’s own process id, do nothing', async () => {
    using client = await RawClient.login(to, token);
    const { rows } = await client.ask('select pg_backend_pid()');
    const sleeping = client.ask('select pg_sleep(0.5)');
    const before = relay.accepted;
    const { processId, secretKey } = client.key;
    const flipped = Buffer.from(secretKey);
    flipped[3] = (flipped[3] as number) ^ 1;
    for (const key of [
      { processId, secretKey: flipped },
      { processId, secretKey: Buffer.alloc(4) },
      { processId, secretKey: randomBytes(4) },
      { processId: Number(rows[0]?.[0]), secretKey },
      { processId: -processId, secretKey },
      { processId: 0, secretKey },
    ]) {
      expect(await cancel(to, key)).toEqual(NOTHING);
    }

    expect(relay.accepted).toBe(before);
    expect(await sleeping).toMatchObject({ sqlstate: undefined });
  });

  it('G2: a flood of good cancels costs few connections and keeps nobody else’s waiting', async () => {
    using flooder = await RawClient.login(to, token);
    using other = await RawClient.login(to, await stack.token('bob'));
    const answer = other.ask("select 'other', pg_sleep(30)");
    await running("'other', pg_sleep");
    const before = relay.accepted;
    const flood = inTurns(25, Array.from({ length: 200 }), async () => {
      await cancel(to, flooder.key);
    });
    const began = performance.now();
    await cancel(to, other.key);
    const result = await answer;
    const took = performance.now() - began;
    await flood;

    expect(result).toMatchObject({ sqlstate: '57014' });
    expect(took).toBeLessThan(5_000);
    // Twenty-five wait at a time, and one upstream connection serves them all.
    expect(relay.accepted - before).toBeLessThan(100);
    expect(await flooder.ask('select 1')).toMatchObject({ sqlstate: undefined });
  });

  it('G4: the next query after a cancel is never the one that is cancelled', async () => {
    using client = await RawClient.login(to, token);
    const results = new Map<string, number>();
    for (let round = 0; round < 60; round++) {
      // Some end by themselves just before, some just after the cancel arrives.
      const answer = client.ask(`select pg_sleep(${(round % 6) * 0.002})`);
      const silence = await cancel(to, client.key);
      const { sqlstate = 'completed' } = await answer;
      results.set(sqlstate, (results.get(sqlstate) ?? 0) + 1);
      expect(silence).toEqual(NOTHING);
      expect(await client.ask('select 1')).toEqual({ rows: [['1']], sqlstate: undefined });
    }
    expect([...results.keys()].filter((one) => !['57014', 'completed'].includes(one))).toEqual([]);
  });

  it('G5: no cancel request is answered with a byte, whatever its length', async () => {
    using client = await RawClient.login(to, token);
    const { processId, secretKey } = client.key;
    for (const body of [
      Buffer.concat([int32(processId), secretKey]),
      Buffer.concat([int32(processId), secretKey, Buffer.alloc(1)]),
      Buffer.concat([int32(processId), secretKey.subarray(0, 3)]),
      Buffer.concat([int32(processId), Buffer.alloc(256)]),
      Buffer.concat([int32(processId), Buffer.alloc(257)]),
      Buffer.concat([int32(processId), Buffer.alloc(9_000)]),
      int32(processId),
      NOTHING,
    ]) {
      using asker = await RawClient.open(to);
      asker.send(packet(CODES.cancel, body));
      await asker.end();
      expect(asker.heard).toEqual([]);
      expect(asker.rest).toEqual(NOTHING);
    }
  });

  it.skipIf(!tls)('G6: a cancel in clear reaches a session that is encrypted', async () => {
    using client = await RawClient.login(to, token);
    const answer = client.ask('select pg_sleep(31)');
    await running('pg_sleep(31)');

    expect(await cancel({ ...to, tls: false }, client.key)).toEqual(NOTHING);
    expect(await answer).toMatchObject({ sqlstate: '57014' });
  });

  it('G7: a key of one proxy is worth nothing at another on the same database', async () => {
    const other = createProxy(parseConfig(stack.config), { logger: recordedLogger() });
    const { host, port } = await other.start();
    using here = await RawClient.login(to, token);
    using there = await RawClient.login({ host, port, tls }, token);
    const [first, second] = [here.ask('select pg_sleep(0.4)'), there.ask('select pg_sleep(0.4)')];
    await cancel({ host, port, tls }, here.key);
    await cancel(to, there.key);

    expect([await first, await second]).toMatchObject([
      { sqlstate: undefined },
      { sqlstate: undefined },
    ]);
    there.destroy();
    await other.close();
  });

  it('G8: nothing can be cancelled before the login is over', async () => {
    for (let round = 0; round < 10; round++) {
      using client = await RawClient.open(to);
      client.send(
        startup([
          ['user', 'authenticated'],
          ['database', 'app'],
        ]),
        passwordMessage(token),
      );
      const storm = Promise.all(Array.from({ length: 10 }, () => cancel(to, randomKey())));
      await client.next('Z');
      expect(client.heard.map(({ type }) => type).filter((type) => type === 'K')).toEqual(['K']);
      // At once, with the key that has only just been given out: the first statement it can meet is the client's.
      const answer = client.ask('select pg_sleep(20)');
      void until(async () => {
        await cancel(to, client.key);
        return client.heard.some(({ type }) => type === 'E');
      });
      expect(await answer).toMatchObject({ sqlstate: '57014' });
      await storm;
    }
  });

  it('one user’s key never cancels another’s query', async () => {
    using alice = await RawClient.login(to, token);
    using bob = await RawClient.login(to, await stack.token('bob'));
    const sleeping = bob.ask('select pg_sleep(0.4)');
    const began = alice.ask('select pg_sleep(20)');
    await until(async () => {
      await cancel(to, alice.key);
      return alice.heard.some(({ type }) => type === 'E');
    });

    expect(await began).toMatchObject({ sqlstate: '57014' });
    expect(await sleeping).toMatchObject({ sqlstate: undefined });
  });

  it('protocol 3.2 gives a key of 32 bytes, and takes no part of it for the whole', async () => {
    using client = await RawClient.login(to, token, CODES.v32);
    const { processId, secretKey } = client.key;
    const before = relay.accepted;
    const sleeping = client.ask('select pg_sleep(0.3)');
    for (const wrong of [
      secretKey.subarray(0, 4),
      secretKey.subarray(0, 31),
      Buffer.concat([secretKey, Buffer.alloc(1)]),
      randomBytes(32),
    ]) {
      await cancel(to, { processId, secretKey: wrong });
    }
    const dialled = relay.accepted - before;
    const untouched = await sleeping;
    const answer = client.ask('select pg_sleep(32)');
    await running('pg_sleep(32)');
    await cancel(to, client.key);

    expect([secretKey.length, dialled]).toEqual([32, 0]);
    expect(untouched).toMatchObject({ sqlstate: undefined });
    expect(await answer).toMatchObject({ sqlstate: '57014' });
  });

  it('node-postgres cancels with its own client.cancel', async () => {
    const client = await stack.connect('alice');
    const slow = new pg.Query('select pg_sleep(33)');
    const failure = new Promise((resolve) => slow.on('error', resolve));
    client.query(slow);
    await running('pg_sleep(33)');
    const messenger = new pg.Client(stack.as('alice')) as pg.Client & {
      cancel(client: pg.Client, query: pg.Query): void;
    };
    messenger.cancel(client, slow);

    expect(await failure).toMatchObject({ code: '57014' });
    await client.end();
  });

  it.skipIf(!hasPsql)('psql cancels with Ctrl-C', async () => {
    const psql = spawn('psql', ['-X', '-c', 'select pg_sleep(34)'], {
      env: {
        PATH: process.env['PATH'],
        PGHOST: stack.host,
        PGPORT: String(stack.port),
        PGUSER: 'authenticated',
        PGDATABASE: 'app',
        PGPASSWORD: token,
        PGSSLMODE: tls ? 'require' : 'disable',
      },
    });
    let said = '';
    psql.stdout.on('data', (chunk) => (said += chunk));
    psql.stderr.on('data', (chunk) => (said += chunk));
    await running('pg_sleep(34)');
    psql.kill('SIGINT');
    const [status] = (await once(psql, 'close')) as [number];

    expect(said).toContain('ERROR:  canceling statement due to user request');
    expect(status).toBe(1);
  });

  it('gives every slot back', async () => {
    await until(() => busy() === 0);
    expect(stack.proxy.counts()).toMatchObject({ connections: 0, clients: 0 });
  });
});
