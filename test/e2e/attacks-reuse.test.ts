/**
 * Attacks on the reuse of upstream sessions: Alice leaves hers so that it is not what the proxy takes it for; F1, F2 and F6.
 *
 * There is a single slot, so that Bob gets her backend if anybody does. What she can leave behind in an orderly way is in
 * `leaks.test.ts`.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { withSuperuser } from '../support/postgres.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { CODES, cstring, frame, int32, query, TERMINATE } from './parity/bytes.ts';
import { cancel, RawClient } from './raw-client.ts';

const TERMINATED = 'terminating connection due to administrator command';

let stack: Stack;
let [alice, bob] = ['', ''];

beforeAll(async () => {
  stack = await startStack({ slots: 1, upstream: { pool: { reuse: 'any', spares: 0 } } });
  await stack.change(
    'create table public.copied (word text); create table public.seen (who text);' +
      'grant insert, select on public.copied, public.seen to authenticated;' +
      'grant temporary on database app to authenticated',
  );
  [alice, bob] = [await stack.token('alice'), await stack.token('bob')];
});

afterAll(async () => {
  await stack.close();
});

const counts = () => stack.proxy.counts().upstreams['main']?.['authenticated'];
const pidOf = async (client: RawClient) =>
  String((await client.ask('select pg_backend_pid()')).rows[0]?.[0]);

const parse = (sql: string, name = '') =>
  frame('P', Buffer.concat([cstring(name), cstring(sql), Buffer.alloc(2)]));
const BIND = frame('B', Buffer.concat([cstring(''), cstring(''), Buffer.alloc(6)]));
const EXECUTE = frame('E', Buffer.concat([cstring(''), int32(0)]));
const SYNC = frame('S');
const FLUSH = frame('H');
const COPY = 'copy public.copied from stdin';

/** The one row of a question to a superuser. */
const first = <T>(sql: string) =>
  withSuperuser(stack.postgres, async (admin) => (await admin.query(sql)).rows[0] as T, 'app');

/** Expects that Bob has a session as new, and says whether it is the one that Alice had. */
async function bobAfter(pid: string): Promise<'same backend' | 'another backend'> {
  using client = await RawClient.login(stack, bob);
  const { rows } = await client.ask(
    "select pgjot.user_id(), current_user, current_setting('search_path'), to_regclass('pg_temp.mine')," +
      ' (select string_agg(distinct user_id, $$,$$) from public.todos)',
  );
  expect(rows).toEqual([['bob', 'authenticated', '"$user", public', 'NULL', 'bob']]);
  const given = await pidOf(client);
  client.send(TERMINATE);
  client.socket.end();
  await client.end();
  await until(() => counts()?.busy === 0);
  return given === pid ? 'same backend' : 'another backend';
}

/** What Alice says and how she leaves; then Bob looks. */
async function leaving(
  attack: (client: RawClient) => Promise<unknown> | void,
  end: 'FIN' | 'Terminate' | 'RST' = 'FIN',
): Promise<'same backend' | 'another backend'> {
  using client = await RawClient.login(stack, alice);
  const pid = await pidOf(client);
  await attack(client);
  if (end === 'Terminate') client.send(TERMINATE);
  if (end === 'RST') client.socket.resetAndDestroy();
  else client.socket.end();
  // Bob's login waits for the slot, and finds what the proxy makes of it.
  return bobAfter(pid);
}

const EVIL = 'set search_path = evil';

describe('F1: leaving inside a frame', () => {
  const WAYS: readonly (readonly [string, string | undefined, readonly Buffer[]])[] = [
    ['a Query', undefined, [query(EVIL)]],
    ['an extended batch that fails', undefined, [parse('no'), BIND, EXECUTE, SYNC]],
    ['a COPY', COPY, [frame('d', 'word\n'), frame('c')]],
    ['a transaction that has failed', 'begin; select 1/0', [query(EVIL)]],
    ['what a running query keeps waiting', 'select pg_sleep(0.05)', [query(EVIL)]],
    ['a FunctionCall', undefined, [frame('F', Buffer.alloc(8))]],
  ];

  it.each(WAYS)(
    '%s, wherever it is cut',
    async (_, before, frames) => {
      const bytes = Buffer.concat(frames);
      for (let cut = 1; cut < bytes.length; cut += 1) {
        const outcome = await leaving(
          (client) => {
            client.send(...(before === undefined ? [] : [query(before)]), bytes.subarray(0, cut));
          },
          cut % 3 === 0 ? 'RST' : 'FIN',
        );
        expect([cut, outcome]).toEqual([cut, 'another backend']);
      }
      expect(counts()).toMatchObject({ busy: 0, quarantined: 0 });
    },
    60_000,
  );

  it('or leaving in order, the backend is used again', async () => {
    expect(await leaving((client) => client.ask(EVIL), 'Terminate')).toBe('same backend');
    expect(await leaving((client) => client.ask(EVIL), 'FIN')).toBe('same backend');
  });
});

