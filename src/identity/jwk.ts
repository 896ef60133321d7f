/**
 * Reads a published JWK Set and keeps the keys that are fit to verify tokens, each judged on its own.
 *
 * One bad key must not take the good ones with it, nor may it be used. Fetches nothing and remembers nothing: that is
 * `jwks.ts`.
 *
 * https://www.rfc-editor.org/rfc/rfc7517#section-5
 */
import { type CryptoKey, importJWK } from 'jose';
import type { ProviderConfig } from '../config.ts';
import { printable } from '../errors.ts';

type Algorithm = ProviderConfig['algorithms'][number];

/** One public key, ready for each algorithm that both it and its provider allow. */
export interface PublishedKey {
  readonly kid: string | undefined;
  readonly byAlgorithm: ReadonlyMap<string, CryptoKey>;
}

/** The fit keys of one provider at one time; immutable, so an object stands for a state of the issuer. */
export class PublishedKeys {
  readonly #keys: readonly PublishedKey[];
  readonly #byKid: ReadonlyMap<string, PublishedKey>;

  constructor(keys: readonly PublishedKey[]) {
    this.#keys = keys;
    this.#byKid = new Map(keys.flatMap((key) => (key.kid === undefined ? [] : [[key.kid, key]])));
  }

  get size(): number {
    return this.#keys.length;
  }

  /** The ids of those that have one. */
  get kids(): readonly string[] {
    return [...this.#byKid.keys()];
  }

  /** The names of the keys, and what each may verify. */
  describe(): { readonly kid: string | null; readonly algorithms: readonly string[] }[] {
    return this.#keys.map(({ kid = null, byAlgorithm }) => ({
      kid: kid === null ? null : printable(kid),
      algorithms: [...byAlgorithm.keys()],
    }));
  }

  has(kid: string): boolean {
    return this.#byKid.has(kid);
  }

  /**
   * The keys that a token's header may mean: the one with its `kid`, whether or not it fits `alg`; without a `kid`, all that
   * fit, if they are at most `maxTried`, so that a stranger's token costs no more signature checks than that.
   */
  find(kid: string | undefined, alg: string, maxTried: number): readonly PublishedKey[] {
    if (kid !== undefined) {
      const key = this.#byKid.get(kid);
      return key === undefined ? [] : [key];
    }
    const fitting = this.#keys.filter((key) => key.byAlgorithm.has(alg));
    return fitting.length <= maxTried ? fitting : [];
  }
}

/** A set as read, and why each key that was left out was left out. `skipped` names no key material. */
export interface ReadJwks {
  readonly keys: PublishedKeys;
  readonly skipped: readonly string[];
}

/**
 * Reads a JWK Set.
 *
 * @throws {Error} where it is no JWK Set, has more than `maxKeys` keys, or none of them is fit.
 */
export async function readJwks(
  text: string,
  algorithms: readonly Algorithm[],
  maxKeys: number,
): Promise<ReadJwks> {
  const skipped: string[] = [];
  const candidates: Candidate[] = [];
  for (const [index, jwk] of parseJwks(text, maxKeys).entries()) {
    try {
      candidates.push(await readKey(jwk, algorithms));
    } catch (error) {
      const { kid } = (jwk ?? {}) as { kid?: unknown };
      const label = typeof kid === 'string' ? `kid "${printable(kid)}"` : `number ${index + 1}`;
      skipped.push(`key ${label} is not used: ${(error as Error).message}`);
    }
  }
  const keys = mergeByKid(candidates, skipped);
  if (keys.length === 0) {
    throw new Error(['no key in the JWK Set is fit', ...skipped].join('; '));
  }
  return { keys: new PublishedKeys(keys), skipped };
}

interface Candidate extends PublishedKey {
  /** The public members, in a fixed order: two keys are the same key when these are equal. */
  readonly material: string;
}

/** A JWK as it was published: any member may be anything. */
type UncheckedJwk = Readonly<Record<string, unknown>>;

// The members that make up a public key, by kty. Only these reach the import, so nothing else that an issuer may
// publish beside them can matter.
const PUBLIC_MEMBERS = new Map([
  ['RSA', ['kty', 'n', 'e']],
  ['EC', ['kty', 'crv', 'x', 'y']],
  ['OKP', ['kty', 'crv', 'x']],
]);
const PRIVATE_MEMBERS = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k', 'priv'];
const RSA_ALGORITHMS = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'];
const CURVE_ALGORITHMS = new Map([
  ['P-256', ['ES256']],
  ['P-384', ['ES384']],
  ['P-521', ['ES512']],
  ['Ed25519', ['EdDSA']],
]);
// The same shape that a token's kid must have, so no other could ever be asked for.
const PRINTABLE_ASCII = /^[\x20-\x7e]{1,256}$/;
// Below, it can be factored; above, one signature check costs so much that an issuer could keep us busy with them.
const MIN_RSA_BITS = 2_048;
const MAX_RSA_BITS = 8_192;
// As OpenSSL has it for large moduli. Nobody uses more than 17 bits, and the cost of a check grows with it.
const MAX_RSA_EXPONENT = 2n ** 64n;
// The points of small order on edwards25519, without their sign bits and in every encoding. For each of them there are
// signatures of zeroes that verify, so anybody could sign.
const SMALL_ORDER = new Set([
  '0000000000000000000000000000000000000000000000000000000000000000',
  '0100000000000000000000000000000000000000000000000000000000000000',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
]);

