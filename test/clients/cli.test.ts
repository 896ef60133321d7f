/**
 * PostgreSQL's own command-line clients through the proxy: psql, pg_isready, pgbench.
 *
 * pg_dump and pg_restore have dump.test.ts; a gigabyte of COPY has bulk.test.ts.
 */
import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { startStack } from '../support/stack.ts';
import {
  asAdmin,
  ending,
  lacksCommands,
  printed,
  run,
  signedIn,
  start,
  temporaryFolder,
} from './command.ts';
import type { Environment } from './command.ts';
import { asSuperuser, tamper, useStack } from './todos.ts';

const QUIET = ['-X', '-A', '-t', '-q'];

describe.skipIf(lacksCommands('psql', 'psql'))('psql', () => {
  const stack = useStack();
  const psql = async (sub: string, input: string, changes?: Environment) =>
    run('psql', QUIET, await signedIn(stack(), sub, changes), input);

  it("selects the signed-in user's rows", async () => {
    const hers = await psql('alice', 'select distinct user_id, current_user from todos;');
    const his = await psql('bob', 'select count(*) from todos;');

    expect(hers).toEqual({ code: 0, stdout: 'alice|authenticated\n', stderr: '' });
    expect(his).toEqual({ code: 0, stdout: '2\n', stderr: '' });
  });

  it('prints the whole error of a tampered token, and nothing of the token', async () => {
    const { host, port } = stack();
    const PGPASSWORD = tamper(await stack().token('alice'));

    const { code, stdout, stderr } = await psql('alice', 'select 1', { PGPASSWORD });

    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toBe(
      `psql: error: connection to server at "${host}", port ${port} failed: ` +
        'FATAL:  password authentication failed for user "authenticated"\n',
    );
  });

  it('prints the detail that an expired token gets', async () => {
    const PGPASSWORD = await stack().token('alice', {}, { expiresIn: -3600 });

    const { code, stderr } = await psql('alice', 'select 1', { PGPASSWORD });

    expect(code).toBe(2);
    expect(stderr).toMatch(
      /FATAL: {2}password authentication failed for user "authenticated"\nDETAIL: {2}The token has expired\.\n$/,
    );
  });

  it('copies a file in and the rows out with \\copy', async () => {
    const folder = temporaryFolder();
    const [source, target] = [join(folder, 'source'), join(folder, 'target')];
    const lines = Array.from({ length: 5000 }, (_, index) => `copied ${index}\n`).join('');
    await writeFile(source, lines);

    // PostgreSQL itself has no COPY FROM into a table under Row-Level Security.
    const outcome = await psql(
      'copier',
      `create temporary table inbox (task text);
       \\copy inbox from '${source}'
       insert into todos (task) select task from inbox;
       \\copy (select task from todos order by id) to '${target}'
      `,
    );

    expect(outcome).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(await readFile(target, 'utf8')).toBe(lines);
  });

  it('repeats a query with \\watch until it is interrupted', async () => {
    const child = start('psql', QUIET, await signedIn(stack(), 'alice'));
    child.stdin.end('select auth.user_id() \\watch 0.1\n');
    await printed(child, /(alice[^]*){3}/);
    const end = ending(child);

    child.kill('SIGINT');

    // As when directly connected: 3 between two runs, 0 when the signal cancelled the query itself.
    expect([0, 3]).toContain((await end).code);
  });

  it('cancels a running query when it is interrupted', async () => {
    const child = start('psql', QUIET, await signedIn(stack(), 'alice'));
    const end = ending(child);
    child.stdin.write('select pg_sleep(60) as cancelled_by_psql;\n');
    await vi.waitFor(async () => {
      const sleeping = `select from pg_stat_activity
        where wait_event = 'PgSleep' and query like '%cancelled_by_psql%'`;
      expect(await asSuperuser(stack(), sleeping)).toHaveLength(1);
    });

    child.kill('SIGINT');

    expect(await end).toEqual({
      code: 3,
      stdout: '',
      stderr: 'Cancel request sent\nERROR:  canceling statement due to user request\n',
    });
  });

  it('prints a notification that another user sent', async () => {
    const listener = start('psql', QUIET, await signedIn(stack(), 'alice'));
    const listening = printed(listener, /listening/);
    listener.stdin.write('listen news;\n\\echo listening\n');
    await listening;
    const end = ending(listener);

    await psql('bob', "select pg_notify('news', 'it rains');");
    listener.stdin.end('select 1;\n');

    expect(await end).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(
        /^1\nAsynchronous notification "news" with payload "it rains" received from server process with PID \d+\.\n$/,
      ),
    });
  });

  it('imports a large object and exports it unchanged', async () => {
    const folder = temporaryFolder();
    const [source, target] = [join(folder, 'source'), join(folder, 'target')];
    await writeFile(source, randomBytes(1_000_000));

    const outcome = await psql(
      'alice',
      `\\lo_import '${source}'
       \\lo_export :LASTOID '${target}'
       \\lo_unlink :LASTOID
       select count(*) from pg_largeobject_metadata;
      `,
    );

    expect(outcome).toEqual({ code: 0, stdout: '0\n', stderr: '' });
    expect((await readFile(target)).equals(await readFile(source))).toBe(true);
  });
});

