/**
 * Claims from the database, on real servers: what the query may find, what it is sent, and that whatever goes wrong ends
 * in a refusal or in null, with no claim's value in any message.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import type { LookupConfig, UpstreamConfig } from '../../src/config.ts';
import { ProxyError } from '../../src/errors.ts';
import { install } from '../../src/session-sql/install.ts';
import { createLookup, type Lookup } from '../../src/upstream/lookup.ts';
import { createAuthority } from '../support/certificate.ts';
import { Secrets } from '../../src/upstream/secrets.ts';
import * as fake from '../support/fake-postgres.ts';
import {
  connectAsSuperuser,
  postgresVersions,
  startTestPostgres,
  type TestPostgres,
} from '../support/postgres.ts';
import { nothingLeaked, openResources } from '../support/sockets.ts';
import { SECRET, until } from '../support/stack.ts';

const MEMBERS = `
  create table members (user_id text primary key, tenant_id bigint not null, org_role text not null);
  grant select on members to pgjot_lookup;
  insert into members values ('alice', 9007199254740993, 'owner'), ('bob', 2, 'member');`;
const OF_USER = 'select tenant_id, org_role from members where user_id = $1';
const ALICE = '{"org_role": "owner", "tenant_id": 9007199254740993}';
const BOB = '{"org_role": "member", "tenant_id": 2}';
// What no message, log line or error may hold.
const MARK = 'marked-claim-value';

const opened = new Set<Lookup>();
afterEach(async () => {
  await Promise.all([...opened].map((lookup) => lookup.close()));
  opened.clear();
  vi.useRealTimers();
});

/** The lookup at a port, which is closed when the test is over. */
function lookupAt(
  port: number,
  settings: Partial<LookupConfig> = {},
  upstream: Partial<UpstreamConfig> = {},
  onProblem?: (error: ProxyError) => void,
  secret = SECRET,
): Lookup {
  const lookup = createLookup(
    fake.upstreamAt(port, {
      ...upstream,
      lookup: {
        sql: OF_USER,
        params: ['/sub'],
        cacheMs: 60_000,
        timeoutMs: 5_000,
        required: true,
        ...settings,
      },
    }),
    new Secrets({ current: secret }),
    onProblem,
  ) as Lookup;
  opened.add(lookup);
  return lookup;
}

/** What a refused login would put in the log; fails where anything of it, seen or hidden, holds the marked value. */
async function refusal(promise: Promise<unknown>): Promise<{ code: string; cause: string }> {
  const error = await promise.then(
    (value) => expect.unreachable(`it was not refused but found ${JSON.stringify(value)}`),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof ProxyError)) throw error;
  expect(inspect(error, { depth: null, showHidden: true })).not.toContain(MARK);
  return { code: error.code, cause: causesOf(error) };
}

function causesOf(error: Error): string {
  const { cause } = error;
  return cause instanceof Error ? [cause.message, causesOf(cause)].join('; ') : '';
}

async function createApp(server: TestPostgres): Promise<void> {
  const superuser = await connectAsSuperuser(server);
  await superuser.query('create database app');
  await superuser.end();
}

