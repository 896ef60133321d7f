/**
 * Sessions that outlive their client: who gets which, and what is certain of one before anybody gets it.
 */
import pg from 'pg';
import { afterEach, describe, expect, test } from 'vitest';
import { createProxy, parseConfig } from '../../src/proxy.ts';
import { recordedLogger } from '../support/logger.ts';
import { hasExtension, postgresVersions, withSuperuser } from '../support/postgres.ts';
import { startStack, until, type Stack, type StackOptions } from '../support/stack.ts';
import { pidOf, value as rowOf } from './attack-scene.ts';

let stack: Stack | undefined;
afterEach(async () => {
  await stack?.close();
  stack = undefined;
});

type PoolInput = NonNullable<NonNullable<StackOptions['upstream']>['pool']>;

async function start(pool: PoolInput, options: StackOptions = {}): Promise<Stack> {
  stack = await startStack({ ...options, upstream: { pool: { spares: 0, ...pool } } });
  return stack;
}

const counts = () => {
  const { upstreams } = (stack as Stack).proxy.counts();
  return upstreams['main']?.['authenticated'];
};

/** Its session is in order again, or closed. */
const settled = () => until(() => counts()?.busy === 0);

async function visit<T>(
  sub: string,
  then: (client: pg.Client) => Promise<T>,
  overrides: pg.ClientConfig = {},
): Promise<{ pid: number; result: T }> {
  const client = await (stack as Stack).connect(sub, overrides);
  const pid = await pidOf(client);
  const result = await then(client);
  await client.end();
  await settled();
  return { pid, result };
}
const nothing = async () => {};
const value = (client: pg.Client, expression: string) => rowOf(client, `select ${expression}`);

