import { type ChildProcess } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { createAuthority } from '../support/certificate.ts';
import { exitOf, printed, runCli, startCli, type CliOptions } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';
import { createDatabase, startTestPostgres } from '../support/postgres.ts';

const SECRET = 'a-secret-for-tests-of-at-least-32-characters';

let postgres: Awaited<ReturnType<typeof startTestPostgres>>;
let issuer: Issuer;
let database: string;

beforeAll(async () => {
  postgres = await startTestPostgres();
  issuer = await startIssuer();
  database = await createDatabase(postgres);
});

afterAll(async () => {
  await issuer.close();
  await postgres.stop();
});

let folder: string;
let options: CliOptions;
let started: ChildProcess[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-cli-'));
  options = {
    cwd: folder,
    env: {
      PGJOT_MAIN_SECRET: SECRET,
      PGJOT_ADMIN_URL: postgres.superuserUrl.replace(/postgres$/, database),
    },
  };
});

afterEach(async () => {
  for (const child of started) {
    child.kill('SIGKILL');
    await exitOf(child);
  }
  started = [];
  await rm(folder, { recursive: true, force: true });
});

describe('pgjot setup, check, start and sql, in that order', () => {
  it('take a bare database to a login by token', async () => {
    await writeConfig();
    const before = await runCli(['check', '--online'], options);
    const setup = await runCli(['setup', 'main'], options);
    const again = await runCli(['setup', 'main'], options);
    const after = await runCli(['check', '--online'], options);
    const { port } = await startProxy();
    await writeConfig({ listen: { port } });
    const who = await sqlAs('alice', 'select auth.user_id(), current_user');

    expect(before.status).toBe(69);
    expect(before.stderr).toMatch(
      /^upstreams\.main: .*"pgjot setup main" installs what is missing\n$/,
    );
    expect(setup).toMatchObject({ status: 0, stderr: '' });
    expect(setup.stdout).toContain('created 4 slots of role "authenticated"\n');
    expect(again).toMatchObject({ status: 0, stderr: '' });
    expect(after).toEqual({ status: 0, stdout: 'proxy.config.json is fine\n', stderr: '' });
    expect(who).toEqual({
      status: 0,
      stdout: [
        ' user_id | current_user',
        '---------+---------------',
        ' alice   | authenticated',
        '(1 row)\n',
      ].join('\n'),
      stderr: '',
    });
  }, 60_000);

  it('go through TLS, to the holder of the very certificate that the configuration names', async () => {
    const authority = createAuthority();
    const own = authority.issue(['proxy.test']);
    const tls = { mode: 'require' as const, certFile: 'server.crt', keyFile: 'server.key' };
    // A chain, as servers are given it: whoever the authority signs is not trusted for that.
    await writeFile(join(folder, 'server.crt'), own.cert + authority.ca);
    await writeFile(join(folder, 'server.key'), own.key);
    await writeFile(join(folder, 'other.crt'), authority.issue(['proxy.test']).cert + authority.ca);
    await writeConfig({ listen: { port: 0, tls } });
    await runCli(['setup', 'main'], options);
    const { port } = await startProxy();

    await writeConfig({ listen: { port, tls } });
    const same = await sqlAs('alice', 'select 1');
    await writeConfig({ listen: { port, tls: { ...tls, certFile: 'other.crt' } } });
    const other = await sqlAs('alice', 'select 1');
    await writeFile(join(folder, 'authority.crt'), authority.ca);
    await writeConfig({ listen: { port, tls: { ...tls, certFile: 'authority.crt' } } });
    const signed = await sqlAs('alice', 'select 1');

    expect(same).toMatchObject({ status: 0, stderr: '' });
    expect(signed).toMatchObject({
      status: 69,
      stderr: 'pgjot: the certificate is not the one in listen.tls.certFile\n',
    });
    expect(other).toMatchObject({ status: 69, stdout: '' });
    expect(other.stderr).toMatch(/^pgjot: [^\n]*certificate[^\n]*\n$/);
  }, 60_000);

  it('go, with --ca-file, only to whom that authority vouches for by the address dialled', async () => {
    const authority = createAuthority();
    const tls = { mode: 'require' as const, certFile: 'server.crt', keyFile: 'server.key' };
    await writeFile(join(folder, 'ca.crt'), authority.ca);
    await writeFile(join(folder, 'other.crt'), createAuthority().ca);
    const outcomes: Record<string, { status: number | null; stderr: string }> = {};
    for (const name of ['127.0.0.1', 'proxy.test']) {
      const { cert, key } = authority.issue([name]);
      await writeFile(join(folder, 'server.crt'), cert);
      await writeFile(join(folder, 'server.key'), key);
      await writeConfig({ listen: { port: 0, tls } });
      await runCli(['setup', 'main'], options);
      const { port } = await startProxy();
      await writeConfig({ listen: { port, tls } });
      for (const ca of ['ca.crt', 'other.crt']) {
        outcomes[`${name} by ${ca}`] = await sqlAs('alice', 'select 1', ['--ca-file', ca]);
      }
    }

    expect(outcomes).toMatchObject({
      '127.0.0.1 by ca.crt': { status: 0, stderr: '' },
      '127.0.0.1 by other.crt': { status: 69 },
      'proxy.test by ca.crt': { status: 69 },
      'proxy.test by other.crt': { status: 69 },
    });
    expect(outcomes['127.0.0.1 by other.crt']?.stderr).toMatch(/unable to verify/);
    expect(outcomes['proxy.test by ca.crt']?.stderr).toMatch(/does not match certificate/);
  }, 60_000);
});

