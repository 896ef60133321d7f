/** `pgjot provider`, with issuers that are as they should be and others; as a process of its own where its exit status counts. */
import { writeFileSync } from 'node:fs';
import {
  chmod,
  chown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CommanderError } from 'commander';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { CommandError } from '../../src/cli/failure.ts';
import { providerCommand } from '../../src/cli/provider.ts';
import { loadConfig } from '../../src/config.ts';
import { ConfigError } from '../../src/errors.ts';
import { type Issuer, startIssuer } from '../support/issuer.ts';
import { type CliResult, runCli } from '../support/cli.ts';

let folder: string;
let file: string;
let issuer: Issuer;
let liar: Server;
let answer: RequestListener;
let asked: number;

const BEFORE = `{
  "listen": { "port": 0 },
  "providers": {
    "own": {
      "issuer": "https://id.example.com",
      "jwksUri": "https://id.example.com/jwks.json",
      "audience": ["my-app"],
      "roles": ["authenticated"]
    }
  },
  "upstreams": {
    "main": {
      "host": "127.0.0.1", "database": "app", "secret": { "env": "PGJOT_MAIN_SECRET" },
      "roles": { "authenticated": { "slots": 5 }, "analyst": { "slots": 1 } }
    }
  },
  "jwks": { "timeoutMs": 700, "maxBytes": 100000 }
}
`;

beforeAll(async () => {
  issuer = await startIssuer();
  liar = createServer((request, response) => {
    asked += 1;
    answer(request, response);
  });
  await new Promise<void>((resolve) => liar.listen(0, '127.0.0.1', resolve));
});

afterAll(async () => {
  await issuer.close();
  liar.closeAllConnections();
  await new Promise((resolve) => liar.close(resolve));
});

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-provider-'));
  file = join(folder, 'proxy.config.json');
  await writeFile(file, BEFORE);
  asked = 0;
});

afterEach(async () => {
  issuer.breakDown(undefined);
  issuer.publish(undefined);
  await rm(folder, { recursive: true, force: true });
});

/** Runs the command here, which is quicker than a process; `file` is the configuration, and is left out of what is said. */
async function run(...args: string[]): Promise<CliResult> {
  const said = { stdout: '', stderr: '' };
  const heard = (stream: keyof typeof said) => (text: string) => void (said[stream] += text);
  const line = (stream: keyof typeof said) => (text: string) => heard(stream)(`${text}\n`);
  const quiet = [
    vi.spyOn(console, 'log').mockImplementation(line('stdout')),
    vi.spyOn(console, 'error').mockImplementation(line('stderr')),
  ];
  const write = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    heard('stdout')(String(text));
    return true;
  });
  const command = providerCommand();
  for (const one of [command, ...command.commands]) {
    one.exitOverride().configureOutput({ writeErr: heard('stderr'), writeOut: heard('stdout') });
  }
  const [verb = '', ...others] = args;
  let status = 0;
  try {
    await command.parseAsync([verb, '--config', file, ...others], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) status = 64;
    else if (error instanceof ConfigError) {
      status = 78;
      for (const { path, message } of error.problems) line('stderr')(`pgjot: ${path}: ${message}`);
    } else if (error instanceof CommandError) {
      status = error.exitCode;
      line('stderr')(`pgjot: ${error.message}`);
    } else throw error;
  } finally {
    for (const spy of [...quiet, write]) spy.mockRestore();
  }
  const short = (text: string) => text.replaceAll(`${folder}/`, '');
  return { status, stdout: short(said.stdout), stderr: short(said.stderr) };
}

const textNow = () => readFile(file, 'utf8');
const providersNow = () => loadConfig(file).providers;
const liarUrl = () => `http://127.0.0.1:${(liar.address() as AddressInfo).port}`;

