/** From verified token to role and upstream: attack C17 and what it takes to be let in. */
import { describe, expect, test } from 'vitest';
import { type Config, type ConfigInput, parseConfig } from '../../src/config.ts';
import { ProxyError } from '../../src/errors.ts';
import type { VerifiedToken } from '../../src/identity/jwt.ts';
import { decide, decideAnonymous, type Identity, objectionTo } from '../../src/identity/policy.ts';
import { configWith, reasonOf } from './rig.ts';

const provider = (settings: Partial<ConfigInput['providers'][string]> = {}) => ({
  issuer: 'https://id.example.com',
  jwksUri: 'https://id.example.com/jwks.json',
  audience: 'app',
  roles: ['authenticated', 'analyst'],
  ...settings,
});

const verified = (claims: Record<string, unknown> = {}): VerifiedToken => ({
  provider: 'own',
  issuer: 'https://id.example.com',
  subject: 'alice',
  kid: 'k1',
  alg: 'RS256',
  claims: { sub: 'alice', ...claims },
  expiresAt: 1_000_000,
  toleranceMs: 30_000,
});

function refusal(
  config: Config,
  startup: { user?: string; database?: string },
  token: VerifiedToken = verified(),
): { code: string; message: string; reason: string } {
  try {
    decide(config, { user: 'authenticated', database: 'app', sni: undefined, ...startup }, token);
  } catch (error) {
    if (!(error instanceof ProxyError)) throw error;
    expect([error.detail, error.hint]).toEqual([undefined, undefined]);
    return { code: error.code, message: error.message, reason: reasonOf(error) };
  }
  throw new Error('the policy let it in');
}

test('an identity is what the issuer signed and the configuration grants', () => {
  const token = verified({ email: 'alice@example.com' });

  const identity = decide(
    configWith({ own: provider() }),
    { user: 'analyst', database: 'app', sni: undefined },
    token,
  );

  expect(identity).toEqual({
    provider: 'own',
    issuer: 'https://id.example.com',
    subject: 'alice',
    kid: 'k1',
    role: 'analyst',
    upstream: 'main',
    claims: token.claims,
    expiresAt: 1_030_000,
  });
  expect(Object.isFrozen(identity)).toBe(true);
});

test('a token that comes back brings the very claims of before, by which its holder is known again', () => {
  const config = configWith({ own: provider() });
  const asking = { user: 'authenticated', database: 'app', sni: undefined };
  const token = verified();

  expect(decide(config, asking, token).claims).toBe(token.claims);
  expect(decide(config, asking, token).claims).toBe(token.claims);
});

