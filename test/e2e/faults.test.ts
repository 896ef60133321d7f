/**
 * What happens when PostgreSQL, the network or the client breaks: the documented error, the proxy goes on, and nothing leaks.
 *
 * Every fault is counted before and after: sockets, timers, slots, rows of pgjot.session and pgjot.lease.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PostgresServer } from '../../src/cli/dev/postgres.ts';
import { createProxy, parseConfig, type ConfigInput, type Proxy } from '../../src/proxy.ts';
import { slotName } from '../../src/session-sql/credentials.ts';
import { encodeErrorFields } from '../../src/wire/backend.ts';
import { createAuthority } from '../support/certificate.ts';
import { recordedLogger } from '../support/logger.ts';
import { startStack, until, type Stack, type StackOptions } from '../support/stack.ts';
import { Gate } from './gate.ts';
import { passwordMessage, query, startup } from './parity/bytes.ts';
import { cancel, RawClient, type Heard } from './raw-client.ts';

type UpstreamInput = ConfigInput['upstreams'][string];

const CONNECT_TIMEOUT_MS = 1_000;
const ACQUIRE_TIMEOUT_MS = 1_000;

/** A stack whose upstream is behind a gate. */
interface House extends AsyncDisposable {
  readonly stack: Stack;
  readonly gate: Gate;
  admin: pg.Client;
  readonly token: string;
}

async function openHouse(options: StackOptions = {}): Promise<House> {
  const gate = await Gate.open();
  const stack = await startStack({
    ...options,
    upstream: {
      port: gate.port,
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
      acquireTimeoutMs: ACQUIRE_TIMEOUT_MS,
      ...options.upstream,
    },
  });
  gate.target = stack.postgres.port;
  const admin = await connectAdmin(stack);
  const token = await stack.token('alice');
  const house: House = {
    stack,
    gate,
    admin,
    token,
    async [Symbol.asyncDispose]() {
      await house.admin.end().catch(() => {});
      await stack.close();
      await gate[Symbol.asyncDispose]();
    },
  };
  return house;
}

async function connectAdmin(stack: Stack): Promise<pg.Client> {
  return until(async () => {
    const admin = new pg.Client(stack.admin);
    admin.on('error', () => {});
    return admin.connect().then(
      () => admin,
      () => undefined,
    );
  });
}

/** A crash or restart has ended the administrator's connection as well. */
async function reconnect(house: House): Promise<void> {
  await house.admin.end().catch(() => {});
  house.admin = await connectAdmin(house.stack);
}

/** The server itself: the stack's own `stop` would remove its data. */
function serverOf(stack: Stack): PostgresServer {
  return Object.getPrototypeOf(stack.postgres) as PostgresServer;
}

const slotsOf = (proxy: Proxy) => proxy.counts().upstreams['main']?.['authenticated'];

/** Signs in, asks something, and leaves. */
async function visit({ host, port }: { host: string; port: number }, token: string): Promise<void> {
  using client = await RawClient.login({ host, port }, token);
  const { rows } = await client.ask('select count(*) from todos');
  client.send(Buffer.from('5800000004', 'hex'));
  await client.end();
  expect(rows).toEqual([['3']]);
}

/** What there is of everything that could leak. */
async function census({ stack, admin }: House): Promise<object> {
  const { connections, clients } = stack.proxy.counts();
  const { busy, waiting, quarantined } = slotsOf(stack.proxy) ?? {};
  const { rows } = await admin.query(
    'select (select count(*) from pgjot.session)::int as sessions,' +
      ' (select count(*) from pgjot.lease l where not exists' +
      ' (select from pg_stat_activity a where a.pid = l.control_pid))::int as lost,' +
      " (select count(*) from pg_stat_activity where usename like 'pgjot_authenticated%')::int as backends",
  );
  return {
    connections,
    clients,
    busy,
    waiting,
    quarantined,
    ...rows[0],
  };
}

const active = (...kinds: string[]) =>
  process.getActiveResourcesInfo().filter((one) => kinds.includes(one)).length;

