/** Knex through the proxy: the to-do application, and its streams and nested transactions. */
import type { Knex } from 'knex';
import { describe, expect, it, onTestFinished } from 'vitest';
import { codeOf, describeTodos, lacks, rejection, settingsFor, useStack } from './todos.ts';

describe.skipIf(lacks('Knex', 'knex', 'pg'))('Knex', () => {
  const stack = useStack();
  describeTodos(async () => (await import('./apps/knex.ts')).knex, stack);

  const open = async (sub: string): Promise<Knex> => {
    const { openKnex } = await import('./apps/knex.ts');
    const db = openKnex(settingsFor(stack(), sub));
    onTestFinished(() => db.destroy());
    return db;
  };

  it('counts and picks with the query builder', async () => {
    const db = await open('alice');

    expect(await db('todos').count('*')).toEqual([{ count: '3' }]);
    expect(await db('todos').where('user_id', 'bob').first()).toBeUndefined();
    expect(await db('todos').distinct('user_id')).toEqual([{ user_id: 'alice' }]);
  });

  it('rolls a nested transaction back and commits the one around it', async () => {
    const db = await open('nested');

    await db.transaction(async (outer) => {
      await outer('todos').insert({ task: 'kept' });
      const inner = outer.transaction((nested) =>
        nested('todos').insert({ user_id: 'bob', task: 'planted' }),
      );
      expect(codeOf(await rejection(inner))).toBe('42501');
    });

    expect(await db('todos').pluck('task')).toEqual(['kept']);
  });

  it('signs in with what a connection function answers', async () => {
    const { default: createKnex } = await import('knex');
    const { host, port, database } = stack();
    const db = createKnex({
      client: 'pg',
      connection: async () => ({
        host,
        port,
        database,
        user: 'authenticated',
        password: await stack().token('bob'),
      }),
    });
    onTestFinished(() => db.destroy());

    expect(await db('todos').distinct('user_id')).toEqual([{ user_id: 'bob' }]);
  });
});
