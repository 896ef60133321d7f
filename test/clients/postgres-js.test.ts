/** postgres.js through the proxy: the to-do application, and its cursors, COPY streams, LISTEN and cancel. */
import { EventEmitter, once } from 'node:events';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { text } from 'node:stream/consumers';
import type postgres from 'postgres';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { asSuperuser, codeOf, describeTodos, rejection, settingsFor, useStack } from './todos.ts';

describe('postgres.js', () => {
  const load = async () => (await import('./apps/postgres-js.ts')).postgresJs;
  const stack = useStack();
  describeTodos(load, stack);
  describe('over TLS', () => describeTodos(load, useStack({ tls: true })));

  const open = async (sub: string): Promise<postgres.Sql> => {
    const { createSql } = await import('./apps/postgres-js.ts');
    const sql = createSql(settingsFor(stack(), sub));
    onTestFinished(() => sql.end({ timeout: 1 }));
    return sql;
  };

  it('rolls back to a savepoint and keeps the rest', async () => {
    const sql = await open('savepoint');

    await sql.begin(async (transaction) => {
      await transaction`insert into todos (task) values ('kept')`;
      const inner = transaction.savepoint(async (savepoint) => {
        await savepoint`insert into todos (task) values ('undone')`;
        await savepoint`insert into todos (user_id, task) values ('bob', 'planted')`;
      });
      expect(codeOf(await rejection(inner))).toBe('42501');
    });

    expect([...(await sql`select task from todos`)]).toEqual([{ task: 'kept' }]);
  });

  it('reads through a cursor in portions', async () => {
    const sql = await open('alice');
    const portions: number[] = [];

    await sql`select generate_series(1, 25)`.cursor(10, (rows) => {
      portions.push(rows.length);
    });

    expect(portions).toEqual([10, 10, 5]);
  });

  it('copies rows in and out as streams', async () => {
    const sql = await open('copier');
    const lines = Array.from({ length: 1000 }, (_, index) => `task ${index}\n`);
    const connection = await sql.reserve();
    onTestFinished(() => connection.release());
    // PostgreSQL itself has no COPY FROM into a table under Row-Level Security.
    await connection`create temporary table inbox (task text)`;

    const into: Writable = await connection`copy inbox from stdin`.writable();
    await pipeline(Readable.from(lines), into);
    await connection`insert into todos (task) select task from inbox`;
    const out = await sql`copy (select task from todos order by id) to stdout`.readable();

    expect(await text(out)).toBe(lines.join(''));
  });

  it('hears notifications on a connection of its own', async () => {
    const sql = await open('alice');
    const heard = new EventEmitter();
    const news = once(heard, 'news');
    await sql.listen('news', (payload) => heard.emit('news', payload));

    await sql.notify('news', 'from postgres.js');

    expect(await news).toEqual(['from postgres.js']);
  });

  it('cancels a running query and goes on', async () => {
    const sql = await open('alice');
    const query = sql`select pg_sleep(30) as cancelled_by_postgres_js`;
    const failure = rejection(query);
    await vi.waitFor(async () => {
      const active = await asSuperuser(
        stack(),
        `select from pg_stat_activity
          where state = 'active' and wait_event = 'PgSleep' and query like '%cancelled_by_postgres_js%'`,
      );
      expect(active).toHaveLength(1);
    });

    query.cancel();

    expect(codeOf(await failure)).toBe('57014');
    expect(await sql`select auth.user_id()`).toEqual([{ user_id: 'alice' }]);
  });
});
