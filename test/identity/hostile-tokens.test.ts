/** The attacks on tokens, C1 to C19, each by its name: what a stranger may send as a password. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createVerifier, type Verifier } from '../../src/identity/jwt.ts';
import { createIssuerKey, type Issuer, startIssuer } from '../support/issuer.ts';
import { configWith, expectNoLeak, reasonOf, refusalOf, sentToClient } from './rig.ts';

const NOW = Date.UTC(2026, 0, 1);
const SECONDS = NOW / 1000;
const MARK = 'mark-that-must-not-appear';

let issuer: Issuer;
let sibling: Issuer;
let verifier: Verifier;

beforeAll(async () => {
  issuer = await startIssuer();
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

const header = (changes: object = {}) =>
  JSON.stringify({ alg: 'RS256', kid: issuer.key('RS256').kid, ...changes });
const payload = (changes: object = {}) => JSON.stringify({ ...claims(), ...changes });
const claims = () => ({
  iss: issuer.issuer,
  aud: issuer.audience,
  sub: 'alice',
  exp: SECONDS + 3600,
  mark: MARK,
});
const good = () => issuer.mintRaw(header(), payload());
const withHeader = (changes: object) => issuer.mintRaw(header(changes), payload());
const withPayload = (changes: object) => issuer.mintRaw(header(), payload(changes));
const encode = (text: string) => Buffer.from(text).toString('base64url');
const parts = () => good().split('.') as [string, string, string];
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
  return issuer.mintRaw(changed, payload(), { alg: 'HS256', hmacSecret });
}

type Attack = readonly [name: string, token: () => string, reason: RegExp];

const BEFORE_THE_SIGNATURE: Record<string, readonly Attack[]> = {
  'C1 unsigned tokens': [
    ...['none', 'None', 'NoNe', 'NONE', ' none', 'none\0'].map(
      (alg): Attack => [
        `alg ${JSON.stringify(alg)} with a signature`,
        () => withHeader({ alg }),
        /^alg ".*" is not allowed for provider "dev"$/,
      ],
    ),
    [
      'alg none without a signature',
      () => issuer.mintRaw(header({ alg: 'none' }), payload(), { alg: 'none' }),
      /^the signature is empty or not base64url$/,
    ],
    [
      'alg none with one character as signature',
      () => `${encode(header({ alg: 'none' }))}.${encode(payload())}.A`,
      /^the signature is not canonical base64url$/,
    ],
    ['an empty alg', () => withHeader({ alg: '' }), /names no alg/],
    ['no alg', () => withHeader({ alg: undefined }), /names no alg/],
    ['alg null', () => withHeader({ alg: null }), /names no alg/],
    ['alg as an array', () => withHeader({ alg: ['RS256'] }), /names no alg/],
    ['alg as a number', () => withHeader({ alg: 256 }), /names no alg/],
    ['alg __proto__', () => withHeader({ alg: '__proto__' }), /is not allowed/],
    ['alg constructor', () => withHeader({ alg: 'constructor' }), /is not allowed/],
    ['alg in lower case', () => withHeader({ alg: 'rs256' }), /is not allowed/],
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
        issuer.mintRaw(header(), payload(), {
          alg: 'HS256',
          hmacSecret: issuer.key('RS256').publicPem,
        }),
      /^the signature does not verify$/,
    ],
  ],
  'C3 hostile kids': [
    ['SQL', () => withHeader({ kid: "' or '1'='1" }), /^no key with kid/],
    ['a path', () => withHeader({ kid: '../../../../dev/null' }), /^no key with kid/],
    ['a URL', () => withHeader({ kid: 'http://127.0.0.1/keys' }), /^no key with kid/],
    ['__proto__', () => withHeader({ kid: '__proto__' }), /^no key with kid "__proto__" at issuer/],
    ['constructor', () => withHeader({ kid: 'constructor' }), /^no key with kid/],
    [
      'another spelling',
      () => withHeader({ kid: issuer.key('RS256').kid.toUpperCase() }),
      /^no key/,
    ],
    ['a space behind it', () => withHeader({ kid: `${issuer.key('RS256').kid} ` }), /^no key with/],
    [
      'the EC key for RS256',
      () => withHeader({ kid: issuer.key('ES256').kid }),
      /does not fit alg/,
    ],
    ['an empty string', () => withHeader({ kid: '' }), /^the kid is not a string/],
    ['257 characters', () => withHeader({ kid: 'k'.repeat(257) }), /^the kid is not a string/],
    ['10,000 characters', () => withHeader({ kid: 'k'.repeat(10_000) }), /^the kid is not/],
    ['a number', () => withHeader({ kid: 1 }), /^the kid is not a string/],
    ['null', () => withHeader({ kid: null }), /^the kid is not a string/],
    ['an array', () => withHeader({ kid: [issuer.key('RS256').kid] }), /^the kid is not a string/],
    ['an object', () => withHeader({ kid: { toString: 'x' } }), /^the kid is not a string/],
    ['a line feed', () => withHeader({ kid: 'a\nFATAL: forged' }), /^the kid is not a string/],
    ['U+0000', () => withHeader({ kid: 'a\0' }), /^the kid is not a string/],
    ['letters beyond ASCII', () => withHeader({ kid: 'clé' }), /^the kid is not a string/],
  ],
  'C4 the sender brings the key': [
    ['jku', () => withHeader({ jku: `${sibling.url}/jwks.json` }), /member "jku"/],
    ['x5u', () => withHeader({ x5u: `${sibling.url}/x5u` }), /member "x5u"/],
    ['x5c', () => withHeader({ x5c: ['MIIB'] }), /member "x5c"/],
    ['jwk', () => withHeader({ jwk: sibling.key('RS256').jwk }), /member "jwk"/],
    ['jku null', () => withHeader({ jku: null }), /member "jku"/],
    [
      'jwk, and signed with it',
      () =>
        issuer.mintRaw(header({ jwk: sibling.key('RS256').jwk }), payload(), {
          key: sibling.key('RS256'),
        }),
      /member "jwk"/,
    ],
  ],
  'C5 crit and b64': [
    ['an unknown extension', () => withHeader({ crit: ['exp'], exp: 1 }), /member "crit"/],
    ['an empty crit', () => withHeader({ crit: [] }), /member "crit"/],
    ['b64 false', () => withHeader({ crit: ['b64'], b64: false }), /member "crit"/],
    ['b64 false alone', () => withHeader({ b64: false }), /member "b64"/],
    ['b64 true', () => withHeader({ b64: true }), /member "b64"/],
  ],
  'C6 members given twice': [
    [
      'alg none and RS256',
      () => issuer.mintRaw(`{"alg":"none",${header().slice(1)}`, payload()),
      /^the header has two members "alg" in one object$/,
    ],
    [
      'sub',
      () => issuer.mintRaw(header(), `{"sub":"victim",${payload().slice(1)}`),
      /^the payload has two members "sub"/,
    ],
    [
      'sub, once in escapes',
      () => issuer.mintRaw(header(), String.raw`{"s\u0075b":"victim",${payload().slice(1)}`),
      /^the payload has two members "sub"/,
    ],
    [
      'sub, with space before the colon',
      () => issuer.mintRaw(header(), `{"sub" \n :"victim",${payload().slice(1)}`),
      /^the payload has two members "sub"/,
    ],
    [
      'iss',
      () => issuer.mintRaw(header(), `{"iss":"https://evil.example",${payload().slice(1)}`),
      /^the payload has two members "iss"/,
    ],
    [
      'a member of a nested object',
      () =>
        issuer.mintRaw(header(), payload({ app: 0 }).replace('"app":0', '"app":[{"r":1,"r":2}]')),
      /^the payload has two members "r"/,
    ],
  ],
  'C7 names that every object has': [
    [
      '__proto__ in the payload',
      () => issuer.mintRaw(header(), `{"__proto__":{"role":"service"},${payload().slice(1)}`),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ in escapes',
      () => issuer.mintRaw(header(), String.raw`{"\u005f_proto__":{},${payload().slice(1)}`),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ deeper',
      () => issuer.mintRaw(header(), `{"app":[{"__proto__":1}],${payload().slice(1)}`),
      /^the payload has a member "__proto__"$/,
    ],
    [
      '__proto__ in the header',
      () => issuer.mintRaw(`{"__proto__":{"alg":"none"},${header().slice(1)}`, payload()),
      /^the header has a member "__proto__"$/,
    ],
  ],
  'C8 tokens that cost': [
    ['1 MB', () => withPayload({ pad: 'x'.repeat(750_000) }), /^the token is \d{7} bytes long/],
    [
      'a byte too long',
      () => `${good()}${'A'.repeat(16_385)}`.slice(0, 16_385),
      /^the token is 16385/,
    ],
    ['16,384 dots', () => '.'.repeat(16_384), /^the token has more than 3 parts, not 3$/],
    ['arrays 17 deep', () => withPayload({ deep: JSON.parse(nested(16)) }), /more than 16 deep/],
    [
      'arrays 5,000 deep',
      () => issuer.mintRaw(header(), `{"deep":${nested(5_000)},${payload().slice(1)}`),
      /more than 16 deep/,
    ],
    [
      'objects 17 deep',
      () =>
        issuer.mintRaw(
          header(),
          `{"a":${'{"a":'.repeat(16)}1${'}'.repeat(16)},${payload().slice(1)}`,
        ),
      /more than 16 deep/,
    ],
    [
      '201 claims',
      () => withPayload(Object.fromEntries(Array.from({ length: 196 }, (_, n) => [`c${n}`, n]))),
      /more than 200 members/,
    ],
    [
      'a string without an end',
      () => issuer.mintRaw(header(), `{"a":"${'\\"'.repeat(5_000)}`),
      /^the payload is not JSON/,
    ],
  ],
  'C12 wrong issuers': [
    [
      'a trailing slash',
      () => withPayload({ iss: `${issuer.issuer}/` }),
      /^issuer ".*" is not that/,
    ],
    ['upper case', () => withPayload({ iss: issuer.issuer.toUpperCase() }), /^issuer/],
    ['a space', () => withPayload({ iss: ` ${issuer.issuer}` }), /^issuer/],
    [
      'another',
      () => withPayload({ iss: 'https://evil.example' }),
      /^issuer "https:\/\/evil.example" is/,
    ],
    ['__proto__', () => withPayload({ iss: '__proto__' }), /^issuer "__proto__" is not/],
    ['constructor', () => withPayload({ iss: 'constructor' }), /^issuer/],
    ["the provider's name", () => withPayload({ iss: 'dev' }), /^issuer/],
    ['an empty string', () => withPayload({ iss: '' }), /^issuer/],
    ['none', () => withPayload({ iss: undefined }), /^iss is missing/],
    ['an array', () => withPayload({ iss: [issuer.issuer] }), /^iss is missing or not a string$/],
    ['a number', () => withPayload({ iss: 1 }), /^iss is missing/],
    ['null', () => withPayload({ iss: null }), /^iss is missing/],
  ],
  'C13 other kinds of token': [
    ...['logout+jwt', 'secevent+jwt', 'application/dpop+jwt', 'LOGOUT+JWT', 'not-at+jwt+jwt'].map(
      (typ): Attack => [`typ ${typ}`, () => withHeader({ typ }), /is another kind of token/],
    ),
    ['typ as an array', () => withHeader({ typ: ['JWT'] }), /^the typ is not a string$/],
  ],
  'C14 other serialisations': [
    ['a JWE', () => [...parts(), 'AAAA', 'AAAA'].join('.'), /more than 3 parts/],
    ['four parts', () => `${good()}.AAAA`, /more than 3 parts/],
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
      () => issuer.mintRaw(header({ cty: 'JWT' }), good()),
      /^the payload is not JSON/,
    ],
    [
      'a JWT as a string',
      () => issuer.mintRaw(header(), JSON.stringify(good())),
      /is not a JSON object/,
    ],
    [
      'an array of claims',
      () => issuer.mintRaw(header(), `[${payload()}]`),
      /is not a JSON object/,
    ],
    ['null as claims', () => issuer.mintRaw(header(), 'null'), /is not a JSON object/],
    [
      'an array as header',
      () => issuer.mintRaw(`[${header()}]`, payload()),
      /is not a JSON object/,
    ],
    [
      'a byte order mark',
      () => issuer.mintRaw(header(), `\ufeff${payload()}`),
      /is not JSON in UTF-8/,
    ],
    [
      'bytes that are not UTF-8',
      () => issuer.mintRaw(header(), Buffer.from(payload({ name: '\u00e9' }), 'latin1')),
      /^the payload is not JSON in UTF-8$/,
    ],
    ['two JSON texts', () => issuer.mintRaw(header(), payload() + payload()), /is not JSON/],
    ['a comment', () => issuer.mintRaw(header(), `/**/${payload()}`), /is not JSON/],
    ['a password', () => 'correct horse battery staple', /the token has 1 parts/],
    ['one dot', () => '.', /the token has 2 parts/],
  ],
  'C15 other spellings of a good token': [
    ['a trailing line feed', () => `${good()}\n`, /^the signature is empty or not base64url$/],
    ['a leading space', () => ` ${good()}`, /^the header is empty or not base64url$/],
    ['a NUL behind it', () => `${good()}\0`, /not base64url/],
    ['"Bearer " before it', () => `Bearer ${good()}`, /not base64url/],
    ['padding', () => `${good()}==`, /not base64url/],
    ['padding in the payload', () => `${parts()[0]}.${parts()[1]}=.${parts()[2]}`, /not base64url/],
    ['a line feed inside', () => `${parts()[0]}.${parts()[1]}.\n${parts()[2]}`, /not base64url/],
    ['plain base64', () => `${parts()[0]}.${parts()[1]}.+${parts()[2].slice(1)}`, /not base64url/],
    ['full-width dots', () => good().replaceAll('.', '．'), /the token has 1 parts/],
    ['a lone character', () => `${parts()[0]}.${parts()[1]}.${parts()[2]}AAA`, /canonical|verify/],
    ...Array.from(
      { length: 15 },
      (_, index): Attack => [
        `spelling ${index + 1} of the last character`,
        () => otherSpellings(good())[index] ?? '',
        /^the signature is not canonical base64url$/,
      ],
    ),
  ],
  'wrong signatures': [
    ['an empty object', () => issuer.mintRaw('{}', '{}'), /names no alg/],
    [
      'of a stranger with the right kid',
      () => issuer.mintRaw(header(), payload(), { key: createIssuerKey('RS256') }),
      /^the signature does not verify$/,
    ],
    [
      'of the header only',
      () => `${parts()[0]}.${encode(payload({ sub: 'bob' }))}.${parts()[2]}`,
      /^the signature does not verify$/,
    ],
    ['cut short', () => good().slice(0, -40), /the signature (does not verify|is not canonical)/],
    [
      'of zeroes, on ES256 (CVE-2022-21449)',
      () =>
        `${encode(header({ alg: 'ES256', kid: issuer.key('ES256').kid }))}.${encode(payload())}.${Buffer.alloc(64).toString('base64url')}`,
      /^the signature does not verify$/,
    ],
    [
      'of zeroes, on EdDSA',
      () =>
        `${encode(header({ alg: 'EdDSA', kid: issuer.key('EdDSA').kid }))}.${encode(payload())}.${Buffer.alloc(64).toString('base64url')}`,
      /^the signature does not verify$/,
    ],
    [
      'RS512 where RS256 is allowed',
      () => issuer.mintRaw(header({ alg: 'RS512' }), payload(), { alg: 'RS512' }),
      /"RS512" is not allowed/,
    ],
    [
      'PS256 under RS256',
      () => issuer.mintRaw(header(), payload(), { alg: 'PS256' }),
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
  expect((await verifier.verify(good(), 'alice')).subject).toBe('alice');
});

test('C4 a token with jku, x5u or jwk causes no request at all', async () => {
  const before = [issuer.fetches, sibling.fetches];

  for (const [, token] of BEFORE_THE_SIGNATURE['C4 the sender brings the key'] ?? []) {
    await refusalOf(verifier.verify(token(), 'alice'));
  }

  expect([issuer.fetches, sibling.fetches]).toEqual(before);
});

/** A payload whose number `claim` is this text, which JSON.stringify would not write. */
const withNumber = (claim: string, text: string) =>
  issuer.mintRaw(header(), payload({ [claim]: 0 }).replace(`"${claim}":0`, `"${claim}":${text}`));

/** The name of the case, the claim or a whole token, and the DETAIL that the client gets. */
type SignedAttack = readonly [name: string, claims: object | (() => string), detail: string];

const signed = (detail: string, cases: Record<string, SignedAttack[1]>): readonly SignedAttack[] =>
  Object.entries(cases).map(([name, claims]) => [name, claims, detail]);

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
      '1e999': () => withNumber('exp', '1e999'),
      '-1e999': () => withNumber('exp', '-1e999'),
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
      'nbf 1e999': () => withNumber('nbf', '1e999'),
    }),
    ...signed('The claim "iat" is missing or not a time.', {
      'iat as a string': { iat: 'now' },
      'iat true': { iat: true },
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
      'an infinite number': () => withNumber('app', '1e999'),
      'a tenant beyond 2^53': () => withNumber('app', '9007199254740993'),
    }),
    ...signed('The claim "a?" holds something that PostgreSQL cannot store unchanged.', {
      'U+0000 in a name': { 'a\0': 1 },
    }),
  ],
};

for (const [attack, tokens] of Object.entries(AFTER_THE_SIGNATURE)) {
  describe(attack, () => {
    test.each(tokens)('refuses %s', async (_, of, detail) => {
      const text = typeof of === 'function' ? (of as () => string)() : withPayload(of);

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
    const verified = await verifier.verify(withPayload(changes), 'alice');

    expect(verified.claims).toMatchObject(changes);
  });

  test.each(['JWT', 'at+jwt', 'application/at+jwt', 'application/okta-internal-at+jwt', 'JOSE'])(
    'accepts typ %s',
    async (typ) => {
      expect((await verifier.verify(withHeader({ typ }), 'alice')).subject).toBe('alice');
    },
  );
});

test('C7 claims named like inherited properties change nothing but themselves', async () => {
  const token = withPayload({ constructor: { prototype: { polluted: true } }, hasOwnProperty: 1 });

  const { claims: copied } = await verifier.verify(token, 'alice');

  expect(Object.getPrototypeOf(copied)).toBeNull();
  expect(Object.getPrototypeOf(copied['constructor'])).toBeNull();
  expect(Object.isFrozen(copied) && Object.isFrozen(copied['constructor'])).toBe(true);
  expect(copied['polluted']).toBeUndefined();
  expect('polluted' in {}).toBe(false);
  expect(copied['hasOwnProperty']).toBe(1);
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
