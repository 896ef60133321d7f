/** The attacks that a valid signature does not excuse, C7 to C16, each by its name: claims that no session may be built on. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createVerifier, type Verifier } from '../../src/identity/jwt.ts';
import { type Issuer, startIssuer } from '../support/issuer.ts';
import { Forge, MARK, NOW } from './forge.ts';
import { configWith, expectNoLeak, reasonOf, refusalOf, sentToClient } from './rig.ts';

const SECONDS = NOW / 1000;

let issuer: Issuer;
let forge: Forge;
let verifier: Verifier;

beforeAll(async () => {
  issuer = await startIssuer({ algorithms: ['RS256'] });
  forge = new Forge(issuer);
  const dev = issuer.provider({ roles: ['authenticated'] });
  verifier = createVerifier(configWith({ dev }), { now: () => NOW });
});

afterAll(async () => {
  verifier.close();
  await issuer.close();
});

const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth);

/** The name of the case, the claim or a whole token, and the DETAIL that the client gets. */
type SignedAttack = readonly [name: string, claims: object | (() => string), detail: string];

const signed = (detail: string, cases: Record<string, SignedAttack[1]>): readonly SignedAttack[] =>
  Object.entries(cases).map(([name, changes]) => [name, changes, detail]);

const AFTER_THE_SIGNATURE: Record<string, readonly SignedAttack[]> = {
  'C9 exp': [
    ...signed('The claim "exp" is missing or not a time.', {
      missing: { exp: undefined },
      null: { exp: null },
      'a string': { exp: `${SECONDS + 60}` },
      'an array': { exp: [SECONDS + 60] },
      zero: { exp: 0 },
      negative: { exp: -1 },
      '1e15': { exp: 1e15 },
      '1e999': () => forge.withNumber('exp', '1e999'),
      '-1e999': () => forge.withNumber('exp', '-1e999'),
      'a second after the year 9999': { exp: 253_402_300_800 },
    }),
    ...signed('The token has expired.', {
      'exactly the tolerance ago': { exp: SECONDS - 30 },
      'long ago': { exp: 1 },
    }),
  ],
  'C10 nbf and iat': [
    ...signed('The token is not valid yet.', {
      'nbf in 31 s': { nbf: SECONDS + 31 },
      'nbf in a thousand years': { nbf: SECONDS * 18 },
    }),
    ...signed('The token was issued in the future.', {
      'iat in 31 s': { iat: SECONDS + 31 },
      'iat in an hour': { iat: SECONDS + 3600 },
    }),
    ...signed('The claim "nbf" is missing or not a time.', {
      'nbf as a string': { nbf: `${SECONDS}` },
      'nbf null': { nbf: null },
      'nbf an array': { nbf: [SECONDS] },
      'nbf 1e999': () => forge.withNumber('nbf', '1e999'),
    }),
    ...signed('The claim "iat" is missing or not a time.', {
      'iat as a string': { iat: 'now' },
      'iat true': { iat: true },
      'iat -1e999': () => forge.withNumber('iat', '-1e999'),
    }),
  ],
  'C11 aud': signed('The claim "aud" is missing or names another audience.', {
    missing: { aud: undefined },
    null: { aud: null },
    empty: { aud: '' },
    another: { aud: 'another-application' },
    'in another case': { aud: 'PGJOT-TESTS' },
    'a number': { aud: 1 },
    'an empty array': { aud: [] },
    others: { aud: ['a', 'b'] },
    nested: { aud: [['pgjot-tests']] },
    'right beside a number': { aud: ['pgjot-tests', 1] },
    'an object': { aud: { 'pgjot-tests': true } },
  }),
  'C13 a logout token': signed('The claim "events" makes it a security event, not a sign-in.', {
    'with its event': { events: { 'http://schemas.openid.net/event/backchannel-logout': {} } },
    'with no event': { events: {} },
  }),
  'C16 sub': [
    ...signed('The claim "sub" is missing or not a fit subject.', {
      missing: { sub: undefined },
      null: { sub: null },
      empty: { sub: '' },
      'a number': { sub: 1 },
      'an array': { sub: ['alice'] },
      '256 bytes': { sub: 'x'.repeat(256) },
      '256 bytes of two-byte letters': { sub: 'é'.repeat(128) },
      'U+0000': { sub: 'alice\0' },
      'a line feed': { sub: 'alice\nbob' },
      'U+007F': { sub: 'alice\u007f' },
      'U+0085, a line feed to some': { sub: 'alice\u0085bob' },
      'an object': { sub: { toString: 'alice' } },
      true: { sub: true },
    }),
    ...signed('The claim "sub" holds something that PostgreSQL cannot store unchanged.', {
      'half a surrogate pair': { sub: '\ud83d' },
    }),
  ],
  'C16 what jsonb refuses or changes': [
    ...signed('The claim "app" holds something that PostgreSQL cannot store unchanged.', {
      'U+0000': { app: 'a\0b' },
      'U+0000 deeper': { app: { list: ['a', { b: '\0' }] } },
      'U+0000 in a nested name': { app: { 'a\0': 1 } },
      'half a surrogate pair': { app: '\udc00x' },
      'an infinite number': () => forge.withNumber('app', '1e999'),
      'a tenant beyond 2^53': () => forge.withNumber('app', '9007199254740993'),
    }),
    ...signed('The claim "a?" holds something that PostgreSQL cannot store unchanged.', {
      'U+0000 in a name': { 'a\0': 1 },
    }),
  ],
};