function parseJwks(text: string, maxKeys: number): readonly unknown[] {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error('the answer is not JSON');
  }
  const keys =
    typeof document === 'object' && document !== null && Object.hasOwn(document, 'keys')
      ? (document as { keys: unknown }).keys
      : undefined;
  if (!Array.isArray(keys)) throw new Error('the answer is not a JWK Set');
  if (keys.length > maxKeys) {
    throw new Error(`the JWK Set has ${keys.length} keys, more than jwks.maxKeys (${maxKeys})`);
  }
  return keys;
}

async function readKey(jwk: unknown, allowed: readonly Algorithm[]): Promise<Candidate> {
  if (typeof jwk !== 'object' || jwk === null) throw new Error('it is not an object');
  const members = jwk as UncheckedJwk;
  const { kid, kty } = members;
  if (kid !== undefined && (typeof kid !== 'string' || !PRINTABLE_ASCII.test(kid))) {
    throw new Error('its kid is not a string of 1 to 256 printable ASCII characters');
  }
  // Attack D4: whoever reads a published private key signs for everybody. oct keys are caught here too ("k").
  if (PRIVATE_MEMBERS.some((name) => Object.hasOwn(members, name))) {
    throw new Error('it is a private or secret key, published for all to read');
  }
  assertForSignatures(members);
  const names = typeof kty === 'string' ? PUBLIC_MEMBERS.get(kty) : undefined;
  if (names === undefined) throw new Error('its kty is not RSA, EC or OKP');
  const publicJwk: Record<string, string> = {};
  for (const name of names) {
    const value = members[name];
    if (typeof value !== 'string') throw new Error(`its member "${name}" is missing`);
    publicJwk[name] = value;
  }
  if (kty === 'RSA') assertSafeExponent(publicJwk['e'] ?? '');
  if (kty === 'OKP') assertLargeOrder(publicJwk['x'] ?? '');

  const byAlgorithm = new Map<string, CryptoKey>();
  for (const alg of algorithmsOf(members).filter((one) => allowed.some((two) => one === two))) {
    byAlgorithm.set(alg, await importPublicKey(publicJwk, alg));
  }
  if (byAlgorithm.size === 0) throw new Error('it fits no algorithm that the provider allows');
  return { kid, byAlgorithm, material: JSON.stringify(Object.values(publicJwk)) };
}

function assertForSignatures({ use, key_ops: operations }: UncheckedJwk): void {
  if (use !== undefined && use !== 'sig') throw new Error('its use is not "sig"');
  if (
    operations !== undefined &&
    !(Array.isArray(operations) && operations.some((one) => one === 'verify'))
  ) {
    throw new Error('its key_ops do not include "verify"');
  }
}

function algorithmsOf({ kty, crv, alg }: UncheckedJwk): readonly string[] {
  const fitting =
    kty === 'RSA'
      ? RSA_ALGORITHMS
      : typeof crv === 'string'
        ? CURVE_ALGORITHMS.get(crv)
        : undefined;
  return (fitting ?? []).filter((one) => alg === undefined || alg === one);
}

/** With exponent 1 a signature is its own message, so anybody can sign; an even one is no RSA key at all (attack D5). */
function assertSafeExponent(encoded: string): void {
  const exponent = BigInt(`0x0${Buffer.from(encoded, 'base64url').toString('hex')}`);
  if (exponent < 3n || exponent % 2n === 0n) throw new Error('its RSA exponent is 1, 0 or even');
  if (exponent >= MAX_RSA_EXPONENT) throw new Error('its RSA exponent has more than 64 bits');
}

function assertLargeOrder(encoded: string): void {
  const point = Buffer.from(encoded, 'base64url');
  const sign = point.length - 1;
  point[sign] = (point[sign] ?? 0) & 0x7f;
  if (SMALL_ORDER.has(point.toString('hex'))) throw new Error('its point has a small order');
}

/** Imports a key; points that are not on their curve fail here. */
async function importPublicKey(publicJwk: Record<string, string>, alg: string): Promise<CryptoKey> {
  let key: CryptoKey;
  try {
    // jose returns bytes for oct keys alone, and none gets this far.
    key = (await importJWK({ ...publicJwk, kty: publicJwk['kty'] ?? '' }, alg)) as CryptoKey;
  } catch {
    throw new Error('its material is not a valid public key');
  }
  const { modulusLength } = key.algorithm as { modulusLength?: number };
  if (modulusLength !== undefined && modulusLength < MIN_RSA_BITS) {
    throw new Error(`it has ${modulusLength} bits, fewer than ${MIN_RSA_BITS}`);
  }
  if (modulusLength !== undefined && modulusLength > MAX_RSA_BITS) {
    throw new Error(`it has ${modulusLength} bits, more than ${MAX_RSA_BITS}`);
  }
  return key;
}

/**
 * Joins entries that publish one key twice and drops every key of a kid that stands for different ones: a token cannot
 * say which it means (attack D6).
 */
function mergeByKid(candidates: readonly Candidate[], skipped: string[]): readonly Candidate[] {
  const groups = new Map<string | symbol, Candidate[]>();
  for (const candidate of candidates) {
    const group = candidate.kid ?? Symbol('a key without kid');
    groups.set(group, [...(groups.get(group) ?? []), candidate]);
  }
  const kept: Candidate[] = [];
  for (const group of groups.values()) {
    const [first, ...rest] = group;
    if (first === undefined) continue;
    if (rest.some(({ material }) => material !== first.material)) {
      skipped.push(
        `kid "${printable(first.kid ?? '')}" names different keys: none of them is used`,
      );
      continue;
    }
    kept.push({ ...first, byAlgorithm: new Map(group.flatMap((key) => [...key.byAlgorithm])) });
  }
  return kept;
}
