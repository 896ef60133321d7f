/**
 * Signing in by OAUTHBEARER with libpq itself, from the first connection, which only asks where to get a token, to the rows.
 *
 * The client is `oauth-client.c`, built here against the libpq of the PostgreSQL that the tests run on.
 */
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { execFile } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { binariesOf } from '../support/postgres.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { readDocument } from '../docs/document.ts';
import { run, type Outcome } from './command.ts';

const ISSUER = 'https://id.example.com/realms/app';
const DISCOVERY_URI = `${ISSUER}/.well-known/openid-configuration`;
const SQL = 'select auth.user_id()';

/** A block of the page on all this, which is tried here. */
function documented(language: string, remark: string): string {
  const block = readDocument('oauth.md').find(
    (one) => one.language === language && one.remark === remark,
  );
  if (block === undefined) throw new Error(`docs/oauth.md has no ${language} ${remark}`);
  return block.code;
}

const { listen } = JSON.parse(documented('json', 'configuration')) as Pick<ConfigInput, 'listen'>;

const folder = await mkdtemp(join(tmpdir(), 'pgjot-oauth-'));
const program = await build(folder);

/** Builds the client; where that cannot be, says why and returns undefined. */
async function build(into: string): Promise<string | undefined> {
  const lib = join(binariesOf(undefined), '..', 'lib');
  const library = join(lib, process.platform === 'darwin' ? 'libpq.5.dylib' : 'libpq.so.5');
  const absent = (what: string) => {
    console.log(`skipped OAUTHBEARER with libpq: ${what}`);
    return undefined;
  };
  if (!existsSync(library)) return absent(`no libpq in ${lib}`);
  const source = fileURLToPath(new URL('oauth-client.c', import.meta.url));
  const client = join(into, 'oauth-client');
  try {
    await promisify(execFile)('cc', ['-o', client, source, library, `-Wl,-rpath,${lib}`]);
  } catch (error) {
    const { code, stderr } = error as { code?: string | number; stderr?: string };
    if (code === 'ENOENT') return absent('no cc on the PATH');
    // A libpq before 18 has no PQsetAuthDataHook.
    if (stderr?.includes('PQsetAuthDataHook')) return absent('no libpq 18');
    throw error;
  }
  return client;
}

afterAll(() => rm(folder, { recursive: true }));

