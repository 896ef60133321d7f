/**
 * An OpenID provider for tests: real keys made at start-up, a real HTTP server on a free port, and faults to order.
 *
 * Tokens are signed with node:crypto and not with jose, so that a mistake in one is not hidden by the same mistake in
 * the other. Hostile tokens come from `mintRaw`, which signs any text that it is given.
 */
import {
  type KeyObject,
  constants,
  createHmac,
  generateKeyPairSync,
  randomUUID,
  sign,
} from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { ConfigInput } from '../../src/config.ts';
import { recordKey, recordToken } from './record.ts';

/** Algorithms the issuer can sign with. HS256 takes its secret from `hmacSecret`. */
export type SigningAlgorithm =
  | 'RS256'
  | 'RS384'
  | 'RS512'
  | 'PS256'
  | 'PS384'
  | 'PS512'
  | 'ES256'
  | 'ES384'
  | 'ES512'
  | 'EdDSA'
  | 'HS256'
  | 'none';

/** One key pair of the issuer. */
export interface IssuerKey {
  readonly kid: string;
  readonly alg: SigningAlgorithm;
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
  /** What the JWKS publishes: kty, the public members, kid, alg and use. */
  readonly jwk: Record<string, unknown>;
  /** SubjectPublicKeyInfo, for the attack that uses it as an HMAC secret. */
  readonly publicPem: string;
}

/** What `/jwks.json` does instead of publishing keys. */
export type Fault =
  | { readonly kind: 'status'; readonly status: number }
  | {
      readonly kind: 'body';
      readonly body: string | Buffer;
      readonly headers?: Record<string, string>;
    }
  | { readonly kind: 'redirect'; readonly location: string }
  /** Headers and half of the body, then silence. */
  | { readonly kind: 'hang-in-body' }
  /** Not a byte. */
  | { readonly kind: 'hang' }
  /** Valid JSON that never ends. */
  | { readonly kind: 'endless' }
  /** The connection is reset. */
  | { readonly kind: 'drop' };

/** How `mint` signs. */
export interface MintOptions {
  /** Default: the algorithm of the issuer's first key. */
  readonly alg?: SigningAlgorithm;
  /** Signs with this key, whatever the header says. Default: the issuer's key for `alg`. */
  readonly key?: IssuerKey;
  /** The header's kid; null leaves it out. Default: the kid of the key. */
  readonly kid?: string | null;
  /** More header members; they replace the issuer's own. */
  readonly header?: Readonly<Record<string, unknown>>;
  /** Seconds from `now` to `exp`. Default 3600; may be negative. */
  readonly expiresIn?: number;
  /** Milliseconds since the epoch. Default: the wall clock. */
  readonly now?: number;
}

/** How `mintRaw` signs. */
export interface RawOptions {
  /** Default: the algorithm of the issuer's first key. */
  readonly alg?: SigningAlgorithm;
  readonly key?: IssuerKey;
  /** The secret for HS256. */
  readonly hmacSecret?: string | Buffer;
}

/** How a JWT begins. Its first letters alone would be found in what is random and written in base64, such as a SCRAM verifier. */
export const ANY_TOKEN = /eyJ(?:hbGciOi|0eXAiOi|raWQiOi)/;

/** What `startIssuer` may be told. */
export interface IssuerOptions {
  /** One key is made for each. Default: RS256, ES256 and EdDSA. */
  readonly algorithms?: readonly SigningAlgorithm[];
  /** Default: `pgjot-tests`. */
  readonly audience?: string;
  /** Headers of the JWKS response, for instance cache-control. */
  readonly headers?: Readonly<Record<string, string>>;
  /** The `iss` of its tokens. Default: its URL. */
  readonly issuer?: string;
}

type Provider = ConfigInput['providers'][string];

/** Starts an issuer on 127.0.0.1. Close it with `close` or `await using`. */
export async function startIssuer(options: IssuerOptions = {}): Promise<Issuer> {
  const issuer = new Issuer(options);
  await issuer.listen();
  return issuer;
}