/** Lets a fault happen, then expects that the proxy still serves and that everything is as it was. */
async function survives(house: House, fault: () => Promise<void>): Promise<void> {
  const { stack, token } = house;
  await visit(stack, token);
  await until(() => stack.proxy.counts().connections === 0 && slotsOf(stack.proxy)?.busy === 0);
  const before = await census(house);
  const [sockets, timers] = [active('TCPSocketWrap', 'TLSWrap'), active('Timeout')];
  await fault();
  await until(() =>
    visit(stack, token).then(
      () => true,
      () => false,
    ),
  );

  await settles(() => census(house), before, 8_000);
  await settles(() => ({ more: active('TCPSocketWrap', 'TLSWrap') > sockets }), { more: false });
  await settles(() => ({ more: active('Timeout') > timers }), { more: false });
}

/** Expects `measure` to become `expected` in time. Not `expect.poll`, which has timers of its own. */
async function settles(measure: () => object | Promise<object>, expected: object, ms = 3_000) {
  const wanted = JSON.stringify(expected);
  await until(async () => JSON.stringify(await measure()) === wanted, ms).catch(() => {});
  expect(await measure()).toEqual(expected);
}

/** The error that a login ends with, as its frame. */
async function refusal(to: { host: string; port: number }, token: string): Promise<Heard> {
  using client = await RawClient.open(to);
  client.send(
    startup([
      ['user', 'authenticated'],
      ['database', 'app'],
    ]),
    passwordMessage(token),
  );
  await client.end();
  const errors = client.heard.filter(({ type }) => type === 'E');
  expect(errors).toHaveLength(1);
  // Not one client is told that its login succeeded and then that it did not.
  expect(client.heard.map(({ type }) => type)).toEqual(['R', 'E']);
  return errors[0] as Heard;
}

const told = (frame: Heard) =>
  frame.reply.kind === 'error'
    ? `${frame.reply.sqlstate} ${frame.reply.message}`
    : frame.reply.kind;

const UNCANCELLABLE =
  'do $$ begin loop begin perform pg_sleep(60);' +
  ' exception when query_canceled then null; end; end loop; end $$';

