/** The page on pools: its blocks in JavaScript and Python, each with tokens that expire while it is used; and what it says of others. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { run, signedIn } from '../clients/command.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { readDocument, whyNotRun } from './document.ts';

// $PGJOT_PYTHON may name one with the driver, a virtual environment's for instance.
const PYTHON = process.env['PGJOT_PYTHON'] ?? 'python3';
const TOKEN_MS = 2_500;
const WHO = 'select auth.user_id() as user, pg_backend_pid() as pid';

const blocks = readDocument('pools.md');

function block(language: string, remark = ''): string {
  const found = blocks.filter((one) => one.language === language && one.remark === remark);
  if (found.length !== 1) throw new Error(`${found.length} blocks of ${language} ${remark}`);
  return (found[0] as (typeof blocks)[number]).code;
}

/** What a block of JavaScript declares as `name`, with minutes become seconds. */
function evaluated(
  remark: string,
  name: string,
  scope: Readonly<Record<string, unknown>>,
): unknown {
  const code = block('js', remark).replaceAll('240', '1').replaceAll('120_000', '1_000');
  // oxlint-disable-next-line typescript/no-implied-eval -- the document's own code
  return new Function(...Object.keys(scope), `${code}\nreturn ${name};`)(
    ...Object.values(scope),
  ) as unknown;
}

function lacksPsycopg(): boolean {
  const supported = 'import psycopg_pool as p; assert p.__version__ >= "3.3"';
  const { status } = spawnSync(PYTHON, ['-c', supported], { stdio: 'ignore' });
  if (status === 0) return false;
  console.log(`skipped the blocks in Python: ${PYTHON} has no psycopg_pool 3.3`);
  return true;
}

const withoutPsycopg = lacksPsycopg();

it('has the blocks that are tried below, and some that say why they are not', () => {
  const tried = blocks.filter((one) => whyNotRun(one) === undefined);

  expect(tried.map(({ language, remark }) => `${language} ${remark}`.trim())).toEqual([
    'js pool for each user',
    'js renewal',
    'js node-postgres',
    'js postgres.js',
    'python',
    'python before 3.3',
    'python renewal',
  ]);
  expect(blocks).toHaveLength(tried.length + 4);
});

describe('a block', () => {
  let stack: Stack;
  let tokens = 0;
  const freshToken = (sub = 'alice') => {
    tokens++;
    return stack.token(sub, { exp: (Date.now() + TOKEN_MS) / 1_000 });
  };

  beforeAll(async () => {
    stack = await startStack({ provider: { clockToleranceMs: 0 } });
    const { PGPASSWORD: _, ...environment } = await signedIn(stack, 'alice');
    for (const [name, value] of Object.entries(environment)) vi.stubEnv(name, value);
  });
  afterAll(async () => {
    vi.unstubAllEnvs();
    await stack?.close();
  });

  /** Asks on for longer than a token lives; answers the backends that answered. */
  async function pidsOver(ask: () => Promise<unknown>, user = 'alice'): Promise<Set<unknown>> {
    const end = Date.now() + TOKEN_MS + 1_000;
    const pids = new Set<unknown>();
    while (Date.now() < end) {
      const answer = (await ask()) as { user: string; pid: number };
      expect(answer.user).toBe(user);
      pids.add(answer.pid);
    }
    return pids;
  }

  it('js node-postgres', async () => {
    const pool = evaluated('node-postgres', 'pool', { pg, freshToken }) as pg.Pool;
    const pids = await pidsOver(async () => (await pool.query(WHO)).rows[0]);
    await pool.end();

    expect(pids.size).toBeGreaterThan(2);
  });

  it('js postgres.js', async () => {
    const sql = evaluated('postgres.js', 'sql', { postgres, freshToken }) as postgres.Sql;
    const pids = await pidsOver(async () => (await sql.unsafe(WHO))[0]);
    await sql.end();

    expect(pids.size).toBeGreaterThan(2);
  });

  it('js renewal', async () => {
    type WithClient = (
      pool: pg.Pool,
      token: typeof freshToken,
      work: (client: pg.PoolClient) => Promise<unknown>,
    ) => Promise<unknown>;
    const withClient = evaluated('renewal', 'withClient', {}) as WithClient;
    const pool = new pg.Pool({ password: () => freshToken(), max: 1 });
    tokens = 0;

    const ask = () =>
      withClient(pool, freshToken, async (client) => (await client.query(WHO)).rows[0]);

    expect((await pidsOver(ask)).size).toBe(1);
    expect(tokens).toBeLessThan(10);
    const cut = withClient(pool, freshToken, async (client) => {
      await once(client, 'end');
      return client.query(WHO);
    });
    await expect(cut).rejects.toThrow(/terminating connection because the token expired/);
    expect(await ask()).toMatchObject({ user: 'alice' });
    await pool.end();
  });

  it('js pool for each user', async () => {
    type PoolOf = (claims: { iss: string; sub: string }, token: typeof freshToken) => pg.Pool;
    const poolOf = evaluated('pool for each user', 'poolOf', { pg, freshToken }) as PoolOf;
    const [alice, bob] = ['alice', 'bob'].map((sub) => poolOf({ iss: 'here', sub }, freshToken));
    if (alice === undefined || bob === undefined) throw new Error('no pools');

    expect((await alice.query(WHO)).rows).toMatchObject([{ user: 'alice' }]);
    expect((await bob.query(WHO)).rows).toMatchObject([{ user: 'bob' }]);
    expect(poolOf({ iss: 'here', sub: 'alice' }, freshToken)).toBe(alice);
    expect(poolOf({ iss: 'there', sub: 'alice' }, freshToken)).not.toBe(alice);
    // When the life of its only connection is over it is forgotten.
    await until(() => poolOf({ iss: 'here', sub: 'alice' }, freshToken) !== alice);
    await Promise.all([alice.end(), bob.end()]);
  });

  it.skipIf(withoutPsycopg).each(['', 'before 3.3', 'renewal'])('python %s', async (remark) => {
    const later = await freshToken();
    const code = [
      'import psycopg',
      'from psycopg import sql',
      'from psycopg_pool import ConnectionPool',
      `def fresh_token(): return ${JSON.stringify(later)}`,
      block('python', remark),
      'with pool.connection() as connection:',
      "    print(*connection.execute('select auth.user_id()').fetchone())",
      'pool.close()',
    ].join('\n');

    const answer = await run(PYTHON, ['-W', 'ignore', '-c', code], {
      ...(await signedIn(stack, 'alice')),
      PGPASSWORD: '',
    });

    expect(answer).toEqual({ code: 0, stdout: 'alice\n', stderr: '' });
  });
});
