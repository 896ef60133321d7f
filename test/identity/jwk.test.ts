/** Which published keys are used: the attacks D4 to D6, each by its name. */
import { createPublicKey, generateKeyPairSync, type JsonWebKey, verify } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { ALGORITHMS } from '../../src/config-provider.ts';
import { type PublishedKeys, readJwks } from '../../src/identity/jwk.ts';
import { createIssuerKey } from '../support/issuer.ts';

const ec = createIssuerKey('ES256', 'ec');
const rsa = createIssuerKey('RS256', 'rsa');
const ed = createIssuerKey('EdDSA', 'ed');
const good = createIssuerKey('ES256', 'good');
const bare = (jwk: object, ...without: string[]) =>
  Object.fromEntries(Object.entries(jwk).filter(([name]) => !without.includes(name)));
const read = (keys: readonly unknown[]) => readJwks(JSON.stringify({ keys }), ALGORITHMS, 100);

function jwkOf(type: 'ed448' | 'x25519' | 'secp256k1' | 'rsa1024'): object {
  const pair =
    type === 'ed448'
      ? generateKeyPairSync('ed448')
      : type === 'x25519'
        ? generateKeyPairSync('x25519')
        : type === 'secp256k1'
          ? generateKeyPairSync('ec', { namedCurve: 'secp256k1' })
          : generateKeyPairSync('rsa', { modulusLength: 1024 });
  return { ...pair.publicKey.export({ format: 'jwk' }), kid: type };
}

/** The one key that may be meant; undefined where there is none, or a choice. */
const only = (keys: PublishedKeys, kid: string | undefined, alg: string) =>
  keys.find(kid, alg, 1)[0];

const zeroes = Buffer.alloc(32).toString('base64url');

const UNFIT: Record<string, readonly (readonly [string, () => unknown, RegExp])[]> = {
  'D4 private keys': [
    ['EC', () => ({ ...ec.privateKey.export({ format: 'jwk' }), kid: 'x' }), /private or secret/],
    ['RSA', () => ({ ...rsa.privateKey.export({ format: 'jwk' }), kid: 'x' }), /private or secret/],
    ['Ed25519', () => ({ ...ed.privateKey.export({ format: 'jwk' }), kid: 'x' }), /private or/],
    ['d null', () => ({ ...ec.jwk, d: null }), /private or secret/],
    ['oct', () => ({ kty: 'oct', k: 'c2VjcmV0', kid: 'x' }), /private or secret/],
    ['oct without k', () => ({ kty: 'oct', kid: 'x' }), /^key kid "x" is not used: its kty/],
  ],
  'D5 unfit keys': [
    ['RSA of 1,024 bits', () => jwkOf('rsa1024'), /has 1024 bits, fewer than 2048/],
    ['RSA with exponent 1', () => ({ ...rsa.jwk, e: 'AQ' }), /exponent is 1, 0 or even/],
    ['RSA with exponent 1 in three bytes', () => ({ ...rsa.jwk, e: 'AAAB' }), /exponent is 1/],
    ['RSA with exponent 2', () => ({ ...rsa.jwk, e: 'Ag' }), /exponent is 1, 0 or even/],
    ['RSA with exponent 65536', () => ({ ...rsa.jwk, e: 'AQAA' }), /exponent is 1, 0 or even/],
    ['RSA with exponent 0', () => ({ ...rsa.jwk, e: 'AA' }), /exponent is 1, 0 or even/],
    [
      'RSA with an exponent of 65 bits',
      () => ({ ...rsa.jwk, e: Buffer.from(`01${'00'.repeat(7)}01`, 'hex').toString('base64url') }),
      /exponent has more than 64 bits/,
    ],
    [
      'RSA of 8,200 bits',
      () => ({ ...rsa.jwk, n: 'w'.repeat(1_367) }),
      /has 8\d+ bits, more than 8192/,
    ],
    ['RSA without exponent', () => ({ ...rsa.jwk, e: '' }), /exponent is 1, 0 or even/],
    ['RSA without modulus', () => bare(rsa.jwk, 'n'), /its member "n" is missing/],
    ['RSA with a number as modulus', () => ({ ...rsa.jwk, n: 1 }), /its member "n" is missing/],
    ['RSA with an empty modulus', () => ({ ...rsa.jwk, n: '' }), /not a valid public key|bits/],
    ['use enc', () => ({ ...ec.jwk, use: 'enc' }), /its use is not "sig"/],
    ['use null', () => ({ ...ec.jwk, use: null }), /its use is not "sig"/],
    ['key_ops encrypt', () => ({ ...ec.jwk, key_ops: ['encrypt'] }), /key_ops do not include/],
    ['key_ops as a string', () => ({ ...ec.jwk, key_ops: 'verify' }), /key_ops do not include/],
    ['alg of another kind', () => ({ ...ec.jwk, alg: 'RS256' }), /fits no algorithm/],
    ['alg HS256', () => ({ ...rsa.jwk, alg: 'HS256' }), /fits no algorithm/],
    ['alg none', () => ({ ...rsa.jwk, alg: 'none' }), /fits no algorithm/],
    ['alg for encryption', () => ({ ...rsa.jwk, alg: 'RSA-OAEP' }), /fits no algorithm/],
    ['an off-curve point', () => ({ ...ec.jwk, y: zeroes }), /not a valid public key/],
    ['a point of zeroes', () => ({ ...ec.jwk, x: zeroes, y: zeroes }), /not a valid public key/],
    ['a short coordinate', () => ({ ...ec.jwk, x: 'AAAA' }), /not a valid public key/],
    ['EC without y', () => bare(ec.jwk, 'y'), /its member "y" is missing/],
    ['EC on Ed25519', () => ({ ...ec.jwk, crv: 'Ed25519', alg: undefined }), /not a valid/],
    ['OKP on P-256', () => ({ ...ed.jwk, crv: 'P-256', alg: undefined }), /not a valid/],
    [
      'Ed25519 of 31 bytes',
      () => ({ ...ed.jwk, x: Buffer.alloc(31, 1).toString('base64url') }),
      /not a valid/,
    ],
    ['secp256k1', () => jwkOf('secp256k1'), /fits no algorithm/],
    ['Ed448', () => jwkOf('ed448'), /fits no algorithm/],
    ['X25519', () => jwkOf('x25519'), /fits no algorithm/],
    ['crv constructor', () => ({ ...ec.jwk, crv: 'constructor' }), /fits no algorithm/],
    ['an unknown kty', () => ({ kty: 'AKP', alg: 'ML-DSA-44', pub: 'AA' }), /its kty is not/],
    ['kty __proto__', () => ({ ...ec.jwk, kty: '__proto__' }), /its kty is not/],
    ['kty in lower case', () => ({ ...ec.jwk, kty: 'ec' }), /its kty is not/],
    ['no kty', () => bare(ec.jwk, 'kty'), /its kty is not/],
    ['a number as kty', () => ({ ...ec.jwk, kty: 1 }), /its kty is not/],
    ['a number as kid', () => ({ ...ec.jwk, kid: 1 }), /^key number 1 is not used: its kid/],
    ['an empty kid', () => ({ ...ec.jwk, kid: '' }), /its kid is not/],
    [
      'a kid that forges log lines',
      () => ({ ...ec.jwk, kid: 'a\nb' }),
      /^key kid "a\?b" is not used/,
    ],
    ['a string', () => 'key', /^key number 1 is not used: it is not an object/],
    ['null', () => null, /^key number 1 is not used: it is not an object/],
    ['an array', () => [], /its kty is not/],
  ],
};