describe.skipIf(lacksCommands('psql over TLS', 'psql'))('psql over TLS', () => {
  const stack = useStack({ tls: true });
  it('signs in after it has verified the certificate and the name in it', async () => {
    const PGSSLROOTCERT = join(temporaryFolder(), 'ca.crt');
    await writeFile(PGSSLROOTCERT, stack().authority.ca);
    const verified = { PGSSLMODE: 'verify-full', PGSSLROOTCERT };
    const script = 'select distinct user_id from todos;\n\\conninfo\n';

    const outcome = await run('psql', QUIET, await signedIn(stack(), 'bob', verified), script);

    expect(outcome).toMatchObject({ code: 0, stderr: '' });
    expect(outcome.stdout).toMatch(/^bob\n[^]*TLSv1\.[23]/);
  });

  it('is refused in plaintext before it is asked for the token', async () => {
    const { PGPASSWORD: _, ...plaintext } = await signedIn(stack(), 'bob', {
      PGSSLMODE: 'disable',
    });

    const { code, stderr } = await run('psql', ['-w', ...QUIET], plaintext, 'select 1');

    expect(code).toBe(2);
    expect(stderr).toMatch(/FATAL: {2}connection requires TLS\n/);
  });
});

describe.skipIf(lacksCommands('pg_isready', 'pg_isready'))('pg_isready', () => {
  it('finds the proxy accepting, and no answer once it is closed', async () => {
    const stack = await startStack();
    const address = ['-h', stack.host, '-p', String(stack.port)];
    let before: Awaited<ReturnType<typeof run>>;
    try {
      before = await run('pg_isready', address, {});
    } finally {
      await stack.close();
    }

    const after = await run('pg_isready', address, {});

    const at = `${stack.host}:${stack.port}`;
    expect(before).toEqual({ code: 0, stdout: `${at} - accepting connections\n`, stderr: '' });
    expect(after).toEqual({ code: 2, stdout: `${at} - no response\n`, stderr: '' });
  });
});

describe.skipIf(lacksCommands('pgbench', 'pgbench', 'psql'))('pgbench', () => {
  const CLIENTS = 64;
  const stack = useStack({ slots: CLIENTS + 16 });
  const PGOPTIONS = '-c search_path=bench';
  const prepareOnce = once(async () => {
    const admin = asAdmin(stack(), { PGOPTIONS });
    await asSuperuser(stack(), 'create schema bench');
    const made = await run('pgbench', ['-i', '-q', '-s', '4'], admin);
    if (made.code !== 0) throw new Error(made.stderr);
    await asSuperuser(stack(), 'grant usage on schema bench to authenticated');
    await asSuperuser(stack(), 'grant all on all tables in schema bench to authenticated');
  });
  const pgbench = async (...arguments_: string[]) => {
    await prepareOnce();
    const environment = await signedIn(stack(), 'alice', { PGOPTIONS });
    return run('pgbench', ['-n', '-j', '2', ...arguments_], environment);
  };

  it.each(['simple', 'extended', 'prepared'])(
    `runs ${CLIENTS} clients in the %s query mode`,
    async (mode) => {
      const mix = ['-b', 'select-only@8', '-b', 'simple-update@1', '-b', 'tpcb-like@1'];

      const outcome = await pgbench('-c', String(CLIENTS), '-t', '150', '-M', mode, ...mix);

      expectAllGood(outcome, mode);
      expect(outcome.stdout).toContain('number of transactions actually processed: 9600/9600');
    },
    60_000,
  );

  it('runs pipelines of statements', async () => {
    const script = join(temporaryFolder(), 'pipeline.sql');
    const statement = 'select abalance from pgbench_accounts where aid = :aid;';
    await writeFile(
      script,
      [
        '\\set aid random(1, 100000)',
        '\\startpipeline',
        ...Array(10).fill(statement),
        '\\endpipeline',
        '',
      ].join('\n'),
    );

    const outcome = await pgbench('-c', '8', '-t', '200', '-M', 'prepared', '-f', script);

    expectAllGood(outcome, 'pipeline');
    expect(outcome.stdout).toContain('number of transactions actually processed: 1600/1600');
  });

  it('signs in anew for every transaction', async () => {
    const outcome = await pgbench('-c', '4', '-t', '50', '-C', '-S');

    expectAllGood(outcome, 'a connection for each transaction');
    expect(outcome.stdout).toContain('number of transactions actually processed: 200/200');
  }, 60_000);
});

function expectAllGood(outcome: Awaited<ReturnType<typeof run>>, what: string): void {
  expect(outcome).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('number of failed transactions: 0 (0.000%)'),
  });
  console.log(`pgbench, ${what}: ${/tps = \d+/.exec(outcome.stdout)?.[0]}`);
}

function once<T>(work: () => Promise<T>): () => Promise<T> {
  let running: Promise<T> | undefined;
  return () => (running ??= work());
}
