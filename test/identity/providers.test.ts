/** Each preset with keys and tokens as its provider documents them: who signs in, and who does not although the provider signed. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Config } from '../../src/config.ts';
import { perIssuer } from '../../src/config-provider.ts';
import { createVerifier } from '../../src/identity/jwt.ts';
import { PRESET_NAMES } from '../../src/presets.ts';
import { type Issuer, startIssuer } from '../support/issuer.ts';
import { NOW } from './forge.ts';
import { PROVIDER_CASES, type ProviderCase, type ProviderToken } from './provider-tokens.ts';
import { configWith, expectNoLeak, reasonOf, refusalOf } from './rig.ts';

/** Two places where keys are published, each with keys of its own. */
let publishers: Record<'first' | 'second', Issuer>;

beforeAll(async () => {
  const algorithms = ['RS256', 'ES256'] as const;
  publishers = {
    first: await startIssuer({ algorithms }),
    second: await startIssuer({ algorithms }),
  };
  for (const publisher of Object.values(publishers)) {
    // As Entra ID does: without alg. It has to follow from the provider's algorithms and the key's type.
    publisher.publish(publisher.keys.map(({ jwk }) => ({ ...jwk, alg: undefined })));
  }
});

afterAll(async () => {
  for (const publisher of Object.values(publishers)) await publisher.close();
});

test('every preset has its provider’s tokens', () => {
  expect(Object.keys(PROVIDER_CASES)).toEqual(PRESET_NAMES);
});

describe.each(Object.entries(PROVIDER_CASES))('preset %s', (preset, provider) => {
  const configured = configWith({ [preset]: { ...provider.settings, roles: ['authenticated'] } });

  test('knows the issuers and where their keys are', () => {
    const [only] = Object.values(configured.providers);
    const found = only && perIssuer(only).map(({ issuer, jwksUri }) => [issuer, jwksUri]);

    expect(found).toEqual(Object.entries(provider.issuers));
  });

  test.each(Object.entries(provider.accepted))('signs in with %s', async (_, token) => {
    const verified = await verify(configured, provider, token);

    const { iss, sub } = { ...provider.claims, ...token.claims };
    expect(verified).toMatchObject({ provider: preset, issuer: iss, subject: sub });
  });

  test.each(Object.entries(provider.refused))('refuses %s', async (_, token) => {
    const refusal = await refusalOf(verify(configured, provider, token));

    expect([refusal.code, refusal.detail]).toEqual(
      token.detail === null ? ['token_rejected', undefined] : ['claims_rejected', token.detail],
    );
    expectNoLeak(refusal, mint(provider, token));
  });

  test('refuses a token signed with a key of its own', async () => {
    const stranger = { header: { kid: publishers.second.key(provider.alg).kid } };

    const refusal = await refusalOf(
      verify(configured, provider, { ...stranger, signedBy: 'first' }),
    );

    expect(refusal.code).toBe('token_rejected');
    expect(reasonOf(refusal)).toMatch(/no key with kid|the signature does not verify/);
  });
});

