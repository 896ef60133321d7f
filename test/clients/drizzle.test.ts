/** Drizzle through the proxy, over node-postgres and over postgres.js: the to-do application and its typed queries. */
import { describe, expect, it, onTestFinished } from 'vitest';
import { describeTodos, lacks, rejection, settingsFor, useStack } from './todos.ts';

describe.skipIf(lacks('Drizzle', 'drizzle-orm', 'pg', 'postgres'))('Drizzle', () => {
  const stack = useStack();

  describe.each([
    ['node-postgres', 'drizzleOverNodePostgres', 'openOverNodePostgres'],
    ['postgres.js', 'drizzleOverPostgresJs', 'openOverPostgresJs'],
  ] as const)('over %s', (_, library, opener) => {
    describeTodos(async () => (await import('./apps/drizzle.ts'))[library], stack);

    const open = async (sub: string) => {
      const app = await import('./apps/drizzle.ts');
      const { eq, sql } = await import('drizzle-orm');
      const { db, close } = app[opener](settingsFor(stack(), sub));
      onTestFinished(close);
      return { db, todos: app.todos, eq, sql };
    };

    it('answers relational queries with the columns that were asked for', async () => {
      const { db, eq, todos } = await open('bob');

      const rows = await db.query.todos.findMany({
        columns: { userId: true, done: true },
        where: eq(todos.done, false),
      });

      expect(rows.length).toBeGreaterThan(0);
      expect(new Set(rows.map(({ userId }) => userId))).toEqual(new Set(['bob']));
    });

    it('runs a prepared query with a placeholder again and again', async () => {
      const { db, eq, sql, todos } = await open('alice');
      const byOwner = db.query.todos
        .findMany({ where: eq(todos.userId, sql.placeholder('owner')) })
        .prepare('by-owner');

      const counts = [];
      for (const owner of ['alice', 'bob', 'alice']) {
        counts.push((await byOwner.execute({ owner })).length);
      }

      expect(counts).toEqual([3, 0, 3]);
    });

    it('rolls a nested transaction back and commits the one around it', async () => {
      const sub = `nested-${library}`;
      const { db, todos } = await open(sub);

      await db.transaction(async (outer) => {
        await outer.insert(todos).values({ task: 'kept' });
        const inner = outer.transaction((nested) =>
          nested.insert(todos).values({ userId: 'bob', task: 'planted' }),
        );
        expect(await rejection(inner)).toMatchObject({ cause: { code: '42501' } });
      });

      const rows = await db.select().from(todos);
      expect(rows).toMatchObject([{ userId: sub, task: 'kept', done: false }]);
    });
  });
});
