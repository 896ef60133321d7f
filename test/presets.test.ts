/** Presets in the configuration: what each needs, what it fills in, what may be replaced, and what must never be. */
import { describe, expect, it } from 'vitest';
import { type ConfigInput, type ProviderConfig, parseConfig } from '../src/config.ts';
import { perIssuer } from '../src/config-provider.ts';
import { ConfigError } from '../src/errors.ts';
import { baseUrl, PRESET_NAMES } from '../src/presets.ts';

type Settings = Partial<ConfigInput['providers'][string]>;

const TENANT = '8eaef023-2b34-4da1-9baa-8bc8c9d6a490';

/** The least that each preset needs. */
const LEAST: Record<(typeof PRESET_NAMES)[number], Settings> = {
  clerk: { domain: 'clerk.example.com' },
  'stack-auth': { project: 'p' },
  auth0: { domain: 'example.auth0.com', audience: 'api' },
  firebase: { project: 'p' },
  stytch: { project: 'project-live-1' },
  keycloak: { domain: 'id.example.com', realm: 'r', audience: 'app' },
  supabase: { domain: 'abc.supabase.co' },
  cognito: { userPool: 'eu-west-1_AbC', clients: 'c' },
  entra: { tenant: TENANT, audience: 'app' },
  google: { audience: 'c.apps.googleusercontent.com' },
  descope: { project: 'P1' },
  propelauth: { domain: 'auth.example.com' },
};

describe.each(PRESET_NAMES)('preset %s', (preset) => {
  it('is content with the least', () => {
    expect(problemsOf({ preset, ...LEAST[preset] })).toEqual({});
  });

  it('has nothing but https, and keys for each issuer', () => {
    for (const { issuer, jwksUri } of perIssuer(parsed({ preset, ...LEAST[preset] }))) {
      expect(issuer).not.toBe('');
      expect(jwksUri).toMatch(/^https:\/\/[a-z0-9.-]+\/\S+$/);
    }
  });

  it('says what is missing, at its path', () => {
    const problems = problemsOf({ preset });

    // Whether Keycloak needs an audience depends on the rest.
    const needs = Object.keys(LEAST[preset]).filter(
      (setting) => preset !== 'keycloak' || setting !== 'audience',
    );
    expect(Object.keys(problems).toSorted()).toEqual(needs.toSorted());
    expect(Object.values(problems).every((text) => /^(is missing|must be)/.test(text))).toBe(true);
  });

  it('refuses a setting of others', () => {
    const [setting, value] =
      preset === 'cognito' ? (['realm', 'r'] as const) : (['userPool', 'eu-west-1_A'] as const);

    expect(problemsOf({ preset, ...LEAST[preset], [setting]: value })).toEqual({
      [setting]: `is not a setting of preset "${preset}"`,
    });
  });

  it('takes keys from a file instead', () => {
    const { jwksUri, jwksFile, otherIssuers } = parsed({
      preset,
      ...LEAST[preset],
      jwksFile: '/etc/keys.json',
    });

    expect([jwksUri, jwksFile]).toEqual([undefined, '/etc/keys.json']);
    expect(otherIssuers.every((other) => other.jwksUri === undefined)).toBe(true);
  });

  it('lets the rest be replaced', () => {
    const changed = parsed({
      preset,
      ...LEAST[preset],
      algorithms: ['PS256'],
      typ: 'at+jwt',
      authorizedParties: 'me',
      jwksUri: 'https://mirror.example.com/keys',
      claims: { '/email_verified': [true] },
      requiredClaims: ['email'],
    });
    const plain = parsed({ preset, ...LEAST[preset] });

    expect(changed).toMatchObject({
      algorithms: ['PS256'],
      typ: ['at+jwt'],
      authorizedParties: ['me'],
      jwksUri: 'https://mirror.example.com/keys',
      issuer: plain.issuer,
      // What a preset demands stays, unless it is replaced by name: else adding a rule would drop others.
      claims: { ...plain.claims, '/email_verified': [true] },
      requiredClaims: [...plain.requiredClaims, 'email'],
    });
  });
});

