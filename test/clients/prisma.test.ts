/**
 * Prisma through the proxy: the to-do application, transactions of both kinds, and the codes of its errors.
 *
 * Generates the client first, as an application's build does. Version 7 has no query engine to download.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { describeTodos, fields, lacks, rejection, settingsFor, tamper, useStack } from './todos.ts';

const packages = ['prisma', '@prisma/client', '@prisma/adapter-pg'];

describe.skipIf(lacks('Prisma', ...packages))('Prisma', () => {
  const stack = useStack();
  beforeAll(generate);
  describeTodos(async () => (await import('./apps/prisma.ts')).prisma, stack);

  const open = async (sub: string, password = () => stack().token(sub)) => {
    const { createClient } = await import('./apps/prisma.ts');
    const client = createClient(settingsFor(stack(), sub, { password }));
    onTestFinished(() => client.$disconnect());
    return client;
  };

  // Beside the only client that is generated, so that nothing checks types while they are being written.
  // Beside the only client that is generated, so that nothing checks types while they are being written.
  it('and all other applications fit the types of their libraries', async () => {
    const tsc = here('../../node_modules/typescript/bin/tsc');

    const { stdout } = await node(tsc, '--project', '.').catch(fields);

    // Errors elsewhere in the project are named ../../src and are for its own check to tell.
    const ours = String(stdout)
      .split('\n')
      .filter((line) => /^\w/.test(line));
    expect(ours).toEqual([]);
  });

  it('takes all of a batch back when one of its rows violates the policy', async () => {
    const client = await open('batch');

    const batch = client.$transaction([
      client.todo.create({ data: { task: 'first' } }),
      client.todo.create({ data: { userId: 'bob', task: 'planted' } }),
    ]);

    expect(await rejection(batch)).toMatchObject({ code: 'P2039' });
    expect(await client.todo.findMany()).toEqual([]);
  });

  it('isolates an interactive transaction as asked', async () => {
    const client = await open('alice');

    const [row] = await client.$transaction(
      (transaction) =>
        transaction.$queryRaw<object[]>`
          select auth.user_id(), current_setting('transaction_isolation') as isolation`,
      { isolationLevel: 'Serializable' },
    );

    expect(row).toEqual({ user_id: 'alice', isolation: 'serializable' });
  });

  it('binds the parameters of raw statements', async () => {
    const client = await open('raw');
    const task = `it's "raw"`;

    expect(await client.$executeRaw`insert into todos (task) values (${task})`).toBe(1);

    expect(await client.todo.findMany({ where: { task } })).toMatchObject([
      { userId: 'raw', task },
    ]);
  });

  it('reports a rejected token as P1000', async () => {
    const token = tamper(await stack().token('alice'));
    const client = await open('alice', () => Promise.resolve(token));

    expect(await rejection(client.todo.findMany())).toMatchObject({ code: 'P1000' });
  });
});

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const node = async (...arguments_: string[]) => {
  const env = {
    ...process.env,
    CHECKPOINT_DISABLE: '1',
    // Prisma would first download the engine of its migrations, which nothing here runs; any program
    // in its place keeps this offline.
    PRISMA_SCHEMA_ENGINE_BINARY: process.execPath,
  };
  return promisify(execFile)(process.execPath, arguments_, { cwd: here('.'), env });
};

async function generate(): Promise<void> {
  const prisma = here('node_modules/prisma/build/index.js');
  await node(prisma, 'generate', '--no-hints', '--schema', 'schema.prisma');
}
