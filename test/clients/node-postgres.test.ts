/** node-postgres through the proxy: the to-do application, and what its single connections can do. */
import { once } from 'node:events';
import pg from 'pg';
import { describe, expect, it, onTestFinished } from 'vitest';
import { codeOf, describeTodos, rejection, settingsFor, useStack } from './todos.ts';

describe('node-postgres', () => {
  const load = async () => (await import('./apps/node-postgres.ts')).nodePostgres;
  const stack = useStack();
  describeTodos(load, stack);
  describe('over TLS', () => describeTodos(load, useStack({ tls: true })));

  const connect = async (sub: string): Promise<pg.Client> => {
    const client = new pg.Client(settingsFor(stack(), sub));
    await client.connect();
    onTestFinished(() => client.end());
    return client;
  };

  it('signs in with the token in a connection string', async () => {
    const { host, port, database } = stack();
    const url = `postgres://authenticated:${await stack().token('alice')}@${host}:${port}/${database}`;
    const client = new pg.Client(url);
    onTestFinished(() => client.end());

    await client.connect();

    const { rows } = await client.query('select auth.user_id(), current_user::text as role');
    expect(rows).toEqual([{ user_id: 'alice', role: 'authenticated' }]);
  });

  it('runs a named statement twice and prepares it once', async () => {
    const client = await connect('alice');
    const named = (done: boolean) => ({
      name: 'by-done',
      text: 'select count(*)::int from todos where done = $1 or not $1',
      values: [done],
    });

    await client.query(named(false));
    const { rows } = await client.query(named(false));

    expect(rows).toEqual([{ count: 3 }]);
    const prepared = await client.query('select name from pg_prepared_statements');
    expect(prepared.rows).toEqual([{ name: 'by-done' }]);
  });

  it('hears a notification that another user sends', async () => {
    const listener = await connect('alice');
    const sender = await connect('bob');
    await listener.query('listen news');
    const heard = once(listener, 'notification');

    await sender.query("select pg_notify('news', 'a row was added')");

    expect(await heard).toMatchObject([{ channel: 'news', payload: 'a row was added' }]);
  });

  it('keeps its identity through DISCARD ALL and cannot set it', async () => {
    const client = await connect('alice');

    await client.query(`set request.jwt.claims = '{"sub": "bob"}'`);
    await client.query('discard all');

    const { rows } = await client.query('select auth.user_id()');
    expect(rows).toEqual([{ user_id: 'alice' }]);
  });

  it('goes on after an error inside a transaction is rolled back', async () => {
    const client = await connect('alice');
    await client.query('begin');

    expect(codeOf(await rejection(client.query('select 1 / 0')))).toBe('22012');
    expect(codeOf(await rejection(client.query('select 1')))).toBe('25P02');

    await client.query('rollback');
    expect((await client.query('select count(*)::int from todos')).rows).toEqual([{ count: 3 }]);
  });
});
