/** docs/tokens.md says what the code does: every default, every DETAIL, and the numbers that no setting changes. */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { createVerifier, type Verifier } from '../../src/identity/jwt.ts';
import { Forge, NOW } from '../identity/forge.ts';
import { configWith, refusalOf } from '../identity/rig.ts';
import { type Issuer, startIssuer } from '../support/issuer.ts';

const text = readFileSync(new URL('../../docs/tokens.md', import.meta.url), 'utf8');
const rows = text
  .split('\n')
  .filter((line) => line.startsWith('| '))
  .map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );

const provider = {
  issuer: 'https://id.example',
  jwksUri: 'https://id.example/keys',
  audience: 'a',
  roles: ['analyst'],
};
const defaults = configWith({ dev: provider });

describe('the settings in docs/tokens.md', () => {
  it('are those of "jwks", with their defaults', () => {
    const documented = rows
      .filter(([name = '']) => name.startsWith('`jwks.'))
      .map(([name = '', value = '']) => [
        name.slice('`jwks.'.length, -1),
        JSON.parse(value.replaceAll('`', '')) as unknown,
      ]);

    expect(Object.fromEntries(documented)).toEqual(defaults.jwks);
  });

  it('are accepted as they stand', () => {
    const [, json = ''] = /```json\n([\s\S]*?)```/.exec(text) ?? [];

    expect(() => configWith({ dev: provider }, JSON.parse(json) as ConfigInput)).not.toThrow();
  });

  it.each([
    ['limits.maxTokenBytes', '16,384', defaults.limits.maxTokenBytes],
    ['limits.tokenCacheEntries', '10,000', defaults.limits.tokenCacheEntries],
    ['clockToleranceMs', '30 s', (defaults.providers['dev']?.clockToleranceMs ?? 0) / 1_000],
  ])('%s is %s', (name, written, value) => {
    expect(text).toMatch(new RegExp(`\`${name}\`[^.]{0,3}\\(?${written}`));
    expect(Number.parseInt(written.replaceAll(',', ''), 10)).toBe(value);
  });
});

describe('the refusals in docs/tokens.md', () => {
  let issuer: Issuer;
  let forge: Forge;
  let verifier: Verifier;

  beforeAll(async () => {
    issuer = await startIssuer({ algorithms: ['RS256'] });
    forge = new Forge(issuer);
    const dev = issuer.provider({
      roles: ['authenticated'],
      requiredClaims: ['email'],
      maxTokenAgeMs: 60_000,
      authorizedParties: ['app'],
      typ: ['JWT'],
      claims: { '/token_use': ['access'] },
    });
    verifier = createVerifier(configWith({ dev }), { now: () => NOW });
  });

  afterAll(async () => {
    verifier.close();
    await issuer.close();
  });

  it('have each the DETAIL that a client gets, and there is no other', async () => {
    const seconds = NOW / 1_000;
    const good = { iat: seconds, email: 'a@b', azp: 'app', token_use: 'access' };
    const mint = (claims: object, header: object = { typ: 'JWT' }) =>
      forge.sign(forge.header(header), forge.payload({ ...good, ...claims }));
    expect((await verifier.verify(mint({}), 'u')).subject).toBe('alice');
    const spoilt = [
      mint({ exp: seconds - 30 }),
      mint({ nbf: seconds + 31 }),
      mint({ iat: seconds + 31 }),
      mint({ iat: seconds - 91 }),
      mint({ aud: 'another' }),
      mint({ sub: '' }),
      mint({ events: {} }),
      mint({ email: null }),
      mint({ app: 'a\0' }),
      mint({ azp: undefined }),
      mint({}, { typ: 'at+jwt' }),
      mint({ token_use: 'id' }),
    ];

    const details: unknown[] = [];
    for (const token of spoilt) details.push((await refusalOf(verifier.verify(token, 'u'))).detail);

    const documented = rows.flatMap(([, , detail = '']) => /^`(The .*)`$/.exec(detail)?.[1] ?? []);
    expect(documented).toEqual(details);
  });
});