const flip = (hex: string) => {
  const bytes = Buffer.from(hex, 'hex');
  bytes.writeUInt8(bytes.readUInt8(31) | 0x80, 31);
  return bytes.toString('hex');
};
// From libsodium's ge25519_has_small_order(), which has them from "May the Fourth Be With You" (CCS 2017).
const SMALL_ORDER = [
  '00'.repeat(32),
  `01${'00'.repeat(31)}`,
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  `ec${'ff'.repeat(30)}7f`,
  `ed${'ff'.repeat(30)}7f`,
  `ee${'ff'.repeat(30)}7f`,
].flatMap((hex) => [hex, flip(hex)]);

describe('D5 points of small order on Ed25519, under which anybody can sign', () => {
  const jwkAt = (hex: string) => ({ ...ed.jwk, x: Buffer.from(hex, 'hex').toString('base64url') });

  test.each(SMALL_ORDER)('%s is left out', async (hex) => {
    const { keys, skipped } = await read([jwkAt(hex), good.jwk]);

    expect(skipped).toEqual(['key kid "ed" is not used: its point has a small order']);
    expect(only(keys, 'ed', 'EdDSA')).toBeUndefined();
  });

  test('the danger is real: node:crypto verifies a signature that nobody made', () => {
    const key = createPublicKey({
      key: jwkAt(`01${'00'.repeat(31)}`) as JsonWebKey,
      format: 'jwk',
    });
    const forged = Buffer.from(`01${'00'.repeat(63)}`, 'hex');

    expect(verify(null, Buffer.from('any text at all'), key, forged)).toBe(true);
  });
});

for (const [attack, keys] of Object.entries(UNFIT)) {
  describe(attack, () => {
    test.each(keys)('%s is left out and the others stay', async (_, jwk, reason) => {
      const { keys: published, skipped } = await read([jwk(), good.jwk]);

      expect(skipped).toHaveLength(1);
      expect(skipped[0]).toMatch(reason);
      expect(only(published, 'good', 'ES256')).toBeDefined();
      expect(only(published, undefined, 'ES256')?.kid).toBe('good');
    });
  });
}

