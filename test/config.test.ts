import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { judgeStartup } from '../src/client/startup.ts';
import {
  configJsonSchema,
  loadConfig,
  parseConfig,
  readSecret,
  type ConfigInput,
} from '../src/config.ts';
import { clientTlsMode, isLoopback, upstreamTlsMode } from '../src/exposure.ts';
import { ConfigError } from '../src/errors.ts';
import { slotName } from '../src/session-sql/credentials.ts';

type Change = (config: Draft) => void;
// oxlint-disable-next-line typescript/no-explicit-any -- these tests write what the types forbid
type Draft = any;

describe('the example proxy.config.json', () => {
  it('is accepted', () => {
    const config = loadConfig(new URL('../proxy.config.json', import.meta.url).pathname);

    expect(Object.keys(config.providers)).toEqual(['own']);
    expect(Object.keys(config.upstreams)).toEqual(['main']);
  });
});

describe('proxy.config.schema.json', () => {
  it('is what the code accepts (vitest -u writes it)', async () => {
    const text = `${JSON.stringify(configJsonSchema(), null, 2)}\n`;

    await expect(text).toMatchFileSnapshot('../proxy.config.schema.json');
  });
});

describe('defaults', () => {
  it('are the documented ones', () => {
    const config = parseConfig(minimal());

    expect(config.listen).toEqual({
      host: '127.0.0.1',
      port: 6432,
      deny: [],
      tls: {},
      allowPlaintext: false,
      authentication: 'password',
      authenticationRules: [],
      oauth: { scope: 'openid' },
    });
    expect(config.providers['own']).toMatchObject({
      algorithms: ['RS256', 'ES256', 'EdDSA'],
      anyAudience: false,
      clockToleranceMs: 30_000,
      requiredClaims: [],
    });
    expect(config.upstreams['main']).toMatchObject({
      port: 5432,
      session: 'portable',
      connectTimeoutMs: 3_000,
      acquireTimeoutMs: 8_000,
    });
    expect(config.jwks).toEqual({
      freshMs: 300_000,
      staleMs: 3_600_000,
      cooldownMs: 30_000,
      retryMs: 1_000,
      maxRetryMs: 60_000,
      timeoutMs: 5_000,
      maxBytes: 262_144,
      maxKeys: 100,
      maxKeysTried: 4,
      maxUnknownKids: 1_000,
      fileCheckMs: 1_000,
      privateHosts: [],
    });
    expect(config.sessions).toEqual({
      onTokenExpiry: 'drain',
      graceMs: 30_000,
      noticeMs: 0,
      maxLifetimeMs: 0,
      drainTimeoutMs: 60_000,
    });
    expect(config.revocations).toEqual({});
    expect(config.admin).toBe(undefined);
    expect(config.limits).toEqual({
      maxClients: 10_000,
      maxUnauthenticated: 1_000,
      maxUnauthenticatedPerAddress: 200,
      ipv6PrefixBits: 64,
      failedLogins: { allowed: 20, delayMs: 1_000, maxDelayMs: 60_000 },
      missedCancelsPerSecond: 100,
      loginTimeoutMs: 10_000,
      maxTokenBytes: 16_384,
      tokenCacheEntries: 10_000,
    });
    expect(config.log).toEqual({ level: 'info', refusalsPerMinute: 60 });
  });

  it.each(['listen', 'jwks', 'sessions', 'limits', 'log', 'startupParameters'])(
    'are the same for an empty "%s" as for none',
    (key) => {
      const empty = changed((config) => {
        config[key] = {};
      });

      expect(parseConfig(empty)).toEqual(parseConfig(minimal()));
    },
  );

  it('turn one audience into a list', () => {
    const config = parseConfig(
      changed((draft) => {
        draft.providers.own.audience = 'one';
      }),
    );

    expect(config.providers['own']?.audience).toEqual(['one']);
  });

  it('ask for TLS everywhere but on loopback', () => {
    const config = parseConfig(minimal());
    const open = parseConfig(changed(listenEverywhere));
    const upstream = config.upstreams['main'];

    expect(clientTlsMode(config)).toBe('allow');
    expect(clientTlsMode(open)).toBe('require');
    expect(upstream && upstreamTlsMode(upstream)).toBe('verify-full');
    expect(upstream && upstreamTlsMode({ ...upstream, host: '127.0.0.1' })).toBe('disable');
    expect(upstream && upstreamTlsMode({ ...upstream, host: '/run/postgresql' })).toBe('disable');
  });
});