describe.each(postgresVersions())('on PostgreSQL %i', (version) => {
  let server: TestPostgres;
  let admin: pg.Client;
  const log: string[] = [];

  beforeAll(async () => {
    server = await startTestPostgres({
      version,
      settings: { log_statement: 'all', log_min_messages: 'warning' },
      onLog: (line) => void log.push(line),
    });
    await createApp(server);
    admin = await connectAsSuperuser(server, 'app');
    // A test that restarts the server ends this connection too.
    admin.on('error', () => {});
    await install(admin, { secret: SECRET, roles: { authenticated: { slots: 4 } }, lookup: true });
    await admin.query('revoke create on schema public from public');
  });
  afterAll(async () => {
    await admin.end();
    await server.stop();
  });
  beforeEach(() => admin.query(`drop table if exists members; ${MEMBERS}`));

  const lookupHere = (
    settings: Partial<LookupConfig> = {},
    onProblem?: (error: ProxyError) => void,
  ) => lookupAt(server.port, settings, {}, onProblem);
  const find = (
    lookup: Lookup,
    claims: Record<string, unknown>,
    signal = new AbortController().signal,
  ) => lookup.row(claims, signal);

  /** How often the lookup's query has been run since the log was `from` lines long. */
  async function runsSince(from: number): Promise<number> {
    const fence = `fence ${Math.random()}`;
    await admin.query(`select '${fence}'`);
    await until(() => log.some((line) => line.includes(fence)));
    return log.slice(from).filter((line) => line.includes('execute pgjot_lookup:')).length;
  }

  describe('a row', () => {
    test('is found by a claim, with every digit of its numbers', async () => {
      const lookup = lookupHere();

      expect(await find(lookup, { sub: 'alice' })).toBe(ALICE);
      expect(await find(lookup, { sub: 'bob' })).toBe(BOB);
    });

    test('is found by a claim that is a uuid, a number or a time in the table', async () => {
      const id = '8b8bd0ae-7ae7-4a0c-8a8e-9d2a0c7f8e11';
      const lookup = lookupHere({
        sql: `select 'yes' as found from (values ('${id}'::uuid, 7, 'epoch'::timestamptz)) as t (id, n, since)
               where id = $1 and n = $2 and since = $3`,
        params: ['/sub', '/n', '/since'],
      });

      const row = await find(lookup, { sub: id, n: 7, since: '1970-01-01T00:00:00Z' });

      expect(row).toBe('{"found": "yes"}');
    });

    test('keeps types that JSON has, and is text where it has none', async () => {
      const sql = `select true as yes, null as nothing, array[1, 2] as list, 1.10 as amount,
                          'infinity'::timestamptz as until, '{"b": 1, "a": [null]}'::jsonb as nested, 'ü"\\' as text`;

      const row = await find(lookupHere({ sql, params: [] }), {});

      expect(JSON.parse(row ?? '')).toEqual({
        yes: true,
        nothing: null,
        list: [1, 2],
        amount: 1.1,
        until: 'infinity',
        nested: { a: [null], b: 1 },
        text: 'ü"\\',
      });
      expect(row).toContain('"amount": 1.10,');
    });

    test.each([
      ['with a column that is named lookup', 'select 1 as lookup, 2 as found', /"lookup": 1/],
      [
        'with a composite column named lookup',
        'select m as lookup from members m limit 1',
        /^{"lookup": {/,
      ],
      ['without a column', 'select from members limit 1', /^{}$/],
      ['behind a semicolon', 'select 1 as a; ', /^{"a": 1}$/],
      ['before a comment', 'select 1 as a -- the end', /^{"a": 1}$/],
      ['of VALUES', "values ('a')", /^{"column1": "a"}$/],
      [
        'of a query with WITH and ORDER BY',
        'with x as (select 1 as a) select a from x order by a',
        /^{"a": 1}$/,
      ],
    ])('%s is a row', async (_, sql, wanted) => {
      expect(await find(lookupHere({ sql, params: [] }), {})).toMatch(wanted);
    });

    test.each([
      [32_768, true],
      [32_769, false],
    ])('of %i bytes: fits is %s', async (bytes, fits) => {
      // {"a": "…"}, of two-byte letters.
      const sql = `select repeat('ü', ${(bytes - 9) >> 1}) || repeat('x', ${(bytes - 9) & 1}) as a`;
      const lookup = lookupHere({ sql, params: [], required: false });

      if (fits) {
        expect(Buffer.byteLength((await find(lookup, {})) ?? '')).toBe(bytes);
      } else {
        expect(await refusal(find(lookup, {}))).toEqual({
          code: 'lookup_failed',
          cause: expect.stringContaining('more than 32768 bytes') as string,
        });
      }
    });

    test('that does not exist refuses a login where it is required', async () => {
      const { code } = await refusal(find(lookupHere(), { sub: MARK }));

      expect(code).toBe('lookup_empty');
    });

    test('that does not exist is null where it is not required', async () => {
      const onProblem = vi.fn<(error: ProxyError) => void>();

      expect(await find(lookupHere({ required: false }, onProblem), { sub: MARK })).toBeNull();
      expect(onProblem).not.toHaveBeenCalled();
    });

    test.each([true, false])(
      'of which there are two refuses the login, and is not remembered (required: %s)',
      async (required) => {
        const lookup = lookupHere({ sql: 'select * from members where $1 <> user_id', required });

        const { code, cause } = await refusal(find(lookup, { sub: MARK }));
        expect([code, cause]).toEqual([
          'lookup_failed',
          expect.stringContaining('finds more than one row') as string,
        ]);

        await admin.query("delete from members where user_id = 'alice'");
        expect(await find(lookup, { sub: MARK })).toContain('"user_id": "bob"');
      },
    );

    test('of which there are millions costs no more than two', async () => {
      const sql = 'select generate_series(1, 1000000000) as n';

      const { cause } = await refusal(find(lookupHere({ sql, params: [] }), {}));

      expect(cause).toContain('finds more than one row');
    });
  });

  describe('what is sent', () => {
    const ECHO: Partial<LookupConfig> = { sql: 'select $1::text as value', params: ['/a'] };
    const echo = async (claims: Record<string, unknown>, pointer = '/a') => {
      const row = await find(lookupHere({ ...ECHO, params: [pointer] }), claims);
      return (JSON.parse(row ?? '') as { value: string | null }).value;
    };

    test.each<[unknown, string | null]>([
      ['text', 'text'],
      ['', ''],
      ['null', 'null'],
      [null, null],
      [undefined, null],
      [1, '1'],
      [0.1, '0.1'],
      [-1e30, '-1e+30'],
      [true, 'true'],
      [false, 'false'],
      [['a', 1, null], '["a",1,null]'],
      [{ b: { c: 1 } }, '{"b":{"c":1}}'],
    ])('of claim %j is %j', async (claim, value) => {
      expect(await echo(claim === undefined ? {} : { a: claim })).toBe(value);
    });

    test.each([
      ['/a/b', 'inner'],
      ['/a/list/1', 'second'],
      ['/a~1b', 'slash'],
      ['/a/list/2', null],
      ['/a/list/length', null],
      ['/a/b/length', null],
      ['/__proto__', null],
      ['/__proto__/toString', null],
      ['/constructor/name', null],
      ['/a/constructor/prototype', null],
    ])('at %s is %j', async (pointer, value) => {
      const claims = { a: { b: 'inner', list: ['first', 'second'] }, 'a/b': 'slash' };

      expect(await echo(claims, pointer)).toBe(value);
    });

    test.each([
      "'; drop table members; --",
      "' or 'a' = 'a",
      "alice' union select 1, 'owner",
      '$1',
      '\\',
      '{alice,bob}',
      "E'\\047'",
    ])('is a value, never SQL: %s', async (sub) => {
      const { code } = await refusal(find(lookupHere(), { sub }));

      expect(code).toBe('lookup_empty');
      expect((await admin.query('select from members')).rowCount).toBe(2);
    });

    test('is refused where PostgreSQL cannot take it: U+0000', async () => {
      const { code, cause } = await refusal(find(lookupHere(), { sub: `alice\0${MARK}` }));

      expect([code, cause]).toEqual(['lookup_failed', expect.stringContaining('22021') as string]);
    });

    test('may be huge', async () => {
      const { code } = await refusal(find(lookupHere(), { sub: 'x'.repeat(5_000_000) }));

      expect(code).toBe('lookup_empty');
    });

    test('is NULL without claims, and NULL finds nobody', async () => {
      expect((await refusal(find(lookupHere(), {}))).code).toBe('lookup_empty');
    });

    test('does not stand in the text of the statement', async () => {
      const from = log.length;
      await find(lookupHere({ required: false }), { sub: MARK });

      await runsSince(from);
      const lines = log.slice(from).filter((line) => line.includes(MARK));
      expect(lines.every((line) => line.includes('$1 = '))).toBe(true);
    });
  });

  describe('a failure', () => {
    test.each([
      [
        'of a claim that is no uuid',
        "select 1 as a where $1 = '8b8bd0ae-7ae7-4a0c-8a8e-9d2a0c7f8e11'::uuid",
        '22P02',
      ],
      ['that quotes the claim in words for mistakes', 'select $1::text::regclass as a', '42P01'],
      ['that divides by the claim', 'select 1 / (length($1) - 18) as a', '22012'],
    ])('%s says which, never the value', async (_, sql, sqlstate) => {
      const { code, cause } = await refusal(find(lookupHere({ sql }), { sub: MARK }));

      expect(code).toBe('lookup_failed');
      expect(cause).toContain(`(SQLSTATE ${sqlstate})`);
    });

    test.each(['42501', '57014', '53200', '58030', 'XX000'])(
      'in a function that raises what it was given, as %s, does not say it',
      async (sqlstate) => {
        await admin.query(`
          create or replace function raises(who text) returns text language plpgsql as
            $$ begin raise exception using errcode = '${sqlstate}', message = 'no ' || who, detail = who; end $$;`);

        const { code, cause } = await refusal(
          find(lookupHere({ sql: 'select raises($1)' }), { sub: MARK }),
        );

        expect(code).toBe('lookup_failed');
        expect(cause).toContain(`(SQLSTATE ${sqlstate})`);
      },
    );

    test.each([
      ['a syntax error', { sql: 'selekt 1' }, 'syntax error'],
      [
        'another statement behind',
        { sql: 'select 1) as a; drop table members; --' },
        'syntax error',
      ],
      ['a statement that writes', { sql: 'delete from members returning *' }, 'syntax error'],
      [
        'a table that is not there',
        { sql: 'select 1 from strangers where $1 = 1' },
        '"strangers" does not exist',
      ],
      [
        'a column that is not there',
        { sql: 'select nickname from members where $1 = user_id' },
        'column "nickname" does not exist',
      ],
      [
        'a table without a grant',
        { sql: 'select 1 from secrets where $1 = 1' },
        'permission denied for table secrets: grant pgjot_lookup',
      ],
      [
        'fewer parameters',
        { sql: "select 1 where $1 = 'a'", params: ['/sub', '/b'] },
        'its parameters number 1, those in lookup.params 2',
      ],
      ['more parameters', { params: [] }, 'its parameters number 1, those in lookup.params 0'],
      [
        'a parameter of no type',
        { sql: 'select 1 where $2 = 1', params: ['/sub', '/b'] },
        'could not determine data type of parameter $1',
      ],
      [
        'a schema of ours',
        { sql: "select claims from pgjot.session where $1 <> ''" },
        'permission denied for schema pgjot',
      ],
    ])('of the query is explained, at a login and by check: %s', async (_, settings, why) => {
      await admin.query('create table if not exists secrets (a int)');
      const lookup = lookupHere(settings);

      const atLogin = await refusal(find(lookup, { sub: MARK }));
      const byCheck = await refusal(lookup.check());

      for (const { code, cause } of [atLogin, byCheck]) {
        expect(code).toBe('lookup_failed');
        expect(cause).toContain(why);
      }
    });

    test('is null where no row is required, and told', async () => {
      const problems: ProxyError[] = [];
      const lookup = lookupHere(
        { sql: 'select 1 where $1::uuid is null', required: false },
        (error) => void problems.push(error),
      );

      expect(await find(lookup, { sub: MARK })).toBeNull();

      expect(problems.map(({ code }) => code)).toEqual(['lookup_failed']);
      expect(inspect(problems, { depth: null, showHidden: true })).not.toContain(MARK);
    });

    test('is not remembered', async () => {
      const lookup = lookupHere();
      await admin.query('revoke select on members from pgjot_lookup');
      await refusal(find(lookup, { sub: 'alice' }));

      await admin.query('grant select on members to pgjot_lookup');

      expect(await find(lookup, { sub: 'alice' })).toBe(ALICE);
    });

    test('leaves the connection as it was', async () => {
      const lookup = lookupHere({
        sql: 'select pg_backend_pid() as pid, $1::uuid as id',
        required: true,
      });
      const id = '8b8bd0ae-7ae7-4a0c-8a8e-9d2a0c7f8e1';
      const before = await find(lookup, { sub: `${id}1` });
      await refusal(find(lookup, { sub: MARK }));

      const after = await find(lookup, { sub: `${id}2` });

      expect(after?.replace(`${id}2`, `${id}1`)).toBe(before);
    });

    test('of time ends the query, and its connection serves the next', async () => {
      const sql =
        "select pg_backend_pid() as pid, case when $1 = 'slow' then pg_sleep(60)::text end as slept";
      const lookup = lookupHere({ sql, timeoutMs: 300 });

      const { code, cause } = await refusal(find(lookup, { sub: 'slow' }));

      expect([code, cause]).toEqual([
        'lookup_failed',
        expect.stringContaining('statement timeout') as string,
      ]);
      expect(await find(lookup, { sub: 'fast' })).toContain('"slept": null');
      const { rowCount } = await admin.query(
        "select from pg_stat_activity where usename = 'pgjot_lookup' and state <> 'idle'",
      );
      expect(rowCount).toBe(0);
    });
  });

  describe('what the query can do', () => {
    test('is read: a function that writes fails', async () => {
      await admin.query(`
        create or replace function joins(who text) returns bigint language sql security definer as
          $$ insert into members values (who, 1, 'owner') returning tenant_id $$;`);

      const { cause } = await refusal(find(lookupHere({ sql: 'select joins($1)' }), { sub: MARK }));

      expect(cause).toContain('25006');
    });

    test('is what pgjot_lookup may do, under Row-Level Security as everybody else', async () => {
      await admin.query('alter table members enable row level security');
      const lookup = lookupHere({ cacheMs: 0 });
      expect((await refusal(find(lookup, { sub: 'alice' }))).code).toBe('lookup_empty');

      await admin.query('create policy lookup on members for select to pgjot_lookup using (true)');

      expect(await find(lookup, { sub: 'alice' })).toBe(ALICE);
    });

    // CVE-2018-1058: an operator that fits its operands better than PostgreSQL's own.
    const TRAP = `
      create function public.trap(text, varchar) returns bool language sql as $$ select true $$;
      create operator public.= (leftarg = text, rightarg = varchar, procedure = public.trap);`;
    const SPRUNG =
      'select tenant_id, org_role from public.members where user_id = $1::varchar limit 1';

    test('is not what a client has planted in schema public', async () => {
      await admin.query('grant create on schema public to authenticated');
      await admin.query(`set role authenticated; ${TRAP}; reset role`);
      try {
        const { code } = await refusal(find(lookupHere({ sql: SPRUNG }), { sub: 'mallory' }));
        expect(code).toBe('lookup_empty');

        // Nor what was planted while it could be.
        await admin.query('revoke create on schema public from authenticated');
        const later = await refusal(find(lookupHere({ sql: SPRUNG }), { sub: 'mallory' }));
        expect(later.code).toBe('lookup_empty');
        const { cause } = await refusal(lookupHere().check());
        expect(cause).toContain('public is not searched, because clients of role "authenticated"');
      } finally {
        await admin.query('drop function public.trap cascade');
      }
    });

    test('would be that, if schema public were searched all the same', async () => {
      await admin.query(TRAP);
      try {
        // Planted by the administrator, who may.
        expect(await find(lookupHere({ sql: SPRUNG }), { sub: 'mallory' })).toBe(ALICE);
      } finally {
        await admin.query('drop function public.trap cascade');
      }
    });

    test.each([
      [
        'everybody',
        'grant create on schema public to public',
        'revoke create on schema public from public',
      ],
      [
        'a role that clients can become',
        'create role builder; grant create on schema public to builder; grant builder to authenticated; alter role authenticated noinherit',
        'alter role authenticated inherit; revoke create on schema public from builder; drop role builder',
      ],
    ])('is not what %s may plant there', async (_, grant, revoke) => {
      await admin.query(grant);
      try {
        const unqualified = await refusal(lookupHere().check());
        expect(unqualified.cause).toContain(
          '"members" does not exist. Schema public is not searched',
        );

        const sql = OF_USER.replace('members', 'public.members');
        expect(await find(lookupHere({ sql }), { sub: 'alice' })).toBe(ALICE);
      } finally {
        await admin.query(revoke);
      }
    });
  });

  describe('an answer', () => {
    test('is remembered for cacheMs, and asked for again after that', async () => {
      vi.useFakeTimers({ toFake: ['Date'] });
      const lookup = lookupHere({ cacheMs: 60_000 });
      await find(lookup, { sub: 'alice' });
      await admin.query("update members set org_role = 'guest' where user_id = 'alice'");

      vi.setSystemTime(Date.now() + 55_000);
      expect(await find(lookup, { sub: 'alice' })).toBe(ALICE);
      vi.setSystemTime(Date.now() + 5_000);
      expect(await find(lookup, { sub: 'alice' })).toContain('guest');
    });

    test('that there is no row is remembered for five seconds, or cacheMs where that is less', async () => {
      vi.useFakeTimers({ toFake: ['Date'] });
      const [long, short] = [lookupHere(), lookupHere({ cacheMs: 1_000 })];
      const isKnown = async (lookup: Lookup) =>
        find(lookup, { sub: 'carol' }).then(
          () => true,
          () => false,
        );
      await Promise.all([isKnown(long), isKnown(short)]);
      await admin.query("insert into members values ('carol', 3, 'member')");

      const after = async (ms: number) => {
        vi.setSystemTime(Date.now() + ms);
        return Promise.all([isKnown(long), isKnown(short)]);
      };

      expect(await after(500)).toEqual([false, false]);
      expect(await after(500)).toEqual([false, true]);
      expect(await after(3_500)).toEqual([false, true]);
      expect(await after(500)).toEqual([true, true]);
    });

    test('is asked for at every login where cacheMs is 0', async () => {
      const lookup = lookupHere({ cacheMs: 0 });
      const from = log.length;

      await find(lookup, { sub: 'alice' });
      await admin.query("delete from members where user_id = 'alice'");
      await refusal(find(lookup, { sub: 'alice' }));

      expect(await runsSince(from)).toBe(2);
    });

    test('is shared by those whose values are the same text, and by nobody else', async () => {
      const sql = 'select $1::text as a, $2::text as b';
      const lookup = lookupHere({ sql, params: ['/a', '/b'] });
      const from = log.length;
      const ask = (a: unknown, b: unknown) => find(lookup, { a, b });

      const one = await ask('1', '2');
      expect(await ask(1, 2)).toBe(one);
      expect(await runsSince(from)).toBe(1);

      const others = [
        await ask('1,2', undefined),
        await ask('12', ''),
        await ask(null, null),
        await ask('null', 'null'),
        await ask('1"', '"2'),
        await ask('1', ['2']),
      ];
      expect(new Set([one, ...others]).size).toBe(7);
      expect(await runsSince(from)).toBe(7);
    });

    test('costs one query where 200 equal logins come at once', async () => {
      const lookup = lookupHere();
      const from = log.length;

      const rows = await Promise.all(
        Array.from({ length: 200 }, () => find(lookup, { sub: 'alice' })),
      );

      expect(new Set(rows)).toEqual(new Set([ALICE]));
      expect(await runsSince(from)).toBe(1);
    });

    test('comes over four connections at most, however many ask', async () => {
      const sql = 'select pg_backend_pid() as pid, $1::text as who, pg_sleep(0.001)::text as slept';
      const lookup = lookupHere({ sql });

      const rows = await Promise.all(
        Array.from({ length: 200 }, (_, index) => find(lookup, { sub: `user ${index}` })),
      );

      const pids = rows.map((row) => (JSON.parse(row ?? '') as { pid: number }).pid);
      expect(new Set(pids).size).toBe(4);
      expect(new Set(rows).size).toBe(200);
    });

    test('is not held up by three others that hang', async () => {
      const sql = "select case when $1 = 'alice' then 'quick' else pg_sleep(60)::text end as a";
      const lookup = lookupHere({ sql, timeoutMs: 1_500 });
      const hanging = ['a', 'b', 'c'].map((sub) => refusal(find(lookup, { sub })));
      let over = false;
      void Promise.race(hanging).then(() => {
        over = true;
      });

      expect(await find(lookup, { sub: 'alice' })).toBe('{"a": "quick"}');

      expect(over).toBe(false);
      for (const { code } of await Promise.all(hanging)) expect(code).toBe('lookup_failed');
    });

    test('is waited for no longer than its signal says, and still comes for others', async () => {
      const lookup = lookupHere({ sql: 'select $1::text as a, pg_sleep(0.5)::text as slept' });
      const from = log.length;
      const impatient = new AbortController();
      const first = find(lookup, { sub: 'alice' }, impatient.signal);
      const second = find(lookup, { sub: 'alice' });

      impatient.abort(new ProxyError('login_timeout'));

      expect((await refusal(first)).code).toBe('login_timeout');
      expect(await second).toContain('"a": "alice"');
      expect((await refusal(find(lookup, { sub: 'bob' }, impatient.signal))).code).toBe(
        'login_timeout',
      );
      expect(await runsSince(from)).toBeLessThanOrEqual(2);
    });
  });

  describe('the connections', () => {
    test('are those of pgjot_lookup, and say so', async () => {
      const sql = `select session_user as login, current_setting('application_name') as name,
                          current_setting('transaction_read_only') as read_only, current_setting('search_path') as path`;

      const row = await find(lookupHere({ sql, params: [] }), {});

      expect(JSON.parse(row ?? '')).toEqual({
        login: 'pgjot_lookup',
        name: 'pgjot lookup',
        read_only: 'on',
        path: 'pg_catalog, public, pg_temp',
      });
    });

    test('are opened anew when the server has ended them', async () => {
      const lookup = lookupHere({ cacheMs: 0 });
      await find(lookup, { sub: 'alice' });

      await admin.query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'pgjot_lookup'",
      );

      await until(async () => (await find(lookup, { sub: 'alice' }).catch(() => '')) === ALICE);
    });

    test('are refused where the secret is another one, or setup made no role, with what to do', async () => {
      const lookup = lookupAt(server.port, {}, {}, undefined, `another ${SECRET}`);

      expect((await refusal(lookup.check())).cause).toMatch(
        /cannot connect as pgjot_lookup \(pgjot setup makes the role\); password authentication failed/,
      );
    });

    test('are gone when it is closed, and later logins are refused', async () => {
      const before = openResources();
      const lookup = lookupHere();
      await find(lookup, { sub: 'alice' });

      await lookup.close();

      await nothingLeaked(before);
      expect((await refusal(find(lookup, { sub: 'alice' }))).code).toBe('draining');
      await lookup.close();
    });

    test('are given up while a query hangs, in good time', async () => {
      const before = openResources();
      const lookup = lookupHere({ sql: 'select pg_sleep(60)', params: [], timeoutMs: 30_000 });
      const hanging = refusal(find(lookup, {}));
      await until(
        async () =>
          (await admin.query("select from pg_stat_activity where wait_event = 'PgSleep'"))
            .rowCount === 1,
      );
      const start = performance.now();

      await lookup.close();

      expect(performance.now() - start).toBeLessThan(4_000);
      expect((await hanging).code).toBe('lookup_failed');
      await nothingLeaked(before);
    });
  });
});

test('at most 10,000 rows are remembered: the oldest go first', { timeout: 60_000 }, async () => {
  await using server = await startTestPostgres();
  await createApp(server);
  const admin = await connectAsSuperuser(server, 'app');
  await install(admin, { secret: SECRET, roles: { authenticated: { slots: 1 } }, lookup: true });
  await admin.end();
  const lookup = lookupAt(server.port, { sql: 'select $1::text as who, clock_timestamp() as at' });
  const find = (number: number) =>
    lookup.row({ sub: String(number) }, new AbortController().signal);
  const first = await find(0);
  for (let number = 0; number < 10_000; number += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, index) => find(number + index)));
  }
  const second = await find(5_000);
  expect(await find(0)).toBe(first);

  await find(10_000);

  expect(await find(0)).not.toBe(first);
  expect(await find(5_000)).toBe(second);
  await lookup.close();
});

