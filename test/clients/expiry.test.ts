/**
 * What users of node-postgres, postgres.js and psql see when their token expires: idle, and in a transaction.
 *
 * Which bytes that are is in `test/e2e/expiry.test.ts`, how pools go on in `pools-expiry.test.ts`.
 */
import { EventEmitter, once } from 'node:events';
import pg from 'pg';
import type postgres from 'postgres';
import { describe, expect, it, onTestFinished } from 'vitest';
import { until } from '../support/stack.ts';
import { ending, lacksCommands, printed, signedIn, start } from './command.ts';
import { asSuperuser, lacks, rejection, settingsFor, useStack, type Stack } from './todos.ts';

const EXPIRED = 'terminating connection because the token expired';
const HINT = 'Reconnect with a fresh token.';
const LIFETIME_MS = 1_200;
const AT_ONCE = { provider: { clockToleranceMs: 0 } };

const withoutPsql = lacksCommands('what psql says of an expired token', 'psql');
const withoutPostgresJs = lacks('what postgres.js says of an expired token', 'postgres');

let users = 0;

/** A user of whom nobody has heard before, with a token for a little more than a second, until `expiresAt` in ms since the epoch. */
async function briefly(
  stack: Stack,
): Promise<{ sub: string; password: string; expiresAt: number }> {
  const sub = `brief-${++users}`;
  const expiresAt = Date.now() + LIFETIME_MS;
  return { sub, password: await stack.token(sub, { exp: expiresAt / 1_000 }), expiresAt };
}

const past = (time: number) => until(() => Date.now() > time + 200);

/** Resolves when the session of this user has ended. */
const ended = (stack: Stack, user: string) =>
  stack.logged(({ event, subject }) => event === 'session_end' && subject === user);

const tasksOf = (stack: Stack, user: string) =>
  asSuperuser(stack, 'select task from todos where user_id = $1', [user]);

/** postgres.js with this token first; `closed` resolves when it has noticed the end of its first connection. */
async function openPostgresJs(
  stack: Stack,
  sub: string,
  first: string,
): Promise<{ sql: postgres.Sql; closed: Promise<unknown> }> {
  const { default: connect } = await import('postgres');
  const tokens = [first];
  const { user, ...settings } = settingsFor(stack, sub, {
    max: 1,
    password: async () => tokens.pop() ?? (await stack.token(sub)),
  });
  const connections = new EventEmitter();
  const closed = once(connections, 'close');
  const sql = connect({ ...settings, username: user, onclose: () => connections.emit('close') });
  onTestFinished(() => sql.end({ timeout: 1 }));
  return { sql, closed };
}

/** node-postgres with this token; `errors` is everything that it has emitted as such. */
async function connectPg(stack: Stack, sub: string, password: string) {
  const errors: unknown[] = [];
  const client = new pg.Client({ ...stack.as(sub), password });
  client.on('error', (error) => errors.push(error));
  const closed = new Promise((resolve) => client.once('end', resolve));
  await client.connect();
  onTestFinished(() => client.end());
  return { client, errors, closed };
}

// It says so twice: the words, and that nothing came after them.
const TWO_ERRORS = [
  { severity: 'FATAL', code: '57P01', message: EXPIRED, hint: HINT },
  { message: 'Connection terminated unexpectedly' },
];

describe.each(['drain', 'terminate'] as const)('an expired token, under %s', (onTokenExpiry) => {
  const stack = useStack({ ...AT_ONCE, sessions: { onTokenExpiry } });

  it('makes an idle client of node-postgres emit errors, and fail from then on', async () => {
    const { sub, password } = await briefly(stack());
    const { client, errors, closed } = await connectPg(stack(), sub, password);
    await closed;

    expect(errors).toMatchObject(TWO_ERRORS);
    await expect(client.query('select 1')).rejects.toThrow(/not queryable/);
  });

  it.skipIf(withoutPostgresJs)('is nothing to an idle postgres.js: it signs in again', async () => {
    const { sub, password } = await briefly(stack());
    const { sql, closed } = await openPostgresJs(stack(), sub, password);
    const [before] = await sql`select pg_backend_pid() as pid`;
    await closed;

    const [after] = await sql`select auth.user_id() as user, pg_backend_pid() as pid`;

    expect(after?.['user']).toBe(sub);
    expect(after?.['pid']).not.toBe(before?.['pid']);
  });

  it.skipIf(withoutPsql)('is told by psql at the next statement', async () => {
    const { sub, password } = await briefly(stack());
    const psql = start('psql', ['-XAt'], await signedIn(stack(), sub, { PGPASSWORD: password }));
    psql.stdin.write('select auth.user_id();\n');
    await printed(psql, new RegExp(sub));
    await ended(stack(), sub);
    psql.stdin.end('select 1;\n');
    const { code, stdout, stderr } = await ending(psql);

    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(`FATAL:  ${EXPIRED}\nHINT:  ${HINT}\n`);
    expect(stderr).toContain('server closed the connection unexpectedly');
  });
});