describe('a fit key', () => {
  test.each([
    [
      'RSA without alg',
      () => bare(rsa.jwk, 'alg'),
      ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'],
    ],
    ['RSA with alg', () => rsa.jwk, ['RS256']],
    ['P-256', () => bare(ec.jwk, 'alg'), ['ES256']],
    ['P-384', () => bare(createIssuerKey('ES384').jwk, 'alg'), ['ES384']],
    ['P-521', () => bare(createIssuerKey('ES512').jwk, 'alg'), ['ES512']],
    ['Ed25519', () => bare(ed.jwk, 'alg', 'use'), ['EdDSA']],
    ['with key_ops', () => ({ ...ec.jwk, key_ops: ['verify', 'encrypt'] }), ['ES256']],
    ['with members nobody knows', () => ({ ...ec.jwk, x5c: ['!'], ext: 'yes' }), ['ES256']],
  ])('%s verifies exactly the algorithms it fits', async (_, jwk, algorithms) => {
    const { keys } = await read([bare(jwk(), 'kid')]);

    for (const alg of [...ALGORITHMS, 'HS256', 'none']) {
      expect(only(keys, undefined, alg) !== undefined).toBe(algorithms.includes(alg));
    }
  });

  test('verifies nothing that its provider does not allow', async () => {
    const text = JSON.stringify({ keys: [bare(rsa.jwk, 'alg')] });

    const { keys } = await readJwks(text, ['PS256'], 100);

    expect([...(only(keys, 'rsa', 'PS256')?.byAlgorithm.keys() ?? [])]).toEqual(['PS256']);
    await expect(readJwks(text, ['ES256'], 100)).rejects.toThrow(
      /no key in the JWK Set is fit; key/,
    );
  });

  test('is no longer extractable into anything private', async () => {
    const { keys } = await read([rsa.jwk]);

    const key = only(keys, 'rsa', 'RS256')?.byAlgorithm.get('RS256');

    expect([key?.type, key?.usages]).toEqual(['public', ['verify']]);
  });
});

describe('D6 one kid for several keys', () => {
  const twin = createIssuerKey('ES256', 'ec');

  test('different keys are both refused, and the others stay', async () => {
    const { keys, skipped } = await read([ec.jwk, twin.jwk, good.jwk]);

    expect(only(keys, 'ec', 'ES256')).toBeUndefined();
    expect(only(keys, 'good', 'ES256')).toBeDefined();
    expect(skipped).toEqual(['kid "ec" names different keys: none of them is used']);
  });

  test('different kinds of key are both refused too', async () => {
    const { keys } = await read([ec.jwk, { ...rsa.jwk, kid: 'ec' }, good.jwk]);

    expect(only(keys, 'ec', 'RS256')).toBeUndefined();
  });

  test('kids that differ in nothing but case are two', async () => {
    const { keys, skipped } = await read([
      { ...ec.jwk, kid: 'Key' },
      { ...twin.jwk, kid: 'key' },
    ]);

    expect(skipped).toEqual([]);
    expect(only(keys, 'Key', 'ES256')).not.toBe(only(keys, 'key', 'ES256'));
    expect([only(keys, 'Key', 'ES256')?.kid, only(keys, 'key', 'ES256')?.kid]).toEqual([
      'Key',
      'key',
    ]);
    expect(only(keys, 'KEY', 'ES256')).toBeUndefined();
  });

  test('the same key twice is one key', async () => {
    const { keys, skipped } = await read([ec.jwk, { ...ec.jwk, use: undefined }]);

    expect(only(keys, 'ec', 'ES256')).toBeDefined();
    expect(skipped).toEqual([]);
  });

  test('the same RSA key for two algorithms verifies both', async () => {
    const { keys } = await read([rsa.jwk, { ...rsa.jwk, alg: 'PS256' }]);

    expect([...(only(keys, 'rsa', 'RS256')?.byAlgorithm.keys() ?? [])]).toEqual(['RS256', 'PS256']);
  });

  test('a key that is not for signatures does not count', async () => {
    const { keys } = await read([ec.jwk, { ...twin.jwk, use: 'enc' }]);

    expect(only(keys, 'ec', 'ES256')).toBeDefined();
  });

  test('keys without kid are kept apart', async () => {
    const { keys } = await read([bare(ec.jwk, 'kid'), bare(twin.jwk, 'kid'), bare(ed.jwk, 'kid')]);

    expect(only(keys, undefined, 'ES256')).toBeUndefined();
    expect(keys.find(undefined, 'ES256', 2)).toHaveLength(2);
    expect(only(keys, undefined, 'EdDSA')).toBeDefined();
    expect(keys.find(undefined, 'EdDSA', 0)).toEqual([]);
  });
});