describe('same-identity', () => {
  test('gives a user who comes back the same session, reset, as whom it was', async () => {
    await start({});
    const first = await visit('alice', async (client) => {
      await client.query(
        "set search_path = 'nowhere'; create temporary table mine (); prepare one as select 1",
      );
    });
    expect(counts()).toMatchObject({ idle: 1, busy: 0 });

    const second = await visit('alice', async (client) => {
      const { rows } = await client.query(
        "select current_setting('search_path') as path, auth.user_id() as who, current_user as role," +
          " to_regclass('pg_temp.mine') as temporary, (select count(*)::int from pg_prepared_statements) as prepared",
      );
      return rows[0] as Record<string, unknown>;
    });

    expect(second.pid).toBe(first.pid);
    expect(second.result).toEqual({
      path: '"$user", public',
      who: 'alice',
      role: 'authenticated',
      temporary: null,
      prepared: 0,
    });
  });

  test('gives another user another session', async () => {
    await start({});
    const alice = await visit('alice', nothing);

    const bob = await visit('bob', (client) => value(client, 'auth.user_id()'));

    expect(bob.pid).not.toBe(alice.pid);
    expect(bob.result).toBe('bob');
    expect(counts()).toMatchObject({ idle: 2 });
  });

  test('gives a client with other settings another session, for RESET returns to them', async () => {
    await start({});
    const first = await visit('alice', nothing);

    const second = await visit(
      'alice',
      (client) => value(client, "current_setting('application_name')"),
      {
        application_name: 'other',
      },
    );

    expect(second.pid).not.toBe(first.pid);
    expect(second.result).toBe('other');
  });

  test('puts the claims of a new token on the session that is given', async () => {
    const running = await start({});
    const first = await visit('alice', nothing);
    const password = () => running.issuer.mint({ sub: 'alice', org: 'two' });

    const second = await visit('alice', (client) => value(client, "auth.session() ->> 'org'"), {
      ...running.as('alice'),
      password,
    });

    expect(second).toEqual({ pid: first.pid, result: 'two' });
  });

  test('gives the session to a login that waits for it, and no slot more', async () => {
    await start({}, { slots: 1 });
    const first = await (stack as Stack).connect('alice');
    const pid = await pidOf(first);
    const second = (stack as Stack).connect('alice');
    await until(() => counts()?.waiting === 1);

    await first.end();
    const client = await second;

    expect(await pidOf(client)).toBe(pid);
    await client.end();
  });

  test('closes the session that waited longest for whoever needs its slot', async () => {
    await start({}, { slots: 2 });
    const alice = await visit('alice', nothing);
    await visit('bob', nothing);

    const carol = await visit('carol', (client) => value(client, 'auth.user_id()'));

    expect(carol.result).toBe('carol');
    expect(counts()).toMatchObject({ idle: 2, busy: 0, waiting: 0 });
    const again = await visit('alice', nothing);
    expect(again.pid).not.toBe(alice.pid);
  });

  test('closes a session after its time', async () => {
    await start({ idleTimeoutMs: 1_000 });
    await visit('alice', nothing);
    expect(counts()).toMatchObject({ idle: 1 });

    await until(() => counts()?.idle === 0);

    await settled();
  });

  test('does not use a session that is too old', async () => {
    await start({ lifetimeMs: 1_000 });
    const client = await (stack as Stack).connect('alice');
    await client.query('select pg_sleep(1.2)');

    await client.end();
    await settled();

    expect(counts()).toMatchObject({ idle: 0 });
  });

  test('keeps no session of a client that left in a transaction', async () => {
    await start({});

    await visit('alice', (client) => client.query('begin'));

    expect(counts()).toMatchObject({ idle: 0 });
  });

  test('notices that PostgreSQL has ended a session while it waited', async () => {
    const running = await start({});
    const { pid } = await visit('alice', nothing);

    await running.change(`select pg_terminate_backend(${pid})`);
    await until(() => counts()?.idle === 0);

    const again = await visit('alice', (client) => value(client, 'auth.user_id()'));
    expect(again.result).toBe('alice');
    expect(again.pid).not.toBe(pid);
  });

  test('tells the next client the settings as they are, whatever the server changed meanwhile', async () => {
    const running = await start({});
    const { pid } = await visit('alice', async (client) => {
      await running.change("alter system set timezone = 'Asia/Tokyo'");
      await running.change('select pg_reload_conf()');
      await until(
        async () => (await value(client, "current_setting('timezone')")) === 'Asia/Tokyo',
      );
    });
    const reported: Record<string, string> = {};
    const client = new pg.Client((stack as Stack).as('alice'));
    client.connection.on('parameterStatus', ({ parameterName, parameterValue }) => {
      reported[parameterName] = parameterValue;
    });
    await client.connect();

    expect(await pidOf(client)).toBe(pid);
    expect(reported['TimeZone']).toBe('Asia/Tokyo');
    await client.end();
  });
});

describe('never', () => {
  test('gives nobody a session that was used', async () => {
    await start({ reuse: 'never' });
    const first = await visit('alice', nothing);

    const second = await visit('alice', nothing);

    expect(second.pid).not.toBe(first.pid);
    expect(counts()).toMatchObject({ idle: 0 });
  });
});

describe('any', () => {
  test('gives another user of the role the session, as whom that one is', async () => {
    await start({ reuse: 'any' });
    const alice = await visit('alice', nothing);

    const bob = await visit('bob', (client) => value(client, 'auth.user_id()'));

    expect(bob).toEqual({ pid: alice.pid, result: 'bob' });
  });

  test('takes the identity off a session that waits', async () => {
    const running = await start({ reuse: 'any' });
    await visit('alice', nothing);

    expect(counts()).toMatchObject({ idle: 1 });
    await expect(
      running.change('do $$ begin assert (select count(*) from pgjot.session) = 0; end $$'),
    ).resolves.toBeUndefined();
  });
});

