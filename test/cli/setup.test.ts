/** `pgjot setup` as its user sees it: what it prints, and the script that psql runs. */
import { spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { runCli, type CliOptions } from '../support/cli.ts';
import { createDatabase, startTestPostgres } from '../support/postgres.ts';

const SECRET = 'a-secret-for-tests-of-at-least-32-characters';

const hasPsql = spawnSync('psql', ['--version']).status === 0;
if (!hasPsql) console.warn('no psql here: pgjot setup --dry-run is not run by psql');

let postgres: Awaited<ReturnType<typeof startTestPostgres>>;
beforeAll(async () => {
  postgres = await startTestPostgres();
});
afterAll(async () => {
  await postgres.stop();
});

let folder: string;
let options: CliOptions;
let database: string;
let client: pg.Client;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-setup-'));
  database = await createDatabase(postgres);
  const PGJOT_ADMIN_URL = postgres.superuserUrl.replace(/postgres$/, database);
  options = { cwd: folder, env: { PGJOT_MAIN_SECRET: SECRET, PGJOT_ADMIN_URL } };
  await writeConfig(2);
  client = new pg.Client({ ...postgres.superuser, database });
  await client.connect();
});

afterEach(async () => {
  await client.query('DROP TABLE IF EXISTS todos');
  await runCli(['setup', 'main', '--uninstall'], options);
  await client.query('DROP ROLE IF EXISTS authenticated').catch(() => {});
  await client.end();
  await rm(folder, { recursive: true, force: true });
});

const setup = (...args: string[]) => runCli(['setup', 'main', ...args], options);

describe('pgjot setup', () => {
  it('prints what it changed, and that nothing was missing', async () => {
    const first = await setup();
    const second = await setup();
    await writeConfig(3);
    const third = await setup();

    expect(first).toEqual({
      status: 0,
      stdout: [
        'created role "authenticated"',
        'created role "pgjot_owner"',
        'created role "pgjot_control"',
        'created 2 slots of role "authenticated"',
        'installed the session functions, version 4\n',
      ].join('\n'),
      stderr: '',
    });
    expect(second.stdout).toBe(
      'nothing was missing; the passwords were set anew, as they are each time\n',
    );
    expect(third.stdout).toBe('created 1 slots of role "authenticated"\n');
  }, 60_000);

  it('grants schemas, to all roles or to one, and forces Row-Level Security', async () => {
    await client.query('create table todos (id int)');

    const open = await setup('--grant-schema', 'public:authenticated');
    const closed = await setup('--grant-schema', 'public', '--force-rls');

    expect(open.stderr).toBe(
      'WARNING:  pgjot: table public.todos has no Row-Level Security: clients read and change all of its rows\n',
    );
    expect(open.stdout).toContain('granted usage on schema "public" to "authenticated"\n');
    expect(closed).toEqual({
      status: 0,
      stdout:
        'forced Row-Level Security on table public.todos, which has no policy yet and shows no rows\n',
      stderr: '',
    });
  }, 60_000);

  it.each([
    ['--force-rls without a schema', ['--force-rls'], '--force-rls needs --grant-schema'],
    ['--keep-roles without --uninstall', ['--keep-roles'], '--keep-roles is for --uninstall'],
    [
      '--uninstall with grants',
      ['--uninstall', '--grant-schema', 'public'],
      '--uninstall goes with neither --grant-schema nor --force-rls',
    ],
    [
      'a grant to a role of no upstream',
      ['--grant-schema', 'a:b:nobody'],
      '--grant-schema a:b:nobody: "nobody" is not a role of the upstream: authenticated',
    ],
  ])('refuses %s', async (_, args, message) => {
    expect(await setup(...args)).toEqual({ status: 64, stdout: '', stderr: `pgjot: ${message}\n` });
  });

  it('removes everything, once, and needs no secret for it', async () => {
    await setup();
    const { PGJOT_MAIN_SECRET: _, ...env } = options.env ?? {};

    const removed = await runCli(['setup', 'main', '--uninstall'], { ...options, env });
    const again = await setup('--uninstall');

    expect(removed).toEqual({
      status: 0,
      stdout:
        'dropped schema pgjot and the session functions\ndropped 2 slots, and roles pgjot_control and pgjot_owner\n',
      stderr: '',
    });
    expect(again.stdout).toBe('nothing was there to remove\n');
  }, 60_000);

  it('refuses in one line to remove what a policy uses', async () => {
    await setup();
    await client.query(
      'create table todos (owner text); create policy own on todos using (owner = auth.user_id())',
    );

    const { status, stderr } = await setup('--uninstall');

    expect(status).toBe(1);
    expect(stderr).toBe(
      'pgjot: nothing was changed: ERROR 2BP01: pgjot: its functions are still used by policy own on table public.todos  HINT: Drop or change these first.\n',
    );
  }, 60_000);
});

describe.skipIf(!hasPsql)('pgjot setup --dry-run', () => {
  it('prints scripts that psql runs as they are, for setup and for uninstall', async () => {
    await client.query('create table todos (id int)');

    for (const [args, said] of [
      [['--grant-schema', 'public', '--force-rls'], 'installed the session functions, version 4'],
      [['--uninstall'], 'dropped schema pgjot and the session functions'],
    ] as const) {
      const { stdout, stderr } = await setup('--dry-run', ...args);
      const psql = spawnSync(
        'psql',
        ['-X', '-v', 'ON_ERROR_STOP=1', options.env?.['PGJOT_ADMIN_URL'] ?? ''],
        { input: stdout, encoding: 'utf8' },
      );

      expect(stderr).toBe('');
      expect(psql.status).toBe(0);
      expect(psql.stderr).toContain(`INFO:  ${said}\n`);
      expect(psql.stdout).toMatch(/COMMIT\n$/);
    }
  }, 60_000);
});

async function writeConfig(slots: number): Promise<void> {
  const config = {
    listen: { port: 0 },
    providers: {
      own: {
        issuer: 'https://id.example.com',
        jwksFile: 'jwks.json',
        audience: 'app',
        roles: ['authenticated'],
      },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: postgres.port,
        database,
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { authenticated: { slots } },
      },
    },
  };
  await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(config));
}
