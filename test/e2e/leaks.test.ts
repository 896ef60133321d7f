/**
 * The leak matrix: whatever Alice does to her session, and however she leaves it, whoever comes next finds it as new.
 *
 * 18 things to leave behind by 8 ways to leave, with `reuse` `any` and `same-identity`; attacks F3 to F5. There is a single
 * slot, so that Bob gets Alice's very backend where it is kept. What he finds is compared with what a session says of itself
 * that nobody has used. Ways to be in the middle of a frame, and lies about what is outstanding, are in `attacks-reuse.test.ts`.
 */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { isVersionsRun, postgresVersions, withSuperuser } from '../support/postgres.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { cstring, frame, query, TERMINATE } from './parity/bytes.ts';
import { RawClient } from './raw-client.ts';

/** What Alice does to her session; `LEFT` stands for a name that no other cell uses. */
const LEFTOVERS = {
  SET: "set work_mem = '7MB'; set mark.one = 'leak'",
  'SET LOCAL': "begin; set local work_mem = '7MB'; set local mark.two = 'leak'",
  set_config:
    "select set_config('mark.three', 'leak', false), set_config('work_mem', '7MB', false)",
  'SET ROLE': 'set role none',
  'SET SESSION AUTHORIZATION':
    "do $$ begin execute format('set session authorization %I', session_user); end $$",
  'TEMP TABLE':
    "create temporary table pg_temp.mine as select 'leak'; create function pg_temp.mine() returns text return 'leak'",
  PREPARE: "prepare mine as select 'leak'",
  'DECLARE WITH HOLD': 'declare mine cursor with hold for select * from public.todos',
  LISTEN: 'listen mine; notify mine',
  pg_advisory_lock: 'select pg_advisory_lock(4711), pg_advisory_lock_shared(4712)',
  'nextval and currval': "select nextval('public.numbers')",
  LOAD: "select public.attempt('load $$plpgsql$$'); set plpgsql.extra_errors = 'all'",
  // Its plan is cached for the table that the name means then.
  'plpgsql state':
    "create temporary table target as select 'leak'::text as word; select public.first_word()",
  search_path: 'set search_path = evil; select public.first_word()',
  statement_timeout: "set statement_timeout = '1h'; set lock_timeout = '1h'",
  client_encoding: "set client_encoding = 'LATIN1'; set datestyle = 'German'",
  default_transaction_read_only:
    'set default_transaction_read_only = on; set default_transaction_isolation = serializable',
  'PREPARE TRANSACTION':
    "begin; insert into public.prepared values ('leak'); prepare transaction 'LEFT'",
} as const;

const endsTransaction = (sql: string) => !/^begin(?!.*prepare transaction)/.test(sql);

/** How she leaves, once `sql` has been said. */
const EXITS: Readonly<Record<string, (client: RawClient, sql: string) => Promise<void>>> = {
  async idle(client, sql) {
    await client.ask(endsTransaction(sql) ? sql : `${sql}; commit`);
    client.send(TERMINATE);
  },
  async 'in transaction'(client, sql) {
    await client.ask(`begin; ${sql}`);
    await client.ask('begin');
    client.send(TERMINATE);
  },
  async 'failed transaction'(client, sql) {
    await client.ask(sql);
    await client.ask('begin');
    await client.ask('select 1/0');
    client.send(TERMINATE);
  },
  async 'mid-COPY'(client, sql) {
    await client.ask(sql);
    client.send(query('begin read write; copy public.prepared from stdin'));
    await client.next('G');
    client.send(frame('d', 'leak\n'));
    client.socket.end();
  },
  async 'mid-extended'(client, sql) {
    await client.ask(sql);
    client.send(
      frame('P', Buffer.concat([cstring(''), cstring("select 'leak'"), Buffer.alloc(2)])),
      frame('B', Buffer.concat([cstring(''), cstring(''), Buffer.alloc(6)])),
      frame('H'),
    );
    await client.next('2');
    client.send(TERMINATE);
  },
  async 'mid-frame'(client, sql) {
    await client.ask(sql);
    client.send(query(`select '${'leak'.repeat(20)}'`).subarray(0, 40));
    client.socket.end();
  },
  async 'query running'(client, sql) {
    await client.ask(sql);
    client.send(query('select pg_sleep(0.1)'), TERMINATE);
  },
  async RST(client, sql) {
    await client.ask(sql);
    client.socket.resetAndDestroy();
  },
};

/** Everything that a leftover would show in. */
const LOOK = `
  select current_user || ' ' || session_user, pgjot.session() ->> 'email',
    current_setting('work_mem'),
    -- PostgreSQL forgets the value of a setting of no library's, not that there was one: then it is empty.
    nullif(concat(current_setting('mark.one', true), current_setting('mark.two', true), current_setting('mark.three', true)), ''),
    concat_ws(' ', to_regclass('pg_temp.mine'), to_regprocedure('pg_temp.mine()'), to_regclass('target')),
    (select string_agg(name, ' ') from pg_prepared_statements), (select string_agg(name, ' ') from pg_cursors),
    (select string_agg(c, ' ') from pg_listening_channels() c),
    (select string_agg(objid::text, ' ') from pg_locks where locktype = 'advisory' and objid::text like '471%'),
    public.attempt($$select currval('public.numbers')$$) || public.attempt('select lastval()'),
    current_setting('plpgsql.extra_errors'), public.first_word(), current_setting('search_path'),
    current_setting('statement_timeout') || current_setting('lock_timeout'),
    current_setting('client_encoding') || current_setting('datestyle'),
    current_setting('transaction_read_only') || current_setting('transaction_isolation'),
    (select string_agg(word, ' ') from public.prepared), pg_current_xact_id_if_assigned()`;

