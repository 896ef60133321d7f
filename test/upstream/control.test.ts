/**
 * The control connection to a network that has died: what many ask costs as long as what one asks, and it ends.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { createControl, type Control } from '../../src/upstream/control.ts';
import { Secrets } from '../../src/upstream/secrets.ts';
import { install } from '../../src/session-sql/install.ts';
import * as fake from '../support/fake-postgres.ts';
import { connectAsSuperuser, startTestPostgres } from '../support/postgres.ts';
import { openResources, nothingLeaked } from '../support/sockets.ts';
import { SECRET, until } from '../support/stack.ts';

const CONNECT_TIMEOUT_MS = 300;
// `pg` warns once for each process when a statement is sent while another one is under way.
const warnings: string[] = [];
process.on('warning', (warning: Error) => void warnings.push(warning.message));

const BACKEND = { pid: 1, start: '1' };

/** Accepts, and says nothing. */
async function startBlackHole() {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => void sockets.add(socket.on('error', () => {}).resume()));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    sockets,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

function controlAt(port: number, onLoss = () => {}): Control {
  const upstream = fake.upstreamAt(port, { connectTimeoutMs: CONNECT_TIMEOUT_MS });
  return createControl(upstream, new Secrets({ current: SECRET }), onLoss);
}

const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'answered',
    (error: { code?: string }) => error.code,
  );

async function timed<T>(run: () => Promise<T>): Promise<{ result: T; ms: number }> {
  const start = performance.now();
  const result = await run();
  return { result, ms: performance.now() - start };
}

describe('a network that swallows everything', () => {
  let before: ReturnType<typeof openResources>;
  afterEach(async () => {
    vi.unstubAllEnvs();
    await nothingLeaked(before);
  });

  test('costs twenty questions one timeout between them', async () => {
    before = openResources();
    await using hole = await startBlackHole();
    const control = controlAt(hole.port);

    const { result, ms } = await timed(() =>
      Promise.all(Array.from({ length: 20 }, () => codeOf(control.lease('authenticated', 1)))),
    );

    expect(new Set(result)).toEqual(new Set(['upstream_unreachable']));
    expect(ms).toBeLessThan(CONNECT_TIMEOUT_MS * 3);
    await control.close();
  });

  test("would keep a crashed proxy's leases for two hours, were it not for keepalives", async () => {
    before = openResources();
    await using server = await fake.startFakePostgres([fake.startupMessage]);
    const control = controlAt(server.port);

    await codeOf(control.lease('authenticated', 1));

    expect(server.backends[0]?.parameters.get('options')).toBe(
      '-c lock_timeout=100 -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3',
    );
    await control.close();
  });

  test('is tried again by who asks afterwards', async () => {
    before = openResources();
    await using hole = await startBlackHole();
    const control = controlAt(hole.port);
    await codeOf(control.lease('authenticated', 1));

    await codeOf(control.lease('authenticated', 1));

    expect(hole.sockets.size).toBe(2);
    await control.close();
  });
});

describe('a connection that dies', () => {
  let postgres: Awaited<ReturnType<typeof startTestPostgres>>;
  beforeAll(async () => {
    postgres = await startTestPostgres();
    const admin = await connectAsSuperuser(postgres);
    await admin.query('create database app');
    await admin.end();
    const owner = await connectAsSuperuser(postgres, 'app');
    await install(owner, { secret: SECRET, roles: { authenticated: { slots: 4 } } });
    await owner.end();
  });
  afterAll(() => postgres.stop());
  afterEach(() => void vi.unstubAllEnvs());

  /** A relay that can stop to pass anything on, without closing anything. */
  async function startRelay() {
    const sockets = new Set<Socket>();
    const server = createServer((near) => {
      const far = connect(postgres.port, '127.0.0.1');
      for (const socket of [near, far]) sockets.add(socket.on('error', () => {}));
      near.pipe(far).pipe(near);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return {
      port: (server.address() as AddressInfo).port,
      freeze() {
        for (const socket of sockets) socket.unpipe().pause();
      },
      async [Symbol.asyncDispose]() {
        for (const socket of sockets) socket.destroy();
        server.close();
        await once(server, 'close');
      },
    };
  }

  test('is told once, and all who ask meanwhile are answered by the next one or fail together', async () => {
    await using relay = await startRelay();
    const onLoss = vi.fn<() => void>();
    const control = controlAt(relay.port, onLoss);
    expect(await control.lease('authenticated', 1)).toHaveLength(1);
    // Behind the one that every new connection begins with.
    await control.sweep();
    relay.freeze();

    const { result, ms } = await timed(() =>
      Promise.all(Array.from({ length: 20 }, () => codeOf(control.isSpoilt('nobody')))),
    );

    expect(result[0]).toBe('upstream_unreachable');
    expect(result.at(-1)).toBe('answered');
    expect(onLoss).toHaveBeenCalledTimes(1);
    expect(ms).toBeLessThan(CONNECT_TIMEOUT_MS * 4);
    await control.close();
  });

  test('does not hold close up, and its socket does not stay open', async () => {
    await using relay = await startRelay();
    const control = controlAt(relay.port);
    await control.lease('authenticated', 1);
    const open = openResources().TCPSocketWrap;
    relay.freeze();

    const { ms } = await timed(() => control.close());

    expect(ms).toBeLessThan(4_000);
    await until(() => openResources().TCPSocketWrap < open);
  });

  test('is asked nothing more once it is being closed, but what was asked before is answered', async () => {
    const control = controlAt(postgres.port);
    const asked = control.lease('authenticated', 1);

    const closing = control.close();
    const refused = codeOf(control.unbind(BACKEND));

    expect(await asked).toHaveLength(1);
    expect(await refused).toBe('draining');
    await closing;
  });

  test('is swept when it was opened, without two statements at once on it', async () => {
    const control = controlAt(postgres.port);

    await Promise.all([control.lease('authenticated', 1), control.unbind(BACKEND)]);
    await control.close();

    expect(warnings).toEqual([]);
  });
});