describe('the upstream', () => {
  let house: House;

  beforeAll(async () => {
    house = await openHouse({ slots: 6 });
  });

  afterAll(async () => {
    await house[Symbol.asyncDispose]();
  });

  it('refuses connections: 08001, and its address stays in the log', async () => {
    const { stack, gate, token } = house;
    await survives(house, async () => {
      await gate.shut();
      const frame = await refusal(stack, token);
      await gate.reopen();

      expect(told(frame)).toBe('08001 could not connect to the server');
      expect(frame.body.toString()).not.toContain(String(gate.port));
      const line = await stack.logged((one) => one['reason'] === 'upstream_unreachable');
      expect(line['cause']).toContain('ECONNREFUSED');
    });
  });

  it('accepts and then says nothing: 08001 in time', async () => {
    const { stack, gate, token } = house;
    await survives(house, async () => {
      gate.freeze();
      const began = performance.now();
      const frame = await refusal(stack, token);
      const took = performance.now() - began;
      gate.thaw();
      gate.breakAll();

      expect(told(frame)).toBe('08001 could not connect to the server');
      expect(took).toBeLessThan(4 * CONNECT_TIMEOUT_MS + 1_000);
    });
  });

  it('answers with nonsense: 08006 or 08001, and no word of it', async () => {
    const { stack, gate, token } = house;
    await survives(house, async () => {
      for (const answer of [
        Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
        Buffer.from('R\xff\xff\xff\xff', 'latin1'),
        Buffer.from('5200000008000000005a0000000549', 'hex'),
        Buffer.alloc(100_000, 0x45),
      ]) {
        gate.breakAll();
        // The control connection is there already, so that it is a slot's login that hears it.
        await visit(stack, token);
        gate.answer = answer;
        const frame = await refusal(stack, token);
        gate.answer = undefined;

        expect(told(frame)).toMatch(/^(08006 server closed the|08001 could not connect)/);
      }
    });
  });

  it('is starting: the login waits for it, and hears 57P03 when it takes too long', async () => {
    const { stack, gate, token } = house;
    const fields = {
      severity: 'FATAL',
      sqlstate: '57P03',
      message: 'the database system is starting up',
    };
    await survives(house, async () => {
      gate.answer = encodeErrorFields(fields);
      gate.breakAll();
      setTimeout(() => {
        gate.answer = undefined;
      }, 150);
      await visit(stack, token);

      gate.answer = encodeErrorFields(fields);
      gate.breakAll();
      expect(told(await refusal(stack, token))).toBe('57P03 the database system is starting up');
      gate.answer = undefined;
    });
  });

  it('is shutting down: newcomers hear 57P03 as PostgreSQL sent it, those inside work on', async () => {
    const { stack, token } = house;
    await survives(house, async () => {
      using inside = await RawClient.login(stack, token);
      process.kill(serverOf(stack).pid, 'SIGTERM');
      // One more visitor of ours is turned away as soon as the shutdown has begun.
      await until(() =>
        new pg.Client(stack.admin).connect().then(
          () => false,
          () => true,
        ),
      );
      const frame = await refusal(stack, token);

      expect(told(frame)).toBe('57P03 the database system is shutting down');
      expect(frame.reply.kind === 'error' && frame.reply.fields.has('R')).toBe(true);
      expect(await inside.ask('select 1')).toEqual({ rows: [['1']], sqlstate: undefined });
      inside.socket.resetAndDestroy();
      await serverOf(stack).restart('immediate');
      await reconnect(house);
    });
  });

  it('loses a backend to an administrator: 57P01 passes byte for byte', async () => {
    const { stack, admin, token } = house;
    await survives(house, async () => {
      const frames: Buffer[] = [];
      for (const pipelined of [0, 200]) {
        using client = await RawClient.login(stack, token);
        const { rows } = await client.ask('select pg_backend_pid()');
        client.send(
          query('select pg_sleep(30)'),
          ...Array.from({ length: pipelined }, () => query('select 1')),
        );
        await until(async () => {
          const { rowCount } = await admin.query(
            "select from pg_stat_activity where pid = $1 and query like '%sleep%'",
            [rows[0]?.[0]],
          );
          return rowCount === 1;
        });
        await admin.query('select pg_terminate_backend($1)', [rows[0]?.[0]]);
        await client.end();
        const errors = client.heard.filter(({ type }) => type === 'E');
        // A reset may overtake PostgreSQL's words when it left bytes unread; then there are ours. Never both.
        expect(errors).toHaveLength(1);
        if (pipelined === 0) frames.push((errors[0] as Heard).body);
      }
      const [body] = frames as [Buffer];
      expect(body.toString()).toMatch(
        /^SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0Fpostgres\.c\0L\d+\0RProcessInterrupts\0\0$/,
      );
    });
  });

  it('crashes, one backend killed: 08006 for all, and back in business at once', async () => {
    const { stack, token } = house;
    await survives(house, async () => {
      using victim = await RawClient.login(stack, token);
      using idle = await RawClient.login(stack, token);
      const { rows } = await victim.ask('select pg_backend_pid()');
      victim.send(query('select pg_sleep(30)'));
      process.kill(Number(rows[0]?.[0]), 'SIGKILL');
      await Promise.all([victim.end(), idle.end()]);

      for (const client of [victim, idle]) {
        const last = client.heard.at(-1) as Heard;
        expect(told(last)).toBe('08006 server closed the connection unexpectedly');
      }
      await reconnect(house);
    });
  });

  it('is stopped at once in the middle of a result: no byte of ours inside a frame of PostgreSQL’s', async () => {
    const { stack, token } = house;
    await survives(house, async () => {
      using client = await RawClient.login(stack, token);
      client.send(query("select repeat('x', 10000) from generate_series(1, 1000000)"));
      await client.next('D');
      await serverOf(stack).restart('immediate');
      await client.end();
      await reconnect(house);

      const types = new Set(client.heard.map(({ type }) => type));
      for (const type of types) expect('RSKZTDNEC').toContain(type);
      expect(client.rest.includes('server closed the connection')).toBe(false);
    });
  });

  it('is restarted under load: every error is a documented one, and everybody gets in again', async () => {
    const { stack, token } = house;
    const codes = new Set<string>();
    let served = 0;
    await survives(house, async () => {
      const over = new AbortController();
      const load = Array.from({ length: 5 }, async () => {
        while (!over.signal.aborted) {
          try {
            using client = await RawClient.login(stack, token);
            for (let n = 0; n < 5; n++) {
              await client.ask('select count(*) from todos');
              served++;
            }
          } catch (error) {
            codes.add((error as { code?: string }).code ?? (error as Error).message);
          }
        }
      });
      await until(() => served > 10);
      await serverOf(stack).restart('fast');
      const then = served;
      await until(() => served > then + 25);
      over.abort();
      await Promise.all(load);
      await reconnect(house);
    });
    const documented = /^(57P0[123]|08001|08006|closed before a frame of type Z came)$/;
    expect([...codes].filter((code) => !documented.test(code))).toEqual([]);
  });

  it('loses the control connection: those inside notice nothing, newcomers get in within a second', async () => {
    const { stack, admin, token } = house;
    await survives(house, async () => {
      using inside = await RawClient.login(stack, token);
      const sleeping = inside.ask('select pg_sleep(0.4)');
      const { rowCount } = await admin.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pgjot_control'",
      );
      const began = performance.now();
      await visit(stack, token);
      const took = performance.now() - began;

      expect(rowCount).toBe(1);
      expect(took).toBeLessThan(1_000);
      expect(await sleeping).toMatchObject({ sqlstate: undefined });
      expect(await inside.ask('select auth.user_id()')).toMatchObject({ rows: [['alice']] });
      inside.socket.resetAndDestroy();
    });
  });

  it('loses every connection to a reset: 08006, and on we go', async () => {
    const { stack, gate, token } = house;
    await survives(house, async () => {
      using client = await RawClient.login(stack, token);
      client.send(query('select pg_sleep(30)'));
      gate.breakAll();
      await client.end();

      expect(told(client.heard.at(-1) as Heard)).toBe(
        '08006 server closed the connection unexpectedly',
      );
    });
  });
});

