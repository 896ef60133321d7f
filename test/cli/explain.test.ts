/** `pgjot explain` as its user sees it: each step of a login with its reason, and nothing that could be used to sign in. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { runCli } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';

let folder: string;
let issuer: Issuer;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-explain-'));
  issuer = await startIssuer();
  const upstream = { host: '127.0.0.1', secret: { env: 'PGJOT_UNUSED' } };
  const roles = { authenticated: { slots: 1 }, analyst: { slots: 1 } };
  const config: ConfigInput = {
    providers: {
      own: {
        ...issuer.provider({ roles: ['authenticated', 'analyst'], roleClaim: '/roles' }),
        issuer: [issuer.issuer, 'spelt-otherwise'],
      },
    },
    upstreams: {
      main: { ...upstream, database: 'app', roles },
      acme: { ...upstream, database: 'acme', roles: { authenticated: { slots: 1 } } },
    },
    routes: [
      { database: 'tenants', byClaim: '/tenant', upstreams: { acme: 'acme' } },
      { database: 'app', upstream: 'main' },
    ],
    revocations: { file: 'revoked.json' },
  };
  await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(config));
  await writeFile(join(folder, 'revoked.json'), '[{"jti":"stolen"}]');
});
afterAll(async () => {
  await issuer?.close();
  await rm(folder, { recursive: true, force: true });
});

const CLAIMS = { sub: 'alice', roles: ['authenticated'], tenant: 'acme' };

async function explained(token: string, ...args: string[]) {
  const file = join(folder, 'token');
  await writeFile(file, `${token}\n`);
  const { status, stdout, stderr } = await runCli(
    ['explain', '--token-file', file, '--json', ...args],
    { cwd: folder },
  );
  expect(stderr).toBe('');
  const signature = token.split('.')[2] ?? '';
  if (signature !== '') expect(stdout).not.toContain(signature);
  const { accepted, steps } = JSON.parse(stdout) as {
    accepted: boolean;
    steps: { step: string; result: string; because: string }[];
  };
  expect(status).toBe(accepted ? 0 : 1);
  return { accepted, steps, failed: steps.filter(({ result }) => result === 'failed') };
}

describe('pgjot explain', () => {
  it('says step by step why a token is accepted, and where its holder goes', async () => {
    const token = issuer.mint(CLAIMS);

    const { accepted, steps } = await explained(token, '--database', 'tenants');

    expect(accepted).toBe(true);
    expect(steps.map(({ step, because }) => `${step}: ${because}`)).toEqual([
      expect.stringMatching(/^form: a JWT of \d+ bytes, alg \w+, kid /),
      'issuer: iss is that of provider "own"',
      'signature: one of its keys has signed it',
      expect.stringMatching(/^claims: sub "alice"; expires in \d+ s, tolerance included$/),
      'revocation: not in the file; a running proxy may have been told otherwise',
      'route: database "tenants" goes to upstream "acme", by routes.0',
      'role: "authenticated" is granted',
    ]);
  });

  it('knows every spelling of an issuer', async () => {
    const token = issuer.mint({ ...CLAIMS, iss: 'spelt-otherwise' });

    const { accepted, steps } = await explained(token, '--database', 'app');

    expect(accepted).toBe(true);
    expect(steps[1]?.because).toBe('iss is that of provider "own"');
  });

  it('prints for people, and reads standard input', async () => {
    const { stdout, status } = await runCli(['explain', '--database', 'app'], {
      cwd: folder,
      input: issuer.mint(CLAIMS),
    });

    expect(status).toBe(0);
    expect(stdout).toMatch(/^\+ form {8}a JWT of /);
    expect(stdout).toMatch(/\n\+ route {7}database "app" goes to upstream "main", by routes.1\n/);
    expect(stdout).toMatch(/\naccepted\n$/);
  });

  it.each<[string, () => string, readonly string[], string, RegExp]>([
    [
      'a part is missing',
      () => issuer.mint(CLAIMS).split('.').slice(0, 2).join('.'),
      [],
      'form',
      /2 parts/,
    ],
    [
      "it is another issuer's",
      () => issuer.mint({ ...CLAIMS, iss: 'https://evil.example' }),
      [],
      'issuer',
      /iss "https:\/\/evil.example" is not that of any provider/,
    ],
    [
      'its signature is not good',
      () => `${issuer.mint(CLAIMS).slice(0, -30)}${'A'.repeat(30)}`,
      [],
      'signature',
      /does not verify|jose refused/,
    ],
    [
      'it has expired',
      () => issuer.mint(CLAIMS, { expiresIn: -3_600 }),
      [],
      'claims',
      /The token has expired/,
    ],
    [
      'it is for another audience',
      () => issuer.mint({ ...CLAIMS, aud: 'other' }),
      [],
      'claims',
      /"aud" is missing or names another audience/,
    ],
    [
      'it was revoked',
      () => issuer.mint({ ...CLAIMS, jti: 'stolen' }),
      [],
      'revocation',
      /revoked.json names it/,
    ],
    [
      'its claim does not grant the role',
      () => issuer.mint(CLAIMS),
      ['--role', 'analyst'],
      'role',
      /the claim at \/roles does not name role "analyst"/,
    ],
    [
      'its tenant has no upstream',
      () => issuer.mint({ ...CLAIMS, tenant: 'main' }),
      ['--database', 'tenants'],
      'route',
      /chooses none of routes.0.upstreams/,
    ],
    [
      'the database has no route',
      () => issuer.mint(CLAIMS),
      ['--database', 'nothing'],
      'route',
      /no route for database "nothing"/,
    ],
  ])('says that %s', async (_, token, args, step, because) => {
    const { accepted, failed } = await explained(token(), ...args);

    expect(accepted).toBe(false);
    expect(failed[0]).toMatchObject({ step, because: expect.stringMatching(because) });
  });

  it('leaves open what depends on a signature that nobody can check now', async () => {
    const down = await startIssuer();
    const config = join(folder, 'down.config.json');
    const base = { host: '127.0.0.1', secret: { env: 'PGJOT_UNUSED' }, database: 'app' };
    await writeFile(
      config,
      JSON.stringify({
        providers: { own: down.provider({ roles: ['authenticated'] }) },
        upstreams: { main: { ...base, roles: { authenticated: { slots: 1 } } } },
      }),
    );
    const token = down.mint({ sub: 'alice' });
    await down.close();

    const { steps } = await explained(token, '--config', config);

    expect(steps.slice(2)).toEqual([
      {
        step: 'signature',
        result: 'failed',
        because: expect.stringMatching(/no usable keys of provider "own"/),
      },
      { step: 'claims', result: 'unknown', because: "they are anybody's without a signature" },
    ]);
  });

  it('asks for a token where there is none', async () => {
    const { status, stderr } = await runCli(['explain'], { cwd: folder, input: '\n' });

    expect({ status, stderr }).toEqual({
      status: 64,
      stderr: 'pgjot: there is no token on standard input\n',
    });
  });
});