describe('a configuration', () => {
  it('is frozen, all the way down', () => {
    const config = parseConfig(minimal());

    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.providers['own']?.roles)).toBe(true);
  });

  it('has every problem reported at once, each with its path', () => {
    const problems = problemsOf((config) => {
      config.listen = { port: 'six', colour: 'red' };
      config.providers.own.algorithms = ['HS256'];
      config.providers.own.roles = [];
      config.upstreams.main.secret = 'hunter2';
      config.upstreams.main.roles.authenticated.slots = 0;
      config.limit = {};
    });

    expect(Object.keys(problems).toSorted()).toEqual([
      'limit',
      'listen.colour',
      'listen.port',
      'providers.own.algorithms.0',
      'providers.own.roles',
      'upstreams.main.roles.authenticated.slots',
      'upstreams.main.secret',
    ]);
  });

  it.each<[path: string, Change]>([
    ['colour', (c) => (c.colour = 'red')],
    ['listen.colour', (c) => (c.listen = { colour: 'red' })],
    ['listen.tls.colour', (c) => (c.listen = { tls: { colour: 'red' } })],
    ['providers.own.colour', (c) => (c.providers.own.colour = 'red')],
    ['upstreams.main.colour', (c) => (c.upstreams.main.colour = 'red')],
    ['upstreams.main.tls.colour', (c) => (c.upstreams.main.tls = { colour: 'red' })],
    ['upstreams.main.roles.r.colour', (c) => (c.upstreams.main.roles.r = { slots: 1, colour: 1 })],
    ['routes.0.colour', (c) => (c.routes = [{ database: 'a', upstream: 'main', colour: 1 }])],
    ['jwks.colour', (c) => (c.jwks = { colour: 'red' })],
    ['sessions.colour', (c) => (c.sessions = { colour: 'red' })],
    ['limits.colour', (c) => (c.limits = { colour: 'red' })],
    ['log.colour', (c) => (c.log = { colour: 'red' })],
  ])('may not have the unknown setting %s', (path, change) => {
    expect(problemsOf(change)).toEqual({ [path]: 'is not a known setting' });
  });

  it.each([undefined, null, 42, 'text', []])('is not %j', (input) => {
    expect(() => parseConfig(input)).toThrow(ConfigError);
  });

  it.each(['listen', 'providers', 'upstreams'])('is not one whose "%s" is a list', (key) => {
    expect(Object.keys(problemsOf((config) => (config[key] = [])))).toEqual([key]);
  });

  it('needs a provider and an upstream', () => {
    expect(() => parseConfig({})).toThrow(/providers.*\n.*upstreams/);
    expect(problemsOf((config) => (config.providers = {}))).toEqual({
      providers: 'must name at least one provider',
    });
  });
});

describe('the anonymous role', () => {
  it('must be a role of an upstream, and of no provider, where it is enabled', () => {
    expect(problemsOf((c) => (c.anonymous = { enabled: true }))).toEqual({
      'anonymous.role': '"anonymous" is not a role of any upstream',
    });
    expect(
      problemsOf((c) => {
        c.anonymous = { enabled: true };
        c.upstreams.main.roles = { authenticated: { slots: 1 }, anonymous: { slots: 1 } };
        c.providers.own.roles = ['authenticated', 'anonymous'];
      }),
    ).toEqual({ 'providers.own.roles': '"anonymous" is the role of clients without a token' });
    expect(problemsOf((c) => (c.anonymous = { role: 'whatever' }))).toEqual({});
  });
});