const SEEN = 'insert into public.seen values (pgjot.user_id())';
const SLOW = `select pg_sleep(0.1); ${SEEN}`;
/** FunctionCall of pg_sleep(float8), with its argument in text. */
const SLEEP = frame(
  'F',
  Buffer.concat([
    int32(2626),
    Buffer.from([0, 0, 0, 1]),
    int32(3),
    Buffer.from('0.1'),
    Buffer.alloc(2),
  ]),
);
// Syncs that the proxy takes for ones that the COPY swallows, because a CopyDone that means nothing comes behind them.
const MISCOUNTED = [query(`copy public.copied from stdin; select pg_sleep(0.1)`), frame('c')];
const times = (count: number, ...frames: Buffer[]) =>
  Buffer.concat(Array(count).fill(Buffer.concat(frames)));

/** What makes the proxy believe, if it is careless, that nothing is outstanding. */
const LIES: Readonly<Record<string, (client: RawClient) => Promise<unknown> | void>> = {
  'F2: a CopyData outside of COPY, as long as the reset': (client) =>
    client.send(frame('d', '', 4 + query('DISCARD ALL').length)),
  'CopyData outside of COPY': (client) =>
    client.send(frame('d', query('DISCARD ALL')), query(SLOW)),
  'a query and the goodbye at once': (client) => client.send(query(SLOW), TERMINATE),
  'a query, and the goodbye behind it': async (client) => {
    client.send(query(SLOW));
    await new Promise((resolve) => setImmediate(resolve));
    client.send(TERMINATE);
  },
  'a function call': (client) => client.send(SLEEP),
  'a function call, and another query': (client) => client.send(SLEEP, query(SLOW)),
  'an extended batch that was only flushed': (client) =>
    client.send(parse(SEEN), BIND, EXECUTE, FLUSH),
  'an extended batch that fails, and a query that is skipped': (client) =>
    client.send(parse('no'), FLUSH, query(SLOW), query(SLOW)),
  'a batch whose Sync comes before its failure is known': (client) =>
    client.send(parse('select 1/0'), BIND, EXECUTE, query(EVIL), SYNC, parse(SEEN), BIND, EXECUTE),
  'more Syncs than anybody needs': (client) => client.send(times(2_000, SYNC), query(SLOW)),
  'a COPY that fails, and its end': (client) =>
    client.send(query('copy public.nowhere from stdin'), frame('d', 'x'), frame('c'), query(SLOW)),
  'CopyDone before the COPY': (client) =>
    client.send(frame('c'), frame('f', cstring('no')), query(COPY), SYNC, frame('c'), query(SLOW)),
  'a COPY by the extended protocol whose Sync is swallowed': (client) =>
    client.send(parse(COPY), BIND, EXECUTE, SYNC, frame('f', cstring('no')), query(SLOW)),
  'Syncs that are counted out, a query behind them': async (client) => {
    client.send(...MISCOUNTED, times(3, SYNC), frame('c'));
    await client.next('G');
    client.send(query(SLOW));
    await client.next('Z');
    client.send(TERMINATE);
  },
  'Syncs that are counted out, a failed batch behind them': async (client) => {
    client.send(...MISCOUNTED, times(5, SYNC), frame('c'));
    await client.next('G');
    client.send(parse('no'), SYNC, parse(COPY), BIND, EXECUTE, SYNC, frame('f', cstring('no')));
    await client.next('Z');
    client.send(TERMINATE);
  },
  'Syncs that are counted out, and an answer like that to the reset': async (client) => {
    client.send(...MISCOUNTED, times(3, SYNC), frame('c'));
    await client.next('G');
    client.send(query('DISCARD ALL'), query(EVIL), parse('no'), FLUSH);
    await client.next('Z');
    client.send(TERMINATE);
  },
  'two COPYs in one query': (client) =>
    client.send(
      query(`${COPY}; ${COPY}; ${SLOW}`),
      frame('c'),
      SYNC,
      SYNC,
      frame('c'),
      SYNC,
      frame('c'),
    ),
};

