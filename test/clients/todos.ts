/**
 * The little to-do application that every client library runs, and what must hold for each of them.
 *
 * `apps/` writes it once per library, in that library's own idiom and without a line that knows of
 * the proxy; this file says what it must do. What only one library can do is tested beside it.
 */
import { existsSync } from 'node:fs';
import { inspect } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import { startStack } from '../support/stack.ts';

/** A running database, issuer and proxy. */
export type Stack = Awaited<ReturnType<typeof startStack>>;

/** One row of `public.todos`, as every library is made to spell it. */
export interface Todo {
  readonly id: string;
  readonly task: string;
  readonly done: boolean;
}

/** What an application is configured with. `password` is asked anew for every connection. */
export interface Settings {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
  readonly password: () => Promise<string>;
  /** Only where the proxy asks for TLS: the authority that signed its certificate. */
  readonly ssl?: { readonly ca: string };
  /** The most connections that its pool may hold. */
  readonly max: number;
}

/** One signed-in user's to-do list. No method names the user: Row-Level Security knows who it is. */
export interface Todos {
  list(): Promise<Todo[]>;
  find(task: string): Promise<Todo[]>;
  add(task: string): Promise<Todo>;
  /** Inserts a row that claims to be `userId`'s. */
  addFor(userId: string, task: string): Promise<unknown>;
  /** Marks a row as done and answers how many rows that was. */
  finish(id: string): Promise<number>;
  /** Deletes a row and answers how many rows that was. */
  remove(id: string): Promise<number>;
  /** Adds all of the tasks in one transaction. */
  addAll(tasks: readonly string[]): Promise<void>;
  /** Adds a task in a transaction, lists what that transaction sees, and rolls it back. */
  tryOut(task: string): Promise<Todo[]>;
  /** Who the database says this is, and which backend said so; holds the connection for a moment. */
  whoami(): Promise<{ readonly user: string; readonly pid: number }>;
  close(): Promise<void>;
}

/** How a library is put to the test: opens its application, and finds the SQLSTATE in its errors. */
export interface Library {
  open(settings: Settings): Todos | Promise<Todos>;
  /** The SQLSTATE, wherever this library keeps it; undefined when the error carries none. */
  sqlstate(error: unknown): string | undefined;
}

/** The value as an object whose properties can be looked at, whatever was thrown. */
export function fields(error: unknown): Record<string, unknown> {
  return typeof error === 'object' && error !== null ? (error as Record<string, unknown>) : {};
}

/** The `code` of an error that is node-postgres's or postgres.js's own. */
export function codeOf(error: unknown): string | undefined {
  const { code } = fields(error);
  return typeof code === 'string' ? code : undefined;
}

/**
 * Whether these packages of this folder's own package.json are missing; when they are, a line says
 * so, and the suite that asked skips itself.
 */
export function lacks(suite: string, ...packages: readonly string[]): boolean {
  const missing = packages.filter(
    (name) => !existsSync(new URL(`node_modules/${name}/package.json`, import.meta.url)),
  );
  if (missing.length === 0) return false;
  console.log(`skipped ${suite}: ${missing.join(', ')} missing; run npm ci --prefix test/clients`);
  return true;
}

/** The settings with which `sub` signs in to `stack`. */
export function settingsFor(stack: Stack, sub: string, changes: Partial<Settings> = {}): Settings {
  const { host, port, database, authority, config } = stack;
  return {
    host,
    port,
    database,
    user: 'authenticated',
    password: () => stack.token(sub),
    max: 2,
    ...(config.listen?.tls?.mode === 'require' && { ssl: { ca: authority.ca } }),
    ...changes,
  };
}

/** The same token with the end of its signature overwritten: well formed, and signed by nobody. */
export function tamper(token: string): string {
  return `${token.slice(0, -16)}${'AAAA'.repeat(4)}`;
}

/** Answers what `attempt` rejects with; fails the test when it succeeds instead. */
export async function rejection(attempt: Promise<unknown>): Promise<unknown> {
  let result: unknown;
  try {
    result = await attempt;
  } catch (error) {
    return error;
  }
  throw new Error(`expected a rejection, got ${JSON.stringify(result) ?? 'undefined'}`);
}

/** Runs one statement as the database's superuser, past the proxy, and answers its rows. */
export async function asSuperuser(
  { admin }: Stack,
  statement: string,
  values: readonly unknown[] = [],
): Promise<unknown[]> {
  const client = new pg.Client(admin);
  await client.connect();
  try {
    return (await client.query(statement, [...values])).rows;
  } finally {
    await client.end();
  }
}

/**
 * Starts a stack for the enclosing `describe` and closes it afterwards.
 *
 * @returns a function that answers it, for use inside tests.
 */
export function useStack(options?: Parameters<typeof startStack>[0]): () => Stack {
  let stack: Stack | undefined;
  beforeAll(async () => {
    stack = await startStack(options);
  });
  afterAll(async () => {
    await stack?.close();
  });
  return () => {
    if (stack === undefined) throw new Error('the stack is only there inside tests');
    return stack;
  };
}

let newcomers = 0;

/** Declares the tests that every library must pass. `load` runs once, before them. */
export function describeTodos(load: () => Promise<Library>, stack: () => Stack): void {
  let library: Library | undefined;
  beforeAll(async () => {
    library = await load();
  });
  const bench: Bench = {
    stack,
    library() {
      if (library === undefined) throw new Error('the library is only there inside tests');
      return library;
    },
    async open(sub, changes) {
      const todos = await this.library().open(settingsFor(stack(), sub, changes));
      onTestFinished(() => todos.close());
      return todos;
    },
    newcomer: () => `newcomer-${++newcomers}`,
  };
  describe('rows', () => describeRows(bench));
  describe('transactions', () => describeTransactions(bench));
  describe('pools', () => describePools(bench));
  describe('refusals', () => describeRefusals(bench));
}