describe('secrets', () => {
  it.each([
    'the-secret-itself-0123456789012345678901',
    { value: 'x' },
    { env: 'A', file: 'b' },
    { env: '' },
    {},
    null,
  ])('are not accepted as %j', (secret) => {
    const problems = problemsOf((config) => (config.upstreams.main.secret = secret));

    expect(Object.keys(problems).every((path) => path.startsWith('upstreams.main.secret'))).toBe(
      true,
    );
    expect(JSON.stringify(problems)).not.toContain('the-secret-itself');
  });

  it('come from the environment or a file, and have at least 32 characters', () => {
    const folder = mkdtempSync(join(tmpdir(), 'pgjot-config-'));
    const file = join(folder, 'secret');
    writeFileSync(file, `${'f'.repeat(32)}\n`);
    vi.stubEnv('PGJOT_TEST_LONG', 'e'.repeat(32));
    vi.stubEnv('PGJOT_TEST_SHORT', 'short-secret');
    vi.stubEnv('PGJOT_TEST_EMPTY', '');
    try {
      expect(readSecret({ file }, 'at')).toBe('f'.repeat(32));
      expect(readSecret({ env: 'PGJOT_TEST_LONG' }, 'at')).toBe('e'.repeat(32));
      expect(thrownBy(() => readSecret({ env: 'PGJOT_TEST_UNSET' }, 'at'))).toBe(
        'at: environment variable PGJOT_TEST_UNSET is not set or empty',
      );
      expect(thrownBy(() => readSecret({ env: 'PGJOT_TEST_EMPTY' }, 'at'))).toBe(
        'at: environment variable PGJOT_TEST_EMPTY is not set or empty',
      );
      expect(thrownBy(() => readSecret({ env: 'PGJOT_TEST_SHORT' }, 'at'))).toMatch(
        /^at: .* fewer than 32 characters/,
      );
      expect(thrownBy(() => readSecret({ env: 'PGJOT_TEST_SHORT' }, 'at'))).not.toContain(
        'short-secret',
      );
      expect(thrownBy(() => readSecret({ file: join(folder, 'none') }, 'at'))).toMatch(
        /^at: file .* cannot be read \(ENOENT\)$/,
      );
    } finally {
      vi.unstubAllEnvs();
      rmSync(folder, { recursive: true });
    }
  });
});

describe('a listener', () => {
  it('on an address that others can reach needs a certificate', () => {
    expect(problemsOf((c) => (c.listen = { host: '0.0.0.0' }))).toEqual({
      'listen.tls.certFile':
        'is missing: 0.0.0.0 is not a loopback address, so clients must use TLS',
    });
  });

  it.each(['allow', 'disable'])('may not carry tokens in clear with mode "%s"', (mode) => {
    const change: Change = (c) => (c.listen = { host: '10.0.0.1', tls: { mode } });

    expect(Object.keys(problemsOf(change))).toEqual(['listen.tls.mode']);
    expect(
      problemsOf((c) => {
        change(c);
        c.listen.allowPlaintext = true;
      }),
    ).toEqual({});
  });

  it('needs a certificate and its key, or neither', () => {
    expect(problemsOf((c) => (c.listen = { tls: { certFile: 'a.crt' } }))).toEqual({
      'listen.tls': 'needs both certFile and keyFile, or neither',
    });
    expect(problemsOf((c) => (c.upstreams.main.tls = { keyFile: 'a.key' }))).toEqual({
      'upstreams.main.tls': 'needs both certFile and keyFile, or neither',
    });
  });

  it.each([
    ['localhost', true],
    ['127.0.0.1', true],
    ['127.8.9.10', true],
    ['::1', true],
    ['::ffff:127.0.0.1', true],
    ['/run/postgresql', true],
    ['0.0.0.0', false],
    ['::', false],
    ['10.0.0.1', false],
    ['127.example.com', false],
    ['127.0.0.1.example.com', false],
    ['localhost.example.com', false],
    ['::ffff:10.0.0.1', false],
  ])('on %s is on loopback: %s', (host, loopback) => {
    expect(isLoopback(host)).toBe(loopback);
  });
});