describe('attack C19: keys that all customers of a provider share', () => {
  it.each(['firebase', 'google', 'entra'] as const)('%s never takes any audience', (preset) => {
    const { audience: _, ...least } = LEAST[preset];
    const problems = problemsOf({ preset, ...least, anyAudience: true });

    expect(problems['anyAudience']).toMatch(/a stranger could sign in$/);
  });

  it.each(['firebase', 'google', 'entra'] as const)(
    '%s never does from a file either',
    (preset) => {
      const { audience: _, ...least } = LEAST[preset];
      const problems = problemsOf({ preset, ...least, anyAudience: true, jwksFile: 'keys.json' });

      expect(problems['anyAudience']).toMatch(/a stranger could sign in$/);
    },
  );

  it.each(['firebase', 'google', 'entra'] as const)('%s has the issuer it has', (preset) => {
    const problems = problemsOf({ preset, ...LEAST[preset], issuer: 'https://evil.example.com' });

    expect(Object.keys(problems)).toEqual(['issuer']);
  });

  it.each([
    'https://www.googleapis.com/oauth2/v3/certs',
    'https://WWW.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com',
    'https://login.microsoftonline.com/common/discovery/v2.0/keys',
  ])('are known without a preset too: %s', (jwksUri) => {
    const problems = problemsOf({ issuer: 'https://x.example.com', jwksUri, anyAudience: true });

    expect(Object.keys(problems)).toEqual(['anyAudience']);
  });

  it('belong to one Firebase project, whether "project" names it or "audience"', () => {
    const byAudience = parsed({ preset: 'firebase', audience: ['my-project'] });

    expect(byAudience).toEqual(parsed({ preset: 'firebase', project: 'my-project' }));
    expect(byAudience.issuer).toBe('https://securetoken.google.com/my-project');
    expect(Object.keys(problemsOf({ preset: 'firebase', audience: ['a', 'b'] }))).toEqual([
      'project',
    ]);
    expect(Object.keys(problemsOf({ preset: 'firebase', project: 'a', audience: ['b'] }))).toEqual([
      'audience',
    ]);
  });
});

