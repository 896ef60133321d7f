/** The to-do application on Knex's query builder, without migrations. */
import createKnex, { type Knex } from 'knex';
import { codeOf, type Library, type Settings, type Todo, type Todos } from '../todos.ts';

interface TodoRow extends Todo {
  readonly user_id: string;
}

interface NewTodo extends Pick<TodoRow, 'task'>, Partial<Pick<TodoRow, 'user_id'>> {}

declare module 'knex/types/tables.js' {
  interface Tables {
    todos: Knex.CompositeTableType<TodoRow, NewTodo, Partial<TodoRow>>;
  }
}

/** A pool as an application makes one: `password` may be a function, which Knex hands on to node-postgres. */
export function openKnex({ max, ...connection }: Settings): Knex {
  // Knex prints lost connections and refused logins beside throwing them.
  const log = { warn: () => undefined };
  return createKnex({ client: 'pg', connection, pool: { min: 0, max }, log });
}

export const knex: Library = {
  sqlstate: codeOf,
  open: (settings) => openTodos(openKnex(settings)),
};

function openTodos(db: Knex): Todos {
  const list = (via: Knex | Knex.Transaction): Promise<Todo[]> =>
    via('todos').select('id', 'task', 'done').orderBy('id');
  return {
    list: () => list(db),
    find: (task) => db('todos').select('id', 'task', 'done').where({ task }),
    async add(task) {
      const [row] = await db('todos').insert({ task }).returning(['id', 'task', 'done']);
      return row as Todo;
    },
    addFor: async (user_id, task) => db('todos').insert({ user_id, task }),
    finish: async (id) => db('todos').where({ id }).update({ done: true }),
    remove: async (id) => db('todos').where({ id }).delete(),
    async addAll(tasks) {
      await db.transaction(async (transaction) => {
        await transaction('todos').insert(tasks.map((task) => ({ task })));
      });
    },
    async tryOut(task) {
      const transaction = await db.transaction();
      await transaction('todos').insert({ task });
      const seen = await list(transaction);
      await transaction.rollback();
      return seen;
    },
    async whoami() {
      const { rows } = await db.raw<{ rows: { user: string; pid: number }[] }>(
        'select auth.user_id() as "user", pg_backend_pid() as pid, pg_sleep(0.02)',
      );
      return rows[0] as { user: string; pid: number };
    },
    close: () => db.destroy(),
  };
}
