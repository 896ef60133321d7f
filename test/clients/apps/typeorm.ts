/** The to-do application on TypeORM: an entity schema, its repository, a query runner for transactions. */
import { DataSource, EntitySchema, type Repository } from 'typeorm';
import { codeOf, fields, type Library, type Settings, type Todo, type Todos } from '../todos.ts';

/** The entity. `userId` is left out of inserts, so that the column's default says whose row it is. */
export interface TodoEntity extends Todo {
  readonly userId?: string;
}

export const TodoSchema = new EntitySchema<TodoEntity>({
  name: 'Todo',
  tableName: 'todos',
  columns: {
    id: { type: 'bigint', primary: true, generated: 'increment' },
    userId: { type: 'text', name: 'user_id', select: false },
    task: { type: 'text' },
    done: { type: 'boolean', default: false },
  },
});

/** A data source as an application makes one: `password` may be a function, which TypeORM hands on to node-postgres. */
export function createDataSource({ user, max, ...settings }: Settings): DataSource {
  return new DataSource({
    type: 'postgres',
    ...settings,
    username: user,
    poolSize: max,
    installExtensions: false,
    entities: [TodoSchema],
  });
}

export const typeorm: Library = {
  // A QueryFailedError keeps the driver's own error; a failed login is the driver's error itself.
  sqlstate: (error) => codeOf(fields(error)['driverError']) ?? codeOf(error),
  async open(settings) {
    const source = createDataSource(settings);
    await source.initialize();
    return openTodos(source);
  },
};

function openTodos(source: DataSource): Todos {
  const todos = source.getRepository(TodoSchema);
  const list = (repository: Repository<TodoEntity>) => repository.find({ order: { id: 'ASC' } });
  return {
    list: () => list(todos),
    find: (task) => todos.findBy({ task }),
    async add(task) {
      const { id, done } = await todos.save({ task });
      return { id, task, done };
    },
    addFor: (userId, task) => todos.insert({ userId, task }),
    finish: async (id) => (await todos.update({ id }, { done: true })).affected ?? 0,
    remove: async (id) => (await todos.delete({ id })).affected ?? 0,
    async addAll(tasks) {
      await source.transaction(async (entities) => {
        await entities.getRepository(TodoSchema).save(tasks.map((task) => ({ task })));
      });
    },
    async tryOut(task) {
      const runner = source.createQueryRunner();
      try {
        await runner.startTransaction();
        const inside = runner.manager.getRepository(TodoSchema);
        await inside.save({ task });
        const seen = await list(inside);
        await runner.rollbackTransaction();
        return seen;
      } finally {
        await runner.release();
      }
    },
    async whoami() {
      const rows = await source.query<{ user: string; pid: number }[]>(
        'select auth.user_id() as "user", pg_backend_pid() as pid, pg_sleep(0.02)',
      );
      return rows[0] as { user: string; pid: number };
    },
    close: () => source.destroy(),
  };
}
