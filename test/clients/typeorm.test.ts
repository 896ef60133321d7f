/** TypeORM through the proxy: the to-do application, its query builder and nested transactions. */
import type { DataSource } from 'typeorm';
import { describe, expect, it, onTestFinished } from 'vitest';
import { describeTodos, lacks, rejection, settingsFor, useStack } from './todos.ts';

describe.skipIf(lacks('TypeORM', 'typeorm', 'pg'))('TypeORM', () => {
  const stack = useStack();
  describeTodos(async () => (await import('./apps/typeorm.ts')).typeorm, stack);

  const open = async (sub: string): Promise<DataSource> => {
    const { createDataSource } = await import('./apps/typeorm.ts');
    const source = createDataSource(settingsFor(stack(), sub));
    await source.initialize();
    onTestFinished(() => source.destroy());
    return source;
  };

  it('selects with the query builder and named parameters', async () => {
    const source = await open('alice');
    const builder = source.createQueryBuilder().select('todo.userId', 'owner').from('Todo', 'todo');

    const mine = builder.where('todo.done in (:...done)', { done: [true, false] });

    expect(await mine.getRawMany()).toEqual([1, 2, 3].map(() => ({ owner: 'alice' })));
    expect(await builder.where('todo.userId = :owner', { owner: 'bob' }).getRawMany()).toEqual([]);
  });

  it('rolls a nested transaction back and commits the one around it', async () => {
    const source = await open('nested');
    const { TodoSchema } = await import('./apps/typeorm.ts');
    const runner = source.createQueryRunner();
    onTestFinished(() => runner.release());

    await runner.startTransaction('SERIALIZABLE');
    await runner.manager.insert(TodoSchema, { task: 'kept' });
    await runner.startTransaction();
    const planted = runner.manager.insert(TodoSchema, { userId: 'bob', task: 'planted' });
    expect(await rejection(planted)).toMatchObject({
      name: 'QueryFailedError',
      driverError: { code: '42501' },
    });
    await runner.rollbackTransaction();
    await runner.commitTransaction();

    const rows = await source.getRepository(TodoSchema).find();
    expect(rows.map(({ task }) => task)).toEqual(['kept']);
  });
});