describe('a provider', () => {
  it.each<[problem: string, path: string, Change]>([
    ['no keys', 'providers.own', (c) => delete c.providers.own.jwksUri],
    ['keys in two places', 'providers.own', (c) => (c.providers.own.jwksFile = 'keys.json')],
    ['keys over http', 'providers.own.jwksUri', (c) => (c.providers.own.jwksUri = 'http://x.test')],
    [
      'keys at a name that only begins as loopback does',
      'providers.own.jwksUri',
      (c) => (c.providers.own.jwksUri = 'http://127.0.0.1.example.com/jwks'),
    ],
    [
      'a password in the address of its keys',
      'providers.own.jwksUri',
      (c) => (c.providers.own.jwksUri = 'https://me:secret@id.example.com/jwks'),
    ],
    [
      'keys in a file: URL',
      'providers.own.jwksUri',
      (c) => (c.providers.own.jwksUri = 'file:///etc/keys.json'),
    ],
    ['no audience', 'providers.own.audience', (c) => delete c.providers.own.audience],
    ['an audience and any', 'providers.own.audience', (c) => (c.providers.own.anyAudience = true)],
    ['an empty audience', 'providers.own.audience', (c) => (c.providers.own.audience = [])],
    ['HS256', 'providers.own.algorithms.0', (c) => (c.providers.own.algorithms = ['HS256'])],
    ['"none"', 'providers.own.algorithms.0', (c) => (c.providers.own.algorithms = ['none'])],
    ['no algorithm', 'providers.own.algorithms', (c) => (c.providers.own.algorithms = [])],
    ['a role of no upstream', 'providers.own.roles', (c) => (c.providers.own.roles = ['admin'])],
    ['no role', 'providers.own.roles', (c) => (c.providers.own.roles = [])],
    ['a bad pointer', 'providers.own.roleClaim', (c) => (c.providers.own.roleClaim = 'role')],
    [
      'a tolerance of an hour',
      'providers.own.clockToleranceMs',
      (c) => (c.providers.own.clockToleranceMs = 3_600_000),
    ],
  ])('may not have %s', (_, path, change) => {
    expect(Object.keys(problemsOf(change))).toEqual([path]);
  });

  it('may have its keys on loopback, over http', () => {
    for (const host of ['127.0.0.1:8080', 'localhost', '[::1]:8080']) {
      expect(problemsOf((c) => (c.providers.own.jwksUri = `http://${host}/jwks.json`))).toEqual({});
    }
  });

  it('shares its issuer with no other', () => {
    const problems = problemsOf((c) => (c.providers.other = { ...c.providers.own }));

    expect(problems).toEqual({ 'providers.other.issuer': 'is the issuer of providers.own too' });
  });
});

describe('an upstream', () => {
  it.each<[problem: string, path: string, Change]>([
    ['no host', 'upstreams.main.host', (c) => delete c.upstreams.main.host],
    ['port 0', 'upstreams.main.port', (c) => (c.upstreams.main.port = 0)],
    ['port 65536', 'upstreams.main.port', (c) => (c.upstreams.main.port = 65_536)],
    ['port 1.5', 'upstreams.main.port', (c) => (c.upstreams.main.port = 1.5)],
    [
      'a database name longer than PostgreSQL keeps',
      'upstreams.main.database',
      (c) => (c.upstreams.main.database = 'é'.repeat(32)),
    ],
    [
      'a NUL in its database name',
      'upstreams.main.database',
      (c) => (c.upstreams.main.database = 'a\0b'),
    ],
    ['no roles', 'upstreams.main.roles', (c) => (c.upstreams.main.roles = {})],
    [
      'TLS mode "prefer", which an attacker turns off',
      'upstreams.main.tls.mode',
      (c) => (c.upstreams.main.tls = { mode: 'prefer' }),
    ],
    [
      'a session mode of the future',
      'upstreams.main.session',
      (c) => (c.upstreams.main.session = 'x'),
    ],
    [
      'slots healed on a standby',
      'upstreams.main.healSlots',
      (c) => Object.assign(c.upstreams.main, { session: 'replica', healSlots: true }),
    ],
    [
      'a timeout that setTimeout would take for 1 ms',
      'upstreams.main.connectTimeoutMs',
      (c) => (c.upstreams.main.connectTimeoutMs = 2 ** 31),
    ],
  ])('may not have %s', (_, path, change) => {
    expect(Object.keys(problemsOf(change))).toContain(path);
  });

  it('is named by every route', () => {
    const problems = problemsOf((c) => {
      c.routes = [
        { database: 'app', upstream: 'main' },
        { database: 'other', upstream: 'toString' },
      ];
    });

    expect(problems).toEqual({ 'routes.1.upstream': '"toString" is not an upstream' });
  });
});

describe('a role with slots', () => {
  // é is two bytes; "pgjot_" and "_10" take nine of the 63.
  it.each(['r'.repeat(54), 'é'.repeat(27)])('may have a name that leaves room: %s', (role) => {
    expect(problemsOf((c) => (c.upstreams.main.roles[role] = { slots: 10 }))).toEqual({});
    expect(slotName(role, 10)).toMatch(/_10$/);
  });

  it.each(['r'.repeat(55), `${'é'.repeat(27)}r`])('may not have one that does not: %s', (role) => {
    const path = `upstreams.main.roles.${role}`;

    expect(problemsOf((c) => (c.upstreams.main.roles[role] = { slots: 9 }))).toEqual({});
    expect(problemsOf((c) => (c.upstreams.main.roles[role] = { slots: 10 }))).toEqual({
      [path]: `is too long a name for 10 slots: "pgjot_${role}_10" exceeds 63 bytes`,
    });
    expect(() => slotName(role, 10)).toThrow(/longer than 63 bytes/);
  });
});