const ADD = "insert into todos (task) values ('in a transaction')";

describe('a token that expires in a transaction, under drain', () => {
  const stack = useStack({ ...AT_ONCE, sessions: { onTokenExpiry: 'drain' } });

  it('lets node-postgres commit, which then emits the errors', async () => {
    const { sub, password, expiresAt } = await briefly(stack());
    const { client, errors, closed } = await connectPg(stack(), sub, password);
    await client.query('begin');
    await client.query(ADD);
    await past(expiresAt);
    await client.query('commit');
    await closed;

    expect(errors).toMatchObject(TWO_ERRORS);
    expect(await tasksOf(stack(), sub)).toHaveLength(1);
  });

  it.skipIf(withoutPostgresJs)('lets postgres.js commit, and sign in again', async () => {
    const { sub, password, expiresAt } = await briefly(stack());
    const { sql, closed } = await openPostgresJs(stack(), sub, password);
    await sql.begin(async (transaction) => {
      await transaction.unsafe(ADD);
      await past(expiresAt);
      await transaction.unsafe(ADD);
    });
    await closed;

    expect(await sql`select task from todos`).toHaveLength(2);
  });

  it.skipIf(withoutPsql)('lets psql commit, and is told at the next statement', async () => {
    const { sub, password, expiresAt } = await briefly(stack());
    const psql = start('psql', ['-XAt'], await signedIn(stack(), sub, { PGPASSWORD: password }));
    psql.stdin.write(`begin;\n${ADD};\n`);
    await printed(psql, /INSERT 0 1/);
    await past(expiresAt);
    psql.stdin.write('commit;\n');
    await printed(psql, /COMMIT/);
    await ended(stack(), sub);
    psql.stdin.end('select 1;\n');
    const { code, stderr } = await ending(psql);

    expect(code).toBe(2);
    expect(stderr).toContain(`FATAL:  ${EXPIRED}\nHINT:  ${HINT}\n`);
    expect(await tasksOf(stack(), sub)).toHaveLength(1);
  });
});

describe('a token that expires in a transaction, under terminate', () => {
  const stack = useStack({ ...AT_ONCE, sessions: { onTokenExpiry: 'terminate' } });

  it('undoes it, and makes node-postgres emit the errors', async () => {
    const { sub, password } = await briefly(stack());
    const { client, errors, closed } = await connectPg(stack(), sub, password);
    await client.query('begin');
    await client.query(ADD);
    await closed;

    expect(errors).toMatchObject(TWO_ERRORS);
    await expect(client.query('commit')).rejects.toThrow(/not queryable/);
    expect(await tasksOf(stack(), sub)).toEqual([]);
  });

  // Of sql.begin() postgres.js 3.4.9 cannot lose the connection: its ROLLBACK to nobody is an exception that nobody can catch.
  it.skipIf(withoutPostgresJs)('undoes and fails the statement of postgres.js', async () => {
    const { sub, password } = await briefly(stack());
    const { sql } = await openPostgresJs(stack(), sub, password);
    const failure = await rejection(
      sql.unsafe(`with added as (${ADD} returning 1) select pg_sleep(20) from added`),
    );

    // It keeps an error back until ReadyForQuery, which does not come.
    expect(failure).toMatchObject({ code: 'CONNECTION_CLOSED' });
    expect(await tasksOf(stack(), sub)).toEqual([]);
  });

  it.skipIf(withoutPsql)('undoes it, and is told by psql at the next statement', async () => {
    const { sub, password } = await briefly(stack());
    const psql = start('psql', ['-XAt'], await signedIn(stack(), sub, { PGPASSWORD: password }));
    psql.stdin.write(`begin;\n${ADD};\n`);
    await printed(psql, /INSERT 0 1/);
    await ended(stack(), sub);
    psql.stdin.end('commit;\n');
    const { code, stdout, stderr } = await ending(psql);

    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(`FATAL:  ${EXPIRED}\nHINT:  ${HINT}\n`);
    expect(await tasksOf(stack(), sub)).toEqual([]);
  });
});