describe('preset settings that change which tokens are accepted', () => {
  const of = (preset: string) => PROVIDER_CASES[preset] as ProviderCase;

  test.each([
    ['keycloak', { audience: 'my-app' }, { typ: 'ID', aud: 'my-app' }],
    ['cognito', {}, { token_use: 'id', aud: '1example23456789', client_id: undefined }],
    ['entra', {}, { scp: undefined, azp: undefined }],
  ])('%s takes ID tokens where it is told to, and then no others', async (preset, more, claims) => {
    const one = of(preset);
    const settings = { ...one.settings, ...more, tokens: 'id' as const };
    const config = configWith({ one: { ...settings, roles: ['authenticated'] } });
    const access = { ...claims, ...pick(one.claims, ['typ', 'token_use', 'scp']) };

    await expect(verify(config, one, { claims })).resolves.toMatchObject({ provider: 'one' });
    const refusal = await refusalOf(verify(config, one, { claims: access }));

    expect(refusal.detail).toMatch(/^The claim "\/(typ|token_use|scp)" /);
  });

  test('firebase takes the users of a tenant, and then no others', async () => {
    const one = of('firebase');
    const settings = { preset: 'firebase', project: 'my-project', tenant: 'tenant-a' } as const;
    const config = configWith({ one: { ...settings, roles: ['authenticated'] } });
    const userOf = (tenant: string) => ({ claims: { firebase: { tenant } } });

    await expect(verify(config, one, userOf('tenant-a'))).resolves.toMatchObject({
      provider: 'one',
    });
    const refusals = [
      await refusalOf(verify(config, one, userOf('tenant-b'))),
      await refusalOf(verify(config, one, {})),
    ];

    expect(refusals.map(({ code }) => code)).toEqual(['claims_rejected', 'claims_rejected']);
  });

  test('clerk takes tokens with an audience where one is configured, and then no others', async () => {
    const one = of('clerk');
    const settings = { ...one.settings, audience: 'pgjot', roles: ['authenticated'] };
    const config = configWith({ one: settings });

    await expect(verify(config, one, { claims: { aud: 'pgjot' } })).resolves.toBeDefined();
    const refusal = await refusalOf(verify(config, one, {}));

    expect(refusal.detail).toBe('The claim "aud" is missing or names another audience.');
  });

  test('clerk takes tokens of the configured origins alone', async () => {
    const one = of('clerk');
    const config = configWith({
      one: {
        ...one.settings,
        authorizedParties: ['https://app.example.com'],
        roles: ['authenticated'],
      },
    });

    await expect(verify(config, one, {})).resolves.toBeDefined();
    const refusals = [
      await refusalOf(verify(config, one, { claims: { azp: 'https://evil.example.com' } })),
      await refusalOf(verify(config, one, { claims: { azp: undefined } })),
    ];

    expect(refusals.map(({ detail }) => detail)).toEqual([
      'The claim "azp" names another party.',
      'The claim "azp" is missing.',
    ]);
  });
});

/** Verifies a token under a configuration whose key URLs lead to the publishers: each place of keys to one of its own. */
async function verify(config: Config, provider: ProviderCase, token: ProviderToken) {
  const verifier = createVerifier(withPublishers(config, provider), { now: () => NOW });
  try {
    return await verifier.verify(mint(provider, token), 'authenticated');
  } finally {
    verifier.close();
  }
}

function withPublishers(config: Config, provider: ProviderCase): Config {
  const places = placesOf(provider);
  const local = (uri: string | undefined) => {
    const name = uri === places[0] ? 'first' : 'second';
    expect(places).toContain(uri);
    return publishers[name].jwksUri;
  };
  const providers = Object.entries(config.providers).map(([id, one]) => [
    id,
    {
      ...one,
      jwksUri: local(one.jwksUri),
      otherIssuers: one.otherIssuers.map(({ issuer, jwksUri }) => ({
        issuer,
        jwksUri: local(jwksUri),
      })),
    },
  ]);
  return { ...config, providers: Object.fromEntries(providers) as Config['providers'] };
}

/** Where keys are, each place once. */
function placesOf({ issuers }: ProviderCase): readonly string[] {
  return [...new Set(Object.values(issuers))];
}

function mint(provider: ProviderCase, token: ProviderToken): string {
  const claims = { ...provider.claims, ...token.claims };
  const place = provider.issuers[String(claims['iss'])];
  const signer = token.signedBy ?? (place === placesOf(provider)[1] ? 'second' : 'first');
  const key = publishers[signer].key(provider.alg);
  const header = { alg: provider.alg, kid: key.kid, ...provider.header, ...token.header };
  return publishers[signer].mintRaw(JSON.stringify(header), JSON.stringify(claims), { key });
}

function pick(claims: Readonly<Record<string, unknown>>, names: readonly string[]) {
  return Object.fromEntries(names.map((name) => [name, claims[name]]));
}
