/**
 * Makes certificates for tests: a certification authority and what it signs, in memory, new in every run.
 *
 * Just enough X.509 (RFC 5280) for TLS on loopback; Node can read certificates but not make them.
 */
import {
  constants,
  createHash,
  generateKeyPairSync,
  randomBytes,
  sign,
  type KeyObject,
} from 'node:crypto';
import { recordKey } from './record.ts';

/** A certificate and its key, both PEM. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/** A certification authority of the test's own. */
export interface Authority {
  readonly ca: string;
  /** A server certificate for these DNS names and IPv4 addresses; default: localhost and 127.0.0.1, for 30 days. */
  issue(names?: readonly string[], expiresAt?: number): Certificate;
}

const OID = {
  commonName: [0x55, 0x04, 0x03],
  subjectAltName: [0x55, 0x1d, 0x11],
  basicConstraints: [0x55, 0x1d, 0x13],
} as const;

const DAY_MS = 86_400_000;

/** How an authority signs: one of `SIGNING`. */
export type Signing = keyof typeof SIGNING;

interface SigningAlgorithm {
  /** AlgorithmIdentifier, in DER. */
  readonly identifier: Buffer;
  readonly hash: string | undefined;
  readonly keys: () => { publicKey: KeyObject; privateKey: KeyObject };
  readonly pss?: true;
}

const rsaKeys = () => generateKeyPairSync('rsa', { modulusLength: 2048 });
const ecKeys = () => generateKeyPairSync('ec', { namedCurve: 'P-256' });
const NULL = Buffer.from([5, 0]);

function rsa(hash: string, last: number): SigningAlgorithm {
  const id = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last];
  return { identifier: sequence(oid(id), NULL), hash, keys: rsaKeys };
}

function ecdsa(hash: string, last: number): SigningAlgorithm {
  const id = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last];
  return { identifier: sequence(oid(id)), hash, keys: ecKeys };
}

/** RSASSA-PSS with a salt as long as the hash (RFC 4055). */
function pss(hash: string, last: number, saltBytes: number): SigningAlgorithm {
  const hashed = sequence(oid([0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last]), NULL);
  const mgf1 = sequence(oid([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08]), hashed);
  const parameters = sequence(
    der(0xa0, hashed),
    der(0xa1, mgf1),
    der(0xa2, der(0x02, Buffer.from([saltBytes]))),
  );
  const id = oid([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]);
  return { identifier: sequence(id, parameters), hash, keys: rsaKeys, pss: true };
}

const SIGNING = {
  'ecdsa-sha224': ecdsa('sha224', 1),
  'ecdsa-sha256': ecdsa('sha256', 2),
  'ecdsa-sha384': ecdsa('sha384', 3),
  'ecdsa-sha512': ecdsa('sha512', 4),
  'rsa-sha1': rsa('sha1', 5),
  'rsa-sha224': rsa('sha224', 14),
  'rsa-sha256': rsa('sha256', 11),
  'rsa-sha384': rsa('sha384', 12),
  'rsa-sha512': rsa('sha512', 13),
  'pss-sha256': pss('sha256', 1, 32),
  'pss-sha384': pss('sha384', 2, 48),
  'pss-sha512': pss('sha512', 3, 64),
  ed25519: {
    identifier: sequence(oid([0x2b, 0x65, 0x70])),
    hash: undefined,
    keys: () => generateKeyPairSync('ed25519'),
  },
} as const satisfies Record<string, SigningAlgorithm>;

/** Makes an authority that nobody else trusts. */
export function createAuthority(signing: Signing = 'ecdsa-sha256'): Authority {
  const algorithm: SigningAlgorithm = SIGNING[signing];
  const keys = algorithm.keys();
  const name = `pgjot test authority ${randomBytes(4).toString('hex')}`;
  const constraints = extension(OID.basicConstraints, sequence(der(0x01, Buffer.from([0xff]))));
  const ca = certificate({
    algorithm,
    issuer: name,
    signer: keys.privateKey,
    subject: name,
    publicKey: keys.publicKey,
    extensions: [constraints],
  });
  return {
    ca,
    issue(names = ['localhost', '127.0.0.1'], expiresAt) {
      const leaf = ecKeys();
      recordKey('key of a certificate', leaf.privateKey);
      const cert = certificate({
        algorithm,
        issuer: name,
        signer: keys.privateKey,
        subject: names[0] ?? 'localhost',
        publicKey: leaf.publicKey,
        extensions: [extension(OID.subjectAltName, sequence(...names.map(alternativeName)))],
        ...(expiresAt !== undefined && { expiresAt }),
      });
      return { cert, key: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() };
    },
  };
}

function certificate(given: {
  algorithm: SigningAlgorithm;
  issuer: string;
  signer: KeyObject;
  subject: string;
  publicKey: KeyObject;
  extensions: Buffer[];
  expiresAt?: number;
}): string {
  const { identifier, hash, pss: padded } = given.algorithm;
  const serial = createHash('sha256').update(randomBytes(16)).digest().subarray(0, 8);
  serial[0] = (serial[0] as number) & 0x7f;
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, Buffer.concat([Buffer.from([1]), serial])),
    identifier,
    distinguishedName(given.issuer),
    sequence(time(Date.now() - DAY_MS), time(given.expiresAt ?? Date.now() + 30 * DAY_MS)),
    distinguishedName(given.subject),
    given.publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(...given.extensions)),
  );
  const signature = sign(hash, body, {
    key: given.signer,
    ...(padded && {
      padding: constants.RSA_PKCS1_PSS_PADDING,
      saltLength: constants.RSA_PSS_SALTLEN_DIGEST,
    }),
  });
  const whole = sequence(body, identifier, der(0x03, Buffer.concat([Buffer.from([0]), signature])));
  const lines = whole.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

function distinguishedName(name: string): Buffer {
  return sequence(der(0x31, sequence(oid(OID.commonName), der(0x0c, Buffer.from(name)))));
}

function extension(id: readonly number[], value: Buffer): Buffer {
  return sequence(oid(id), der(0x04, value));
}

function alternativeName(name: string): Buffer {
  const address = /^\d+\.\d+\.\d+\.\d+$/.test(name);
  return address
    ? der(0x87, Buffer.from(name.split('.').map(Number)))
    : der(0x82, Buffer.from(name));
}

function time(ms: number): Buffer {
  const text = new Date(ms).toISOString().replaceAll(/[-:T]|\.\d+/g, '');
  return der(0x18, Buffer.from(text));
}

function oid(bytes: readonly number[]): Buffer {
  return der(0x06, Buffer.from(bytes));
}

function sequence(...parts: Buffer[]): Buffer {
  return der(0x30, Buffer.concat(parts));
}

function der(tag: number, body: Buffer): Buffer {
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  const length =
    body.length < 0x100 ? [0x81, body.length] : [0x82, body.length >> 8, body.length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), body]);
}
