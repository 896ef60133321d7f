/** The to-do application on Prisma: the generated client over its node-postgres adapter. */
import { PrismaPg } from '@prisma/adapter-pg';
import { type Prisma, PrismaClient, type Todo as Row } from '../generated/client.ts';
import { fields, type Library, type Settings, type Todo, type Todos } from '../todos.ts';

/** A client as an application makes one: the adapter's pool takes a function as its password. */
export function createClient(settings: Settings): PrismaClient {
  return new PrismaClient({ adapter: new PrismaPg(settings) });
}

export const prisma: Library = {
  sqlstate,
  open: (settings) => openTodos(createClient(settings)),
};

/** Prisma has codes of its own; PostgreSQL's stays in the adapter's error, where it has one. */
function sqlstate(error: unknown): string | undefined {
  const { meta, cause } = fields(error);
  const original = fields(fields(fields(meta)['driverAdapterError'] ?? cause)['cause']);
  const code = original['originalCode'];
  return typeof code === 'string' ? code : undefined;
}

function openTodos(client: PrismaClient): Todos {
  const list = async (via: Prisma.TransactionClient) =>
    (await via.todo.findMany({ orderBy: { id: 'asc' } })).map(spell);
  const undo = new Error('taken back');
  return {
    list: () => list(client),
    find: async (task) => (await client.todo.findMany({ where: { task } })).map(spell),
    add: async (task) => spell(await client.todo.create({ data: { task } })),
    addFor: (userId, task) => client.todo.create({ data: { userId, task } }),
    async finish(id) {
      const where = { id: BigInt(id) };
      return (await client.todo.updateMany({ where, data: { done: true } })).count;
    },
    remove: async (id) => (await client.todo.deleteMany({ where: { id: BigInt(id) } })).count,
    async addAll(tasks) {
      await client.$transaction(tasks.map((task) => client.todo.create({ data: { task } })));
    },
    async tryOut(task) {
      let seen: Todo[] = [];
      const undone = client.$transaction(async (transaction) => {
        await transaction.todo.create({ data: { task } });
        seen = await list(transaction);
        throw undo;
      });
      await undone.catch((error: unknown) => {
        if (error !== undo) throw error;
      });
      return seen;
    },
    async whoami() {
      const [row] = await client.$queryRaw<{ user: string; pid: number }[]>`
        select auth.user_id() as "user", pg_backend_pid() as pid from pg_sleep(0.02)`;
      return row as { user: string; pid: number };
    },
    close: () => client.$disconnect(),
  };
}

const spell = ({ id, task, done }: Row): Todo => ({ id: String(id), task, done });