describe('pgjot setup --dry-run', () => {
  it('prints a script that holds neither secret nor password, and changes nothing', async () => {
    const bare = await createDatabase(postgres);
    await writeConfig({ upstreams: { main: { ...mainUpstream(), database: bare } } });

    const { status, stdout } = await runCli(['setup', 'main', '--dry-run'], options);

    const admin = new Client({ ...postgres.superuser, database: bare });
    await admin.connect();
    const schemas = await admin.query("select from pg_namespace where nspname = 'pgjot'");
    await admin.query(stdout);
    const installed = await admin.query("select from pg_namespace where nspname = 'pgjot'");
    await admin.end();
    expect(status).toBe(0);
    expect(stdout).not.toContain(SECRET);
    expect(schemas.rowCount).toBe(0);
    expect(installed.rowCount).toBe(1);
  }, 60_000);
});

describe('pgjot setup', () => {
  it.each([
    [
      'an upstream that is not configured',
      ['nope'],
      {},
      64,
      /"nope" is not an upstream of .*: main/,
    ],
    ['no administrator', ['main'], { PGJOT_ADMIN_URL: '' }, 64, /set PGJOT_ADMIN_URL/],
    [
      'an address that is none',
      ['main'],
      { PGJOT_ADMIN_URL: 'postgres://me:s3cret@[' },
      64,
      /PGJOT_ADMIN_URL is not a connection URL/,
    ],
    [
      'another database',
      ['main'],
      { PGJOT_ADMIN_URL: 'postgres://me:s3cret@127.0.0.1/other' },
      64,
      /PGJOT_ADMIN_URL leads to database "other", the upstream's is "/,
    ],
    ['no secret', ['main'], { PGJOT_MAIN_SECRET: '' }, 78, /upstreams\.main\.secret: .*is not set/],
  ])('refuses %s, in one line', async (_, args, env, status, message) => {
    await writeConfig();

    const result = await runCli(['setup', ...args], {
      ...options,
      env: { ...options.env, ...env },
    });

    expect(result.status).toBe(status);
    expect(result.stderr).toMatch(/^pgjot: [^\n]*\n$/);
    expect(result.stderr).toMatch(message);
    expect(result.stderr).not.toContain('s3cret');
  });

  it('says when the database does not answer, without the password', async () => {
    await writeConfig();
    const url = `postgres://me:s3cret@127.0.0.1:${await closedPort()}/${database}`;

    const result = await runCli(['setup', 'main'], {
      ...options,
      env: { ...options.env, PGJOT_ADMIN_URL: url },
    });

    expect(result.status).toBe(69);
    expect(result.stderr).toMatch(/^pgjot: cannot connect with PGJOT_ADMIN_URL: [^\n]*\n$/);
    expect(result.stderr).not.toContain('s3cret');
  });

  it('says what PostgreSQL refused, and that nothing was changed', async () => {
    await writeConfig();
    const admin = new Client({ ...postgres.superuser, database });
    await admin.connect();
    await admin.query("create role nobody_much login password 'weak-for-a-test'");
    await admin.end();
    const url = `postgres://nobody_much:weak-for-a-test@127.0.0.1:${postgres.port}/${database}`;

    const result = await runCli(['setup', 'main'], {
      ...options,
      env: { ...options.env, PGJOT_ADMIN_URL: url },
    });

    expect(result.status).toBe(1);
    expect(result.stderr).toMatch(/^pgjot: nothing was changed: ERROR 42501: [^\n]*\n$/);
  });
});