describe('C17 roles that nobody granted', () => {
  test.each([
    'postgres',
    'constructor',
    '__proto__',
    'toString',
    'hasOwnProperty',
    'AUTHENTICATED',
    'authenticated ',
    'authenticated\0',
    'authenticated\n',
    '',
  ])('the role %j is refused', (user) => {
    const { code, reason } = refusal(configWith({ own: provider() }), { user });

    expect(code).toBe('role_forbidden');
    expect(reason).toMatch(/^role ".*" is not in providers\.own\.roles$/);
  });

  test('a claim cannot grant a role that the provider does not list', () => {
    const config = configWith({ own: provider({ roleClaim: '/role', roles: ['authenticated'] }) });

    const { reason } = refusal(config, { user: 'postgres' }, verified({ role: 'postgres' }));

    expect(reason).toBe('role "postgres" is not in providers.own.roles');
  });

  test('the message names the role that was asked for, made harmless', () => {
    const { message } = refusal(configWith({ own: provider() }), { user: 'x\nFATAL: y' });

    expect(message).toBe('role "x?FATAL: y" is not permitted to log in');
  });

  test.each([
    ['missing', {}],
    ['another role', { app: { role: 'analyst' } }],
    ['a list without it', { app: { role: ['analyst', 'a'] } }],
    ['a list in a list', { app: { role: [['authenticated']] } }],
    ['an object', { app: { role: { authenticated: true } } }],
    ['part of a string', { app: { role: 'authenticated,analyst' } }],
    ['another case', { app: { role: 'Authenticated' } }],
    ['null', { app: { role: null } }],
    ['a number', { app: { role: 1 } }],
    ['beneath a string', { app: 'authenticated' }],
    ['beneath null', { app: null }],
    ['with a NUL', { app: { role: 'authenticated\0' } }],
  ])('a role claim that is %s grants nothing', (_, claims) => {
    const config = configWith({ own: provider({ roleClaim: '/app/role' }) });

    const { code, reason } = refusal(config, {}, verified(claims));

    expect(code).toBe('role_forbidden');
    expect(reason).toBe('the claim at /app/role does not name role "authenticated"');
  });

  test.each([
    ['/constructor/name', 'Object'],
    ['/__proto__/constructor/name', 'Object'],
    ['/list/constructor/name', 'Array'],
    ['/list/length', '2'],
    ['/list/01', 'authenticated'],
    ['/list/-', 'authenticated'],
    ['/list/2', 'authenticated'],
    ['/name/0', 'a'],
  ])('the pointer %s finds nothing that is inherited or no index', (roleClaim, role) => {
    const config = configWith(
      { own: provider({ roleClaim, roles: [role] }) },
      {
        upstreams: {
          main: {
            host: '127.0.0.1',
            database: 'app',
            secret: { env: 'S' },
            roles: { [role]: { slots: 1 } },
          },
        },
      },
    );
    // With a prototype on purpose: the policy must not depend on where the claims were copied.
    const token = verified({ list: ['x', 'authenticated'], name: 'abc' });

    expect(refusal(config, { user: role }, token).reason).toContain('does not name role');
  });

  test.each([
    ['/role', { role: 'authenticated' }],
    ['/role', { role: ['analyst', 'authenticated'] }],
    ['/app/role', { app: { role: 'authenticated' } }],
    ['/list/1', { list: ['a', 'authenticated'] }],
    ['/list/0/role', { list: [{ role: ['authenticated'] }] }],
    ['/https:~1~1x.example~1roles', { 'https://x.example/roles': ['authenticated'] }],
    ['/a~01', { 'a~1': 'authenticated' }],
    ['/', { '': 'authenticated' }],
  ])('the pointer %s finds its claim', (roleClaim, claims) => {
    const config = configWith({ own: provider({ roleClaim }) });

    const identity = decide(
      config,
      { user: 'authenticated', database: 'app', sni: undefined },
      verified(claims),
    );

    expect(identity.role).toBe('authenticated');
  });
});

describe('routes', () => {
  const upstream = (database: string, roles: string[] = ['authenticated', 'analyst']) => ({
    host: '127.0.0.1',
    database,
    secret: { env: 'SECRET' },
    roles: Object.fromEntries(roles.map((role) => [role, { slots: 1 }])),
  });
  const upstreams = { a: upstream('app'), b: upstream('reports', ['analyst']), c: upstream('app') };
  const routed = (config: Config, database: string, user = 'analyst') =>
    decide(config, { user, database, sni: undefined }, verified()).upstream;

  test('without routes each upstream is found by its database, the first one first', () => {
    const config = configWith({ own: provider() }, { upstreams });

    expect([routed(config, 'app'), routed(config, 'reports')]).toEqual(['a', 'b']);
  });

  test('the first route that matches wins, and no other counts', () => {
    const routes = [
      { database: 'app', upstream: 'c' },
      { database: 'app', upstream: 'a' },
    ];
    const config = configWith({ own: provider() }, { upstreams, routes });

    expect(routed(config, 'app')).toBe('c');
    expect(refusal(config, { user: 'analyst', database: 'reports' }).reason).toBe(
      'no route for database "reports"',
    );
  });

  test.each(['constructor', '__proto__', 'a', 'APP', ''])(
    'the database %j has no route',
    (database) => {
      const config = configWith({ own: provider() }, { upstreams });

      const { code, reason } = refusal(config, { database });

      expect(code).toBe('role_forbidden');
      expect(reason).toBe(`no route for database "${database}"`);
    },
  );

  test('a role that the upstream does not have is refused', () => {
    const config = configWith({ own: provider() }, { upstreams });

    expect(refusal(config, { database: 'reports' }).reason).toBe(
      'upstream "b" has no role "authenticated"',
    );
  });
});

