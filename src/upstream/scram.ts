/**
 * Proves to a server that we know a password, and has it prove that it knows our verifier: SCRAM-SHA-256 and -PLUS.
 *
 * `pg` has the same arithmetic, but no place to put in keys that are known already: it would derive them anew at every
 * login, 4,096 rounds that the same slot, password and salt make the same each time. So these lines are ours, and what
 * they cost beside the derivation is two HMACs. Reads and writes no socket. SASLprep (RFC 4013) is left out: it is the
 * identity on the ASCII of `derivePassword`.
 *
 * RFC 5802, RFC 7677; https://www.postgresql.org/docs/current/sasl-authentication.html
 */
import { createHash, createHmac, pbkdf2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { printable, ProxyError } from '../errors.ts';

/** The names of the mechanisms. */
const PLAIN = 'SCRAM-SHA-256';
const PLUS = 'SCRAM-SHA-256-PLUS';

const KEY_BYTES = 32;
// As many as libpq and PostgreSQL take.
const NONCE_BYTES = 18;
// RFC 7677 §4, and PostgreSQL's default.
const MIN_ITERATIONS = 4_096;
// Half a second on a thread of libuv's: a hostile server can ask for as much, and not for more.
const MAX_ITERATIONS = 1_000_000;
// PostgreSQL's messages have some 100 bytes; what is longer is somebody else's.
const MAX_MESSAGE_BYTES = 2_048;

// Printable ASCII but for the comma, and base64 with its padding (RFC 5802 §7). What may follow are extensions, to be ignored.
const SERVER_FIRST =
  /^r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z\d+/]+={0,2}),i=([1-9]\d{0,9})(?:,[^\0]*)?$/;
const SERVER_FINAL = /^v=([A-Za-z\d+/]{43}=)(?:,[^\0]*)?$/;

const pbkdf2Async = promisify(pbkdf2);

/** What a password becomes for one salt. They let their holder log in, and tell nobody the password. */
export interface ScramKeys {
  readonly clientKey: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

/** How a password is salted. Both come from the server, and have been checked. */
export interface Salting {
  /** In base64, as it came. */
  readonly salt: string;
  readonly iterations: number;
}

/** Derives the keys on a thread of libuv's pool, never on ours. */
export async function deriveKeys(
  password: string,
  { salt, iterations }: Salting,
): Promise<ScramKeys> {
  const bytes = Buffer.from(salt, 'base64');
  const salted = await pbkdf2Async(password, bytes, iterations, KEY_BYTES, 'sha256');
  const clientKey = hmac(salted, 'Client Key');
  const storedKey = createHash('sha256').update(clientKey).digest();
  return { clientKey, storedKey, serverKey: hmac(salted, 'Server Key') };
}

/** The keys of those who log in, one entry each: the last salt that the server had for them. */
export class KeyRing {
  readonly #entries = new Map<string, Salting & { password: string; keys: Promise<ScramKeys> }>();
  readonly #maxEntries: number;

  /** @param maxEntries as many as there are roles to log in as. */
  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  /** The keys of `user`, derived where password, salt or iterations are others than last time. */
  keysOf(user: string, password: string, salting: Salting): Promise<ScramKeys> {
    const { salt, iterations } = salting;
    const known = this.#entries.get(user);
    if (known?.password === password && known.salt === salt && known.iterations === iterations) {
      return known.keys;
    }
    const keys = deriveKeys(password, salting);
    this.#entries.delete(user);
    const [oldest] = this.#entries.keys();
    if (oldest !== undefined && this.#entries.size >= this.#maxEntries) {
      this.#entries.delete(oldest);
    }
    const entry = { salt, iterations, password, keys };
    this.#entries.set(user, entry);
    // The next login is to try again; whoever waits for this one is told.
    keys.catch(() => {
      if (this.#entries.get(user) === entry) this.#entries.delete(user);
    });
    return keys;
  }
}

/** What an exchange needs. */
export interface ScramTerms {
  /** The mechanisms that the server offers. */
  readonly mechanisms: readonly string[];
  /**
   * What the login is to be bound to, or that this channel should be bound to and cannot be; `undefined` where no binding
   * is wanted: there is no TLS, or it vouches for the server by itself.
   */
  readonly binding: Buffer | 'impossible' | undefined;
  /** The keys of our password for this salt. */
  keys(salting: Salting): Promise<ScramKeys>;
  /** PostgreSQL goes by StartupMessage and ignores this name. Default: `*`, as drivers have it. */
  readonly user?: string;
  /** For the examples of the RFCs alone; else 18 random bytes in base64. */
  readonly nonce?: string;
}

/**
 * One exchange: `clientFirst`, then `respond` once, then `assertProof` once.
 *
 * The server is known to know our verifier when `assertProof` has returned, and not before.
 */
export class ScramExchange {
  readonly mechanism: typeof PLAIN | typeof PLUS;
  /** client-first-message, for SASLInitialResponse. */
  readonly clientFirst: string;
  readonly #terms: ScramTerms;
  readonly #nonce: string;
  /** With the channel's data: what `c=` repeats, so that nobody can change it on the way. */
  readonly #gs2Header: string;
  #state: 'begun' | 'answering' | 'answered' | 'over' = 'begun';
  #serverSignature: Buffer | undefined;

