/**
 * Pools whose connections outlive no token: node-postgres, postgres.js and psycopg_pool, under load, over several expiries.
 *
 * As docs/pools.md has them. What one connection sees when its token expires is in `expiry.test.ts`.
 */
import { spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { until } from '../support/stack.ts';
import { run, signedIn } from './command.ts';
import { lacks, settingsFor, useStack, type Stack } from './todos.ts';

// $PGJOT_PYTHON may name one with the drivers, a virtual environment's for instance.
const PYTHON = process.env['PGJOT_PYTHON'] ?? 'python3';
const EXPIRING = fileURLToPath(new URL('apps/expiring_pool.py', import.meta.url));

const TOKEN_S = 2.5;
const LIFETIME_S = 1;
const RUN_MS = 4_500;
const WORKERS = 3;
const WHO = 'select auth.user_id() as user, pg_backend_pid() as pid from pg_sleep(0.005)';

interface Who {
  readonly user: string;
  readonly pid: number;
}

function lacksPsycopg(): boolean {
  const supported = 'import psycopg_pool as p; assert p.__version__ >= "3.3"';
  const { status } = spawnSync(PYTHON, ['-c', supported], { stdio: 'ignore' });
  if (status === 0) return false;
  console.log(`skipped an expiring pool of psycopg: ${PYTHON} has no psycopg_pool 3.3`);
  return true;
}

const withoutPsycopg = lacksPsycopg();
const withoutPostgresJs = lacks('an expiring pool of postgres.js', 'postgres');

const shortToken = (stack: Stack, sub: string) =>
  stack.token(sub, { exp: Date.now() / 1_000 + TOKEN_S });

const shortSettings = (stack: Stack, sub: string, max: number) =>
  settingsFor(stack, sub, { max, password: () => shortToken(stack, sub) });

/** Asks all the time who it is, from several sides, and answers what it heard; rejects with the first failure. */
async function keepAsking(ask: () => Promise<Who>): Promise<Who[]> {
  const end = performance.now() + RUN_MS;
  const heard: Who[] = [];
  const worker = async () => {
    while (performance.now() < end) heard.push(await ask());
  };
  await Promise.all(Array.from({ length: WORKERS }, worker));
  return heard;
}

/** Who ended this user's sessions, once for each; waits for them. */
async function endings(stack: Stack, sub: string): Promise<unknown[]> {
  const lines = () =>
    stack.logs
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ subject }) => subject === sub);
  const count = (event: string) => lines().filter((line) => line['event'] === event).length;
  await until(() => count('login') === count('session_end'));
  return [
    ...new Set(lines().flatMap(({ event, endedBy }) => (event === 'session_end' ? [endedBy] : []))),
  ];
}

function expectRenewed(heard: readonly Who[], sub: string): void {
  expect(new Set(heard.map(({ user }) => user))).toEqual(new Set([sub]));
  // More sessions than a pool with connections that last would have had.
  expect(new Set(heard.map(({ pid }) => pid)).size).toBeGreaterThan(WORKERS);
}

const TOGETHER = { concurrent: true } as const;