describe('pgjot provider add', () => {
  it('adds a preset and leaves the rest of the file as it was', async () => {
    const result = await run(
      'add',
      'clerk',
      '--preset',
      'clerk',
      '--domain',
      'c.example.com',
      '--offline',
    );

    expect(result).toEqual({
      status: 0,
      stdout: 'added provider "clerk" to proxy.config.json\nits keys were not looked at\n',
      stderr: '',
    });
    expect(await textNow()).toBe(
      BEFORE.replace(
        '    }\n  },\n  "upstreams"',
        '    },\n    "clerk": { "preset": "clerk", "domain": "c.example.com", "roles": ["authenticated"] }\n  },\n  "upstreams"',
      ),
    );
    expect(providersNow()['clerk']?.issuer).toBe('https://c.example.com');
  });

  it('hands every setting on to the preset', async () => {
    const results = [
      await run(
        'add',
        'kc',
        '--preset',
        'keycloak',
        '--domain',
        'k.example.com',
        '--realm',
        'r',
        '--authorized-party',
        'a',
        '--authorized-party',
        'b',
        '--role',
        'analyst',
        '--role-claim',
        '/realm_access/roles',
        '--offline',
      ),
      await run(
        'add',
        'aws',
        '--preset',
        'cognito',
        '--user-pool',
        'eu-west-1_AbC',
        '--client',
        'c',
        '--tokens',
        'id',
        '--role',
        'analyst',
        '--role',
        'authenticated',
        '--offline',
      ),
      await run(
        'add',
        'goo',
        '--preset',
        'google',
        '--audience',
        'a',
        '--audience',
        'b',
        '--hosted-domain',
        'example.com',
        '--offline',
      ),
      await run(
        'add',
        'fire',
        '--preset',
        'firebase',
        '--project',
        'p',
        '--tenant',
        't',
        '--offline',
      ),
    ];

    expect(results.map(({ status, stderr }) => [status, stderr])).toEqual(
      results.map(() => [0, '']),
    );
    expect(providersNow()).toMatchObject({
      kc: {
        authorizedParties: ['a', 'b'],
        roles: ['analyst'],
        roleClaim: '/realm_access/roles',
        issuer: 'https://k.example.com/realms/r',
      },
      aws: {
        audience: ['c'],
        claims: { '/token_use': ['id'] },
        roles: ['analyst', 'authenticated'],
      },
      goo: { audience: ['a', 'b'], claims: { '/hd': ['example.com'] } },
      fire: { audience: ['p'], claims: { '/firebase/tenant': ['t'] } },
    });
  });

  it('finds the keys of an issuer by discovery and says how many are fit', async () => {
    const [first] = issuer.keys;
    issuer.publish([
      ...issuer.keys.map(({ jwk }) => jwk),
      { ...first?.jwk, kid: 'enc', use: 'enc' },
    ]);

    const result = await run('add', 'new', '--issuer', issuer.url, '--audience', 'a');

    expect(result).toEqual({
      status: 0,
      stdout: `added provider "new" to proxy.config.json\nissuer ${issuer.url}, keys at ${issuer.jwksUri}: 3 are fit\n`,
      stderr: 'pgjot: key kid "enc" is not used: its use is not "sig"\n',
    });
    expect(providersNow()['new']).toMatchObject({
      issuer: issuer.url,
      jwksUri: issuer.jwksUri,
      audience: ['a'],
    });
  });

  it('takes the address of the keys instead, and asks for nothing else', async () => {
    answer = (_, response) => response.end(JSON.stringify(issuer.jwks));

    const result = await run(
      'add',
      'new',
      '--issuer',
      'any-name',
      '--jwks',
      `${liarUrl()}/keys`,
      '--any-audience',
    );

    expect(result.status).toBe(0);
    expect(result.stdout).toContain(': 3 are fit\n');
    expect(asked).toBe(1);
    expect(providersNow()['new']).toMatchObject({ issuer: 'any-name', anyAudience: true });
  });

  it('names the algorithm where it is none of the default ones', async () => {
    answer = (request, response) =>
      response.end(
        JSON.stringify(
          request.url === '/keys'
            ? issuer.jwks
            : {
                issuer: liarUrl(),
                jwks_uri: `${liarUrl()}/keys`,
                id_token_signing_alg_values_supported: ['PS256', 'HS256', 7],
              },
        ),
      );

    await run('add', 'new', '--issuer', liarUrl(), '--audience', 'a');

    expect(providersNow()['new']?.algorithms).toEqual(['PS256']);
  });

  it('prints the file instead of writing it', async () => {
    const args = ['add', 'new', '--issuer', issuer.url, '--audience', 'a'];

    const { status, stdout, stderr } = await run(...args, '--dry-run');
    const untouched = await textNow();
    await run(...args);

    expect([status, untouched]).toEqual([0, BEFORE]);
    expect(stderr).toContain(': 3 are fit\n');
    expect(await textNow()).toBe(stdout);
  });

  it('says in JSON what it did', async () => {
    const { stdout } = await run('add', 'new', '--issuer', issuer.url, '--audience', 'a', '--json');

    expect(JSON.parse(stdout)).toEqual({
      provider: 'new',
      file: 'proxy.config.json',
      written: true,
      settings: {
        issuer: issuer.url,
        jwksUri: issuer.jwksUri,
        audience: ['a'],
        roles: ['authenticated'],
      },
      issuers: [{ issuer: issuer.url, jwksUri: issuer.jwksUri, keys: 3, problems: [] }],
    });
  });

  it.each<[what: string, fault: Parameters<Issuer['breakDown']>[0], reason: string]>([
    ['are not there', { kind: 'status', status: 404 }, 'the answer has status 404'],
    ['are none', { kind: 'body', body: '{"keys":[]}' }, 'no key in the JWK Set is fit'],
    ['do not come', { kind: 'hang' }, 'no answer within 700 ms'],
  ])('adds a provider whose keys %s, and says so', async (_, fault, reason) => {
    issuer.breakDown(fault);

    const result = await run('add', 'new', '--issuer', issuer.url, '--audience', 'a');

    expect(result.status).toBe(0);
    expect(result.stderr).toBe(
      `pgjot: issuer ${issuer.url}, keys at ${issuer.jwksUri}: could not be checked: ${reason}\n`,
    );
    expect(providersNow()['new']).toBeDefined();
  });

  it('keeps the mode of the file, and a link to it', async () => {
    await mkdir(join(folder, 'real'));
    const real = join(folder, 'real', 'config.json');
    await writeFile(real, BEFORE);
    await chmod(real, 0o640);
    await rm(file);
    await symlink(real, file);

    await run('add', 'new', '--preset', 'clerk', '--domain', 'c.example.com', '--offline');

    expect((await lstat(file)).isSymbolicLink()).toBe(true);
    expect((await stat(real)).mode & 0o777).toBe(0o640);
    expect(providersNow()['new']).toBeDefined();
  });

  it('keeps a mode that the umask would not let it have', async () => {
    await chmod(file, 0o666);

    await run('add', 'new', '--preset', 'clerk', '--domain', 'c.example.com', '--offline');

    expect((await stat(file)).mode & 0o777).toBe(0o666);
  });

  it('keeps the owner of the file, where it may', async () => {
    if (process.getuid?.() !== 0) return console.warn('not tested: only root may give files away');
    await chown(file, 1234, 2345);

    await run('add', 'new', '--preset', 'clerk', '--domain', 'c.example.com', '--offline');

    expect(await stat(file)).toMatchObject({ uid: 1234, gid: 2345 });
    expect(providersNow()['new']).toBeDefined();
  });

  it('leaves the files beside it alone, and none behind', async () => {
    await writeFile(`${file}.${process.pid}.tmp`, 'of somebody else');

    await run('add', 'new', '--preset', 'clerk', '--domain', 'c.example.com', '--offline');

    expect(providersNow()['new']).toBeDefined();
    expect(await readFile(`${file}.${process.pid}.tmp`, 'utf8')).toBe('of somebody else');
    expect(await readdir(folder)).toHaveLength(2);
  });

  it('overwrites nothing that was written while it asked for the keys', async () => {
    const theirs = BEFORE.replace('700', '800');
    answer = (_, response) => {
      writeFileSync(file, theirs);
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ keys: issuer.keys.map(({ jwk }) => jwk) }));
    };

    const options = [
      '--issuer',
      'https://x.example',
      '--jwks',
      `${liarUrl()}/k`,
      '--audience',
      'a',
    ];
    const { status, stderr } = await run('add', 'new', ...options);

    expect(status).toBe(1);
    expect(stderr).toBe('pgjot: proxy.config.json was changed meanwhile; nothing is written\n');
    expect(await textNow()).toBe(theirs);
    expect(await readdir(folder)).toHaveLength(1);
  });
});

