/**
 * What the log says can be joined with PostgreSQL's own, and nobody can fill it or write lines of their own.
 */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parseConfig } from '../../src/proxy.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

let stack: Stack;
beforeAll(async () => {
  stack = await startStack({
    slots: 8,
    upstream: { nameSessions: true, pool: { reuse: 'same-identity', spares: 2 } },
  });
});
afterAll(() => stack?.close());

const events = (name: string) =>
  stack.logs
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter(({ event }) => event === name);
const nameOf = async (client: pg.Client) => {
  const { rows } = await client.query<{ name: string; pid: number }>(
    "select current_setting('application_name') as name, pg_backend_pid() as pid",
  );
  return rows[0] as { name: string; pid: number };
};

test('a session is called by its id upstream, and the next one on the same backend by its own', async () => {
  const seen: { name: string; pid: number }[] = [];
  for (let round = 0; round < 3; round++) {
    const client = await stack.connect('alice', {
      application_name: 'an app with quite a long name ✓',
    });
    const { name, pid } = await nameOf(client);
    const login = await stack.logged(
      ({ event, session }) => event === 'login' && name.endsWith(` pgjot:${String(session)}`),
    );
    expect(login).toMatchObject({ outcome: 'accepted', subject: 'alice', backendPid: pid });
    expect(name.startsWith('an app with quite a ')).toBe(true);
    expect(name.length).toBeLessThanOrEqual(63);
    seen.push({ name, pid });
    await client.query('discard all');
    // Back to what its StartupMessage had, which is nobody's id.
    expect((await nameOf(client)).name).not.toContain('pgjot:');
    await client.end();
    const { session } = login;
    await stack.logged((line) => line['event'] === 'session_end' && line['session'] === session);
  }
  expect(new Set(seen.map(({ name }) => name)).size).toBe(3);
  // Reuse goes on.
  await until(() => seen[2]?.pid === seen[1]?.pid || seen[1]?.pid === seen[0]?.pid);
});

test('a user name with line breaks is one line, and no line of the sender (facts I7)', async () => {
  const user = 'x\n{"event":"login","outcome":"accepted","subject":"admin"}\u2028\u001b[31m';
  const before = stack.logs.length;
  await stack.connect('eve', { user }).catch(() => {});
  const line = await stack.logged(
    ({ event, user: logged }) => event === 'login' && String(logged).startsWith('x?{'),
  );

  expect(line['outcome']).toBe('refused');
  expect(
    stack.logs.slice(before).filter((text) => text.includes('\u001b') || text.includes('\u2028')),
  ).toEqual([]);
  expect(events('login').some(({ subject }) => subject === 'admin')).toBe(false);
});

test('a reload says which settings have changed, and no value', async () => {
  stack.proxy.reload(
    parseConfig({
      ...stack.config,
      limits: { loginTimeoutMs: 9_876 },
      log: { level: 'info', refusalsPerMinute: 4 },
    }),
  );

  const [line] = events('reloaded').slice(-1);
  expect(line?.['changed']).toEqual(
    expect.arrayContaining(['limits.loginTimeoutMs', 'log.level', 'log.refusalsPerMinute']),
  );
  expect(JSON.stringify(line)).not.toContain('9876');
});

test('a hundred refusals are four lines and a count; a cancel is a line of level debug; keys that change are one', async () => {
  stack.proxy.reload(
    parseConfig({ ...stack.config, log: { level: 'debug', refusalsPerMinute: 4 } }),
  );
  const before = events('login').length;
  const refusals = Array.from({ length: 100 }, () =>
    stack.connect('eve', { password: 'no token' }).catch((error: pg.DatabaseError) => error.code),
  );
  expect(new Set(await Promise.all(refusals))).toEqual(new Set(['28P01']));
  const client = await stack.connect('alice');
  const { processID: processId } = client as pg.Client & { processID: number };
  const sleeping = client.query('select pg_sleep(60)').catch((error: unknown) => error);
  const canceller = new pg.Client(stack.as('alice')) as pg.Client & {
    cancel(client: pg.Client, query: unknown): void;
  };
  await new Promise((resolve) => setTimeout(resolve, 50));
  const active = client as unknown as { _activeQuery?: unknown; activeQuery?: unknown };
  canceller.cancel(client, active._activeQuery ?? active.activeQuery);
  expect(await sleeping).toMatchObject({ code: '57014' });
  expect(processId).toBeGreaterThan(0);
  // The client hears of it before the canceller does.
  const cancel = await stack.logged(({ event }) => event === 'cancel');
  expect(cancel).toMatchObject({ level: 20, matched: true, address: '127.0.0.1' });
  stack.issuer.rotate({ keepOld: false });
  await client.end();
  await (await stack.connect('bob')).end();
  expect(events('keys_changed').at(-1)).toMatchObject({ level: 30, provider: 'test' });

  await stack.proxy.close();

  const refused = events('login')
    .slice(before)
    .filter(({ outcome }) => outcome === 'refused');
  const suppressed = events('refusals_suppressed').map((line) => line['suppressed'] as number);
  // The one before them may be of the same minute.
  expect(refused.length).toBeGreaterThanOrEqual(3);
  expect(refused.length).toBeLessThan(20);
  expect(refused.length + suppressed.reduce((sum, n) => sum + n, 0)).toBe(100);
});
