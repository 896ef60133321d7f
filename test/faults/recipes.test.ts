/**
 * The operator's guide, as somebody follows it who has not read the source: every block is run in its order, against a proxy
 * with a client at work, and does what is written beside it.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { readDocument } from '../docs/document.ts';
import { exitOf, linkModules, runShell, startCli, type CliResult } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';
import { fromParts, type Closers } from '../support/parts.ts';
import { startTestPostgres, withSuperuser } from '../support/postgres.ts';
import { freePort } from '../support/sockets.ts';
import { SECRET, until } from '../support/stack.ts';

const [makeSecret, bothSecrets, rotate, revoke, afterLeak, ...others] = readDocument(
  'operations.md',
).map(({ code }) => code) as [string, string, string, string, string, ...string[]];

let house: Awaited<ReturnType<typeof start>> & { close(): Promise<void> };
beforeAll(async () => {
  house = await fromParts(start);
});
afterAll(() => house?.close());

async function start(closers: Closers) {
  const postgres = await startTestPostgres({ settings: { authentication_timeout: '2s' } });
  closers.push(() => postgres.stop());
  const issuer = await startIssuer();
  closers.push(() => issuer.close());
  await withSuperuser(postgres, (superuser) => superuser.query('create database app'));
  await withSuperuser(
    postgres,
    async (admin) => {
      await install(admin, { secret: SECRET, roles: { authenticated: { slots: 20 } } });
      await installDemo(admin);
    },
    'app',
  );
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-recipes-'));
  closers.push(() => rm(folder, { recursive: true, force: true }));
  linkModules(folder);
  await writeFile(join(folder, 'main.secret'), SECRET, { mode: 0o600 });
  const adminPort = await freePort();
  const configure = (secrets: object) =>
    writeFile(
      join(folder, 'proxy.config.json'),
      JSON.stringify(configOf(issuer, postgres.port, adminPort, secrets)),
    );
  await configure({ secret: { file: 'main.secret' } });
  const proxy = startCli(['start'], { cwd: folder });
  closers.push(async () => {
    proxy.kill('SIGTERM');
    await exitOf(proxy);
  });
  const log: Record<string, unknown>[] = [];
  proxy.stdout?.on('data', (chunk: Buffer) => {
    for (const line of chunk.toString().trim().split('\n')) log.push(JSON.parse(line));
  });
  const logged = (event: string, from = 0) =>
    until(() => log.slice(from).find((line) => line['event'] === event));
  const { port } = (await logged('listening')) as { port: number };
  const { user, password } = postgres.superuser;
  const env = {
    PATH: `${join(folder, 'bin')}:${process.env['PATH']}`,
    PGJOT_ADMIN_URL: `postgres://${user}:${password}@127.0.0.1:${postgres.port}/app`,
  };
  execFileSync('mkdir', [join(folder, 'bin')]);
  await writeFile(
    join(folder, 'bin', 'pgjot'),
    `#!/bin/sh\nexec ${process.execPath} ${join(import.meta.dirname, '../../dist/cli/main.js')} "$@"\n`,
    { mode: 0o755 },
  );
  return {
    folder,
    issuer,
    log,
    logged,
    configure,
    /** A block, with the names of this place for those that the document makes up. */
    run(block: string): Promise<CliResult> {
      const here = block
        .replaceAll('127.0.0.1:9187', `127.0.0.1:${adminPort}`)
        .replaceAll('https://id.example.com', issuer.url);
      return runShell(`set -e\n${here}`, { cwd: folder, env });
    },
    login: (sub: string) =>
      RawClient.login({ host: '127.0.0.1', port, database: 'app' }, issuer.mint({ sub })),
  };
}

function configOf(issuer: Issuer, port: number, adminPort: number, secrets: object): ConfigInput {
  const upstream = {
    host: '127.0.0.1',
    port,
    database: 'app',
    roles: { authenticated: { slots: 20 } },
    ...(secrets as { secret: { file: string } }),
  };
  return {
    listen: { port: 0 },
    admin: { port: adminPort },
    providers: { own: issuer.provider({ roles: ['authenticated'] }) },
    upstreams: { main: upstream },
  };
}

async function reload(secrets: object): Promise<void> {
  const from = house.log.length;
  await house.configure(secrets);
  await house.logged('reloaded', from);
}

test('has no other block than those that are run here', () => {
  expect(others).toEqual([]);
});

test('rotates the secret: a client that is in stays in, and newcomers never fail', async () => {
  const inside = await house.login('alice');
  expect(await house.run(makeSecret)).toMatchObject({ status: 0, stderr: '' });
  const file = join(house.folder, 'main.secret.new');
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  expect((await readFile(file, 'utf8')).trim()).toMatch(/^[0-9a-f]{64}$/);

  await reload(JSON.parse(`{${bothSecrets}}`));
  (await house.login('bob')).destroy();
  await house.logged('secret_changed');
  const checked = await house.run('pgjot check --online');
  expect(checked).toMatchObject({ status: 0 });
  expect(checked.stdout).toContain('is what the server still has: run "pgjot rotate-secret main"');

  const rotated = await house.run(rotate);
  expect(rotated).toMatchObject({ status: 0, stderr: '' });
  expect(rotated.stdout).toContain('checked: the old one is refused');
  (await house.login('bob')).destroy();

  await reload({ secret: { file: 'main.secret.new' } });
  (await house.login('carol')).destroy();
  expect((await inside.ask('select 1')).sqlstate).toBeUndefined();
  inside.destroy();
});

test('revokes a token that has leaked: its session ends, and it is accepted no more', async () => {
  const alice = await house.login('alice');
  const bob = await house.login('bob');
  // Tokens are as old as the second that they were made in.
  await until(async () => {
    const { status } = await house.run(revoke);
    expect(status).toBe(0);
    return alice.closed;
  });

  expect((await bob.ask('select 1')).sqlstate).toBeUndefined();
  bob.destroy();
});

test('ends every session after a leak of the secret', async () => {
  const alice = await house.login('bob');
  await writeFile(
    join(house.folder, 'main.secret'),
    await readFile(join(house.folder, 'main.secret.new')),
  );
  expect(await house.run(makeSecret)).toMatchObject({ status: 0 });
  await reload(JSON.parse(`{${bothSecrets}}`));

  const rotated = await house.run(afterLeak);

  expect(rotated).toMatchObject({ status: 0, stderr: '' });
  expect(rotated.stdout).toMatch(/^ended [1-9]\d* sessions$/m);
  await until(() => alice.closed);
  (await house.login('bob')).destroy();
});
