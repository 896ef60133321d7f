/**
 * A whole scene at level debug, with workers, every command, every route for administrators, and PostgreSQL logging every
 * statement: no token, secret, password or key in anything that anybody wrote.
 *
 * It asks for what no other test asks with secrets about; that no other test brings one to light, the end of the run sees to.
 */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { deriveIdentityKey, derivePassword } from '../../src/session-sql/credentials.ts';
import { exitOf, printed, runCli, startCli } from '../support/cli.ts';
import { LeakSearch, type Secret } from '../support/leaks.ts';
import { privateMembers, recordSecret, recordUpstreamSecret } from '../support/record.ts';
import { freePort } from '../support/sockets.ts';
import { SECRET, startStack, until, type Stack } from '../support/stack.ts';

const NEW_SECRET = 'another-secret-for-tests-of-at-least-32-characters';
const ADMIN_TOKEN = 'an-administrators-token-of-at-least-32-characters';
const SLOTS = 6;

let stack: Stack;
let folder: string;
const postgresLog: string[] = [];
beforeAll(async () => {
  stack = await startStack({
    slots: SLOTS,
    settings: { log_statement: 'all', log_connections: 'on', log_min_error_statement: 'debug5' },
    onLog: (line) => void postgresLog.push(line),
  });
  folder = await mkdtemp(join(tmpdir(), 'pgjot-secrets-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
  await stack?.close();
});

/** Everything that must be nowhere, by what it is. */
function marks(tokens: readonly string[]): Secret[] {
  const found: [kind: string, value: string | Buffer][] = [];
  for (const [index, token] of tokens.entries()) {
    const [, payload = '', signature = ''] = token.split('.');
    found.push([`payload of token ${index}`, payload], [`signature of token ${index}`, signature]);
  }
  const logins = Array.from({ length: SLOTS }, (_, i) => `pgjot_authenticated_${i + 1}`);
  for (const secret of [SECRET, NEW_SECRET]) {
    found.push([`secret ${secret.slice(0, 3)}`, secret]);
    found.push([`identity key ${secret.slice(0, 3)}`, deriveIdentityKey(secret)]);
    for (const role of ['pgjot_control', 'pgjot_lookup', ...logins]) {
      found.push([`password of ${role}`, derivePassword(secret, role)]);
    }
  }
  for (const { kid, privateKey } of stack.issuer.keys) {
    for (const [name, value] of privateMembers(privateKey))
      found.push([`"${name}" of ${kid}`, value]);
  }
  found.push(['token of the administrator', ADMIN_TOKEN]);
  found.push(['password of the superuser', stack.primary.superuser.password]);
  return found.map(([kind, value]) => ({ kind, bytes: Buffer.from(value) }));
}

/** Everything that an administrator may ask, with and without being one; what was answered. */
async function administer(port: number, sub: string): Promise<string[]> {
  const answers: string[] = [];
  const ask = async (path: string, body?: object, token = ADMIN_TOKEN) => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      ...(body !== undefined && Object.keys(body).length > 0 && { body: JSON.stringify(body) }),
    });
    answers.push(JSON.stringify([...response.headers]), await response.text());
    return response.status;
  };
  const views = ['/', '/healthz', '/readyz', '/sessions', '/pools', '/providers', '/metrics'];
  for (const path of views) expect([path, await ask(path)]).toEqual([path, 200]);
  for (const path of views.slice(3)) {
    expect(await ask(path, undefined, `${ADMIN_TOKEN.slice(0, -1)}x`)).toBe(401);
  }
  expect(await ask(`/sessions?sub=${sub}`)).toBe(200);
  expect(await ask('/sessions?limit=no-number')).toBe(422);
  expect(await ask('/sessions/none/terminate', {})).toBe(404);
  expect(await ask('/terminate', { sub })).toBe(200);
  expect(await ask('/pools/main/reconnect', {})).toBe(200);
  expect(await ask('/revocations', { iss: stack.issuer.issuer, jti: 'a-token-of-yesterday' })).toBe(
    204,
  );
  expect(await ask('/reload', {})).toBe(204);
  expect(await ask('/metrics')).toBe(200);
  return answers;
}