describe('startupParameters.allow', () => {
  const RESERVED = [
    'role',
    'session_authorization',
    'is_superuser',
    'user',
    'database',
    'options',
    'replication',
    'session_preload_libraries',
    'local_preload_libraries',
    'shared_preload_libraries',
    'dynamic_library_path',
    'jit_provider',
    'request.jwt.claims',
    'pgjot.x',
    'pg_session_jwt.jwk',
    '_pq_.x',
  ];

  it.each(RESERVED)('may not name %s, which never passes', (name) => {
    expect(problemsOf((c) => (c.startupParameters = { allow: ['app.tenant', name] }))).toEqual({
      'startupParameters.allow.1': `"${name}" can never pass: it says who somebody is, or loads code`,
    });
    expect(() =>
      judgeStartup(
        [
          ['user', 'u'],
          ['options', `-c ${name}=x`],
        ],
        [name],
      ),
    ).toThrow(/permission denied/);
  });

  it.each(['app.tenant', 'work_mem', 'roles', 'my_role', 'requested.x', 'request'])(
    'may name %s, which then passes',
    (name) => {
      expect(problemsOf((c) => (c.startupParameters = { allow: [name] }))).toEqual({});
      expect(
        judgeStartup(
          [
            ['user', 'u'],
            [name, 'x'],
          ],
          [name],
        ).parameters.get(name),
      ).toBe('x');
    },
  );
});

describe('a configuration file', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'pgjot-config-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  it('has its paths relative to itself', () => {
    const config = load(
      changed((c) => {
        listenEverywhere(c);
        c.providers.own.jwksFile = 'keys/own.json';
        delete c.providers.own.jwksUri;
        c.upstreams.main.secret = { file: '../secret' };
        c.upstreams.main.tls = { caFile: '/etc/ca.crt' };
      }),
    );

    expect(config.listen.tls.certFile).toBe(join(folder, 'tls/server.crt'));
    expect(config.providers['own']?.jwksFile).toBe(join(folder, 'keys/own.json'));
    expect(config.upstreams['main']?.secret).toEqual({ file: join(folder, '..', 'secret') });
    expect(config.upstreams['main']?.tls.caFile).toBe('/etc/ca.crt');
  });

  it('that is missing, a folder, or no JSON is one problem with its name', () => {
    const missing = join(folder, 'none.json');
    const broken = join(folder, 'broken.json');
    writeFileSync(broken, '{ "listen": ');
    mkdirSync(join(folder, 'folder'));

    expect(thrownBy(() => loadConfig(missing))).toBe(`${missing}: cannot be read (ENOENT)`);
    expect(thrownBy(() => loadConfig(join(folder, 'folder')))).toMatch(/cannot be read \(EISDIR\)/);
    expect(thrownBy(() => loadConfig(broken))).toMatch(/broken\.json: is not JSON/);
  });

  function load(content: unknown) {
    const file = join(folder, 'proxy.config.json');
    writeFileSync(file, JSON.stringify(content));
    return loadConfig(file);
  }
});

function minimal(): ConfigInput {
  return {
    providers: {
      own: {
        issuer: 'https://id.example.com',
        jwksUri: 'https://id.example.com/jwks.json',
        audience: ['my-app'],
        roles: ['authenticated'],
      },
    },
    upstreams: {
      main: {
        host: 'db.example.com',
        database: 'app',
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { authenticated: { slots: 5 } },
      },
    },
  };
}

function changed(change: Change): unknown {
  const config: Draft = minimal();
  change(config);
  return config;
}

function listenEverywhere(config: Draft): void {
  config.listen = {
    host: '0.0.0.0',
    tls: { certFile: 'tls/server.crt', keyFile: 'tls/server.key' },
  };
}

/** Every problem of the minimal configuration after this change, by path. */
function problemsOf(change: Change): Record<string, string> {
  try {
    parseConfig(changed(change));
    return {};
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return Object.fromEntries(error.problems.map(({ path, message }) => [path, message]));
  }
}

function thrownBy(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  throw new Error('nothing was thrown');
}
