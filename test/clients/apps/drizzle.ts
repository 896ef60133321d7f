/** The to-do application on Drizzle: one typed schema, over node-postgres and over postgres.js. */
import { asc, eq, sql } from 'drizzle-orm';
import { drizzle as overNodePostgres } from 'drizzle-orm/node-postgres';
import { drizzle as overPostgresJs } from 'drizzle-orm/postgres-js';
import { bigint, boolean, type PgDatabase, pgTable, text } from 'drizzle-orm/pg-core';
import type { PgQueryResultHKT } from 'drizzle-orm/pg-core';
import { codeOf, fields, type Library, type Settings, type Todos } from '../todos.ts';
import { createPool } from './node-postgres.ts';
import { createSql } from './postgres-js.ts';

/** The table, as `drizzle-kit pull` would write it. */
export const todos = pgTable('todos', {
  id: bigint({ mode: 'bigint' }).primaryKey().generatedByDefaultAsIdentity(),
  userId: text('user_id').notNull().default(sql`auth.user_id()`),
  task: text().notNull(),
  done: boolean().notNull().default(false),
});

const schema = { todos };

/** A database over either driver. */
export type Database = PgDatabase<PgQueryResultHKT, typeof schema>;

/** An open database, and how to close its pool. */
export interface OpenDatabase {
  readonly db: Database;
  readonly close: () => Promise<void>;
}

/** Drizzle over node-postgres's pool. */
export function openOverNodePostgres(settings: Settings): OpenDatabase {
  const pool = createPool(settings);
  return { db: overNodePostgres(pool, { schema }), close: () => pool.end() };
}

/** Drizzle over postgres.js. */
export function openOverPostgresJs(settings: Settings): OpenDatabase {
  const client = createSql(settings);
  return { db: overPostgresJs(client, { schema }), close: () => client.end({ timeout: 1 }) };
}

/** A DrizzleQueryError keeps the driver's own error as its cause. */
const sqlstate = (error: unknown) => codeOf(fields(error)['cause']) ?? codeOf(error);

export const drizzleOverNodePostgres: Library = {
  sqlstate,
  open: (settings) => openTodos(openOverNodePostgres(settings)),
};

export const drizzleOverPostgresJs: Library = {
  sqlstate,
  open: (settings) => openTodos(openOverPostgresJs(settings)),
};

const columns = { id: sql<string>`${todos.id}::text`, task: todos.task, done: todos.done };

function openTodos({ db, close }: OpenDatabase): Todos {
  const list = (via: Pick<Database, 'select'>) =>
    via.select(columns).from(todos).orderBy(asc(todos.id));
  const undo = new Error('taken back');
  return {
    list: () => list(db),
    find: (task) => db.select(columns).from(todos).where(eq(todos.task, task)),
    async add(task) {
      const [row] = await db.insert(todos).values({ task }).returning(columns);
      if (row === undefined) throw new Error('the insert returned no row');
      return row;
    },
    addFor: async (userId, task) => db.insert(todos).values({ userId, task }),
    async finish(id) {
      const changed = db
        .update(todos)
        .set({ done: true })
        .where(eq(todos.id, BigInt(id)));
      return (await changed.returning(columns)).length;
    },
    async remove(id) {
      const gone = db.delete(todos).where(eq(todos.id, BigInt(id)));
      return (await gone.returning(columns)).length;
    },
    async addAll(tasks) {
      await db.transaction(async (transaction) => {
        await transaction.insert(todos).values(tasks.map((task) => ({ task })));
      });
    },
    async tryOut(task) {
      let seen: Awaited<ReturnType<typeof list>> = [];
      const undone = db.transaction(async (transaction) => {
        await transaction.insert(todos).values({ task });
        seen = await list(transaction);
        throw undo;
      });
      await undone.catch((error: unknown) => {
        if (error !== undo) throw error;
      });
      return seen;
    },
    async whoami() {
      const [row] = await db.select(identity).from(sql`pg_sleep(0.02)`);
      if (row === undefined) throw new Error('the select returned no row');
      return row;
    },
    close,
  };
}

const identity = {
  user: sql<string>`auth.user_id()`,
  pid: sql<number>`pg_backend_pid()`,
};