describe('pgjot provider add writes nothing', () => {
  afterEach(async () => {
    if ((await textNow()) !== BEFORE) throw new Error('the file has changed');
  });

  it('where the name is taken', async () => {
    const result = await run(
      'add',
      'own',
      '--preset',
      'clerk',
      '--domain',
      'c.example.com',
      '--offline',
    );

    expect(result).toEqual({
      status: 1,
      stdout: '',
      stderr: 'pgjot: proxy.config.json has a provider "own" already; nothing is changed\n',
    });
  });

  it.each<[args: string[], reason: RegExp]>([
    [[], /needs --preset or --issuer/],
    [['--jwks', 'https://x.example.com'], /needs --preset or --issuer/],
    [['--preset', 'clerk', '--issuer', 'x'], /do not go together/],
    [['--preset', 'clerk', '--jwks', 'https://x.example.com'], /do not go together/],
    [['--preset', 'clerk'], /^pgjot: domain is missing: preset "clerk" needs it\n$/],
    [['--preset', 'okta'], /Allowed choices are clerk/],
    [
      ['--preset', 'entra', '--tenant', 'common', '--audience', 'a'],
      /^pgjot: tenant must be the tenant's id/,
    ],
    [
      ['--preset', 'google', '--audience', 'a', '--any-audience'],
      /^pgjot: .*anyAudience cannot be/,
    ],
    [
      ['--preset', 'clerk', '--domain', 'c.example.com', '--role', 'nobody'],
      /"nobody" is not a role of any upstream/,
    ],
    [
      ['--issuer', 'https://id.example.com', '--jwks', 'https://x.example.com', '--audience', 'a'],
      /is the issuer of providers\.own too/,
    ],
    [
      ['--issuer', 'http://id.example.net', '--audience', 'a'],
      /jwksUri must be https|--issuer must be an https URL/,
    ],
    [['--issuer', 'not a url', '--audience', 'a'], /Invalid URL|--issuer must be/],
  ])('for a usage like %j', async (args, reason) => {
    const { status, stdout, stderr } = await run('add', 'new', ...args);

    expect([status, stdout]).toEqual([64, '']);
    expect(stderr).toMatch(reason);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  });

  it('under a name that is none', async () => {
    const names = ['-x', '1', 'a b', 'a/b', '__proto__', 'ä', 'x'.repeat(64)];
    const results = [];
    for (const name of names) {
      results.push(await run('add', '--preset', 'clerk', '--domain', 'c.example.com', '--', name));
    }

    expect(results.map(({ status }) => status)).toEqual(names.map(() => 64));
  });

  it.each<[what: string, body: (url: string) => string, reason: RegExp]>([
    [
      'with another issuer',
      (url) => JSON.stringify({ issuer: `${url}/`, jwks_uri: `${url}/keys` }),
      /the issuer there is "http:.*\/", not "http:/,
    ],
    [
      'with no issuer',
      (url) => JSON.stringify({ jwks_uri: `${url}/keys` }),
      /the issuer there is nobody/,
    ],
    [
      'without keys',
      (url) => JSON.stringify({ issuer: url }),
      /jwks_uri is missing or not an https URL/,
    ],
    [
      'with keys in the clear',
      (url) => JSON.stringify({ issuer: url, jwks_uri: 'http://id.example.com/keys' }),
      /jwks_uri is missing or not an https URL/,
    ],
    [
      'with keys in a file',
      (url) => JSON.stringify({ issuer: url, jwks_uri: 'file:///etc/passwd' }),
      /jwks_uri is missing or not an https URL/,
    ],
    ['that is null', () => 'null', /the issuer there is nobody/],
    ['that is a page', () => '<html>', /the answer is not JSON/],
  ])('for a document %s', async (_, body, reason) => {
    answer = (__, response) => response.end(body(liarUrl()));

    const { status, stderr } = await run('add', 'new', '--issuer', liarUrl(), '--audience', 'a');

    expect(status).toBe(1);
    expect(stderr).toMatch(reason);
    expect(asked).toBe(1);
  });

  it.each<[what: string, answer: RequestListener, reason: RegExp]>([
    ['has no document', (_, response) => response.writeHead(404).end(), /status 404/],
    [
      'leads elsewhere',
      (_, response) => response.writeHead(302, { location: issuer.url }).end(),
      /redirect \(302\)/,
    ],
    ['has too much to say', (_, response) => response.end(' '.repeat(200_000)), /longer than/],
    ['says nothing', () => {}, /no answer within 700 ms/],
    ['hangs up', (request) => request.socket.destroy(), /hang up|ECONNRESET/],
  ])('for an issuer that %s', async (_, behaviour, reason) => {
    answer = behaviour;

    const { status, stderr } = await run('add', 'new', '--issuer', liarUrl(), '--audience', 'a');

    expect(status).toBe(69);
    expect(stderr).toMatch(reason);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  });

  it('before anything else of the provider is right, and asks nobody', async () => {
    answer = (_, response) => response.end('{}');

    const { status, stderr } = await run('add', 'new', '--issuer', liarUrl());

    expect(status).toBe(64);
    expect(stderr).toMatch(/audience is missing/);
    expect(asked).toBe(0);
  });
});