describe.skipIf(program === undefined)('libpq 18', () => {
  let stack: Stack;

  beforeAll(async () => {
    stack = await startStack({
      tls: true,
      listen: {
        ...listen,
        authenticationRules: [
          ...(listen?.authenticationRules ?? []),
          { user: 'nobody', method: 'oauth' },
        ],
      },
      provider: { issuer: ISSUER },
    });
  });
  afterAll(() => stack.close());

  type When = 'at-once' | 'later' | 'never';

  /** Signs alice in, with these changes of the connection string. */
  async function connect(
    when: When,
    changes: Record<string, string> = {},
    token?: string,
  ): Promise<Outcome> {
    const settings = {
      host: 'sso.db.example.com',
      hostaddr: stack.host,
      port: String(stack.port),
      dbname: stack.database,
      user: 'authenticated',
      sslmode: 'require',
      oauth_issuer: ISSUER,
      oauth_client_id: 'app',
      ...changes,
    };
    const text = Object.entries(settings).map(([name, value]) => `${name}='${value}'`);
    return run(program as string, [text.join(' '), when, SQL], {
      TOKEN: token ?? (await stack.token('alice', { iss: ISSUER })),
    });
  }

  const ASKED = `libpq 18\nasked ${DISCOVERY_URI} openid todos\n`;

  it.each(['at-once', 'later'] as const)(
    'asks where to get a token, and comes back with one that it has %s',
    async (when) => {
      const since = stack.logs.length;

      const outcome = await connect(when);

      expect(outcome).toEqual({ code: 0, stdout: `${ASKED}value alice\n`, stderr: '' });
      const logins = stack.logs.slice(since).filter((line) => line.includes('"event":"login"'));
      expect(logins.map((line) => JSON.parse(line) as unknown)).toMatchObject([
        { outcome: 'discovery', reason: 'oauth_discovery', sqlstate: '28000', level: 30 },
        { outcome: 'accepted', subject: 'alice', role: 'authenticated' },
      ]);
    },
  );

  it('signs in with the connection string of the documents', async () => {
    const [, text = ''] = /^psql "([^"]*)"$/.exec(documented('sh', 'psql')) ?? [];
    // The name leads here instead, to a certificate that the system does not know.
    const here = `hostaddr=${stack.host} port=${stack.port} sslmode=require sslrootcert=''`;

    const outcome = await run(program as string, [`${text} ${here}`, 'later', SQL], {
      TOKEN: await stack.token('alice', { iss: ISSUER }),
    });

    expect(outcome).toEqual({ code: 0, stdout: `${ASKED}value alice\n`, stderr: '' });
  });

  it('connects once where it knows where to get a token', async () => {
    const since = stack.logs.length;

    const outcome = await connect('at-once', { oauth_issuer: DISCOVERY_URI });

    expect(outcome).toEqual({
      code: 0,
      stdout: `libpq 18\nasked ${DISCOVERY_URI} -\nvalue alice\n`,
      stderr: '',
    });
    expect(stack.logs.slice(since).filter((line) => line.includes('discovery'))).toEqual([]);
  });

  it('is content where it insists on OAuth, and where it insists on anything else it is not', async () => {
    const oauth = await connect('at-once', { require_auth: 'oauth' });
    const password = await connect('at-once', { require_auth: 'password,scram-sha-256' });

    expect(oauth).toEqual({ code: 0, stdout: `${ASKED}value alice\n`, stderr: '' });
    expect(password.code).toBe(1);
    expect(password.stderr).toMatch(/requirement "password,scram-sha-256" failed/);
  });

  it('is asked for a password on the same port by another name, and insists on OAuth in vain', async () => {
    const host = { host: 'db.example.com' };
    const token = await stack.token('alice', { iss: ISSUER });

    const password = await connect('never', { ...host, password: token });
    const oauth = await connect('at-once', { ...host, password: token, require_auth: 'oauth' });

    expect(password).toEqual({ code: 0, stdout: 'libpq 18\nvalue alice\n', stderr: '' });
    expect(oauth.code).toBe(1);
    expect(oauth.stderr).toMatch(
      /requirement "oauth" failed: server requested a cleartext password/,
    );
  });

  it('prints why its token was refused, and nothing of the token', async () => {
    const token = await stack.token('alice', { iss: ISSUER }, { expiresIn: -3_600 });

    const { code, stdout, stderr } = await connect('at-once', {}, token);

    expect({ code, stdout }).toEqual({ code: 1, stdout: ASKED });
    expect(stderr).toMatch(
      /FATAL: {2}OAuth bearer authentication failed for user "authenticated"\nDETAIL: {2}The token has expired\.\n$/,
    );
    for (const part of token.split('.')) expect(stderr).not.toContain(part);
    expect(await stack.logged((line) => line['reason'] === 'token_expired')).toMatchObject({
      outcome: 'refused',
      sqlstate: '28000',
    });
  });

  it('takes no other issuer for its own', async () => {
    const { code, stderr } = await connect('at-once', { oauth_issuer: 'https://id.example.com' });

    expect(code).toBe(1);
    expect(stderr).toContain(`is incompatible with oauth_issuer (https://id.example.com)`);
  });

  it('says so where there is no token to be had', async () => {
    const { code, stdout, stderr } = await connect('never');

    expect({ code, stdout }).toEqual({ code: 1, stdout: ASKED });
    expect(stderr).toContain('user-defined OAuth flow failed');
  });

  it('hears that its role is not its own only when its token was found good', async () => {
    const { code, stderr } = await connect('at-once', { user: 'nobody' });

    expect(code).toBe(1);
    expect(stderr).toMatch(/FATAL: {2}role "nobody" is not permitted to log in\n$/);
  });

  it('is told that TLS is needed before it is asked for anything', async () => {
    const { code, stdout, stderr } = await connect('at-once', {
      sslmode: 'disable',
      user: 'nobody',
    });

    expect({ code, stdout }).toEqual({ code: 1, stdout: 'libpq 18\n' });
    expect(stderr).toMatch(/FATAL: {2}connection requires TLS\n$/);
  });
});
