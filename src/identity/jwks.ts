/**
 * Keeps one issuer's published keys at hand: freshness, one fetch in flight, cooldown, stale-if-error, caps.
 *
 * jose's remote set is not used: it has no size limit and no stale-if-error, and during an outage it fetches once for
 * every login. Nothing here is shared between issuers, so a slow one delays nobody else. Where keys come from is
 * `key-source.ts`, which of them are fit `jwk.ts`, and whether a token is good `jwt.ts`.
 */
import type { LookupFunction } from 'node:net';
import type { JwksConfig, ProviderConfig } from '../config.ts';
import { printable, ProxyError } from '../errors.ts';
import { type PublishedKey, type PublishedKeys, readJwks } from './jwk.ts';
import { fileKeys, type KeySource, remoteKeys } from './key-source.ts';
import { FetchRation, UnknownKids } from './ration.ts';

const MAX_TOLD = 10;

/** What a key set takes from outside; each has a real default. */
export interface KeySetOptions {
  /** Milliseconds that never run backwards. */
  readonly monotonicNow?: () => number;
  /** Resolves the names of issuers. What it says is judged in any case. */
  readonly lookup?: LookupFunction;
  /** Told of each failed refresh and each key that is not used; for the log. */
  readonly onKeyProblem?: (provider: string, problem: string) => void;
  /** Told which keys have come and gone, by their ids; not of the first ones. */
  readonly onKeysChange?: (provider: string, change: KeysChange) => void;
  /** Told how each attempt to read a provider's keys has ended. */
  readonly onFetch?: (provider: string, outcome: 'success' | 'failure') => void;
}

/** Key ids of an issuer that were not there before, and that are not there any more; no more than ten of each. */
export interface KeysChange {
  readonly added: readonly string[];
  readonly removed: readonly string[];
}

/** What is at hand of an issuer. */
export interface KeyState {
  readonly provider: string;
  readonly issuer: string;
  /** How many keys. */
  readonly keys: number;
  /** How long ago they were last read, in ms; undefined while there are none. */
  readonly ageMs: number | undefined;
  /** Where they come from: a URL or a file. */
  readonly source: string;
  /** Whether tokens can be verified by them now. */
  readonly usable: boolean;
  readonly published: ReturnType<PublishedKeys['describe']>;
  /** In ms from now; negative for what is past. */
  readonly times: {
    readonly freshForMs: number;
    readonly usableForMs: number;
    readonly nextRefreshInMs: number;
  };
  /** Why the last attempt to read them failed, where it did. */
  readonly lastError: string | undefined;
}

/** What `find` found, and the state of the issuer in which it did. */
export interface FoundKeys {
  readonly keys: PublishedKeys;
  /** Those that may have signed the token: one for a `kid`, a few where it has none, or none at all. */
  readonly candidates: readonly PublishedKey[];
}

// setTimeout() takes a longer delay for 1 ms, and the timer would be armed a thousand times a second.
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;

/**
 * The keys of one provider.
 *
 * ```
 *          load ok          half time           freshUntil              usableUntil
 *  empty ──────────▶ fresh ─────────▶ a refresh ───────────▶ stale ─────────────────▶ unusable
 *    │                 ▲              goes on behind           │  served; refreshes      │  57P03 until a
 *    └ 57P03           └────────────────── load ok ────────────┴─ are tried behind ──────┘  refresh succeeds
 * ```
 *
 * A timer refreshes them, so no login waits for keys that its issuer has been asked for before, and a key that was
 * withdrawn is gone although nobody logs in.
 */
export class KeySet {
  readonly #id: string;
  readonly #provider: ProviderConfig;
  readonly #config: JwksConfig;
  readonly #source: KeySource;
  readonly #now: () => number;
  readonly #onKeysChange: (provider: string, change: KeysChange) => void;
  readonly #onKeyProblem: (provider: string, problem: string) => void;
  readonly #onFetch: NonNullable<KeySetOptions['onFetch']>;
  readonly #ration: FetchRation;
  readonly #unknown: UnknownKids;

