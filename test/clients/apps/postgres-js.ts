/** The to-do application on postgres.js: tagged templates, `sql.begin`, its own pool. */
import postgres from 'postgres';
import { codeOf, type Library, type Settings, type Todo, type Todos } from '../todos.ts';

/** A pool as an application makes one: `password` may be a function, which postgres.js awaits. */
export function createSql({ user, ...settings }: Settings): postgres.Sql {
  return postgres({ ...settings, username: user });
}

export const postgresJs: Library = {
  sqlstate: codeOf,
  open: (settings) => openTodos(createSql(settings)),
};

function openTodos(sql: postgres.Sql): Todos {
  const list = (via: postgres.Sql | postgres.TransactionSql) =>
    via<Todo[]>`select id, task, done from todos order by id`;
  return {
    list: async () => [...(await list(sql))],
    find: async (task) => [
      ...(await sql<Todo[]>`select id, task, done from todos where task = ${task}`),
    ],
    async add(task) {
      const [row] = await sql<Todo[]>`
        insert into todos ${sql({ task })} returning id, task, done`;
      return row as Todo;
    },
    addFor: (user_id, task) => sql`insert into todos ${sql({ user_id, task })}`,
    finish: async (id) => (await sql`update todos set done = true where id = ${id}`).count,
    remove: async (id) => (await sql`delete from todos where id = ${id}`).count,
    async addAll(tasks) {
      await sql.begin(async (transaction) => {
        for (const task of tasks) {
          await transaction`insert into todos ${sql({ task })}`;
        }
      });
    },
    async tryOut(task) {
      let seen: Todo[] = [];
      const undo = new Error('taken back');
      const undone = sql.begin(async (transaction) => {
        await transaction`insert into todos ${sql({ task })}`;
        seen = [...(await list(transaction))];
        throw undo;
      });
      await undone.catch((error: unknown) => {
        if (error !== undo) throw error;
      });
      return seen;
    },
    async whoami() {
      const [row] = await sql<{ user: string; pid: number }[]>`
        select auth.user_id() as "user", pg_backend_pid() as pid, pg_sleep(0.02)`;
      return row as { user: string; pid: number };
    },
    close: () => sql.end({ timeout: 1 }),
  };
}