describe('slots', () => {
  it('run out: who waits gets the next one, or 53300 when none comes', async () => {
    await using house = await openHouse({ slots: 2 });
    const { stack, token } = house;
    await survives(house, async () => {
      using one = await RawClient.login(stack, token);
      using two = await RawClient.login(stack, token);
      const began = performance.now();
      const frame = await refusal(stack, token);
      const took = performance.now() - began;
      const waiting = visit(stack, token);
      await until(() => slotsOf(stack.proxy)?.waiting === 1);
      one.socket.resetAndDestroy();
      await waiting;
      two.socket.resetAndDestroy();

      expect(told(frame)).toBe('53300 timed out waiting for an upstream connection');
      expect(took).toBeGreaterThan(ACQUIRE_TIMEOUT_MS * 0.9);
    });
  });

  it('whose passwords were changed behind our back are passed over, and 08004 is said when none is left', async () => {
    await using house = await openHouse({ slots: 4 });
    const { stack, admin, token } = house;
    await admin.query(`alter role ${slotName('authenticated', 1)} password 'changed'`);
    await visit(stack, token);
    await visit(stack, token);
    await stack.logged((line) => line['event'] === 'slot_quarantined');
    for (const n of [2, 3, 4]) {
      await admin.query(`alter role ${slotName('authenticated', n)} password 'changed'`);
    }
    const frame = await refusal(stack, token);

    expect(told(frame)).toBe('08004 the server rejected the connection');
    expect(frame.body.toString()).not.toMatch(/28P01|28000|password|pgjot/);
    expect(slotsOf(stack.proxy)).toMatchObject({ busy: 0, quarantined: 4 });
  });

  it('are refused by a server that is full: its own 53300 passes', async () => {
    await using house = await openHouse({
      slots: 12,
      settings: { max_connections: '10', superuser_reserved_connections: '3' },
    });
    const { stack, token } = house;
    const inside: RawClient[] = [];
    await survives(house, async () => {
      const signIn = () => RawClient.login(stack, token).then((client) => inside.push(client));
      await expect(
        (async () => {
          for (let n = 0; n < 12; n++) await signIn();
        })(),
      ).rejects.toMatchObject({ code: '53300' });
      const frame = await refusal(stack, token);
      for (const client of inside) client.socket.resetAndDestroy();

      expect(told(frame)).toMatch(/^53300 (sorry, too many clients|remaining connection slots)/);
      expect(frame.reply.kind === 'error' && frame.reply.fields.has('F')).toBe(true);
    });
    expect(slotsOf(stack.proxy)?.quarantined).toBe(0);
  });

  it('have another secret than ours: 08004, and class 28 never reaches the client', async () => {
    await using house = await openHouse({ slots: 2 });
    const { stack, token } = house;
    const file = join(dirname(secretFile(stack)), 'wrong-secret');
    await writeFile(file, 'another-secret-that-is-long-enough-to-be-one', { mode: 0o600 });
    const proxy = variant(stack, { secret: { file } });
    const frame = await refusal(await proxy.start(), token);
    await proxy.close();

    expect(told(frame)).toBe('08004 the server rejected the connection');
    expect(frame.body.toString()).not.toMatch(/C28|password|pgjot/);
  });
});