describe('the tenant of Entra ID', () => {
  it.each(['common', 'organizations', 'consumers', 'contoso.onmicrosoft.com', 'not-a-guid'])(
    'may not be "%s"',
    (tenant) => {
      const problems = problemsOf({ preset: 'entra', tenant, audience: 'app' });

      expect(problems['tenant']).toMatch(/^must be the tenant's id/);
    },
  );

  it('may be written in capitals, as the portal never does and tokens never do', () => {
    const given = parsed({ preset: 'entra', tenant: TENANT.toUpperCase(), audience: 'app' });

    expect(given.issuer).toBe(`https://login.microsoftonline.com/${TENANT}/v2.0`);
  });
});

describe('a domain', () => {
  it.each([
    ['id.example.com', 'https://id.example.com'],
    ['https://id.example.com/', 'https://id.example.com'],
    ['ID.Example.com', 'https://id.example.com'],
    ['id.example.com:8443/auth', 'https://id.example.com:8443/auth'],
    ['http://127.0.0.1:8080', 'http://127.0.0.1:8080'],
    ['', undefined],
    ['https://', undefined],
    ['me:secret@id.example.com', undefined],
    ['id.example.com?x=1', undefined],
    ['id.example.com#x', undefined],
    ['id .example.com', undefined],
    ['ftp://id.example.com', undefined],
  ])('%j is %j', (domain, url) => {
    expect(baseUrl(domain)).toBe(url);
    expect(problemsOf({ preset: 'clerk', domain })).toEqual(
      url === undefined ? { domain: 'must be a host name, for instance "id.example.com"' } : {},
    );
  });

  it('may be plain http on loopback alone', () => {
    expect(Object.keys(problemsOf({ preset: 'clerk', domain: 'http://id.example.com' }))).toEqual([
      'jwksUri',
    ]);
  });
});

describe('what cannot be', () => {
  it.each<[what: string, Settings, path: string]>([
    ['an unknown preset', { preset: 'okta' as 'clerk' }, 'preset'],
    [
      'a preset’s setting without a preset',
      { issuer: 'i', jwksUri: 'https://x.example.com', audience: 'a', domain: 'x.example.com' },
      'domain',
    ],
    ['neither issuer nor preset', { jwksUri: 'https://x.example.com', audience: 'a' }, 'issuer'],
    ['auth0 without an audience', { preset: 'auth0', domain: 'x.auth0.com' }, 'audience'],
    [
      'keycloak without audience and authorized parties',
      { preset: 'keycloak', domain: 'x.example.com', realm: 'r' },
      'audience',
    ],
    [
      'authorized parties instead of an audience, without a preset',
      { issuer: 'i', jwksUri: 'https://x.example.com', authorizedParties: ['me'] },
      'audience',
    ],
    ['a project that leaves its path', { preset: 'descope', project: '../x' }, 'project'],
    ['a realm that leaves its path', { ...keycloak(), realm: 'a/b' }, 'realm'],
    ['a user pool without its region', { ...cognito(), userPool: 'AbC' }, 'userPool'],
    ['a rule without values', { ...keycloak(), claims: { '/typ': [] } }, 'claims./typ'],
    ['a rule whose name is no pointer', { ...keycloak(), claims: { typ: ['ID'] } }, 'claims.typ'],
  ])('is %s', (_, settings, path) => {
    expect(Object.keys(problemsOf(settings))).toEqual([path]);
  });

  it('is one issuer in two providers, be it the second of several', () => {
    const google = { preset: 'google' as const, audience: 'a', roles: ['authenticated'] };
    const other = {
      issuer: 'accounts.google.com',
      jwksUri: 'https://x.example.com',
      audience: 'a',
      roles: ['authenticated'],
    };

    expect(thrownBy({ google, other })).toEqual({
      'providers.other.issuer': 'is the issuer of providers.google too',
    });
  });

  it('has every problem of every provider reported at once', () => {
    const roles = ['authenticated'];

    expect(
      Object.keys(
        thrownBy({
          a: { preset: 'keycloak', roles },
          b: { preset: 'entra', tenant: 'common', audience: 'a', roles },
          c: { preset: 'clerk', domain: 'x.example.com', realm: 'r', roles },
        }),
      ),
    ).toEqual([
      'providers.a.domain',
      'providers.a.realm',
      'providers.b.tenant',
      'providers.c.realm',
    ]);
  });
});

describe('regions', () => {
  it.each([
    [
      { ...cognito(), userPool: 'cn-north-1_AbC' },
      'https://cognito-idp.cn-north-1.amazonaws.com.cn/cn-north-1_AbC/.well-known/jwks.json',
    ],
    [
      { preset: 'stytch', project: 'project-test-1' },
      'https://test.stytch.com/v1/sessions/jwks/project-test-1',
    ],
    [
      { preset: 'descope', project: 'P1', domain: 'api.euc1.descope.com' },
      'https://api.euc1.descope.com/P1/.well-known/jwks.json',
    ],
    [
      { preset: 'stack-auth', project: 'p', domain: 'https://stack.example.com' },
      'https://stack.example.com/api/v1/projects/p/.well-known/jwks.json',
    ],
    [
      { ...keycloak(), domain: 'id.example.com/auth' },
      'https://id.example.com/auth/realms/r/protocol/openid-connect/certs',
    ],
  ] as [Settings, string][])('%j has its keys at %s', (settings, jwksUri) => {
    expect(parsed(settings).jwksUri).toBe(jwksUri);
  });
});

describe('a provider without a preset', () => {
  it('may spell its issuer in several ways, with one place of keys', () => {
    const one = parsed({
      issuer: ['https://a.example.com', 'a.example.com'],
      jwksUri: 'https://a.example.com/keys',
      audience: 'x',
    });

    expect(perIssuer(one).map(({ issuer, jwksUri }) => [issuer, jwksUri])).toEqual([
      ['https://a.example.com', 'https://a.example.com/keys'],
      ['a.example.com', 'https://a.example.com/keys'],
    ]);
    expect(perIssuer(one).every(({ otherIssuers }) => otherIssuers.length === 0)).toBe(true);
  });

  it('has no rules but its own', () => {
    const one = parsed({ issuer: 'i', jwksUri: 'https://x.example.com', audience: 'x' });

    expect(one).toMatchObject({
      typ: undefined,
      authorizedParties: undefined,
      claims: {},
      requiredClaims: [],
      algorithms: ['RS256', 'ES256', 'EdDSA'],
      anyAudience: false,
    });
  });
});

function keycloak(): Settings {
  return { preset: 'keycloak', ...LEAST.keycloak };
}

function cognito(): Settings {
  return { preset: 'cognito', ...LEAST.cognito };
}

function configOf(providers: ConfigInput['providers']): ConfigInput {
  const roles = { authenticated: { slots: 1 } };
  const main = { host: '127.0.0.1', database: 'app', secret: { env: 'SECRET' }, roles };
  return { providers, upstreams: { main } };
}

function parsed(settings: Settings): ProviderConfig {
  const config = parseConfig(configOf({ own: { roles: ['authenticated'], ...settings } }));
  return config.providers['own'] as ProviderConfig;
}

/** The problems of one provider, by setting. */
function problemsOf(settings: Settings): Record<string, string> {
  const problems = thrownBy({ own: { roles: ['authenticated'], ...settings } });
  return Object.fromEntries(
    Object.entries(problems).map(([path, message]) => [
      path.replace('providers.own.', ''),
      message,
    ]),
  );
}

function thrownBy(providers: ConfigInput['providers']): Record<string, string> {
  try {
    parseConfig(configOf(providers));
    return {};
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return Object.fromEntries(error.problems.map(({ path, message }) => [path, message]));
  }
}