test('nothing that anybody writes holds a token, secret, password or key', async () => {
  recordSecret('token of an administrator', ADMIN_TOKEN);
  recordUpstreamSecret(NEW_SECRET, { authenticated: { slots: SLOTS } });
  // With log_statement = 'all' setup's verifiers, from which no password can be computed, are among its parameters.
  postgresLog.length = 0;
  const file = join(folder, 'proxy.config.json');
  const oldFile = (stack.config.upstreams['main'] as { secret: { file: string } }).secret.file;
  const [newFile, adminFile] = [join(dirname(oldFile), 'new'), join(folder, 'admin.token')];
  await writeFile(newFile, NEW_SECRET, { mode: 0o600 });
  await writeFile(adminFile, ADMIN_TOKEN, { mode: 0o600 });
  const [port, adminPort] = [await freePort(), await freePort()];
  const config = {
    ...stack.config,
    listen: { port },
    log: { level: 'debug' },
    admin: { port: adminPort, token: { file: adminFile } },
    upstreams: {
      main: {
        ...stack.config.upstreams['main'],
        nameSessions: true,
        secret: { file: newFile },
        previousSecret: { file: oldFile },
      },
    },
  };
  await writeFile(file, JSON.stringify(config));
  const { host, port: pgPort, user, password } = stack.primary.superuser;
  const url = `postgres://${user}:${password}@${host}:${pgPort}/app`;
  const outputs: string[] = [];
  const cli = async (args: string[], input = '') => {
    const { stdout, stderr } = await runCli([...args, '--config', file], {
      cwd: folder,
      env: { PGJOT_ADMIN_URL: url },
      input,
    });
    outputs.push(stdout, stderr);
    return stdout + stderr;
  };
  const proxy = startCli(['start', '--config', file, '--workers', '2'], {
    cwd: folder,
    env: {
      NODE_OPTIONS: `--report-on-signal --report-signal=SIGUSR2 --report-directory=${folder}`,
    },
  });
  for (const stream of [proxy.stdout, proxy.stderr]) {
    stream?.on('data', (chunk: Buffer) => void outputs.push(chunk.toString()));
  }
  await printed(proxy, /"event":"listening".*\n/);

  const good = await stack.token('alice');
  const renewed = await stack.token('alice', { round: 2 });
  const others = await stack.token('bob');
  const expired = await stack.token('alice', { exp: 1 });
  const forged = `${good.slice(0, -8)}AAAAAAAA`;
  const tokens = [good, renewed, others, expired, forged];
  const as = (token: string, more: pg.ClientConfig = {}) =>
    new pg.Client({ ...stack.as('alice'), host: '127.0.0.1', port, password: token, ...more });
  const attempt = async (client: pg.Client, sql: readonly string[] = []) => {
    client.on('error', () => {});
    try {
      await client.connect();
      for (const one of sql)
        await client.query(one).catch((error: Error) => outputs.push(error.message));
    } catch (error) {
      outputs.push(JSON.stringify(error), (error as Error).message);
    } finally {
      await client.end().catch(() => {});
    }
  };
  for (let round = 0; round < 3; round++) {
    await attempt(as(good), [
      'select auth.user_id()',
      `set pgjot.token = '${renewed}'`,
      `set pgjot.token = '${others}'`,
      `set pgjot.token = '${forged}'`,
    ]);
    for (const token of [expired, forged, others]) await attempt(as(token));
    await attempt(as('', { user: good, database: forged }));
    await attempt(as(good, { application_name: 'x', options: `-c pgjot.token=${good}` }));
  }
  expect(await cli(['explain'], good)).toContain('alice');
  await cli(['explain'], expired);
  await cli(['check', '--online']);
  await cli(['check', '--online', '--json']);
  await cli(['doctor', 'main']);
  expect(await cli(['sql', '--token-file', '-', 'select auth.user_id()'], good)).toContain('alice');
  await cli(['sql', '--token-file', '-', 'select auth.user_id()'], expired);
  await cli(['rotate-secret', 'main', '--dry-run']);
  expect(await cli(['rotate-secret', 'main'])).toContain('checked: the old one is refused');
  await attempt(as(good));
  outputs.push(...(await administer(adminPort, 'alice')));
  await cli(['doctor', 'main', '--json']);
  // Setup's verifiers again.
  const heard = postgresLog.length;
  expect(await cli(['setup', 'main'])).toContain('nothing was missing');
  const ofSetup = postgresLog.splice(heard);
  proxy.kill('SIGHUP');
  proxy.kill('SIGUSR2');
  const reports = await until(async () => {
    const names = (await readdir(folder)).filter((name) => name.startsWith('report.'));
    return names.length > 0 && names;
  });
  proxy.kill('SIGTERM');
  expect(await exitOf(proxy)).toBe(0);

  const events = outputs.join('');
  for (const event of [
    'login',
    'token_renewed',
    'token_refused',
    'secret_changed',
    'session_end',
  ]) {
    expect(events).toContain(`"event":"${event}"`);
  }
  expect(postgresLog.some((line) => line.includes('auth.user_id()'))).toBe(true);
  const written = {
    'the proxy and the commands': events,
    "PostgreSQL's log": postgresLog.join('\n'),
    'a process report': (
      await Promise.all(reports.map((name) => readFile(join(folder, name), 'utf8')))
    ).join('\n'),
    'the proxy of the stack': stack.logs.join('\n'),
    "PostgreSQL's log of setup": ofSetup.join('\n').replaceAll(/SCRAM-SHA-256\S+/g, ''),
  };
  const searching = new LeakSearch(marks(tokens));
  const leaks = Object.entries(written).flatMap(([where, text]) =>
    searching
      .search(Buffer.from(text))
      .map(({ kind, context }) => `${kind} in ${where}: ${context}`),
  );
  expect(leaks).toEqual([]);
}, 60_000);
