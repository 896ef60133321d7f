/**
 * Pools of other languages that reset a connection before they lend it again: the identity stays.
 *
 * asyncpg and psycopg themselves where this machine has them; what asyncpg and Npgsql send, always.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hasExtension, postgresVersions } from '../support/postgres.ts';
import { startStack, type SessionMode, type Stack } from '../support/stack.ts';
import { run, signedIn } from './command.ts';

// $PGJOT_PYTHON may name one with the drivers, a virtual environment's for instance.
const PYTHON = process.env['PGJOT_PYTHON'] ?? 'python3';
const POOLS = fileURLToPath(new URL('apps/pools.py', import.meta.url));
const NEWEST = postgresVersions()[0] ?? 0;

const RESETS = {
  asyncpg: ['SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;'],
  Npgsql: ['DISCARD ALL'],
  // When some of its statements are prepared, which DISCARD ALL would forget.
  'Npgsql with prepared statements': [
    'SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP',
  ],
  // As its server_reset_query, sent once for each client.
  PgBouncer: ['DISCARD ALL', 'DISCARD ALL'],
};

function lacksDrivers(): boolean {
  const { status } = spawnSync(PYTHON, ['-c', 'import asyncpg, psycopg_pool'], { stdio: 'ignore' });
  if (status === 0) return false;
  console.log(
    `skipped the pools of asyncpg and psycopg: ${PYTHON} has no asyncpg and psycopg_pool`,
  );
  return true;
}

const withoutDrivers = lacksDrivers();
const modes = (['portable', 'replica', 'pg_session_jwt'] satisfies SessionMode[]).filter(
  (session) => session !== 'pg_session_jwt' || hasExtension(NEWEST, session),
);

describe.each(modes)('a pool in session mode %s', (session) => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startStack({ session });
  }, 60_000);
  afterAll(() => stack?.close());

  it.each(Object.entries(RESETS))('that resets as %s does keeps its user', async (_, resets) => {
    const client = await stack.connect('alice');
    for (const reset of resets) await client.query(reset);

    const { rows } = await client.query(
      'select auth.user_id(), current_user::text as role, count(*)::int from todos',
    );

    await client.end();
    expect(rows).toEqual([{ user_id: 'alice', role: 'authenticated', count: 3 }]);
  });

  it.skipIf(withoutDrivers)('of asyncpg, and one of psycopg, keeps its user', async () => {
    const { code, stdout, stderr } = await run(PYTHON, [POOLS], await signedIn(stack, 'alice'));

    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const alice = ['alice', 'alice', 'alice', 'alice'];
    expect(JSON.parse(stdout)).toEqual({ asyncpg: alice, psycopg: alice });
  });
});