test('a provider that is no longer configured grants nothing', () => {
  const config = configWith({ other: provider() });

  expect(refusal(config, {}).reason).toBe('provider "own" is no longer configured');
  expect(refusal(config, {}, { ...verified(), provider: 'constructor' }).reason).toMatch(
    /no longer/,
  );
});

describe('an identity that was given before', () => {
  const asking = { user: 'analyst', database: 'tenants', sni: undefined };
  const base = {
    roles: ['analyst', 'reader', 'nobody'],
    upstreams: ['acme', 'globex'],
    routes: [{ byClaim: '/org', upstreams: { acme: 'acme', globex: 'globex' } }],
    anonymous: { enabled: true, role: 'nobody' },
  };
  const build = ({ roles, upstreams, routes, anonymous }: typeof base, own: object = {}): Config =>
    parseConfig({
      providers: { own: { ...provider({ roles: ['analyst'] }), ...own } },
      upstreams: Object.fromEntries(
        upstreams.map((name) => [
          name,
          {
            host: 'db',
            database: name,
            secret: { env: 'SECRET' },
            roles: Object.fromEntries(roles.map((role) => [role, { slots: 1 }])),
          },
        ]),
      ),
      routes,
      anonymous,
    });
  const mine = verified({ org: 'acme', groups: ['analyst'] });
  const identity = decide(build(base), asking, mine);
  const objection = (config: Config, who = identity, asked = asking) => {
    const error = objectionTo(config, asked, who);
    return error && [error.code, reasonOf(error)];
  };

  test('stays where nothing that it was given for has changed', () => {
    expect(objection(build(base))).toBeUndefined();
    expect(objection(build(base, { requiredClaims: ['amr'], roleClaim: '/groups' }))).toBe(
      undefined,
    );
    const both = { issuer: ['https://other.example', 'https://id.example.com'] };
    expect(objection(build(base, both))).toBeUndefined();
  });

  test.each<[string, Config, string]>([
    [
      'a claim that led to its upstream leads elsewhere',
      build({
        ...base,
        routes: [{ byClaim: '/org', upstreams: { acme: 'globex', globex: 'acme' } }],
      }),
      'it leads to upstream "globex" now',
    ],
    [
      'a claim does not lead anywhere any more',
      build({ ...base, routes: [{ byClaim: '/tenant', upstreams: base.routes[0]!.upstreams }] }),
      'the claim at /tenant chooses none of routes.0.upstreams',
    ],
    [
      'a claim has to name its role, and does not',
      build(base, { roleClaim: '/role' }),
      'the claim at /role does not name role "analyst"',
    ],
    [
      'its provider is no longer for its role',
      build(base, { roles: ['reader'] }),
      'role "analyst" is not in providers.own.roles',
    ],
    [
      'its issuer is gone',
      build(base, { issuer: 'https://other.example' }),
      'an issuer of provider "own" is no longer configured',
    ],
  ])('goes where %s', (_, config, reason) => {
    expect(objection(config)).toEqual(['role_forbidden', reason]);
  });

  test('of nobody goes where nobody is let in, or is led elsewhere', () => {
    const open = { ...base, routes: [{ upstream: 'acme' }] as never };
    const asked = { ...asking, user: 'nobody' };
    const nobody = decideAnonymous(build(open), asked) as Identity;

    expect(objection(build(open), nobody, asked)).toBeUndefined();
    expect(
      objection(build({ ...open, anonymous: { enabled: false, role: 'nobody' } }), nobody, asked),
    ).toEqual(['role_forbidden', 'nobody is let in any more']);
    expect(
      objection(build({ ...open, routes: [{ upstream: 'globex' }] as never }), nobody, asked),
    ).toEqual(['role_forbidden', 'it leads to upstream "globex" now']);
  });
});