  #keys: PublishedKeys | undefined;
  /** What `#keys` were read from. */
  #text: string | undefined;
  /** When the next refresh is due, if nobody has a reason to want one earlier. */
  #refreshAt = -Infinity;
  #freshUntil = -Infinity;
  #readAt: number | undefined;
  #usableUntil = -Infinity;
  #lastFailure: Error | undefined;
  #attempts = 0;
  #refreshing: Promise<void> | undefined;
  #abort: AbortController | undefined;
  #timer: NodeJS.Timeout | undefined;
  #holders = 1;

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
    this.#onKeysChange = options.onKeysChange ?? (() => {});
    this.#onFetch = options.onFetch ?? (() => {});
    const { jwksUri = '', jwksFile } = provider;
    this.#source =
      jwksFile === undefined
        ? remoteKeys(jwksUri, config, options.lookup)
        : fileKeys(jwksFile, config);
    this.#ration = new FetchRation(config, this.#source.remote);
    this.#unknown = new UnknownKids(config);
  }

  /** The same set for one holder more, who must close it too. */
  share(): this {
    this.#holders += 1;
    return this;
  }

  /** What is at hand now. */
  get state(): KeyState {
    const now = this.#now();
    return {
      provider: this.#id,
      issuer: this.#provider.issuer,
      keys: this.#keys?.size ?? 0,
      ageMs: this.#readAt === undefined ? undefined : now - this.#readAt,
      source: this.#source.location,
      usable:
        this.#keys !== undefined &&
        // A file is read again when somebody logs in.
        (now < this.#usableUntil || (!this.#source.remote && this.#lastFailure === undefined)),
      published: this.#keys?.describe() ?? [],
      times: {
        freshForMs: this.#freshUntil - now,
        usableForMs: this.#usableUntil - now,
        nextRefreshInMs: Math.max(this.#refreshAt, this.#ration.nextAt) - now,
      },
      lastError: this.#lastFailure?.message,
    };
  }

  /** Starts fetching the keys, so that the first login need not wait. Never rejects. */
  async warm(): Promise<void> {
    if (this.#keys === undefined) await this.#refresh();
  }

  /**
   * The keys that may verify a token now. The same object for as long as the issuer publishes the same keys.
   *
   * @throws {ProxyError} keys_unavailable
   */
  async current(): Promise<PublishedKeys> {
    const now = this.#now();
    if (this.#keys !== undefined && now < this.#refreshAt) return this.#keys;
    const refreshed = this.#refresh();
    // A file is read in no time, and a key that was taken out of it must be gone at the next login.
    const behind = this.#source.remote && now < this.#usableUntil;
    if (this.#keys !== undefined && behind) return this.#keys;
    await refreshed;
    if (this.#keys !== undefined && this.#now() < this.#usableUntil) return this.#keys;
    const reason = this.#lastFailure?.message ?? 'the proxy is closing';
    throw new ProxyError('keys_unavailable', {
      provider: this.#id,
      cause: new Error(`no usable keys of provider "${this.#id}": ${reason}`),
    });
  }

  /**
   * Looks for the keys that a token's header asks for, after a refresh where its kid is not known and the ration of
   * fetches allows one. A token without a kid is never a reason for a fetch.
   *
   * @throws {ProxyError} keys_unavailable
   */
  async find(kid: string | undefined, alg: string): Promise<FoundKeys> {
    const attempts = this.#attempts;
    // Twice at most: once for a refresh that is on its way already, once for one that this kid is the reason for.
    for (let refreshes = 0; ; refreshes += 1) {
      const keys = await this.current();
      const candidates = keys.find(kid, alg, this.#config.maxKeysTried);
      if (candidates.length > 0 || kid === undefined || refreshes === 2)
        return { keys, candidates };
      if (this.#refreshing !== undefined) {
        await this.#refreshing;
        continue;
      }
      // A refresh that began after this call did has nothing newer to offer when asked again.
      if (attempts !== this.#attempts || !this.#mayFetchFor(kid)) return { keys, candidates };
      await this.#refresh();
      const answered = this.#lastFailure === undefined;
      if (answered && !this.#keys?.has(kid)) this.#unknown.remember(kid, this.#now());
    }
  }

  /** When its last holder closes it: aborts a fetch in flight and starts no other. */
  close(): void {
    this.#holders -= 1;
    if (this.#holders > 0) return;
    clearTimeout(this.#timer);
    this.#abort?.abort(new Error('the proxy is closing'));
  }

  /** Whether an unknown kid is a good reason to fetch now; if so, none is for a while. */
  #mayFetchFor(kid: string): boolean {
    const now = this.#now();
    return (
      this.#source.remote && !this.#unknown.has(kid, now) && this.#ration.takeForUnknownKid(now)
    );
  }

  /** Starts a refresh, or joins the one in flight. Never rejects: failures are remembered. */
  async #refresh(): Promise<void> {
    if (this.#refreshing === undefined) {
      if (this.#holders === 0 || this.#now() < this.#ration.nextAt) return;
      this.#refreshing = this.#load().finally(() => {
        this.#refreshing = undefined;
        this.#arm();
      });
    }
    await this.#refreshing;
  }

  async #load(): Promise<void> {
    this.#attempts += 1;
    const { timeoutMs, staleMs } = this.#config;
    const abort = new AbortController();
    this.#abort = abort;
    // One deadline for name, connection, headers and body together: an issuer that drips is as late as one that hangs.
    const deadline = setTimeout(
      () => abort.abort(new Error(`no answer within ${timeoutMs} ms`)),
      timeoutMs,
    );
    const startedAt = this.#now();
    this.#ration.onStart(startedAt);
    try {
      const { text, freshMs } = await this.#source.load(abort.signal);
      if (text !== this.#text) await this.#adopt(text);
      this.#ration.onSuccess();
      this.#lastFailure = undefined;
      this.#readAt = startedAt;
      this.#onFetch(this.#id, 'success');
      this.#freshUntil = startedAt + freshMs;
      // Ahead of time, so that a refresh that fails can be tried again before anything is stale.
      this.#refreshAt = this.#source.remote ? startedAt + freshMs / 2 : this.#freshUntil;
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
    if (this.#keys !== undefined) this.#tellChange(this.#keys.kids, keys.kids);
    this.#keys = keys;
    this.#text = text;
    for (const problem of skipped) this.#onKeyProblem(this.#id, problem);
  }

  #tellChange(before: readonly string[], after: readonly string[]): void {
    const without = (some: readonly string[], others: readonly string[]) =>
      some
        .filter((kid) => !others.includes(kid))
        .slice(0, MAX_TOLD)
        .map(printable);
    const [added, removed] = [without(after, before), without(before, after)];
    if (added.length + removed.length > 0) this.#onKeysChange(this.#id, { added, removed });
  }

  #onLoadFailure(error: Error): void {
    this.#lastFailure = error;
    if (this.#holders === 0) return;
    this.#ration.onFailure(this.#now());
    this.#onFetch(this.#id, 'failure');
    this.#onKeyProblem(this.#id, `refresh failed: ${error.message}`);
  }

  /** Sets the timer of the next refresh. It keeps no process alive. */
  #arm(): void {
    clearTimeout(this.#timer);
    if (this.#holders === 0 || !this.#source.remote) return;
    const dueAt = Math.max(this.#refreshAt, this.#ration.nextAt);
    const delay = Math.min(Math.max(dueAt - this.#now(), 1), LONGEST_TIMEOUT_MS);
    this.#timer = setTimeout(() => this.#onTimer(), delay);
    this.#timer.unref();
  }

  #onTimer(): void {
    // Timers may fire a little early.
    if (this.#now() < Math.max(this.#refreshAt, this.#ration.nextAt)) this.#arm();
    else void this.#refresh();
  }
}