const SCHEMA = `
  create schema evil;
  create table evil.target as select 'evil' as word;
  create table public.target as select 'good' as word;
  create table public.prepared (word text);
  create sequence public.numbers;
  grant usage on schema evil to authenticated;
  grant select on evil.target, public.target to authenticated;
  grant select, insert on public.prepared to authenticated;
  grant usage on sequence public.numbers to authenticated;
  grant temporary on database app to authenticated;
  create function public.first_word() returns text language plpgsql as
    $$ declare found text; begin select word into found from target; return found; end $$;
  create function public.attempt(what text) returns text language plpgsql as
    $$ declare found text; begin execute what into found; return found; exception when others then return sqlstate; end $$`;

/** What a session says of itself: the settings that it was greeted with, its status, and the answer to LOOK. */
interface Found {
  readonly pid: string;
  readonly greeting: string[];
  readonly answer: unknown;
}

async function find(stack: Stack, token: string): Promise<Found> {
  using client = await RawClient.login(stack, token);
  const greeting = client.heard.filter(({ type }) => 'SNAZ'.includes(type));
  const [[pid = ''] = []] = (await client.ask('select pg_backend_pid()')).rows;
  const answer = await client.ask(LOOK);
  client.send(TERMINATE);
  client.socket.end();
  await client.end();
  return {
    pid,
    greeting: greeting.map(({ type, body }) => type + body.toString()).toSorted(),
    answer,
  };
}

// In `same-identity` nobody else gets the backend; to be short, that is tried on the newest version alone.
const grounds = postgresVersions().flatMap((version, index) =>
  (['any', 'same-identity'] as const)
    .filter((reuse) => reuse === 'any' || index === 0 || isVersionsRun())
    .map((reuse) => ({ version, reuse })),
);

describe.each(grounds)('reuse: $reuse, on PostgreSQL $version', ({ version, reuse }) => {
  let stack: Stack;
  let [alice, bob] = ['', ''];
  let fresh: Found;
  /** Cells so far, those in which the next one had Alice's backend, and what leaked. */
  let cells = 0;
  const met: string[] = [];
  const leaks: string[] = [];
  /** Backends that were Alice's. */
  const hers = new Set<string>();

  beforeAll(async () => {
    stack = await startStack({
      version,
      slots: 1,
      settings: { max_prepared_transactions: '8' },
      upstream: { pool: { reuse, spares: 0 } },
    });
    await stack.change(SCHEMA);
    alice = await stack.token('alice', { email: 'alice@example.com' });
    bob = await stack.token('bob');
    fresh = await find(stack, bob);
  });

  afterAll(async () => {
    await stack.close();
    console.info(
      `leaks, reuse ${reuse}, PostgreSQL ${version}: ${cells} cells, ${met.length} with the same backend, ${leaks.length} leaks`,
    );
  });

  const leave = async (exit: string, sql: string) => {
    using client = await RawClient.login(stack, alice);
    const [[pid = ''] = []] = (await client.ask('select pg_backend_pid()')).rows;
    hers.add(pid);
    await EXITS[exit]?.(client, sql);
    if (!client.socket.destroyed) await client.end();
    return pid;
  };

  const compare = (cell: string, { greeting, answer }: Found, expected: Found) => {
    const found = JSON.stringify([greeting, answer]);
    if (found !== JSON.stringify([expected.greeting, expected.answer]))
      leaks.push(`${cell}: ${found}`);
  };

  describe.each(Object.keys(EXITS))('left %s', (exit) => {
    it.each(Object.entries(LEFTOVERS))('%s', async (leftover, sql) => {
      const cell = `${leftover}, ${exit}`;
      const before = leaks.length;
      const pid = await leave(exit, sql.replace('LEFT', `mine ${cell}`));

      if (reuse === 'same-identity') {
        const again = await find(stack, alice);
        hers.add(again.pid);
        if (again.pid === pid) met.push(cell);
        const expected = structuredClone(fresh) as Found & { answer: { rows: string[][] } };
        (expected.answer.rows[0] as string[])[1] = 'alice@example.com';
        compare(cell, again, expected);
      }
      const next = await find(stack, bob);

      if (reuse === 'any' && next.pid === pid) met.push(cell);
      if (reuse === 'same-identity' && hers.has(next.pid)) leaks.push(`${cell}: her backend`);
      compare(cell, next, fresh);
      cells++;
      expect(leaks.slice(before)).toEqual([]);
      if (leftover === 'PREPARE TRANSACTION') await forgetPrepared(stack);
    });
  });

  it('nothing leaked, and whoever came behind an idle one had its backend', () => {
    const idle = Object.keys(LEFTOVERS).map((leftover) => `${leftover}, idle`);

    expect(met).toEqual(idle);
    expect({ cells, leaks: leaks.length }).toEqual({ cells: 144, leaks: 0 });
  });
});

/** What was prepared stays until somebody ends it, whatever becomes of the session. */
async function forgetPrepared({ postgres }: Stack): Promise<void> {
  const forget = async (admin: pg.Client) => {
    const { rows } = await admin.query<{ gid: string }>('select gid from pg_prepared_xacts');
    for (const { gid } of rows) await admin.query(`rollback prepared '${gid}'`);
  };
  await withSuperuser(postgres, forget, 'app');
}