/** Makes a key pair as an issuer would; also for keys that belong to nobody. */
export function createIssuerKey(alg: SigningAlgorithm, kid: string = randomUUID()): IssuerKey {
  const { privateKey, publicKey } = generateKeys(alg);
  recordKey('key of an issuer', privateKey);
  const jwk = { ...publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
  const publicPem = publicKey.export({ type: 'spki', format: 'pem' }).toString();
  return { kid, alg, privateKey, publicKey, jwk, publicPem };
}

/** A running issuer; see `startIssuer`. */
export class Issuer {
  readonly audience: string;
  /** Headers of the JWKS response; may be changed at any time. */
  headers: Readonly<Record<string, string>>;
  /** How often `/jwks.json` was asked for. */
  fetches = 0;
  /** The headers of each of those requests. */
  readonly requests: IncomingMessage['headers'][] = [];
  readonly #issuer: string | undefined;
  readonly #server: Server;
  #keys: IssuerKey[];
  #published: readonly unknown[] | undefined;
  #fault: Fault | undefined;
  readonly #waiting = new Set<() => void>();
  #answering = 0;

  constructor({ algorithms, audience, headers, issuer }: IssuerOptions) {
    this.audience = audience ?? 'pgjot-tests';
    this.headers = headers ?? {};
    this.#issuer = issuer;
    this.#keys = (algorithms ?? ['RS256', 'ES256', 'EdDSA']).map((alg) => createIssuerKey(alg));
    this.#server = createServer((request, response) => this.#onRequest(request, response));
  }

  /** Where it listens, without a final slash. */
  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The `iss` of its tokens. */
  get issuer(): string {
    return this.#issuer ?? this.url;
  }

  get jwksUri(): string {
    return `${this.url}/jwks.json`;
  }

  /** The keys it signs with, which are those that it publishes unless `publish` said otherwise. */
  get keys(): readonly IssuerKey[] {
    return this.#keys;
  }

  /** The JWK Set as `/jwks.json` would answer without faults. */
  get jwks(): { keys: readonly unknown[] } {
    return { keys: this.#published ?? this.#keys.map(({ jwk }) => jwk) };
  }

  /** Whether an answer is on its way, unless it is one that never ends. */
  get busy(): boolean {
    return this.#answering > 0 && !/^(hang|endless)/.test(this.#fault?.kind ?? '');
  }

  /** The key for `alg`; the first one where `alg` is left out. */
  key(alg?: SigningAlgorithm): IssuerKey {
    const found = this.#keys.find((key) => alg === undefined || fits(alg, key));
    if (found === undefined) throw new TypeError(`the issuer has no key for ${alg ?? 'anything'}`);
    return found;
  }

  /** A provider for `proxy.config.json` that trusts this issuer. `roles` must be named; the rest may be replaced. */
  provider(settings: { roles: string[] } & Partial<Provider>): Provider {
    const audience = settings.anyAudience === true ? {} : { audience: this.audience };
    return { issuer: this.issuer, jwksUri: this.jwksUri, ...audience, ...settings };
  }

  /** A token. `iss`, `aud`, `iat`, `exp` are filled in; a claim given as undefined is left out. */
  mint(claims: Readonly<Record<string, unknown>> = {}, options: MintOptions = {}): string {
    const key = options.key ?? this.key(options.alg);
    const alg = options.alg ?? key.alg;
    const iat = Math.floor((options.now ?? Date.now()) / 1000);
    const kid = options.kid === null ? undefined : (options.kid ?? key.kid);
    const header = { alg, typ: 'JWT', kid, ...options.header };
    const payload = {
      iss: this.issuer,
      aud: this.audience,
      iat,
      exp: iat + (options.expiresIn ?? 3600),
      ...claims,
    };
    return this.mintRaw(JSON.stringify(header), JSON.stringify(payload), { alg, key });
  }

  /** Signs any header and payload text: what no honest issuer would write. */
  mintRaw(header: string | Buffer, payload: string | Buffer, options: RawOptions = {}): string {
    const key =
      options.key ??
      this.key(options.alg === 'HS256' || options.alg === 'none' ? undefined : options.alg);
    const input = `${base64url(header)}.${base64url(payload)}`;
    const signature = signWith(options.alg ?? key.alg, input, key, options.hmacSecret);
    const token = `${input}.${signature.toString('base64url')}`;
    recordToken(token);
    return token;
  }

  /** Replaces all keys by new ones of the same algorithms, or of `algorithms`. With `keepOld`, the old ones stay published. */
  rotate({
    keepOld = false,
    algorithms = this.#keys.map(({ alg }) => alg),
  }: {
    keepOld?: boolean;
    algorithms?: readonly SigningAlgorithm[];
  } = {}): void {
    const fresh = algorithms.map((alg) => createIssuerKey(alg));
    this.#keys = keepOld ? [...fresh, ...this.#keys] : fresh;
    this.#published = undefined;
  }

  /** Publishes these JWKs instead of its own; undefined goes back. */
  publish(jwks: readonly unknown[] | undefined): void {
    this.#published = jwks;
  }

  /** Breaks `/jwks.json`; undefined mends it. */
  breakDown(fault: Fault | undefined): void {
    this.#fault = fault;
  }

  /** Resolves when `/jwks.json` has been asked for `count` times in all; rejects after 5 s. */
  async fetched(count: number): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const deadline = setTimeout(() => {
        this.#waiting.delete(check);
        reject(new Error(`${this.fetches} fetches within 5 s, not ${count}`));
      }, 5_000);
      const check = () => {
        if (this.fetches < count) return;
        clearTimeout(deadline);
        this.#waiting.delete(check);
        resolve();
      };
      this.#waiting.add(check);
      check();
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(0, '127.0.0.1', resolve);
    });
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #onRequest(request: IncomingMessage, response: ServerResponse): void {
    if (request.url === '/.well-known/openid-configuration') {
      sendJson(response, { issuer: this.issuer, jwks_uri: this.jwksUri });
    } else if (request.url === '/jwks.json') {
      this.fetches += 1;
      this.requests.push(request.headers);
      this.#answering += 1;
      response.once('close', () => {
        this.#answering -= 1;
      });
      if (this.#fault === undefined) sendJson(response, this.jwks, this.headers);
      else answerBadly(this.#fault, response);
      for (const check of this.#waiting) check();
    } else {
      response.writeHead(404).end();
    }
  }
}

function answerBadly(fault: Fault, response: ServerResponse): void {
  switch (fault.kind) {
    case 'status':
      response.writeHead(fault.status).end();
      return;
    case 'body':
      response.writeHead(200, { 'content-type': 'application/json', ...fault.headers });
      response.end(fault.body);
      return;
    case 'redirect':
      response.writeHead(302, { location: fault.location }).end();
      return;
    case 'hang':
      return;
    case 'hang-in-body':
      response.writeHead(200, { 'content-type': 'application/json' });
      response.write('{"keys":[');
      return;
    case 'endless':
      response.writeHead(200, { 'content-type': 'application/json' });
      writeForever(response);
      return;
    case 'drop':
      response.socket?.resetAndDestroy();
  }
}

function writeForever(response: ServerResponse): void {
  const chunk = ' '.repeat(65_536);
  while (!response.destroyed && response.write(chunk));
  if (!response.destroyed) response.once('drain', () => writeForever(response));
}

function sendJson(
  response: ServerResponse,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(200, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify(body));
}

function base64url(text: string | Buffer): string {
  return (Buffer.isBuffer(text) ? text : Buffer.from(text)).toString('base64url');
}

function fits(alg: SigningAlgorithm, key: IssuerKey): boolean {
  const isRsa = (one: SigningAlgorithm) => one.startsWith('RS') || one.startsWith('PS');
  return alg === key.alg || (isRsa(alg) && isRsa(key.alg));
}

function generateKeys(alg: SigningAlgorithm): { privateKey: KeyObject; publicKey: KeyObject } {
  const namedCurve = new Map<SigningAlgorithm, string>([
    ['ES256', 'P-256'],
    ['ES384', 'P-384'],
    ['ES512', 'P-521'],
  ]).get(alg);
  if (namedCurve !== undefined) return generateKeyPairSync('ec', { namedCurve });
  if (alg === 'EdDSA') return generateKeyPairSync('ed25519');
  return generateKeyPairSync('rsa', { modulusLength: 2048 });
}

function signWith(
  alg: SigningAlgorithm,
  input: string,
  { privateKey }: IssuerKey,
  hmacSecret: string | Buffer = '',
): Buffer {
  const bytes = Buffer.from(input);
  const hash = `sha${alg.slice(2)}`;
  switch (alg.slice(0, 2)) {
    case 'no':
      return Buffer.alloc(0);
    case 'HS':
      return createHmac(hash, hmacSecret).update(bytes).digest();
    case 'ES':
      return sign(hash, bytes, { key: privateKey, dsaEncoding: 'ieee-p1363' });
    case 'Ed':
      return sign(null, bytes, privateKey);
    case 'PS':
      return sign(hash, bytes, {
        key: privateKey,
        padding: constants.RSA_PKCS1_PSS_PADDING,
        saltLength: constants.RSA_PSS_SALTLEN_DIGEST,
      });
    default:
      return sign(hash, bytes, privateKey);
  }
}