describe('a client', () => {
  it('does not keep slots by leaving statements behind that catch every cancel', async () => {
    const slots = 2;
    await using house = await openHouse({ slots });
    const { stack, token } = house;
    for (let login = 0; login < slots; login++) {
      using client = await RawClient.login(stack, token);
      client.send(query(UNCANCELLABLE));
      await until(async () => {
        const { rowCount } = await house.admin.query(
          "select from pg_stat_activity where state = 'active' and query like 'do %'",
        );
        return (rowCount ?? 0) > 0;
      });
    }

    const free = () => stack.proxy.counts().upstreams['main']?.['authenticated']?.busy === 0;
    await until(free, 10_000);
    const { rowCount } = await house.admin.query(
      "select from pg_stat_activity where query like 'do %'",
    );
    expect(rowCount).toBe(0);
  });

  let house: House;

  beforeAll(async () => {
    house = await openHouse({ slots: 4 });
  });

  afterAll(async () => {
    await house[Symbol.asyncDispose]();
  });

  async function sleepers(): Promise<number | null> {
    const { rowCount } = await house.admin.query(
      "select from pg_stat_activity where state = 'active' and query like '%pg_sleep(600)%' and pid <> pg_backend_pid()",
    );
    return rowCount;
  }

  const leaving: [how: string, leave: (client: RawClient) => void][] = [
    ['a reset', (client) => client.socket.resetAndDestroy()],
    ['an end of its sending side', (client) => client.socket.end()],
    ['a close', (client) => client.destroy()],
  ];

  it.each(leaving)('that goes with %s has its query cancelled within 5 s', async (_, leave) => {
    const { stack, token } = house;
    await survives(house, async () => {
      using client = await RawClient.login(stack, token);
      client.send(query('select pg_sleep(600)'));
      await until(async () => (await sleepers()) === 1);
      leave(client);

      await until(async () => (await sleepers()) === 0, 5_000);
      await until(() => slotsOf(stack.proxy)?.busy === 0, 5_000);
    });
  });

  it('that is killed has its query cancelled within 5 s', async () => {
    const { stack, token } = house;
    await survives(house, async () => {
      const script =
        "import pg from 'pg'; const [host, port, password] = process.argv.slice(1);" +
        " const client = new pg.Client({ host, port, password, user: 'authenticated', database: 'app' });" +
        " await client.connect(); await client.query('select pg_sleep(600)');";
      const child = spawn(
        process.execPath,
        ['--input-type=module', '-e', script, stack.host, String(stack.port), token],
        { stdio: 'ignore' },
      );
      await until(async () => (await sleepers()) === 1);
      child.kill('SIGKILL');
      await once(child, 'exit');

      await until(async () => (await sleepers()) === 0, 5_000);
      await until(() => slotsOf(stack.proxy)?.busy === 0, 5_000);
    });
  });

  it('that disappears at any stage of its login leaves nothing, and spoils no slot', async () => {
    const { stack, token } = house;
    const hello = startup([
      ['user', 'authenticated'],
      ['database', 'app'],
    ]);
    const password = passwordMessage(token);
    const stages: [bytes: Buffer, pauseMs: number][] = [
      [Buffer.alloc(0), 0],
      [hello.subarray(0, 3), 5],
      [hello.subarray(0, 20), 5],
      [hello, 5],
      [Buffer.concat([hello, password.subarray(0, 1)]), 5],
      [Buffer.concat([hello, password.subarray(0, 200)]), 5],
      ...[0, 1, 2, 4, 6, 8, 10, 12, 15, 20, 30, 50].map((pauseMs): [Buffer, number] => [
        Buffer.concat([hello, password]),
        pauseMs,
      ]),
    ];
    await survives(house, async () => {
      for (const [bytes, pauseMs] of stages) {
        await Promise.all(
          leaving.map(async ([, leave]) => {
            using client = await RawClient.open(stack);
            client.send(bytes);
            await delay(pauseMs);
            leave(client);
            await client.end();
          }),
        );
      }
    });
    expect(slotsOf(stack.proxy)?.quarantined).toBe(0);
  });

  it('that has been reset is no failure of ours in the log', async () => {
    const { stack } = house;
    const hello = startup([
      ['user', 'authenticated'],
      ['database', 'app'],
    ]);
    await survives(house, async () => {
      await Promise.all(
        Array.from({ length: 50 }, async () => {
          using client = await RawClient.open(stack);
          client.send(hello);
          client.socket.resetAndDestroy();
          await client.end();
        }),
      );
    });
    expect(stack.logs.filter((line) => line.includes('"reason":"internal"'))).toEqual([]);
  });

  it('that stops reading is not read for either, and takes no memory', async () => {
    const { stack, token } = house;
    await survives(house, async () => {
      const before = process.memoryUsage().rss;
      const clients = await Promise.all(
        Array.from({ length: 4 }, () => RawClient.login(stack, token)),
      );
      for (const client of clients) {
        client.socket.pause();
        client.send(query("select repeat('x', 100000) from generate_series(1, 100000)"));
      }
      await delay(500);
      const grown = process.memoryUsage().rss - before;
      for (const client of clients) client.socket.resetAndDestroy();

      expect(grown).toBeLessThan(64 * 1_048_576);
    });
  });
});