describe('pgjot provider with a configuration that is wrong', () => {
  it.each<[what: string, text: string | undefined, reason: RegExp]>([
    [
      'without an object of providers',
      BEFORE.replace(/"providers": \{[^]*?\n {2}\},/, '"providers": [],'),
      /providers: /,
    ],
    ['not there', undefined, /cannot be read \(ENOENT\)/],
    ['not JSON', '{', /is not JSON/],
    ['a list', '[]', /expected object|is not a configuration/],
    ['wrong elsewhere', BEFORE.replace('"port": 0', '"port": "x"'), /^pgjot: listen\.port: /],
  ])('that is %s exits with 78 and changes nothing', async (_, text, reason) => {
    await rm(file);
    if (text !== undefined) await writeFile(file, text);

    const added = await run(
      'add',
      'new',
      '--preset',
      'clerk',
      '--domain',
      'c.example.com',
      '--role',
      'authenticated',
      '--offline',
    );
    const listed = await run('list');

    expect([added.status, listed.status]).toEqual([78, 78]);
    expect(added.stderr).toMatch(reason);
    if (text !== undefined) expect(await textNow()).toBe(text);
  });

  it('adds the first provider, without which no configuration is right', async () => {
    await writeFile(file, BEFORE.replace(/"providers": \{[^]*?\n {2}\},/, '"providers": {},'));

    const { status } = await run(
      'add',
      'new',
      '--preset',
      'clerk',
      '--domain',
      'c.example.com',
      '--offline',
    );

    expect(status).toBe(0);
    expect(Object.keys(providersNow())).toEqual(['new']);
  });
});