interface Bench {
  stack(): Stack;
  library(): Library;
  open(sub: string, changes?: Partial<Settings>): Promise<Todos>;
  /** Each test that writes is somebody of its own, so that the tests share no rows. */
  newcomer(): string;
}

const tasks = (rows: readonly Todo[]): string[] => rows.map(({ task }) => task);

function describeRows(bench: Bench): void {
  it("lists the user's own and nobody else's", async () => {
    const apps = await Promise.all(
      ['alice', 'bob', bench.newcomer()].map((sub) => bench.open(sub)),
    );

    const [hers, his, none] = await Promise.all(apps.map((todos) => todos.list()));

    expect(hers).toHaveLength(3);
    expect(his).toHaveLength(2);
    expect(none).toEqual([]);
    expect(new Set([...(hers ?? []), ...(his ?? [])].map(({ id }) => id)).size).toBe(5);
  });

  it('inserts, updates and deletes', async () => {
    const todos = await bench.open(bench.newcomer());

    const added = await todos.add('write the test');
    expect(added).toMatchObject({ task: 'write the test', done: false });
    expect(await todos.finish(added.id)).toBe(1);
    expect(await todos.list()).toEqual([{ ...added, done: true }]);
    expect(await todos.remove(added.id)).toBe(1);
    expect(await todos.list()).toEqual([]);
  });

  it("neither changes nor deletes another user's", async () => {
    const bob = await bench.open('bob');
    const before = await bob.list();
    const todos = await bench.open(bench.newcomer());

    for (const { id } of before) {
      expect(await todos.finish(id)).toBe(0);
      expect(await todos.remove(id)).toBe(0);
    }

    expect(before).toHaveLength(2);
    expect(await bob.list()).toEqual(before);
  });

  it('sends parameters as values, whatever they hold', async () => {
    const todos = await bench.open(bench.newcomer());
    const hostile = `'; drop table todos; -- \\ "$1" \u{1f418}`;

    const { id } = await todos.add(hostile);

    expect(await todos.find(hostile)).toEqual([{ id, task: hostile, done: false }]);
    expect(await todos.find(`' or true --`)).toEqual([]);
  });
}

function describeTransactions(bench: Bench): void {
  it('keep what they commit', async () => {
    const todos = await bench.open(bench.newcomer());

    await todos.addAll(['one', 'two', 'three']);

    expect(tasks(await todos.list())).toEqual(['one', 'two', 'three']);
  });

  it('see their own changes, and leave none behind when rolled back', async () => {
    const todos = await bench.open(bench.newcomer());
    await todos.add('kept');

    const inside = await todos.tryOut('taken back');

    expect(tasks(inside)).toEqual(['kept', 'taken back']);
    expect(tasks(await todos.list())).toEqual(['kept']);
  });
}

function describePools(bench: Bench): void {
  it('of two users at work at the same time never mix them up', async () => {
    const users = [bench.newcomer(), bench.newcomer()];

    const work = users.map(async (user) => {
      const todos = await bench.open(user, { max: 3 });
      const rounds = Array.from({ length: 20 }, async (_, round) => {
        await todos.add(`${user} ${round}`);
        const rows = await todos.list();
        const { user: answered } = await todos.whoami();
        return answered === user && rows.every(({ task }) => task.startsWith(`${user} `));
      });
      return { right: await Promise.all(rounds), rows: await todos.list() };
    });

    for (const { right, rows } of await Promise.all(work)) {
      expect(right).toEqual(Array.from({ length: 20 }, () => true));
      expect(rows).toHaveLength(20);
    }
  });

  it('hand a released connection to the next query', async () => {
    const todos = await bench.open(bench.newcomer(), { max: 2 });

    const answers = await Promise.all(Array.from({ length: 12 }, () => todos.whoami()));

    expect(new Set(answers.map(({ pid }) => pid)).size).toBe(2);
  });

  it('sign in again, with a token of its own, after a connection was lost', async () => {
    const sub = bench.newcomer();
    let tokens = 0;
    const password = () => {
      tokens++;
      return bench.stack().token(sub);
    };
    const todos = await bench.open(sub, { max: 1, password });
    const before = await todos.whoami();
    expect(tokens).toBe(1);

    await terminate(bench.stack(), before.pid);

    // The first query may still find the old connection in the pool and fail with it.
    const after = await vi.waitFor(() => todos.whoami(), { timeout: 10_000 });
    expect(after.user).toBe(sub);
    expect(after.pid).not.toBe(before.pid);
    expect(tokens).toBe(2);
  });
}

function describeRefusals(bench: Bench): void {
  it('of a row that violates the policy are 42501, and the pool goes on', async () => {
    const todos = await bench.open(bench.newcomer(), { max: 1 });

    const error = await rejection(todos.addFor('bob', 'planted'));

    expect(bench.library().sqlstate(error)).toBe('42501');
    expect(await todos.list()).toEqual([]);
    expect(tasks(await (await bench.open('bob')).list())).not.toContain('planted');
  });

  it('of a token are 28P01, and do not repeat it', async () => {
    const token = tamper(await bench.stack().token('alice'));
    const password = () => Promise.resolve(token);

    const error = await rejection(bench.open('alice', { password }).then((todos) => todos.list()));

    expect(bench.library().sqlstate(error)).toBe('28P01');
    expect(inspect(error, { depth: 10, showHidden: true })).not.toContain(token);
  });
}

async function terminate(stack: Stack, pid: number): Promise<void> {
  const rows = await asSuperuser(stack, 'select pg_terminate_backend($1, 5000) as gone', [pid]);
  expect(rows).toEqual([{ gone: true }]);
}