describe.each([{ tls: false }, { tls: true }])('the end of the proxy (tls: $tls)', ({ tls }) => {
  it('is told to clients that are still logging in, and to those inside', async () => {
    await using house = await openHouse({ slots: 2, tls });
    const { stack, token } = house;
    const to = { host: stack.host, port: stack.port, tls };
    const hello = startup([
      ['user', 'authenticated'],
      ['database', 'app'],
    ]);
    using one = await RawClient.login(to, token);
    using two = await RawClient.login(to, token);
    using silent = await RawClient.open(to);
    using asked = await RawClient.open(to);
    using waiting = await RawClient.open(to);
    asked.send(hello);
    waiting.send(hello, passwordMessage(token));
    await asked.next('R');
    await until(() => slotsOf(stack.proxy)?.waiting === 1);
    await stack.proxy.close();

    for (const client of [one, two, silent, asked, waiting]) await client.end();
    expect([one, two].map((client) => told(client.heard.at(-1) as Heard))).toEqual(
      Array(2).fill('57P01 terminating connection due to administrator command'),
    );
    expect([asked, waiting].map((client) => told(client.heard.at(-1) as Heard))).toEqual(
      Array(2).fill('57P03 the proxy is shutting down'),
    );
    expect(silent.heard).toEqual([]);
    expect(stack.proxy.counts()).toMatchObject({ connections: 0, clients: 0 });
  });

  it('does not wait for a statement that nothing can cancel', async () => {
    await using house = await openHouse({ slots: 2, tls });
    const { stack, token } = house;
    using client = await RawClient.login({ host: stack.host, port: stack.port, tls }, token);
    client.send(query(UNCANCELLABLE));
    await until(async () => {
      const { rowCount } = await house.admin.query(
        "select from pg_stat_activity where state = 'active' and query like 'do %'",
      );
      return rowCount === 1;
    });
    const began = performance.now();
    await stack.proxy.close();

    expect(performance.now() - began).toBeLessThan(6_000);
  });
});