describe('pgjot provider as a process', () => {
  it('exits as documented, with one line on standard error', async () => {
    const here = (...args: string[]) => runCli(['provider', ...args], { cwd: folder });
    const clerk = ['--preset', 'clerk', '--domain', 'c.example.com', '--offline'];

    const results = [
      await here('add', 'new', ...clerk),
      await here('add', 'new', ...clerk),
      await here('add', 'other', '--preset', 'okta'),
      await here('add'),
      await here('add', 'other', '--issuer', 'http://127.0.0.1:9', '--audience', 'a'),
      await here('list', '--config', 'nowhere.json'),
      await here('list'),
    ];

    expect(results.map(({ status }) => status)).toEqual([0, 1, 64, 64, 69, 78, 0]);
    for (const { status, stderr } of results) {
      expect(stderr).toMatch(status === 0 ? /^$/ : /^pgjot: [^\n]+\n$/);
    }
  });
});

describe('pgjot provider list', () => {
  it('shows each issuer with the place of its keys', async () => {
    await run('add', 'goo', '--preset', 'google', '--audience', 'a', '--offline');

    const { status, stdout } = await run('list');

    const cells = stdout.split('\n').map((line) => line.split('|').map((cell) => cell.trim()));
    expect(status).toBe(0);
    expect(cells.slice(0, -2)).toEqual([
      ['name', 'preset', 'issuer', 'keys', 'audience', 'roles'],
      [expect.stringMatching(/^-+/)],
      [
        'own',
        '',
        'https://id.example.com',
        'https://id.example.com/jwks.json',
        'my-app',
        'authenticated',
      ],
      [
        'goo',
        'google',
        'https://accounts.google.com',
        'https://www.googleapis.com/oauth2/v3/certs',
        'a',
        'authenticated',
      ],
      [
        'goo',
        'google',
        'accounts.google.com',
        'https://www.googleapis.com/oauth2/v3/certs',
        'a',
        'authenticated',
      ],
    ]);
  });

  it('says the same in JSON', async () => {
    const { stdout } = await run('list', '--json');

    expect(JSON.parse(stdout)).toEqual([
      {
        name: 'own',
        preset: null,
        issuers: [
          { issuer: 'https://id.example.com', jwksUri: 'https://id.example.com/jwks.json' },
        ],
        audience: ['my-app'],
        authorizedParties: null,
        roles: ['authenticated'],
      },
    ]);
  });
});