for (const [attack, tokens] of Object.entries(AFTER_THE_SIGNATURE)) {
  describe(attack, () => {
    test.each(tokens)('refuses %s', async (_, of, detail) => {
      const text = typeof of === 'function' ? (of as () => string)() : forge.withPayload(of);

      const error = await refusalOf(verifier.verify(text, 'alice'));

      expect(error.code).toBe(detail.startsWith('The claim') ? 'claims_rejected' : 'token_expired');
      expect(sentToClient(error)).toEqual({
        sqlstate: '28P01',
        sent: 'FATAL',
        message: 'password authentication failed for user "alice"',
        detail,
        hint: undefined,
        silent: false,
        frame: undefined,
      });
      expect(reasonOf(error)).toContain('(provider "dev")');
      expectNoLeak(error, text, [MARK, 'another-application']);
    });
  });
}

describe('what looks odd and is good', () => {
  test.each([
    ['exp a second within the tolerance', { exp: SECONDS - 29 }],
    ['exp with a fraction', { exp: SECONDS + 0.5 }],
    ['exp in the last second of the year 9999', { exp: 253_402_300_799 }],
    ['nbf in 30 s', { nbf: SECONDS + 30 }],
    ['iat in 30 s', { iat: SECONDS + 30 }],
    ['iat long ago', { iat: 1 }],
    ['aud among others', { aud: ['a', 'pgjot-tests'] }],
    ['sub of 255 bytes', { sub: 'x'.repeat(255) }],
    ['sub beyond ASCII', { sub: 'älice 🐘' }],
    ['sub constructor', { sub: 'constructor' }],
    ['events as a list', { events: ['birthday'] }],
    ['a quote and a bracket in a claim', { name: '{"sub":"bob","sub":"[' }],
    ['a backslash at the end of a claim', { name: 'a\\', other: '\\"' }],
    ['arrays 15 deep', { deep: JSON.parse(nested(15)) as unknown }],
    ['the largest exact integer', { n: Number.MAX_SAFE_INTEGER, f: 0.1, t: true, z: null }],
  ])('accepts %s', async (_, changes) => {
    const verified = await verifier.verify(forge.withPayload(changes), 'alice');

    expect(verified.claims).toMatchObject(changes);
  });

  test.each(['JWT', 'at+jwt', 'application/at+jwt', 'application/okta-internal-at+jwt', 'JOSE'])(
    'accepts typ %s',
    async (typ) => {
      expect((await verifier.verify(forge.withHeader({ typ }), 'alice')).subject).toBe('alice');
    },
  );
});

test('C7 claims named like inherited properties change nothing but themselves', async () => {
  const token = forge.withPayload({
    constructor: { prototype: { polluted: true } },
    hasOwnProperty: 1,
  });

  const { claims } = await verifier.verify(token, 'alice');

  expect(Object.getPrototypeOf(claims)).toBeNull();
  expect(Object.getPrototypeOf(claims['constructor'])).toBeNull();
  expect(Object.isFrozen(claims) && Object.isFrozen(claims['constructor'])).toBe(true);
  expect(claims['polluted']).toBeUndefined();
  expect('polluted' in {}).toBe(false);
  expect(claims['hasOwnProperty']).toBe(1);
});