describe('spares', () => {
  test('are logged in for the settings that clients use, and given to users who have no session', async () => {
    await start({ spares: 2 });
    await visit('alice', nothing);
    await visit('alice', nothing);
    await until(() => counts()?.idle === 3);

    const bob = await visit('bob', (client) => value(client, 'auth.user_id()'));

    expect(bob.result).toBe('bob');
    await until(() => counts()?.idle === 4);
  });

  test('are no more than a quarter of the slots', async () => {
    await start({ spares: 100 }, { slots: 8 });
    await visit('alice', nothing);
    await visit('alice', nothing);

    await until(() => counts()?.idle === 3);
    await visit('alice', nothing);
    expect(counts()?.idle).toBe(3);
  });

  test('give their slots to whoever needs them', async () => {
    await start({ spares: 1 }, { slots: 4 });
    await visit('alice', nothing);
    await visit('alice', nothing);
    await until(() => counts()?.idle === 2);

    const clients = await Promise.all(
      ['a', 'b', 'c', 'd'].map((sub) => (stack as Stack).connect(sub)),
    );

    expect(await Promise.all(clients.map((client) => value(client, 'auth.user_id()')))).toEqual([
      'a',
      'b',
      'c',
      'd',
    ]);
    for (const client of clients) await client.end();
  });

  test('of settings that come once are not made', async () => {
    await start({ spares: 2 });

    for (const name of ['a', 'b', 'c', 'd']) {
      await visit('alice', nothing, { application_name: name });
    }

    expect(counts()).toMatchObject({ idle: 4, busy: 0 });
  });
});

test('a spare whose backend never answers keeps no slot', async () => {
  const site = await startStack({
    slots: 8,
    upstream: { connectTimeoutMs: 1_000, pool: { spares: 1 } },
  });
  stack = site;
  await site.change(
    `create or replace function pgjot.claims() returns jsonb language plpgsql security definer as $$
       declare found_claims jsonb;
       begin
         select claims into found_claims from pgjot.session where pid = pg_backend_pid();
         if not found then perform pg_sleep(600); end if;
         return found_claims;
       end $$`,
  );
  await visit('alice', nothing);
  await (await site.connect('bob')).end();
  await until(() => counts()?.idle === 2 && counts()?.busy === 1);

  await settled();
  expect(counts()).toMatchObject({ idle: 2, quarantined: 0 });
});

describe('where strangers press for slots', () => {
  /** Carol has alice's slot, whose session was given up for her. */
  const press = async () => {
    await start({}, { slots: 2 });
    await visit('alice', nothing);
    await visit('bob', nothing);
    await visit('carol', nothing);
  };
  const lately = (pid: number) =>
    withSuperuser(
      (stack as Stack).postgres,
      async (admin) => {
        const { rows } = await admin.query(
          'select query, (select count(*)::int from pg_locks l where l.pid = a.pid) as locks' +
            ` from pg_stat_activity a where a.pid = ${pid}`,
        );
        return rows[0] as { query: string; locks: number };
      },
      'app',
    );

  test('a session is cleared at once, and asked whether it is as new when its user returns', async () => {
    await press();
    const first = await visit('carol', (client) =>
      client.query(
        "set search_path = 'nowhere'; create temporary table mine (); select pg_advisory_lock(7)",
      ),
    );
    const left = await lately(first.pid);

    const second = await visit('carol', async (client) => {
      const { rows } = await client.query(
        "select current_setting('search_path') as path, to_regclass('pg_temp.mine') as mine, auth.user_id() as who",
      );
      return rows[0] as unknown;
    });

    expect(left).toEqual({ query: 'DISCARD ALL', locks: 0 });
    expect(second).toEqual({
      pid: first.pid,
      result: { path: '"$user", public', mine: null, who: 'carol' },
    });
  });

  test('nobody gets a session that turns out not to be', async () => {
    await press();
    const first = await visit('carol', (client) =>
      client.query(
        "set role none; do $$ begin execute format('alter role %I set work_mem = 65', session_user); end $$",
      ),
    );
    expect(await lately(first.pid)).toMatchObject({ query: 'DISCARD ALL' });

    const second = await visit('carol', (client) => value(client, 'auth.user_id()'));

    expect(second.result).toBe('carol');
    expect(second.pid).not.toBe(first.pid);
  });
});

