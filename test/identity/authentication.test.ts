/**
 * Who is asked for a password and who for OAUTHBEARER, where they are sent for a token, and which configurations are none.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseConfig, type ConfigInput } from '../../src/config.ts';
import { ConfigError } from '../../src/errors.ts';
import { chooseAuthentication, type Asking } from '../../src/identity/authentication.ts';
import { readDocument } from '../docs/document.ts';

type Listen = NonNullable<ConfigInput['listen']>;

const provider = (issuer: string) => ({
  issuer,
  jwksUri: 'https://id.example.com/jwks.json',
  audience: 'app',
  roles: ['authenticated'],
});

const ONE = { own: provider('https://id.example.com/realms/app') };
const TWO = { ...ONE, other: provider('https://other.example.com') };

function configure(listen: Listen, providers: ConfigInput['providers'] = ONE) {
  return parseConfig({
    listen,
    providers,
    upstreams: {
      main: {
        host: '127.0.0.1',
        database: 'app',
        secret: { env: 'SECRET' },
        roles: { authenticated: { slots: 1 } },
      },
    },
  });
}

function problemsOf(listen: Listen, providers?: ConfigInput['providers']): Record<string, string> {
  try {
    configure(listen, providers);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    const { problems } = error as ConfigError;
    return Object.fromEntries(problems.map(({ path, message }) => [path, message]));
  }
  return {};
}

const alice: Asking = { user: 'authenticated', database: 'app', sni: undefined };

describe('chooseAuthentication', () => {
  test('asks for a password where nothing else is said', () => {
    expect(chooseAuthentication(configure({}), alice)).toBeUndefined();
  });

  test('sends everybody to the only provider', () => {
    const config = configure({ authentication: 'oauth' });

    expect(chooseAuthentication(config, alice)).toEqual({
      openidConfiguration: 'https://id.example.com/realms/app/.well-known/openid-configuration',
      scope: 'openid',
    });
  });

  test('keeps the final slash of an issuer, which libpq compares to the byte', () => {
    const config = configure({ authentication: 'oauth' }, { own: provider('https://id.test/') });

    expect(chooseAuthentication(config, alice)?.openidConfiguration).toBe(
      'https://id.test//.well-known/openid-configuration',
    );
  });

  test('sends whom a rule names where the rule says, else where the listener says', () => {
    const config = configure(
      {
        oauth: { provider: 'other', scope: 'openid profile' },
        authenticationRules: [
          { user: 'a', method: 'oauth' },
          { user: 'b', method: 'oauth', provider: 'own', scope: 'todos' },
        ],
      },
      TWO,
    );

    expect(chooseAuthentication(config, { ...alice, user: 'a' })).toEqual({
      openidConfiguration: 'https://other.example.com/.well-known/openid-configuration',
      scope: 'openid profile',
    });
    expect(chooseAuthentication(config, { ...alice, user: 'b' })).toEqual({
      openidConfiguration: 'https://id.example.com/realms/app/.well-known/openid-configuration',
      scope: 'todos',
    });
    expect(chooseAuthentication(config, alice)).toBeUndefined();
  });

  test('does with the second example of docs/oauth.md what that says', () => {
    const block = readDocument('oauth.md').find(({ remark }) =>
      remark.endsWith('several providers'),
    );
    const { listen } = JSON.parse(block?.code ?? '') as Pick<ConfigInput, 'listen'>;
    const config = configure(listen ?? {}, { customers: TWO.own, staff: TWO.other });

    expect(chooseAuthentication(config, alice)).toBeUndefined();
    expect(chooseAuthentication(config, { ...alice, user: 'x', database: 'reports' })).toEqual({
      openidConfiguration: 'https://other.example.com/.well-known/openid-configuration',
      scope: 'openid reports',
    });
    expect(chooseAuthentication(config, { ...alice, user: 'x' })).toEqual({
      openidConfiguration: 'https://id.example.com/realms/app/.well-known/openid-configuration',
      scope: 'openid',
    });
  });

  test('knows a host name in whatever case the client writes it', () => {
    const authenticationRules: Listen['authenticationRules'] = [
      { sni: 'sso.example.com', method: 'oauth' },
    ];
    const config = configure({ authenticationRules });

    expect(chooseAuthentication(config, { ...alice, sni: 'SSO.Example.com' })).toBeDefined();
    expect(chooseAuthentication(config, { ...alice, sni: 'sso.example.com.' })).toBeUndefined();
  });

  test('takes the first rule of which all that it names is so', () => {
    const names = fc.constantFrom('a', 'b');
    const rule = fc
      .record(
        {
          user: names,
          database: names,
          sni: names,
          method: fc.constantFrom('password' as const, 'oauth' as const),
        },
        { requiredKeys: ['method'] },
      )
      .filter((one) => Object.keys(one).length > 1);
    fc.assert(
      fc.property(
        fc.array(rule, { maxLength: 4 }),
        fc.constantFrom('password' as const, 'oauth' as const),
        fc.record({ user: names, database: names, sni: fc.option(names, { nil: undefined }) }),
        (authenticationRules, authentication, asking) => {
          const config = configure({ authentication, authenticationRules });

          let method = authentication;
          for (const one of authenticationRules.toReversed()) {
            if ('user' in one && one.user !== asking.user) continue;
            if ('database' in one && one.database !== asking.database) continue;
            if ('sni' in one && one.sni !== asking.sni) continue;
            method = one.method;
          }
          expect(chooseAuthentication(config, asking) !== undefined).toBe(method === 'oauth');
        },
      ),
    );
  });
});

describe('a configuration', () => {
  test('must say where clients get their tokens, where there are several providers', () => {
    expect(problemsOf({ authentication: 'oauth' }, TWO)).toEqual({
      'listen.oauth.provider': 'is missing: say where clients are to get their tokens',
    });
    expect(problemsOf({ authentication: 'password' }, TWO)).toEqual({});
    expect(problemsOf({ authentication: 'oauth', oauth: { provider: 'own' } }, TWO)).toEqual({});
    const authenticationRules: Listen['authenticationRules'] = [
      { user: 'a', method: 'oauth', provider: 'own' },
      { user: 'b', method: 'oauth' },
    ];
    expect(problemsOf({ authenticationRules }, TWO)).toEqual({
      'listen.authenticationRules.1.provider':
        'is missing: say where clients are to get their tokens',
    });
  });

  test.each(['nobody', '__proto__', 'constructor'])('cannot name provider "%s"', (name) => {
    expect(problemsOf({ authentication: 'oauth', oauth: { provider: name } })).toEqual({
      'listen.oauth.provider': `"${name}" is not a provider`,
    });
  });

  test.each([
    ['is no URL', 'accounts.example.com'],
    ['is not https', 'http://id.example.com'],
    ['has a query', 'https://id.example.com?tenant=1'],
    ['has a fragment', 'https://id.example.com#x'],
    ['has a user', 'https://me@id.example.com'],
  ])('cannot send clients to an issuer that %s', (_, issuer) => {
    expect(problemsOf({ authentication: 'oauth' }, { own: provider(issuer) })).toEqual({
      'listen.oauth.provider': expect.stringContaining('clients cannot find it') as string,
    });
  });

  test('can send them to one on loopback', () => {
    expect(
      problemsOf({ authentication: 'oauth' }, { own: provider('http://127.0.0.1:8080') }),
    ).toEqual({});
  });

  test('has no rule that names nobody, or that says where to get what it does not ask for', () => {
    const rules = [{ method: 'oauth' }, { user: 'a', method: 'password', scope: 'x' }] as const;

    expect(problemsOf({ authenticationRules: [...rules] })).toEqual({
      'listen.authenticationRules.0':
        'needs user, database or sni: what is asked of all is listen.authentication',
      'listen.authenticationRules.1': 'has a provider or scope, which are for method "oauth"',
    });
  });

  test('has no rule by host name where there is no TLS to hear one in', () => {
    const authenticationRules: Listen['authenticationRules'] = [
      { sni: 'sso.example.com', method: 'oauth' },
    ];

    expect(problemsOf({ authenticationRules })).toEqual({});
    expect(problemsOf({ tls: { mode: 'disable' }, authenticationRules })).toEqual({
      'listen.authenticationRules.0.sni': 'never matches, because listen.tls.mode is "disable"',
    });
  });

  test.each<[string, Listen]>([
    ['listen.authentication', { authentication: 'scram' as 'oauth' }],
    ['listen.oauth.scope', { oauth: { scope: 'open"id' } }],
    ['listen.oauth.scope', { oauth: { scope: ' openid' } }],
    ['listen.oauth.scope', { oauth: { scope: 'a  b' } }],
    ['listen.oauth.scope', { oauth: { scope: 'a\nb' } }],
    ['listen.oauth.issuer', { oauth: { issuer: 'x' } as object }],
    [
      'listen.authenticationRules.0.sni',
      { authenticationRules: [{ sni: 'A.b', method: 'oauth' }] },
    ],
    ['listen.authenticationRules.0.role', { authenticationRules: [{ role: 'x' } as never] }],
  ])('is told of a bad %s', (path, listen) => {
    expect(Object.keys(problemsOf(listen))).toContain(path);
  });
});
