/**
 * Keeps one issuer's published keys at hand: freshness, one fetch in flight, cooldown, stale-if-error, caps.
 *
 * jose's remote set is not used: it has no size limit and no stale-if-error, and during an outage it fetches once for
 * every login. Nothing here is shared between issuers, so a slow one delays nobody else. Which keys are fit is
 * `jwk.ts`; whether a token is good is `jwt.ts`.
 *
 * https://www.rfc-editor.org/rfc/rfc9111#section-4.2 (freshness)
 */
import { readFile } from 'node:fs/promises';
import type { JwksConfig, ProviderConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { type PublishedKey, type PublishedKeys, readJwks } from './jwk.ts';

/** What a key set takes from outside; each has a real default. */
export interface KeySetOptions {
  /** Milliseconds that never run backwards. */
  readonly monotonicNow?: () => number;
  readonly fetch?: typeof fetch;
  /** Told of each failed refresh and each key that is not used; for the log. */
  readonly onKeyProblem?: (provider: string, problem: string) => void;
}

/** What `find` found, and the state of the issuer in which it did. */
export interface FoundKey {
  readonly keys: PublishedKeys;
  readonly key: PublishedKey | undefined;
}

const FIRST_RETRY_MS = 1_000;
const FILE_CHECK_MS = 1_000;

/**
 * The keys of one provider.
 *
 * ```
 *          load ok                freshUntil               usableUntil
 *  empty ──────────▶ fresh ─────────────────▶ stale ─────────────────▶ unusable
 *    │                 ▲  served              │  served; a refresh       │  57P03 until a
 *    └ 57P03           └──── load ok ─────────┴─ goes on behind ─────────┘  refresh succeeds
 * ```
 */
export class KeySet {
  readonly #id: string;
  readonly #provider: ProviderConfig;
  readonly #config: JwksConfig;
  readonly #source: KeySource;
  readonly #now: () => number;
  readonly #onKeyProblem: (provider: string, problem: string) => void;

  #keys: PublishedKeys | undefined;
  /** What `#keys` were read from. */
  #text: string | undefined;
  #freshUntil = -Infinity;
  #usableUntil = -Infinity;
  /** No refresh for the sake of an unknown kid before this. */
  #cooldownUntil = -Infinity;
  /** No refresh at all before this: the last one failed. */
  #retryAt = -Infinity;
  #failures = 0;
  #lastFailure: Error | undefined;
  #attempts = 0;
  #refreshing: Promise<void> | undefined;
  #abort: AbortController | undefined;
  #closed = false;

  constructor(
    id: string,
    provider: ProviderConfig,
    config: JwksConfig,
    options: KeySetOptions = {},
  ) {
    this.#id = id;
    this.#provider = provider;
    this.#config = config;
    this.#now = options.monotonicNow ?? (() => performance.now());
    this.#onKeyProblem = options.onKeyProblem ?? (() => {});
    this.#source =
      provider.jwksFile === undefined
        ? new RemoteSource(provider.jwksUri ?? '', config, options.fetch ?? fetch)
        : new FileSource(provider.jwksFile);
  }

  /**
   * The keys that may verify a token now. The same object for as long as the issuer publishes the same keys.
   *
   * @throws {ProxyError} keys_unavailable
   */
  async current(): Promise<PublishedKeys> {
    if (this.#keys !== undefined && this.#now() < this.#freshUntil) return this.#keys;
    const refreshed = this.#refresh();
    if (this.#keys !== undefined && this.#source.mayLag && this.#now() < this.#usableUntil) {
      return this.#keys;
    }
    await refreshed;
    if (this.#keys !== undefined && this.#now() < this.#usableUntil) return this.#keys;
    const reason = this.#lastFailure?.message ?? 'the proxy is closing';
    throw new ProxyError('keys_unavailable', {
      cause: new Error(`no usable keys of provider "${this.#id}": ${reason}`),
    });
  }

  /**
   * Looks for the key that a token's header asks for, after a refresh where it is not known and the cooldown allows one.
   *
   * @throws {ProxyError} keys_unavailable
   */
  async find(kid: string | undefined, alg: string): Promise<FoundKey> {
    const attempts = this.#attempts;
    // Twice at most: once for a refresh that is on its way already, once for one that this kid is the reason for.
    for (let refreshes = 0; ; refreshes += 1) {
      const keys = await this.current();
      const key = keys.find(kid, alg);
      if (key !== undefined || refreshes === 2) return { keys, key };
      // A refresh that began after this call did has nothing newer to offer when asked again.
      const mayWait =
        this.#refreshing !== undefined || (attempts === this.#attempts && this.#takeCooldown());
      if (!mayWait) return { keys, key };
      await this.#refresh();
    }
  }

  /** Aborts a fetch in flight and starts no other. */
  close(): void {
    this.#closed = true;
    this.#abort?.abort(new Error('the proxy is closing'));
  }

  /** Whether a refresh for an unknown kid is allowed now; if so, the next one is not for a while. */
  #takeCooldown(): boolean {
    const now = this.#now();
    if (now < this.#cooldownUntil) return false;
    // Armed before the fetch and whatever becomes of it: otherwise random kids during an outage are a fetch each (attack D1).
    this.#cooldownUntil = now + this.#config.cooldownMs;
    return true;
  }

  /** Starts a refresh, or joins the one in flight. Never rejects: failures are remembered. */
  async #refresh(): Promise<void> {
    if (this.#refreshing === undefined) {
      if (this.#closed || this.#now() < this.#retryAt) return;
      this.#refreshing = this.#load().finally(() => {
        this.#refreshing = undefined;
      });
    }
    await this.#refreshing;
  }

  async #load(): Promise<void> {
    this.#attempts += 1;
    const { timeoutMs, staleMs } = this.#config;
    const abort = new AbortController();
    this.#abort = abort;
    // One deadline for connecting, headers and body together, so an issuer that drips is as late as one that hangs.
    const deadline = setTimeout(
      () => abort.abort(new Error(`no answer within ${timeoutMs} ms`)),
      timeoutMs,
    );
    const startedAt = this.#now();
    try {
      const { text, freshMs } = await this.#source.load(abort.signal);
      if (text !== this.#text) await this.#adopt(text);
      this.#failures = 0;
      this.#retryAt = -Infinity;
      this.#freshUntil = startedAt + freshMs;
      this.#usableUntil = this.#freshUntil + staleMs;
    } catch (error) {
      this.#onLoadFailure(error as Error);
    } finally {
      clearTimeout(deadline);
      this.#abort = undefined;
    }
  }

  async #adopt(text: string): Promise<void> {
    const { algorithms } = this.#provider;
    const { keys, skipped } = await readJwks(text, algorithms, this.#config.maxKeys);
    this.#keys = keys;
    this.#text = text;
    for (const problem of skipped) this.#onKeyProblem(this.#id, problem);
  }

  #onLoadFailure(error: Error): void {
    if (this.#closed) return;
    this.#failures += 1;
    const backoff = FIRST_RETRY_MS * 2 ** Math.min(this.#failures - 1, 30);
    // Jitter: many proxies lose an issuer at the same moment and must not all come back at the same moment.
    const jitter = 1 + Math.random() / 4;
    this.#retryAt = this.#now() + Math.min(backoff, this.#source.maxRetryMs) * jitter;
    this.#lastFailure = error;
    this.#onKeyProblem(this.#id, `refresh failed: ${error.message}`);
  }
}

/** Where keys come from. */
interface KeySource {
  /** Whether a login may use the keys at hand while newer ones are on their way. */
  readonly mayLag: boolean;
  /** Longest pause between failed attempts. */
  readonly maxRetryMs: number;
  /** Reads the JWK Set, and for how long it counts as fresh. */
  load(signal: AbortSignal): Promise<{ text: string; freshMs: number }>;
}

class RemoteSource implements KeySource {
  readonly mayLag = true;
  readonly maxRetryMs = 60_000;
  readonly #uri: string;
  readonly #config: JwksConfig;
  readonly #fetch: typeof fetch;

  constructor(uri: string, config: JwksConfig, fetchKeys: typeof fetch) {
    this.#uri = uri;
    this.#config = config;
    this.#fetch = fetchKeys;
  }

  async load(signal: AbortSignal): Promise<{ text: string; freshMs: number }> {
    try {
      const response = await this.#fetch(this.#uri, {
        signal,
        // Attack D3: a redirect could lead to an address that only this machine can reach, or away from https.
        redirect: 'error',
        headers: {
          accept: 'application/jwk-set+json, application/json',
          'accept-encoding': 'identity',
        },
      });
      const text = await this.#readBody(response);
      return { text, freshMs: freshness(response.headers, this.#config) };
    } catch (error) {
      signal.throwIfAborted();
      throw error instanceof TypeError ? withInnerReason(error) : error;
    }
  }

  /** Counts the body as it streams, so that what is too large is never held (attack D2). */
  async #readBody(response: Response): Promise<string> {
    const encoding = response.headers.get('content-encoding') ?? 'identity';
    if (response.status !== 200 || encoding !== 'identity') {
      await response.body?.cancel();
      throw new Error(
        response.status === 200
          ? `the answer is encoded although none was asked for`
          : `the answer has status ${response.status}`,
      );
    }
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of response.body ?? []) {
      bytes += chunk.length;
      if (bytes > this.#config.maxBytes) {
        throw new Error(`the answer is longer than jwks.maxBytes (${this.#config.maxBytes})`);
      }
      chunks.push(chunk);
    }
    return Buffer.concat(chunks).toString('utf8');
  }
}