describe('pgjot check', () => {
  it('lists every problem with its path and exits with 78', async () => {
    await writeFile(
      join(folder, 'proxy.config.json'),
      JSON.stringify({ listen: { port: 'x' }, providers: {}, upstreams: {}, colour: 'red' }),
    );

    const { status, stdout, stderr } = await runCli(['check'], options);

    expect(status).toBe(78);
    expect(stdout).toBe('');
    expect(
      stderr
        .trimEnd()
        .split('\n')
        .map((line) => line.split(':')[0]),
    ).toEqual(['listen.port', 'providers', 'upstreams', 'colour']);
  });

  it('finds secrets, certificates and keys that cannot be used', async () => {
    const { cert } = createAuthority().issue();
    const { key } = createAuthority().issue();
    await writeFile(join(folder, 'a.crt'), cert);
    await writeFile(join(folder, 'b.key'), key);
    await writeConfig({
      listen: { tls: { certFile: 'a.crt', keyFile: 'b.key' } },
      upstreams: {
        main: { ...mainUpstream(), secret: { env: 'NOT_SET' }, tls: { caFile: 'none.crt' } },
      },
      admin: { token: { env: 'NOT_SET' }, tls: { certFile: 'a.crt', keyFile: 'none.key' } },
      limits: {
        store: {
          redis: {
            url: { file: 'url' },
            secret: { env: 'PGJOT_MAIN_SECRET' },
            tls: { caFile: 'none.crt' },
          },
        },
      },
    });
    await writeFile(join(folder, 'url'), 'rediss://127.0.0.1');

    const { status, stdout } = await runCli(['check', '--json'], options);

    const { problems } = JSON.parse(stdout) as { problems: { path: string; message: string }[] };
    expect(status).toBe(78);
    expect(problems.map(({ path }) => path).toSorted()).toEqual([
      'admin.tls.keyFile',
      'admin.token',
      'limits.store.redis.tls.caFile',
      'listen.tls',
      'upstreams.main.secret',
      'upstreams.main.tls.caFile',
    ]);
  });

  it('accepts the example at the root of the project, given its secret', async () => {
    const file = new URL('../../proxy.config.json', import.meta.url).pathname;

    const good = await runCli(['check', '--config', file], options);
    const without = await runCli(['check', '--config', file], { cwd: folder });

    expect(good).toEqual({ status: 0, stdout: `${file} is fine\n`, stderr: '' });
    expect(without).toEqual({
      status: 78,
      stdout: '',
      stderr: 'upstreams.main.secret: environment variable PGJOT_MAIN_SECRET is not set or empty\n',
    });
  });

  it('says online which issuer and which upstream do not answer, and exits with 69', async () => {
    const port = await closedPort();
    await writeConfig({
      providers: {
        own: issuer.provider({
          roles: ['authenticated'],
          jwksUri: `http://127.0.0.1:${port}/jwks.json`,
        }),
      },
      upstreams: { main: { ...mainUpstream(), port } },
    });

    const { status, stderr } = await runCli(['check', '--online'], options);

    expect(status).toBe(69);
    expect(stderr.split('\n').map((line) => line.split(':')[0])).toEqual([
      'providers.own.jwksUri',
      'upstreams.main',
      '',
    ]);
  });
});

