/** The to-do application on node-postgres: a `Pool`, `$1` parameters, a client held for a transaction. */
import pg from 'pg';
import { codeOf, type Library, type Settings, type Todo, type Todos } from '../todos.ts';

const COLUMNS = 'id, task, done';

/** A pool as an application makes one: `password` may be a function, which node-postgres awaits. */
export function createPool(settings: Settings): pg.Pool {
  const pool = new pg.Pool(settings);
  // Without a listener, the loss of an idle connection would end the program.
  pool.on('error', () => undefined);
  return pool;
}

export const nodePostgres: Library = {
  sqlstate: codeOf,
  open: (settings) => openTodos(createPool(settings)),
};

function openTodos(pool: pg.Pool): Todos {
  const list = async (via: pg.Pool | pg.PoolClient) =>
    (await via.query<Todo>(`select ${COLUMNS} from todos order by id`)).rows;
  return {
    list: () => list(pool),
    async find(task) {
      const { rows } = await pool.query<Todo>(`select ${COLUMNS} from todos where task = $1`, [
        task,
      ]);
      return rows;
    },
    async add(task) {
      const { rows } = await pool.query<Todo>({
        name: 'add',
        text: `insert into todos (task) values ($1) returning ${COLUMNS}`,
        values: [task],
      });
      return rows[0] as Todo;
    },
    addFor: (userId, task) =>
      pool.query('insert into todos (user_id, task) values ($1, $2)', [userId, task]),
    async finish(id) {
      return (await pool.query('update todos set done = true where id = $1', [id])).rowCount ?? 0;
    },
    async remove(id) {
      return (await pool.query('delete from todos where id = $1', [id])).rowCount ?? 0;
    },
    async addAll(tasks) {
      const client = await pool.connect();
      try {
        await client.query('begin');
        for (const task of tasks) {
          await client.query('insert into todos (task) values ($1)', [task]);
        }
        await client.query('commit');
      } finally {
        client.release();
      }
    },
    async tryOut(task) {
      const client = await pool.connect();
      try {
        await client.query('begin');
        await client.query('insert into todos (task) values ($1)', [task]);
        const seen = await list(client);
        await client.query('rollback');
        return seen;
      } finally {
        client.release();
      }
    },
    async whoami() {
      const { rows } = await pool.query<{ user: string; pid: number }>(
        'select auth.user_id() as "user", pg_backend_pid() as pid, pg_sleep(0.02)',
      );
      return rows[0] as { user: string; pid: number };
    },
    close: () => pool.end(),
  };
}