  /** @throws {ProxyError} upstream_login_rejected when no mechanism offered is SCRAM-SHA-256. */
  constructor(terms: ScramTerms) {
    const { mechanisms, binding, user = '*', nonce = newNonce() } = terms;
    this.#terms = terms;
    this.#nonce = nonce;
    const binds = binding !== undefined && mechanisms.includes(PLUS);
    if (!binds && !mechanisms.includes(PLAIN)) {
      throw rejected('the server offers no SCRAM-SHA-256 that we can do');
    }
    if (binds && binding === 'impossible') {
      throw rejected(
        'the certificate of the server cannot be bound to; tls.mode verify-ca or verify-full does without',
      );
    }
    this.mechanism = binds ? PLUS : PLAIN;
    // Attack: a man in the middle who takes -PLUS off the list. By `y` the real server hears that we would have bound.
    const flag = binds ? 'p=tls-server-end-point' : binding === undefined ? 'n' : 'y';
    this.#gs2Header = `${flag},,`;
    this.clientFirst = `${this.#gs2Header}${bare(user, nonce)}`;
  }

  /**
   * client-final-message, for SASLResponse, from server-first-message.
   *
   * @throws {ProxyError} upstream_protocol
   */
  async respond(serverFirst: Buffer): Promise<string> {
    if (this.#state !== 'begun') throw broken('server-first-message comes out of turn');
    this.#state = 'answering';
    const { nonce, ...salting } = parseServerFirst(serverFirst, this.#nonce);
    const { clientKey, storedKey, serverKey } = await this.#terms.keys(salting);
    const { binding, user = '*' } = this.#terms;
    const bound = this.mechanism === PLUS ? (binding as Buffer) : Buffer.alloc(0);
    const channel = Buffer.concat([Buffer.from(this.#gs2Header), bound]).toString('base64');
    const withoutProof = `c=${channel},r=${nonce}`;
    const signed = `${bare(user, this.#nonce)},${serverFirst.toString('latin1')},${withoutProof}`;
    this.#serverSignature = hmac(serverKey, signed);
    this.#state = 'answered';
    return `${withoutProof},p=${xor(clientKey, hmac(storedKey, signed)).toString('base64')}`;
  }

  /**
   * Checks server-final-message.
   *
   * @throws {ProxyError} upstream_protocol when the server cannot prove itself; upstream_login_rejected when it says that
   *   we could not.
   */
  assertProof(serverFinal: Buffer): void {
    const expected = this.#serverSignature;
    if (this.#state !== 'answered' || expected === undefined) {
      throw broken('server-final-message comes out of turn');
    }
    this.#state = 'over';
    const message = textOf(serverFinal);
    if (message.startsWith('e=')) {
      throw rejected(`the server says "${printable(message.slice(0, 100))}" to our proof`);
    }
    const signature = SERVER_FINAL.exec(message)?.[1];
    if (signature === undefined) throw broken('malformed server-final-message');
    if (!timingSafeEqual(Buffer.from(signature, 'base64'), expected)) {
      throw broken('the server does not know our verifier');
    }
  }
}

/** @throws {ProxyError} upstream_protocol */
function parseServerFirst(message: Buffer, ours: string): Salting & { nonce: string } {
  const text = textOf(message);
  // Mandatory extensions come first of all, and nobody has defined one (RFC 5802 §5.1).
  if (text.startsWith('m=')) throw broken('the server wants an extension that we do not know');
  const [, nonce = '', salt = '', count = ''] = SERVER_FIRST.exec(text) ?? [];
  if (salt === '' || salt.length % 4 !== 0) throw broken('malformed server-first-message');
  // Attack: an old exchange, recorded and played again. A nonce that is only ours would be no nonce of the server's.
  if (!nonce.startsWith(ours) || nonce.length === ours.length) {
    throw broken('the nonce of the server does not follow ours');
  }
  const iterations = Number(count);
  // Attack: PgBouncer's CVE-2026-6665 class. Few rounds make a guess cheap, many make a login dear.
  if (iterations < MIN_ITERATIONS || iterations > MAX_ITERATIONS) {
    throw broken(`the server wants ${count} iterations`);
  }
  return { nonce, salt, iterations };
}

/** A message with each byte a character, so that what we sign is what came. @throws {ProxyError} upstream_protocol */
function textOf(message: Buffer): string {
  if (message.length > MAX_MESSAGE_BYTES) throw broken(`a message of ${message.length} bytes`);
  return message.toString('latin1');
}

/** client-first-message-bare. */
function bare(user: string, nonce: string): string {
  return `n=${user},r=${nonce}`;
}

function newNonce(): string {
  return randomBytes(NONCE_BYTES).toString('base64');
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text, 'latin1').digest();
}

/** Of two buffers of one length. */
function xor(one: Buffer, other: Buffer): Buffer {
  return Buffer.from(one.map((byte, index) => byte ^ (other[index] as number)));
}

function broken(why: string): ProxyError {
  return new ProxyError('upstream_protocol', { cause: new Error(`SCRAM: ${why}`) });
}

function rejected(why: string): ProxyError {
  return new ProxyError('upstream_login_rejected', { cause: new Error(`SCRAM: ${why}`) });
}