class FileSource implements KeySource {
  // A local file is read in no time, and a key that was taken out of it must be gone at the next login.
  readonly mayLag = false;
  readonly maxRetryMs = FILE_CHECK_MS;
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  async load(signal: AbortSignal): Promise<{ text: string; freshMs: number }> {
    const text = await readFile(this.#file, { encoding: 'utf8', signal });
    return { text, freshMs: FILE_CHECK_MS };
  }
}

/** fetch says no more than "fetch failed"; why is in its cause. */
function withInnerReason(error: TypeError): Error {
  const { cause } = error;
  if (!(cause instanceof Error)) return error;
  // Where several addresses were tried, the message is empty and the code says it all.
  const { code } = cause as NodeJS.ErrnoException;
  return new Error(cause.message === '' ? code : cause.message, { cause });
}

/**
 * How long an answer counts as fresh, in milliseconds: what its headers say, but never less than the cooldown (an issuer
 * that says `no-store` must not be asked at every login) and never more than `freshMs`.
 */
function freshness(headers: Headers, { freshMs, cooldownMs }: JwksConfig): number {
  const said = lifetimeFromHeaders(headers);
  return said === undefined ? freshMs : Math.min(freshMs, Math.max(cooldownMs, said));
}

function lifetimeFromHeaders(headers: Headers): number | undefined {
  const control = headers.get('cache-control') ?? '';
  if (/\bno-(store|cache)\b/i.test(control)) return 0;
  const maxAge = /\bmax-age\s*=\s*"?(\d{1,10})/i.exec(control)?.[1];
  if (maxAge !== undefined) {
    const age = Number(/^\d{1,10}$/.exec(headers.get('age') ?? '')?.[0] ?? 0);
    return (Number(maxAge) - age) * 1000;
  }
  const expires = Date.parse(headers.get('expires') ?? '');
  const date = Date.parse(headers.get('date') ?? '');
  return Number.isNaN(expires) || Number.isNaN(date) ? undefined : expires - date;
}
