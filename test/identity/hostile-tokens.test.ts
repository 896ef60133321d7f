/** The attacks on tokens, C1 to C19, each by its name: what a stranger may send as a password. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createVerifier, type Verifier } from '../../src/identity/jwt.ts';
import { createIssuerKey, type Issuer, startIssuer } from '../support/issuer.ts';
import { Forge, MARK, NOW } from './forge.ts';
import { configWith, expectNoLeak, reasonOf, refusalOf, sentToClient } from './rig.ts';

let issuer: Issuer;
let sibling: Issuer;
let forge: Forge;
let verifier: Verifier;

beforeAll(async () => {
  issuer = await startIssuer();
  forge = new Forge(issuer);
  sibling = await startIssuer({ algorithms: ['RS256', 'ES256'] });
  verifier = createVerifier(
    configWith({
      dev: issuer.provider({ roles: ['authenticated'] }),
      sibling: sibling.provider({ roles: ['authenticated'] }),
    }),
    { now: () => NOW },
  );
});

afterAll(async () => {
  verifier.close();
  await issuer.close();
  await sibling.close();
});

const encode = (text: string) => Buffer.from(text).toString('base64url');
const parts = () => forge.good().split('.') as [string, string, string];
const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth);

function otherSpellings(token: string): string[] {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  const last = alphabet.indexOf(token.at(-1) ?? '');
  // 256 bytes leave 4 spare bits in the last character: 16 spellings of one signature.
  return Array.from({ length: 16 }, (_, index) => (last & 0b110000) | index)
    .filter((value) => value !== last)
    .map((value) => token.slice(0, -1) + alphabet.charAt(value));
}

function signedByWith(hmacSecret: string | Buffer, alg = 'HS256'): string {
  const changed = JSON.stringify({ alg, kid: issuer.key('RS256').kid });
  return issuer.mintRaw(changed, forge.payload(), { alg: 'HS256', hmacSecret });
}

type Attack = readonly [name: string, token: () => string, reason: RegExp];

const BEFORE_THE_SIGNATURE: Record<string, readonly Attack[]> = {
  'C1 unsigned tokens': [
    ...['none', 'None', 'NoNe', 'NONE', ' none', 'none\0'].map(
      (alg): Attack => [
        `alg ${JSON.stringify(alg)} with a signature`,
        () => forge.withHeader({ alg }),
        /^alg ".*" is not allowed for provider "dev"$/,
      ],
    ),
    [
      'alg none without a signature',
      () => issuer.mintRaw(forge.header({ alg: 'none' }), forge.payload(), { alg: 'none' }),
      /^the signature is empty or not base64url$/,
    ],
    [
      'alg none with one character as signature',
      () => `${encode(forge.header({ alg: 'none' }))}.${encode(forge.payload())}.A`,
      /^the signature is not canonical base64url$/,
    ],
    ['an empty alg', () => forge.withHeader({ alg: '' }), /names no alg/],
    ['no alg', () => forge.withHeader({ alg: undefined }), /names no alg/],
    ['alg null', () => forge.withHeader({ alg: null }), /names no alg/],
    ['alg as an array', () => forge.withHeader({ alg: ['RS256'] }), /names no alg/],
    ['alg as a number', () => forge.withHeader({ alg: 256 }), /names no alg/],
    ['alg __proto__', () => forge.withHeader({ alg: '__proto__' }), /is not allowed/],
    ['alg constructor', () => forge.withHeader({ alg: 'constructor' }), /is not allowed/],
    ['alg in lower case', () => forge.withHeader({ alg: 'rs256' }), /is not allowed/],
  ],
  'C2 the public key as an HMAC secret': [
    ['its PEM', () => signedByWith(issuer.key('RS256').publicPem), /"HS256" is not allowed/],
    ['its PEM, trimmed', () => signedByWith(issuer.key('RS256').publicPem.trim()), /not allowed/],
    [
      'its DER',
      () => signedByWith(issuer.key('RS256').publicKey.export({ type: 'spki', format: 'der' })),
      /not allowed/,
    ],
    ['its modulus', () => signedByWith(String(issuer.key('RS256').jwk['n'])), /not allowed/],
    ['its JWK', () => signedByWith(JSON.stringify(issuer.key('RS256').jwk)), /not allowed/],
    ['HS384', () => signedByWith(issuer.key('RS256').publicPem, 'HS384'), /not allowed/],
    ['HS512', () => signedByWith(issuer.key('RS256').publicPem, 'HS512'), /not allowed/],
    ["the EC key's PEM", () => signedByWith(issuer.key('ES256').publicPem), /not allowed/],
    ['an empty secret', () => signedByWith(''), /not allowed/],
    [
      'under alg RS256',
      () =>
        issuer.mintRaw(forge.header(), forge.payload(), {
          alg: 'HS256',
          hmacSecret: issuer.key('RS256').publicPem,
        }),
      /^the signature does not verify$/,
    ],
  ],
  'C3 hostile kids': [
    ['SQL', () => forge.withHeader({ kid: "' or '1'='1" }), /^no key with kid/],
    ['a path', () => forge.withHeader({ kid: '../../../../dev/null' }), /^no key with kid/],
    ['a URL', () => forge.withHeader({ kid: 'http://127.0.0.1/keys' }), /^no key with kid/],
    [
      '__proto__',
      () => forge.withHeader({ kid: '__proto__' }),
      /^no key with kid "__proto__" at issuer/,
    ],
    ['constructor', () => forge.withHeader({ kid: 'constructor' }), /^no key with kid/],
    [
      'another spelling',
      () => forge.withHeader({ kid: issuer.key('RS256').kid.toUpperCase() }),
      /^no key/,
    ],
    [
      'a space behind it',
      () => forge.withHeader({ kid: `${issuer.key('RS256').kid} ` }),
      /^no key with/,
    ],
    [
      'the EC key for RS256',
      () => forge.withHeader({ kid: issuer.key('ES256').kid }),
      /does not fit alg/,
    ],
    ['an empty string', () => forge.withHeader({ kid: '' }), /^the kid is not a string/],
    [
      '257 characters',
      () => forge.withHeader({ kid: 'k'.repeat(257) }),
      /^the kid is not a string/,
    ],
    ['10,000 characters', () => forge.withHeader({ kid: 'k'.repeat(10_000) }), /^the kid is not/],
    ['a number', () => forge.withHeader({ kid: 1 }), /^the kid is not a string/],
    ['null', () => forge.withHeader({ kid: null }), /^the kid is not a string/],
    [
      'an array',
      () => forge.withHeader({ kid: [issuer.key('RS256').kid] }),
      /^the kid is not a string/,
    ],
    ['an object', () => forge.withHeader({ kid: { toString: 'x' } }), /^the kid is not a string/],
    [
      'a line feed',
      () => forge.withHeader({ kid: 'a\nFATAL: forged' }),
      /^the kid is not a string/,
    ],
    ['U+0000', () => forge.withHeader({ kid: 'a\0' }), /^the kid is not a string/],
    ['letters beyond ASCII', () => forge.withHeader({ kid: 'clé' }), /^the kid is not a string/],
  ],
  'C4 the sender brings the key': [
    ['jku', () => forge.withHeader({ jku: `${sibling.url}/jwks.json` }), /member "jku"/],
    ['x5u', () => forge.withHeader({ x5u: `${sibling.url}/x5u` }), /member "x5u"/],
    ['x5c', () => forge.withHeader({ x5c: ['MIIB'] }), /member "x5c"/],
    ['jwk', () => forge.withHeader({ jwk: sibling.key('RS256').jwk }), /member "jwk"/],
    ['jku null', () => forge.withHeader({ jku: null }), /member "jku"/],
    [
      'jwk, and signed with it',
      () =>
        issuer.mintRaw(forge.header({ jwk: sibling.key('RS256').jwk }), forge.payload(), {
          key: sibling.key('RS256'),
        }),
      /member "jwk"/,
    ],
  ],
  'C5 crit and b64': [
    ['an unknown extension', () => forge.withHeader({ crit: ['exp'], exp: 1 }), /member "crit"/],
    ['an empty crit', () => forge.withHeader({ crit: [] }), /member "crit"/],
    ['b64 false', () => forge.withHeader({ crit: ['b64'], b64: false }), /member "crit"/],
    ['b64 false alone', () => forge.withHeader({ b64: false }), /member "b64"/],
    ['b64 true', () => forge.withHeader({ b64: true }), /member "b64"/],
  ],
  'C6 members given twice': [
    [
      'alg none and RS256',
      () => issuer.mintRaw(`{"alg":"none",${forge.header().slice(1)}`, forge.payload()),
      /^the header has two members "alg" in one object$/,
    ],
    [
      'sub',
      () => issuer.mintRaw(forge.header(), `{"sub":"victim",${forge.payload().slice(1)}`),
      /^the payload has two members "sub"/,
    ],
    [
      'sub, once in escapes',
      () =>
        issuer.mintRaw(
          forge.header(),
          String.raw`{"s\u0075b":"victim",${forge.payload().slice(1)}`,
        ),
      /^the payload has two members "sub"/,
    ],
    [
      'sub, with space before the colon',
      () => issuer.mintRaw(forge.header(), `{"sub" \n :"victim",${forge.payload().slice(1)}`),
      /^the payload has two members "sub"/,
    ],
    [
      'iss',
      () =>
        issuer.mintRaw(forge.header(), `{"iss":"https://evil.example",${forge.payload().slice(1)}`),
      /^the payload has two members "iss"/,
    ],
    [
      'a member of a nested object',
      () =>
        issuer.mintRaw(
          forge.header(),
          forge.payload({ app: 0 }).replace('"app":0', '"app":[{"r":1,"r":2}]'),
        ),
      /^the payload has two members "r"/,
    ],
  ],
  'C7 names that every object has': [
    [
      '__proto__ in the payload',
      () =>
        issuer.mintRaw(
          forge.header(),
          `{"__proto__":{"role":"service"},${forge.payload().slice(1)}`,
        ),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ in escapes',
      () =>
        issuer.mintRaw(
          forge.header(),
          String.raw`{"\u005f_proto__":{},${forge.payload().slice(1)}`,
        ),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ deeper',
      () => issuer.mintRaw(forge.header(), `{"app":[{"__proto__":1}],${forge.payload().slice(1)}`),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ in the header',
      () =>
        issuer.mintRaw(`{"__proto__":{"alg":"none"},${forge.header().slice(1)}`, forge.payload()),
      /^the header has a member "__proto__"$/,
    ],
  ],
  'C8 tokens that cost': [
    [
      '1 MB',
      () => forge.withPayload({ pad: 'x'.repeat(750_000) }),
      /^the token is \d{7} bytes long/,
    ],
    [
      'a byte too long',
      () => `${forge.good()}${'A'.repeat(16_385)}`.slice(0, 16_385),
      /^the token is 16385/,
    ],
    ['16,384 dots', () => '.'.repeat(16_384), /^the token has more than 3 parts, not 3$/],
    [
      'arrays 17 deep',
      () => forge.withPayload({ deep: JSON.parse(nested(16)) }),
      /more than 16 deep/,
    ],
    [
      'arrays 5,000 deep',
      () => issuer.mintRaw(forge.header(), `{"deep":${nested(5_000)},${forge.payload().slice(1)}`),
      /more than 16 deep/,
    ],
    [
      'objects 17 deep',
      () =>
        issuer.mintRaw(
          forge.header(),
          `{"a":${'{"a":'.repeat(16)}1${'}'.repeat(16)},${forge.payload().slice(1)}`,
        ),
      /more than 16 deep/,
    ],
    [
      '201 claims',
      () =>
        forge.withPayload(Object.fromEntries(Array.from({ length: 196 }, (_, n) => [`c${n}`, n]))),
      /more than 200 members/,
    ],
    [
      'a string without an end',
      () => issuer.mintRaw(forge.header(), `{"a":"${'\\"'.repeat(5_000)}`),
      /^the payload is not JSON/,
    ],
  ],
  'C12 wrong issuers': [
    [
      'a trailing slash',
      () => forge.withPayload({ iss: `${issuer.issuer}/` }),
      /^issuer ".*" is not that/,
    ],
    ['upper case', () => forge.withPayload({ iss: issuer.issuer.toUpperCase() }), /^issuer/],
    ['a space', () => forge.withPayload({ iss: ` ${issuer.issuer}` }), /^issuer/],
    [
      'another',
      () => forge.withPayload({ iss: 'https://evil.example' }),
      /^issuer "https:\/\/evil.example" is/,
    ],
    ['__proto__', () => forge.withPayload({ iss: '__proto__' }), /^issuer "__proto__" is not/],
    ['constructor', () => forge.withPayload({ iss: 'constructor' }), /^issuer/],
    ["the provider's name", () => forge.withPayload({ iss: 'dev' }), /^issuer/],
    ['an empty string', () => forge.withPayload({ iss: '' }), /^issuer/],
    ['none', () => forge.withPayload({ iss: undefined }), /^iss is missing/],
    [
      'an array',
      () => forge.withPayload({ iss: [issuer.issuer] }),
      /^iss is missing or not a string$/,
    ],
    ['a number', () => forge.withPayload({ iss: 1 }), /^iss is missing/],
    ['null', () => forge.withPayload({ iss: null }), /^iss is missing/],
  ],
  'C13 other kinds of token': [
    ...[
      'logout+jwt',
      'secevent+jwt',
      'dpop+jwt',
      'application/dpop+jwt',
      'LOGOUT+JWT',
      'not-at+jwt+jwt',
      'logout+jwt;v=1',
      'logout+jwt ',
      'at+jwt;v=1',
      'flat+jwt',
      'kb+jwt',
      'dc+sd-jwt',
      'vc+ld+jwt',
      'oauth-authz-req+jwt',
      'token-introspection+jwt',
      'client-authentication+jwt',
      'entity-statement+jwt',
      'jwk-set+json',
    ].map(
      (typ): Attack => [`typ ${typ}`, () => forge.withHeader({ typ }), /is another kind of token/],
    ),
    ['typ null', () => forge.withHeader({ typ: null }), /^the typ is not a string$/],
    ['typ as an array', () => forge.withHeader({ typ: ['JWT'] }), /^the typ is not a string$/],
  ],
  'C14 other serialisations': [
    ['a JWE', () => [...parts(), 'AAAA', 'AAAA'].join('.'), /more than 3 parts/],
    ['four parts', () => `${forge.good()}.AAAA`, /more than 3 parts/],
    [
      'JWS JSON',
      () => JSON.stringify({ payload: parts()[1], protected: parts()[0], signature: parts()[2] }),
      /the token has 1 parts/,
    ],
    ['a detached payload', () => `${parts()[0]}..${parts()[2]}`, /^the payload is empty/],
    ['no header', () => `.${parts()[1]}.${parts()[2]}`, /^the header is empty/],
    ['no signature', () => `${parts()[0]}.${parts()[1]}.`, /^the signature is empty/],
    ['two parts', () => parts().slice(0, 2).join('.'), /the token has 2 parts/],
    [
      'a JWT in a JWT',
      () => issuer.mintRaw(forge.header({ cty: 'JWT' }), forge.good()),
      /^the payload is not JSON/,
    ],
    [
      'a JWT as a string',
      () => issuer.mintRaw(forge.header(), JSON.stringify(forge.good())),
      /is not a JSON object/,
    ],
    [
      'an array of claims',
      () => issuer.mintRaw(forge.header(), `[${forge.payload()}]`),
      /is not a JSON object/,
    ],
    ['null as claims', () => issuer.mintRaw(forge.header(), 'null'), /is not a JSON object/],
    [
      'an array as header',
      () => issuer.mintRaw(`[${forge.header()}]`, forge.payload()),
      /is not a JSON object/,
    ],
    [
      'a byte order mark',
      () => issuer.mintRaw(forge.header(), `\ufeff${forge.payload()}`),
      /is not JSON in UTF-8/,
    ],
    [
      'bytes that are not UTF-8',
      () =>
        issuer.mintRaw(forge.header(), Buffer.from(forge.payload({ name: '\u00e9' }), 'latin1')),
      /^the payload is not JSON in UTF-8$/,
    ],
    [
      'two JSON texts',
      () => issuer.mintRaw(forge.header(), forge.payload() + forge.payload()),
      /is not JSON/,
    ],
    ['a comment', () => issuer.mintRaw(forge.header(), `/**/${forge.payload()}`), /is not JSON/],
    ['a password', () => 'correct horse battery staple', /the token has 1 parts/],
    ['one dot', () => '.', /the token has 2 parts/],
  ],
  'C15 other spellings of a good token': [
    [
      'a trailing line feed',
      () => `${forge.good()}\n`,
      /^the signature is empty or not base64url$/,
    ],
    ['a leading space', () => ` ${forge.good()}`, /^the header is empty or not base64url$/],
    ['a NUL behind it', () => `${forge.good()}\0`, /not base64url/],
    ['"Bearer " before it', () => `Bearer ${forge.good()}`, /not base64url/],
    ['padding', () => `${forge.good()}==`, /not base64url/],
    ['padding in the payload', () => `${parts()[0]}.${parts()[1]}=.${parts()[2]}`, /not base64url/],
    ['a line feed inside', () => `${parts()[0]}.${parts()[1]}.\n${parts()[2]}`, /not base64url/],
    ['plain base64', () => `${parts()[0]}.${parts()[1]}.+${parts()[2].slice(1)}`, /not base64url/],
    ['full-width dots', () => forge.good().replaceAll('.', '．'), /the token has 1 parts/],
    ['a lone character', () => `${parts()[0]}.${parts()[1]}.${parts()[2]}AAA`, /canonical|verify/],
    ...Array.from(
      { length: 15 },
      (_, index): Attack => [
        `spelling ${index + 1} of the last character`,
        () => otherSpellings(forge.good())[index] ?? '',
        /^the signature is not canonical base64url$/,
      ],
    ),
  ],
  'wrong signatures': [
    ['an empty object', () => issuer.mintRaw('{}', '{}'), /names no alg/],
    [
      'of a stranger with the right kid',
      () => issuer.mintRaw(forge.header(), forge.payload(), { key: createIssuerKey('RS256') }),
      /^the signature does not verify$/,
    ],
    [
      'of the header only',
      () => `${parts()[0]}.${encode(forge.payload({ sub: 'bob' }))}.${parts()[2]}`,
      /^the signature does not verify$/,
    ],
    [
      'cut short',
      () => forge.good().slice(0, -40),
      /the signature (does not verify|is not canonical)/,
    ],
    [
      'of zeroes, on ES256 (CVE-2022-21449)',
      () =>
        `${encode(forge.header({ alg: 'ES256', kid: issuer.key('ES256').kid }))}.${encode(forge.payload())}.${Buffer.alloc(64).toString('base64url')}`,
      /^the signature does not verify$/,
    ],
    [
      'of zeroes, on EdDSA',
      () =>
        `${encode(forge.header({ alg: 'EdDSA', kid: issuer.key('EdDSA').kid }))}.${encode(forge.payload())}.${Buffer.alloc(64).toString('base64url')}`,
      /^the signature does not verify$/,
    ],
    [
      'RS512 where RS256 is allowed',
      () => issuer.mintRaw(forge.header({ alg: 'RS512' }), forge.payload(), { alg: 'RS512' }),
      /"RS512" is not allowed/,
    ],
    [
      'PS256 under RS256',
      () => issuer.mintRaw(forge.header(), forge.payload(), { alg: 'PS256' }),
      /does not verify/,
    ],
  ],
};

for (const [attack, tokens] of Object.entries(BEFORE_THE_SIGNATURE)) {
  describe(attack, () => {
    test.each(tokens)('refuses %s like any other', async (_, token, reason) => {
      const text = token();

      const error = await refusalOf(verifier.verify(text, 'alice'));

      const { hint, ...sent } = sentToClient(error) as { hint: string | undefined };
      expect(error.code).toBe('token_rejected');
      expect(reasonOf(error)).toMatch(reason);
      expect(sent).toEqual({
        sqlstate: '28P01',
        sent: 'FATAL',
        message: 'password authentication failed for user "alice"',
        detail: undefined,
        silent: false,
        frame: undefined,
      });
      // The one thing that may differ, and it depends on the shape of what was sent alone.
      const third = text.split('.')[2];
      if (third !== undefined && third !== '') expect(hint).toBeUndefined();
      expectNoLeak(error, text, [MARK]);
    });
  });
}

test('more than 120 hostile tokens are tried', () => {
  expect(Object.values(BEFORE_THE_SIGNATURE).flat().length).toBeGreaterThan(120);
});

test('the token that all of these were made from is good', async () => {
  expect((await verifier.verify(forge.good(), 'alice')).subject).toBe('alice');
});

test('C4 a token with jku, x5u or jwk causes no request at all', async () => {
  const before = [issuer.fetches, sibling.fetches];

  for (const [, token] of BEFORE_THE_SIGNATURE['C4 the sender brings the key'] ?? []) {
    await refusalOf(verifier.verify(token(), 'alice'));
  }

  expect([issuer.fetches, sibling.fetches]).toEqual(before);
});

test('C18 a key of one issuer never verifies a token of another, even with the same kid', async () => {
  const twins = [
    createIssuerKey('ES256', 'same-kid'),
    createIssuerKey('ES256', 'same-kid'),
  ] as const;
  await using first = await startIssuer({ algorithms: ['ES256'] });
  await using second = await startIssuer({ algorithms: ['ES256'] });
  first.publish([twins[0].jwk]);
  second.publish([twins[1].jwk]);
  const two = createVerifier(
    configWith({
      first: first.provider({ roles: ['authenticated'] }),
      second: second.provider({ roles: ['authenticated'] }),
    }),
  );

  const outcomes: string[] = [];
  for (const issuedBy of [first, second]) {
    for (const key of twins) {
      const token = issuedBy.mint({ sub: 'alice' }, { key });
      outcomes.push(
        await two.verify(token, 'alice').then(
          ({ provider }) => provider,
          (error: Error) => (error.cause as Error).message,
        ),
      );
    }
  }

  two.close();
  const wrong = 'the signature does not verify';
  expect(outcomes).toEqual(['first', wrong, wrong, 'second']);
});

test('C19 a token that a shared key set verifies is refused for its audience', async () => {
  await using shared = await startIssuer({ algorithms: ['ES256'] });
  const mine = createVerifier(
    configWith({ mine: shared.provider({ roles: ['authenticated'], audience: 'my-project' }) }),
  );

  const error = await refusalOf(mine.verify(shared.mint({ sub: 'eve', aud: 'your-project' }), 'u'));

  mine.close();
  expect(error.code).toBe('claims_rejected');
  expect(error.detail).toBe('The claim "aud" is missing or names another audience.');
});