describe('making the proxy believe that nothing is outstanding', () => {
  it.each(Object.entries(LIES))('%s', async (_, lie) => {
    for (const end of ['FIN', 'Terminate'] as const) {
      // The backend is not always another one: some of it PostgreSQL ignores, or has done by then.
      await leaving(lie, end);
    }
    // Whatever ran late ran as Alice, or as nobody.
    const { who } = await first<{ who: string | null }>(
      'select string_agg(distinct who, $$,$$) as who from public.seen',
    );
    expect([null, 'alice']).toContain(who);
    expect(counts()).toMatchObject({ busy: 0, quarantined: 0, waiting: 0 });
  });

  it('by answers that are not read: what the reset finds is not its own', async () => {
    const outcome = await leaving(async (client) => {
      client.socket.pause();
      client.send(query("select repeat('x', 20000000)"));
      await new Promise((resolve) => setTimeout(resolve, 50));
      client.send(times(50, query('DISCARD ALL')), query(SLOW));
    }, 'Terminate');
    expect(outcome).toBe('another backend');
  });
});

describe('what the reset would miss', () => {
  it('is not what random() goes by', async () => {
    const DRAW = 'select random()::text from generate_series(1, 3)';
    let drawn: unknown;
    const outcome = await leaving(async (client) => {
      await client.ask('select setseed(0.5)');
      drawn = (await client.ask(DRAW)).rows;
      await client.ask('select setseed(0.5)');
    }, 'Terminate');
    expect(outcome).toBe('same backend');
    using one = await RawClient.login(stack, alice);
    await one.ask('select setseed(0.5)');
    one.send(TERMINATE);
    using next = await RawClient.login(stack, bob);

    expect((await next.ask(DRAW)).rows).not.toEqual(drawn);
  });

  it('is not the statement without a name', async () => {
    using one = await RawClient.login(stack, alice);
    one.send(parse("select 'of alice'"), SYNC);
    await one.next('Z');
    one.send(TERMINATE);
    using next = await RawClient.login(stack, bob);
    next.send(BIND, EXECUTE, SYNC);
    await next.next('Z');

    expect(next.heard.filter(({ type }) => type === 'D')).toEqual([]);
  });

  it('is not what others notify her of meanwhile', async () => {
    await withSuperuser(
      stack.postgres,
      async (admin) => {
        const over = new AbortController();
        const storm = (async () => {
          while (!over.signal.aborted)
            await admin.query("select pg_notify('storm', repeat('x', 4000))");
        })();
        for (let round = 0; round < 20; round++) {
          await leaving((client) => client.ask('listen storm; listen other'), 'Terminate');
          using next = await RawClient.login(stack, bob);
          await next.ask('select pg_sleep(0.01)');
          expect(next.heard.filter(({ type }) => type === 'A')).toEqual([]);
        }
        over.abort();
        await storm;
      },
      'app',
    );
  });

  it('is not what the server reports meanwhile, however often', async () => {
    const set =
      "do $$ begin for i in 1..2000 loop perform set_config('application_name', i::text, false); end loop; end $$";
    expect(await leaving((client) => client.ask(set), 'Terminate')).toBe('same backend');
    using next = await RawClient.login(stack, bob);
    const names = next.heard
      .filter(({ type, body }) => type === 'S' && body.toString().startsWith('application_name'))
      .map(({ body }) => body.toString());

    expect(names).toEqual(['application_name\0\0']);
  });

  it('takes no longer than two seconds, whatever there is to clear away', async () => {
    const outcome = await leaving(
      (client) =>
        client.ask(
          "do $$ begin for i in 1..2500 loop execute format('create temporary table t%s ()', i); end loop; end $$",
        ),
      'Terminate',
    );
    expect(['same backend', 'another backend']).toContain(outcome);
    expect(counts()).toMatchObject({ busy: 0, quarantined: 0 });
  }, 30_000);
});

describe('sessions that wait', () => {
  it('and that PostgreSQL ends just then fail nobody', async () => {
    for (let round = 0; round < 30; round++) {
      using one = await RawClient.login(stack, alice);
      const pid = await pidOf(one);
      one.send(TERMINATE);
      one.socket.end();
      await until(() => counts()?.busy === 0);
      const ended = first(`select pg_terminate_backend(${pid})`);
      const outcome = await bobAfter(pid).catch((error: Error) => error.message);
      await ended;
      // She who has it already when it is ended hears so, as on any session.
      expect(['same backend', 'another backend', TERMINATED]).toContain(outcome);
      await until(() => counts()?.busy === 0);
    }
    expect(await bobAfter('')).toBe('another backend');
  });

  it.each([
    ['statement_timeout', '1'],
    ['idle_session_timeout', '30'],
    ['lock_timeout', '1'],
  ])('with %s of their own choice harm nobody else', async (name, value) => {
    for (let round = 0; round < 10; round++) {
      await RawClient.login(stack, alice, CODES.v3, [['options', `-c ${name}=${value}`]]).then(
        (client) => {
          client.send(TERMINATE);
          client.socket.end();
        },
        () => {},
      );
    }
    await until(() => counts()?.busy === 0 && counts()?.waiting === 0);
    expect(await bobAfter('')).toBe('another backend');
    expect(counts()).toMatchObject({ busy: 0, quarantined: 0 });
  });

  it('of many settings never take more than the slots that there are', async () => {
    await using wide = await startStack({
      slots: 8,
      upstream: { pool: { reuse: 'any', spares: 4 } },
    });
    const token = await wide.token('alice');
    for (let number = 0; number < 60; number++) {
      using client = await RawClient.login(wide, token, CODES.v3, [
        ['application_name', `number ${number >> 1}`],
      ]);
      client.send(TERMINATE);
    }
    const slots = () => wide.proxy.counts().upstreams['main']?.['authenticated'];
    await until(() => slots()?.busy === 0);
    const { idle = 0, free = 0 } = slots() ?? {};
    expect(idle + free).toBeLessThanOrEqual(8);
    const others = await Promise.all(
      Array.from({ length: 8 }, async (_, number) =>
        RawClient.login(wide, await wide.token(`user ${number}`)),
      ),
    );
    expect(new Set(await Promise.all(others.map(pidOf))).size).toBe(8);
    for (const one of others) one.destroy();
  }, 60_000);
});

