/**
 * Routing: a client goes where the first rule says that it meets, and a token for one tenant never to another's database.
 */
import { describe, expect, test } from 'vitest';
import { parseConfig, type ConfigInput } from '../../src/config.ts';
import { findRoute, type Traveller } from '../../src/identity/route.ts';
import { ConfigError } from '../../src/errors.ts';

const upstream = (database: string) => ({
  host: '127.0.0.1',
  database,
  secret: { env: 'PGJOT_UNUSED' },
  roles: { authenticated: { slots: 1 } },
});

const configured = (routes: ConfigInput['routes']) =>
  parseConfig({
    providers: Object.fromEntries(
      ['clerk', 'own'].map((id) => [
        id,
        {
          issuer: `https://${id}.example`,
          jwksUri: `https://${id}.example/jwks.json`,
          audience: 'app',
          roles: ['authenticated'],
        },
      ]),
    ),
    upstreams: { main: upstream('app'), acme: upstream('acme'), globex: upstream('globex') },
    ...(routes && { routes }),
  });

const traveller = (changes: Partial<Traveller> = {}): Traveller => ({
  database: 'app',
  sni: undefined,
  provider: 'own',
  claims: {},
  ...changes,
});

const TENANTS = { byClaim: '/org/id', upstreams: { 'acme-1': 'acme', '7': 'globex' } };

describe('a rule', () => {
  test.each<[string, NonNullable<ConfigInput['routes']>[number], Partial<Traveller>, boolean]>([
    ['database', { database: 'x', upstream: 'main' }, { database: 'x' }, true],
    ['another database', { database: 'x', upstream: 'main' }, { database: 'X' }, false],
    ['host name, in any case', { sni: 'a.example', upstream: 'main' }, { sni: 'A.Example' }, true],
    ['no host name', { sni: 'a.example', upstream: 'main' }, {}, false],
    ['provider', { provider: 'own', upstream: 'main' }, {}, true],
    ['another provider', { provider: 'clerk', upstream: 'main' }, {}, false],
    ['nobody', { provider: 'own', upstream: 'main' }, { provider: undefined }, false],
    [
      'claim',
      { claims: { '/plan': 'paid' }, upstream: 'main' },
      { claims: { plan: 'paid' } },
      true,
    ],
    [
      'one of several values',
      { claims: { '/plan': ['paid', 2] }, upstream: 'main' },
      { claims: { plan: 2 } },
      true,
    ],
    [
      'member of an array',
      { claims: { '/groups': 'staff' }, upstream: 'main' },
      { claims: { groups: ['a', 'staff'] } },
      true,
    ],
    [
      'another type',
      { claims: { '/plan': '2' }, upstream: 'main' },
      { claims: { plan: 2 } },
      false,
    ],
    ['no claim', { claims: { '/plan': 'paid' }, upstream: 'main' }, {}, false],
    [
      'what every object inherits',
      { claims: { '/constructor/name': 'Object' }, upstream: 'main' },
      {},
      false,
    ],
    [
      'all of them',
      { database: 'app', provider: 'own', claims: { '/a': true }, upstream: 'main' },
      { claims: { a: true } },
      true,
    ],
    [
      'all but one of them',
      { database: 'app', provider: 'own', claims: { '/a': true, '/b': 1 }, upstream: 'main' },
      { claims: { a: true } },
      false,
    ],
  ])('is met by its %s', (_, rule, changes, isMet) => {
    const found = findRoute(configured([rule]), traveller(changes));

    expect(found).toEqual(
      isMet
        ? { upstream: 'main', rule: 'routes.0' }
        : expect.stringMatching(/^no route for database/),
    );
  });
});

describe('rules in order', () => {
  const config = configured([
    { sni: 'acme.example', upstream: 'acme' },
    { database: 'app', provider: 'own', ...TENANTS },
    { database: 'app', upstream: 'main' },
  ]);

  test.each<[string, Partial<Traveller>, unknown]>([
    ['the first that is met', { sni: 'acme.example' }, { upstream: 'acme', rule: 'routes.0' }],
    [
      'the one that the claim chooses',
      { claims: { org: { id: 'acme-1' } } },
      { upstream: 'acme', rule: 'routes.1' },
    ],
    [
      'the one that a number chooses',
      { claims: { org: { id: 7 } } },
      { upstream: 'globex', rule: 'routes.1' },
    ],
    ['the next for whom it is not', { provider: 'clerk' }, { upstream: 'main', rule: 'routes.2' }],
  ])('lead to %s', (_, changes, expected) => {
    expect(findRoute(config, traveller(changes))).toEqual(expected);
  });

  test.each([
    [undefined],
    ['main'],
    ['globex'],
    ['constructor'],
    ['__proto__'],
    [''],
    [null],
    [true],
    [['acme-1']],
    [{ toString: 'acme-1' }],
    ['ACME-1'],
    ['acme-1 '],
  ])('never lead past a claim that chooses none of them: %j', (id) => {
    expect(findRoute(config, traveller({ claims: { org: { id } } }))).toBe(
      'the claim at /org/id chooses none of routes.1.upstreams',
    );
  });
});

test('without rules the database that is asked for names the upstream', () => {
  const config = configured(undefined);

  expect(findRoute(config, traveller({ database: 'globex' }))).toEqual({
    upstream: 'globex',
    rule: 'upstreams.globex.database',
  });
  expect(findRoute(config, traveller({ database: 'main' }))).toBe('no route for database "main"');
});

test.each<[string, NonNullable<ConfigInput['routes']>, string]>([
  ['an upstream that is none', [{ upstream: 'nowhere' }], 'routes.0.upstream'],
  [
    'a choice of one that is none',
    [{ byClaim: '/a', upstreams: { x: 'y' } }],
    'routes.0.upstreams.x',
  ],
  ['a provider that is none', [{ provider: 'x', upstream: 'main' }], 'routes.0.provider'],
  ['no upstream', [{ database: 'app' }], 'routes.0'],
  ['two ways at once', [{ upstream: 'main', ...TENANTS }], 'routes.0'],
  ['a claim and nothing to choose from', [{ byClaim: '/a' }], 'routes.0'],
  [
    'what is never reached',
    [{ upstream: 'main' }, { database: 'app', upstream: 'main' }],
    'routes.1',
  ],
  ['a pointer that is none', [{ claims: { plan: 'x' }, upstream: 'main' }], 'routes.0.claims.plan'],
])('a configuration with %s is refused', (_, routes, path) => {
  expect(() => configured(routes)).toThrow(ConfigError);
  try {
    configured(routes);
  } catch (error) {
    expect((error as ConfigError).problems.map((problem) => problem.path)).toContain(path);
  }
});