describe('a pool', () => {
  const stack = useStack({ provider: { clockToleranceMs: 0 } });

  it('of node-postgres with maxLifetimeSeconds fails no statement', TOGETHER, async () => {
    const pool = new pg.Pool({
      ...shortSettings(stack(), 'npg', WORKERS),
      maxLifetimeSeconds: LIFETIME_S,
    });
    const errors: Error[] = [];
    pool.on('error', (error) => errors.push(error));

    const heard = await keepAsking(async () => (await pool.query<Who>(WHO)).rows[0] as Who);
    await pool.end();

    expectRenewed(heard, 'npg');
    expect(errors).toEqual([]);
    expect(await endings(stack(), 'npg')).toEqual(['client']);
  });

  it('of node-postgres forgets an idle client whose token expired', TOGETHER, async () => {
    const pool = new pg.Pool(shortSettings(stack(), 'idler', 1));
    const errors: Error[] = [];
    pool.on('error', (error) => errors.push(error));
    const before = await pool.query<Who>(WHO);
    await until(() => pool.totalCount === 0);

    const after = await pool.query<Who>(WHO);
    await pool.end();

    expect(errors).toMatchObject([{ code: '57P01' }]);
    expect(after.rows[0]?.user).toBe('idler');
    expect(after.rows[0]?.pid).not.toBe(before.rows[0]?.pid);
  });

  it('of node-postgres that renews at checkout keeps its connection', TOGETHER, async () => {
    const pool = new pg.Pool(shortSettings(stack(), 'renewer', 1));
    pool.on('error', () => {});
    const lend = async <T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> => {
      const client = await pool.connect();
      try {
        await client.query(`set pgjot.token = '${await shortToken(stack(), 'renewer')}'`);
        return await work(client);
      } finally {
        client.release();
      }
    };

    const heard = await keepAsking(() =>
      lend(async (client) => (await client.query<Who>(WHO)).rows[0] as Who),
    );
    await pool.end();

    expect(new Set(heard.map(({ pid }) => pid)).size).toBe(1);
    expect(await endings(stack(), 'renewer')).toEqual(['client']);
  });

  it.skipIf(withoutPostgresJs)(
    'of postgres.js with max_lifetime fails none',
    TOGETHER,
    async () => {
      const { default: connect } = await import('postgres');
      const { user, ...settings } = shortSettings(stack(), 'pjs', WORKERS);
      const sql = connect({ ...settings, username: user, max_lifetime: LIFETIME_S });

      const heard = await keepAsking(async () => (await sql.unsafe<Who[]>(WHO))[0] as Who);
      await sql.end();

      expectRenewed(heard, 'pjs');
      expect(await endings(stack(), 'pjs')).toEqual(['client']);
    },
  );

  it.skipIf(withoutPostgresJs)(
    'of postgres.js signs in again after an idle one',
    TOGETHER,
    async () => {
      const { default: connect } = await import('postgres');
      const { user, ...settings } = shortSettings(stack(), 'pjs-idler', 1);
      const connections = new EventEmitter();
      const closed = once(connections, 'close');
      const onclose = () => connections.emit('close');
      const sql = connect({ ...settings, username: user, onclose });
      await sql.unsafe(WHO);
      await closed;
      const after = await sql.unsafe<Who[]>(WHO);
      await sql.end();

      expect(after).toMatchObject([{ user: 'pjs-idler' }]);
    },
  );

  // Not beside others: what starts a command gives it to the test that runs.
  it.skipIf(withoutPsycopg)('of psycopg, with max_lifetime or renewal, fails none', async () => {
    const ways = ['lifetime', 'renewal'];

    const [replaced = [], renewed = []] = await Promise.all(
      ways.map((way) => runPsycopg(stack(), way)),
    );

    expectRenewed(replaced, 'psycopg-lifetime');
    expect(new Set(renewed.map(({ user }) => user))).toEqual(new Set(['psycopg-renewal']));
    expect(new Set(renewed.map(({ pid }) => pid)).size).toBe(WORKERS);
    for (const way of ways) expect(await endings(stack(), `psycopg-${way}`)).toEqual(['client']);
  });
});

async function runPsycopg(stack: Stack, way: string): Promise<Who[]> {
  const sub = `psycopg-${way}`;
  const { url, close } = await startTokenServer(() => shortToken(stack, sub));
  try {
    const { code, stdout, stderr } = await run(
      PYTHON,
      [EXPIRING, way, String(LIFETIME_S), String(RUN_MS / 1_000), String(WORKERS)],
      await signedIn(stack, sub, { TOKEN_URL: url, PGPASSWORD: '' }),
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return JSON.parse(stdout) as Who[];
  } finally {
    close();
  }
}

/** Where a program of another language gets its tokens. */
async function startTokenServer(
  mint: () => Promise<string>,
): Promise<{ url: string; close(this: void): void }> {
  const server = createServer((_, response) => void mint().then((token) => response.end(token)));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, close: () => void server.close() };
}