describe('G3: cancels that come late', () => {
  it('hit nobody else among 1,000 that race with the change of hands', async () => {
    let cancels = 0;
    while (cancels < 1_000) {
      using one = await RawClient.login(stack, alice);
      const { key } = one;
      await one.ask('select 1');
      const storm = Promise.all(Array.from({ length: 10 }, () => cancel(stack, key)));
      one.send(TERMINATE);
      one.socket.end();
      using next = await RawClient.login(stack, bob);
      const results = [await next.ask('select pg_sleep(0.005)'), await next.ask('select 1')];
      await storm;
      results.push(await next.ask('select 2'));
      next.send(TERMINATE);
      expect(results.map(({ sqlstate }) => sqlstate)).toEqual([undefined, undefined, undefined]);
      cancels += 10;
    }
  }, 60_000);
});

describe('who is the same', () => {
  it('is nobody whose name looks alike', async () => {
    const subjects = ['a', 'a"', 'a","b', 'a\\', 'a\\"', ' a', 'A', 'á', 'a\u0301'];
    await using same = await startStack({
      slots: 12,
      upstream: { pool: { reuse: 'same-identity', spares: 0 } },
    });
    const slots = () => same.proxy.counts().upstreams['main']?.['authenticated'];
    const pids = new Map<string, string>();
    for (const round of [1, 2]) {
      for (const subject of subjects) {
        using client = await RawClient.login(same, await same.token(subject, { round }));
        const [row] = (
          await client.ask(
            'select pg_backend_pid()::text, pgjot.user_id(), pgjot.session() ->> $$round$$',
          )
        ).rows;
        expect(row?.slice(1)).toEqual([subject, String(round)]);
        if (round === 2) expect(row?.[0]).toBe(pids.get(subject));
        pids.set(subject, String(row?.[0]));
        client.send(TERMINATE);
        client.socket.end();
        await client.end();
        await until(() => slots()?.busy === 0);
      }
    }
    expect(new Set(pids.values()).size).toBe(subjects.length);
  });

  it('is nobody who was revoked while the session waited, nor by a token that was renewed on the way out', async () => {
    await using same = await startStack({
      slots: 1,
      upstream: { pool: { reuse: 'same-identity', spares: 0 } },
    });
    const slots = () => same.proxy.counts().upstreams['main']?.['authenticated'];
    const visit = async (token: string, sql: string): Promise<(readonly string[])[]> => {
      using client = await RawClient.login(same, token);
      const { rows } = await client.ask(sql);
      client.send(TERMINATE);
      client.socket.end();
      await until(() => slots()?.busy === 0);
      return rows;
    };
    const WHO = "select pgjot.user_id(), pgjot.session() ->> 'org'";
    const [old, renewed] = [
      await same.token('alice', { org: 'old' }),
      await same.token('alice', { org: 'new' }),
    ];
    // The session has the claims of whichever came last, and a login by the old token puts its own there again.
    using leaver = await RawClient.login(same, old);
    leaver.send(query(`set pgjot.token = '${renewed}'`), TERMINATE);
    leaver.socket.end();
    await leaver.end();
    await until(() => slots()?.busy === 0);
    expect(await visit(old, WHO)).toEqual([['alice', 'old']]);
    expect(await visit(renewed, WHO)).toEqual([['alice', 'new']]);
    expect(slots()).toMatchObject({ idle: 1 });

    same.proxy.revoke({ sub: 'alice' });

    await expect(RawClient.login(same, renewed)).rejects.toMatchObject({ code: '28P01' });
    expect(await visit(await same.token('bob'), WHO)).toEqual([['bob', 'NULL']]);
  });
});