test('an upstream without a lookup has none', () => {
  expect(createLookup(fake.upstreamAt(1), new Secrets({ current: SECRET }))).toBeUndefined();
});

describe('a network', () => {
  let server: TestPostgres;
  const authority = createAuthority();
  const { cert, key } = authority.issue();
  beforeAll(async () => {
    server = await startTestPostgres({
      settings: { ssl: 'on', ssl_cert_file: 'server.crt', ssl_key_file: 'server.key' },
      files: { 'server.crt': cert, 'server.key': key },
    });
    await createApp(server);
    const owner = await connectAsSuperuser(server, 'app');
    await install(owner, { secret: SECRET, roles: { authenticated: { slots: 4 } }, lookup: true });
    await owner.query(MEMBERS);
    await owner.end();
  });
  afterAll(() => server.stop());
  const find = (lookup: Lookup, claims: Record<string, unknown>) =>
    lookup.row(claims, new AbortController().signal);

  /** A listener that passes everything on until it is frozen; from then on nothing, and it closes nothing. */
  async function startRelay(frozen = false) {
    const sockets = new Set<Socket>();
    const listener = createServer((near) => {
      sockets.add(near.on('error', () => {}));
      if (frozen) return;
      const far = connect(server.port, '127.0.0.1').on('error', () => {});
      sockets.add(far);
      near.pipe(far).pipe(near);
    });
    listener.listen(0, '127.0.0.1');
    await once(listener, 'listening');
    return {
      port: (listener.address() as AddressInfo).port,
      freeze() {
        for (const socket of sockets) socket.unpipe().pause();
      },
      async [Symbol.asyncDispose]() {
        for (const socket of sockets) socket.destroy();
        listener.close();
        await once(listener, 'close');
      },
    };
  }

  test('without a server refuses, or is null and told', async () => {
    await using relay = await startRelay(true);
    const problems: string[] = [];
    const upstream = { connectTimeoutMs: 200 };
    const required = lookupAt(relay.port, {}, upstream);
    const optional = lookupAt(relay.port, { required: false }, upstream, (error) => {
      problems.push(causesOf(error));
    });
    const start = performance.now();

    const outcomes = await Promise.all([
      ...Array.from({ length: 20 }, (_, index) =>
        refusal(find(required, { sub: `${MARK} ${index}` })),
      ),
      find(optional, { sub: MARK }),
    ]);

    expect(performance.now() - start).toBeLessThan(2_000);
    expect(outcomes.pop()).toBeNull();
    expect(outcomes.map((one) => (one as { code: string }).code)).toEqual(
      Array.from({ length: 20 }, () => 'lookup_failed'),
    );
    expect(problems).toEqual([expect.stringContaining('cannot connect as pgjot_lookup')]);
  });

  test('that dies under a query costs timeoutMs and a second, and the next login is well', async () => {
    const before = openResources();
    {
      await using relay = await startRelay();
      const lookup = lookupAt(relay.port, { cacheMs: 0, timeoutMs: 100 });
      expect(await find(lookup, { sub: 'alice' })).toBe(ALICE);
      relay.freeze();
      const start = performance.now();

      expect((await refusal(find(lookup, { sub: MARK }))).code).toBe('lookup_failed');

      expect(performance.now() - start).toBeLessThan(2_500);
      expect(await find(lookup, { sub: 'bob' })).toBe(BOB);
      await lookup.close();
    }
    await nothingLeaked(before);
  });

  describe('with TLS', () => {
    let folder: string;
    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'pgjot-lookup-'));
      await writeFile(join(folder, 'ca.crt'), authority.ca);
      await writeFile(join(folder, 'stranger.crt'), createAuthority().ca);
    });
    afterAll(() => rm(folder, { recursive: true }));
    const tlsLookup = (caFile: string) =>
      lookupAt(
        server.port,
        {
          sql: 'select ssl as encrypted from pg_stat_ssl where pid = pg_backend_pid()',
          params: [],
          cacheMs: 0,
        },
        { tls: { mode: 'verify-full', caFile } },
      );

    test('is encrypted', async () => {
      expect(await find(tlsLookup(join(folder, 'ca.crt')), {})).toBe('{"encrypted": true}');
    });

    test('is refused to a server that another authority vouches for', async () => {
      const lookup = tlsLookup(join(folder, 'stranger.crt'));

      expect((await refusal(find(lookup, {}))).cause).toMatch(/certificate/);
    });

    test('reads its files for each new connection', async () => {
      const caFile = join(folder, 'later.crt');
      const lookup = tlsLookup(caFile);
      expect((await refusal(find(lookup, {}))).cause).toMatch(/ENOENT/);

      await writeFile(caFile, authority.ca);

      expect(await find(lookup, {})).toBe('{"encrypted": true}');
    });
  });
});