describe('pgjot check --online', () => {
  it('asks each upstream for every role, and names those that setup has not made', async () => {
    await writeConfig();
    await runCli(['setup', 'main'], options);
    const roles = {
      analyst: { slots: 1 },
      authenticated: { slots: 4 },
      auditor: { slots: 1 },
    };
    await writeConfig({ upstreams: { main: { ...mainUpstream(), roles } } });

    const { status, stdout } = await runCli(['check', '--online', '--json'], options);

    const missing = (role: string) => ({
      path: `upstreams.main.roles.${role}`,
      message: expect.stringMatching(
        `role "${role}" has no slots.*"pgjot setup main" installs what is missing`,
      ) as string,
    });
    expect(status).toBe(69);
    expect(JSON.parse(stdout)).toEqual({
      problems: [missing('analyst'), missing('auditor')],
      notes: [],
    });
  }, 60_000);

  it('says once what is wrong with an upstream, however many roles it has', async () => {
    const roles = { analyst: { slots: 1 }, authenticated: { slots: 4 } };
    await writeConfig({
      upstreams: { main: { ...mainUpstream(), port: await closedPort(), roles } },
    });

    const { status, stderr } = await runCli(['check', '--online'], options);

    expect(status).toBe(69);
    expect(stderr).toMatch(/^upstreams\.main: [^\n]*ECONNREFUSED[^\n]*\n$/);
  });
});

describe('pgjot check --online of a lookup', () => {
  const withLookup = (sql: string) =>
    writeConfig({ upstreams: { main: { ...mainUpstream(), lookup: { sql, params: ['/sub'] } } } });
  const admin = async (sql: string) => {
    const client = new Client({ ...postgres.superuser, database });
    await client.connect();
    await client.query(sql).finally(() => void client.end());
  };

  it('says what is missing until setup, the grant and the query are right', async () => {
    await admin('create table members (user_id text, tenant_id int)');
    await writeConfig();
    await runCli(['setup', 'main'], options);
    await withLookup('select tenant_id from members where user_id = $1');
    const withoutRole = await runCli(['check', '--online'], options);
    const setup = await runCli(['setup', 'main'], options);
    const withoutGrant = await runCli(['check', '--online'], options);
    await admin('grant select on members to pgjot_lookup');
    const right = await runCli(['check', '--online'], options);
    await withLookup('select tenant from members where user_id = $1');
    const wrong = await runCli(['check', '--online'], options);

    expect([withoutRole.status, withoutGrant.status, wrong.status]).toEqual([69, 69, 69]);
    expect(withoutRole.stderr).toBe(
      'upstreams.main.lookup: cannot connect as pgjot_lookup (pgjot setup makes the role): password authentication failed for user "pgjot_lookup"\n',
    );
    expect(setup.stdout).toContain('created role "pgjot_lookup"');
    expect(withoutGrant.stderr).toBe(
      'upstreams.main.lookup: PostgreSQL refuses lookup.sql: permission denied for table members: grant pgjot_lookup what it needs\n',
    );
    expect(right).toEqual({ status: 0, stdout: 'proxy.config.json is fine\n', stderr: '' });
    expect(wrong.stderr).toBe(
      'upstreams.main.lookup: PostgreSQL refuses lookup.sql: column "tenant" does not exist\n',
    );
  }, 60_000);
});