describe('TLS to the upstream', () => {
  const authority = createAuthority();
  const stranger = createAuthority();
  const { cert, key } = authority.issue(['localhost']);
  let house: House;
  let plain: House;
  let folder: string;

  beforeAll(async () => {
    house = await openHouse({
      settings: { ssl: 'on' },
      files: { 'server.crt': cert, 'server.key': key },
    });
    plain = await openHouse();
    folder = dirname(secretFile(house.stack));
    await writeFile(join(folder, 'right.crt'), authority.ca);
    await writeFile(join(folder, 'wrong.crt'), stranger.ca);
  });

  afterAll(async () => {
    await house[Symbol.asyncDispose]();
    await plain[Symbol.asyncDispose]();
  });

  type Mode = NonNullable<NonNullable<UpstreamInput['tls']>['mode']>;
  type Case = [mode: Mode, host: string, ca: 'right' | 'wrong' | undefined, works: boolean];
  const cases: Case[] = [
    ['disable', '127.0.0.1', undefined, true],
    ['require', '127.0.0.1', undefined, true],
    ['require', '127.0.0.1', 'wrong', true],
    ['verify-ca', '127.0.0.1', 'right', true],
    ['verify-ca', 'localhost', 'wrong', false],
    ['verify-ca', 'localhost', undefined, false],
    ['verify-full', 'localhost', 'right', true],
    ['verify-full', '127.0.0.1', 'right', false],
    ['verify-full', 'localhost', 'wrong', false],
    ['verify-full', 'localhost', undefined, false],
  ];

  it.each(cases)('%s to %s with the %s CA: works is %s', async (mode, host, ca, works) => {
    const { stack, token } = house;
    const tls = { mode, ...(ca && { caFile: join(folder, `${ca}.crt`) }) };
    const proxy = variant(stack, { host, tls });
    const address = await proxy.start();
    if (works) {
      using client = await RawClient.login(address, token);
      const { rows } = await client.ask('select pg_backend_pid()');
      const { rows: ssl } = await house.admin.query('select ssl from pg_stat_ssl where pid = $1', [
        rows[0]?.[0],
      ]);
      expect(ssl).toEqual([{ ssl: mode !== 'disable' }]);
      // A cancel goes a way of its own, with the same TLS.
      const answer = client.ask('select pg_sleep(600)');
      await until(async () => {
        await cancel(address, client.key);
        return client.heard.some(({ type }) => type === 'E');
      });
      expect(await answer).toMatchObject({ sqlstate: '57014' });
      client.socket.resetAndDestroy();
    } else {
      expect(told(await refusal(address, token))).toBe('08001 could not connect to the server');
    }
    await proxy.close();
  });

  it.each(['require', 'verify-ca', 'verify-full'] as const)(
    '%s never goes on in clear with a server that has no TLS',
    async (mode) => {
      const proxy = variant(plain.stack, { host: 'localhost', tls: { mode } });
      const frame = await refusal(await proxy.start(), plain.token);
      await proxy.close();

      expect(told(frame)).toBe('08001 could not connect to the server');
    },
  );
});

/** Where the stack keeps the secret of its upstream. */
function secretFile(stack: Stack): string {
  const { secret } = stack.config.upstreams['main'] as UpstreamInput;
  return (secret as { file: string }).file;
}

/** Another proxy before the same database, with other settings for the upstream. The caller starts and closes it. */
function variant(stack: Stack, upstream: Partial<UpstreamInput>): Proxy {
  const main = { ...(stack.config.upstreams['main'] as UpstreamInput), ...upstream };
  const config = parseConfig({ ...stack.config, upstreams: { main } });
  return createProxy(config, { logger: recordedLogger() });
}