describe('limits', () => {
  test('maxConnections of the upstream closes idle sessions rather than let anybody wait', async () => {
    await start({ maxConnections: 2 });
    await visit('alice', nothing);
    await visit('bob', nothing);

    const carol = await visit('carol', (client) => value(client, 'auth.user_id()'));

    expect(carol.result).toBe('carol');
    const { idle = 0, busy = 0 } = counts() ?? {};
    expect(idle + busy).toBeLessThanOrEqual(2);
  });

  test('maxWaiting refuses at once whoever would have to wait behind too many', async () => {
    await start({ maxWaiting: 1 }, { slots: 1 });
    const first = await (stack as Stack).connect('alice');
    const second = (stack as Stack).connect('bob');
    await until(() => counts()?.waiting === 1);

    const began = performance.now();
    await expect((stack as Stack).connect('carol')).rejects.toMatchObject({ code: '53300' });

    expect(performance.now() - began).toBeLessThan(1_000);
    await first.end();
    await (await second).end();
  });
});

test('a second proxy gets the slots that the first one keeps idle sessions on', async () => {
  const running = await start({}, { slots: 2 });
  await visit('alice', nothing);
  await visit('bob', nothing);
  const other = createProxy(parseConfig(running.config), { logger: recordedLogger() });
  const { host, port } = await other.start();

  const began = performance.now();
  const client = await running.connect('carol', { host, port });

  expect(performance.now() - began).toBeLessThan(4_000);
  expect(await value(client, 'auth.user_id()')).toBe('carol');
  await client.end();
  await other.close();
});

describe('over TLS on both sides', () => {
  test('a session is given again and again', async () => {
    await start({}, { tls: true, upstreamTls: true });
    const pids = new Set<number>();
    for (let visits = 0; visits < 10; visits++) {
      const { pid, result } = await visit('alice', (client) => value(client, 'auth.user_id()'));
      pids.add(pid);
      expect(result).toBe('alice');
    }

    expect(pids.size).toBe(1);
  });
});

test('on a standby no session is used again', async () => {
  await start({ spares: 4 }, { session: 'replica' });
  const first = await visit('alice', nothing);

  const second = await visit('alice', (client) => value(client, 'auth.user_id()'));

  expect(second.pid).not.toBe(first.pid);
  expect(second.result).toBe('alice');
  expect(counts()).toMatchObject({ idle: 0 });
});

const version = postgresVersions().find((one) => hasExtension(one, 'pg_session_jwt'));
if (version === undefined) console.log('reuse in pg_session_jwt is not tested: no extension here');
test.runIf(version)('with the extension a session goes to the very same token only', async () => {
  const running = await start(
    { spares: 4 },
    { session: 'pg_session_jwt', ...(version && { version }) },
  );
  const password = await running.token('alice', { org: 'one' });
  const user = (client: pg.Client) =>
    value(client, "auth.user_id() || ' ' || (auth.session() ->> 'org')");
  const first = await visit('alice', user, { password });

  const again = await visit('alice', user, { password });
  const other = await visit('alice', user, {
    password: await running.token('alice', { org: 'two' }),
  });

  expect(again).toEqual({ pid: first.pid, result: 'alice one' });
  expect(other.result).toBe('alice two');
  expect(other.pid).not.toBe(first.pid);
});

describe.each(postgresVersions())('on PostgreSQL %s', (major) => {
  test.each([
    ['has settings of its own', "alter role %I set application_name = 'mine'"],
    ...(major < 15 ? [['was granted to an accomplice', 'grant %I to pgjot_authenticated_7']] : []),
  ])('a session whose slot %s is not used again (attack E11)', async (_, sql = '') => {
    await start({}, { version: major });
    const first = await visit('alice', async (client) => {
      await client.query('set role none');
      await client.query(
        `do $$ begin execute format('${sql.replaceAll("'", "''")}', session_user); end $$`,
      );
    });
    await until(() => counts()?.idle === 0);

    const second = await visit('alice', nothing);

    expect(second.pid).not.toBe(first.pid);
  });

  test('a session is used again', async () => {
    await start({}, { version: major });
    const first = await visit('alice', nothing);

    expect((await visit('alice', nothing)).pid).toBe(first.pid);
  });
});