describe('pgjot start', () => {
  it('says that the port is taken, in one line, and exits with 1', async () => {
    const other = createServer();
    const port = await listeningPort(other);
    await writeConfig({ listen: { port } });

    const result = await runCli(['start'], options);

    other.close();
    expect(result.status).toBe(1);
    expect(result.stderr).toBe(`pgjot: port ${port} on 127.0.0.1 is taken\n`);
  });

  it('starts nothing on a bad configuration, and exits with 78', async () => {
    await writeConfig({ limits: { maxClients: 0 } });

    const result = await runCli(['start'], options);

    expect(result).toMatchObject({ status: 78, stdout: '' });
    expect(result.stderr).toMatch(/^pgjot: limits\.maxClients: [^\n]*\n$/);
  });

  it.each(['SIGTERM', 'SIGINT'] as const)(
    'lets a session finish after %s',
    async (signal) => {
      await writeConfig();
      await runCli(['setup', 'main'], options);
      const { child, port } = await startProxy();
      const client = await login(port);
      await client.query('begin');

      child.kill(signal);
      await refused(port);
      const { rows } = await client.query('select 1 as one');
      const ended = new Promise((resolve) => client.once('end', resolve));
      await client.query('commit');
      await ended;

      expect(rows).toEqual([{ one: 1 }]);
      expect(await exitOf(child)).toBe(0);
    },
    60_000,
  );

  it('reads its configuration again after SIGHUP and when the file changes, and goes on serving', async () => {
    await writeConfig();
    await runCli(['setup', 'main'], options);
    const { child, port } = await startProxy();
    const client = await login(port);

    const reloaded = printed(child, /"reloaded".*\n/);
    child.kill('SIGHUP');
    const line = (await reloaded).split('\n').find((one) => one.includes('"reloaded"'));
    const failed = printed(child, /"reload_failed".*\n/);
    await writeFile(join(folder, 'proxy.config.json'), '{ "listen": 1 }');
    const problems = (await failed).split('\n').find((one) => one.includes('reload_failed'));
    const { rows } = await client.query('select 1 as one');
    const newcomer = await login(port);
    await newcomer.end();
    await client.end();

    expect(JSON.parse(line ?? '')).toMatchObject({
      level: 30,
      event: 'reloaded',
      needsRestart: [],
    });
    expect(JSON.parse(problems ?? '')).toMatchObject({
      level: 50,
      event: 'reload_failed',
      problems: expect.arrayContaining([expect.objectContaining({ path: 'listen' })]) as unknown,
    });
    expect(rows).toEqual([{ one: 1 }]);
  }, 60_000);

  it('ends every session at once after a second signal', async () => {
    await writeConfig();
    await runCli(['setup', 'main'], options);
    const { child, port } = await startProxy();
    const client = await login(port);
    const sleeping = client.query('select pg_sleep(60)').catch((error: Error) => error);

    child.kill('SIGTERM');
    await refused(port);
    child.kill('SIGTERM');

    expect(await exitOf(child)).toBe(0);
    expect(await sleeping).toMatchObject({ code: '57P01' });
  }, 60_000);
});

type Settings = Partial<ConfigInput>;

function mainUpstream(): ConfigInput['upstreams'][string] {
  return {
    host: '127.0.0.1',
    port: postgres.port,
    database,
    secret: { env: 'PGJOT_MAIN_SECRET' },
    roles: { authenticated: { slots: 4 } },
  };
}

async function writeConfig(settings: Settings = {}): Promise<void> {
  const config = {
    listen: { port: 0 },
    providers: { own: issuer.provider({ roles: ['authenticated'] }) },
    upstreams: { main: mainUpstream() },
    log: { level: 'debug' },
    ...settings,
  };
  await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(config));
}

function sqlAs(sub: string, sql: string, more: readonly string[] = []) {
  const args = ['--config', 'proxy.config.json', '--token-file', '-', ...more, sql];
  return runCli(['sql', ...args], { ...options, input: issuer.mint({ sub }) });
}

/** Starts the proxy, and learns from its log where it listens. */
async function startProxy(): Promise<{ child: ChildProcess; port: number }> {
  const child = startCli(['start'], options);
  started.push(child);
  const output = await printed(child, /"port":(\d+)/);
  return { child, port: Number(/"port":(\d+)/.exec(output)?.[1]) };
}

async function login(port: number): Promise<Client> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: 'authenticated',
    database,
    password: issuer.mint({ sub: 'alice' }),
  });
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** Waits until a new client is turned away. */
async function refused(port: number): Promise<void> {
  await expect
    .poll(() => login(port).catch((error: { code: string }) => error.code))
    .toMatch(/^(57P03|ECONNREFUSED)$/);
}

async function listeningPort(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

async function closedPort(): Promise<number> {
  const server = createServer();
  const port = await listeningPort(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}
