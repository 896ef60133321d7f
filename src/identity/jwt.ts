/**
 * Verifies tokens: from a password that a stranger sent to claims that a configured issuer signed, or to a refusal.
 *
 * Until the signature has verified every refusal is the same to the client; the reason is in `cause`, for the log. Knows
 * nothing of roles, databases or sockets.
 *
 * https://www.rfc-editor.org/rfc/rfc7519#section-7.2 and https://www.rfc-editor.org/rfc/rfc8725
 */
import { hash } from 'node:crypto';
import { compactVerify, type CryptoKey, errors } from 'jose';
import NodeCache from 'node-cache';
import type { Config, JwksConfig, ProviderConfig } from '../config.ts';
import { perIssuer } from '../config-provider.ts';
import { printable, ProxyError } from '../errors.ts';
import { checkClaims, checkTimes } from './claims.ts';
import type { PublishedKeys } from './jwk.ts';
import { KeySet, type KeySetOptions, type KeyState } from './jwks.ts';
import {
  assertLength,
  type Claims,
  type ParsedToken,
  parseToken,
  TokenRefusal,
  truncationHint,
} from './token.ts';

/** A token that an issuer of the configuration signed and that is valid now. Frozen, at every level. */
export interface VerifiedToken {
  /** The provider's name in the configuration. */
  readonly provider: string;
  readonly issuer: string;
  readonly subject: string;
  readonly kid: string | undefined;
  readonly alg: string;
  /** All claims, without prototypes. */
  readonly claims: Claims;
  /** `exp` in milliseconds since the epoch, as the token says: without tolerance. */
  readonly expiresAt: number;
  /** By how much the provider's clock may differ from ours, in milliseconds. */
  readonly toleranceMs: number;
}

/** Verifies the tokens of one configuration; a new configuration gets a new one, so that no verdict outlives it. */
export interface Verifier {
  /**
   * Verifies a token.
   *
   * @param user what StartupMessage said; unverified, for the message alone.
   * @param attempt told of the issuer that the token names, `''` where it names none, before anything costly is done for a
   *   token that is not known yet. What it throws is what the token is refused for.
   * @throws {ProxyError} token_missing, token_rejected, token_expired, claims_rejected, keys_unavailable
   */
  verify(token: string, user: string, attempt?: (issuer: string) => void): Promise<VerifiedToken>;
  /** Starts fetching every issuer's keys, so that no first login has to wait. Failures are told to `onKeyProblem`. */
  warm(): void;
  /** What is at hand of each issuer. */
  keyStates(): KeyState[];
  /** Aborts fetches in flight, clears timers and forgets every token. */
  close(): void;
}

/** What a verifier takes from outside; each has a real default. */
export interface VerifierOptions extends KeySetOptions {
  /** The wall clock, in milliseconds since the epoch; read for every token. */
  readonly now?: () => number;
  /** Told of each good token, and whether it was a known one. */
  readonly onVerified?: (provider: string, cache: 'hit' | 'miss') => void;
  /** The one that this one follows: keys of issuers that stay as they were are kept, for an issuer may be down just now. */
  readonly predecessor?: Verifier | undefined;
}

/** Creates a verifier. Keys are fetched when `warm` is called, or else when the first token needs them. */
export function createVerifier(config: Config, options: VerifierOptions = {}): Verifier {
  return new TokenVerifier(config, options);
}

/** An issuer that tokens may come from, with the keys that are its own and nobody else's (attack C18). */
interface Trust {
  readonly id: string;
  readonly provider: ProviderConfig;
  readonly keySet: KeySet;
}

/** A good signature, and the state of the issuer in which it was good. */
interface Verdict {
  readonly trust: Trust;
  readonly keys: PublishedKeys;
  readonly verified: VerifiedToken;
}

class TokenVerifier implements Verifier {
  readonly #limits: Config['limits'];
  readonly #now: () => number;
  readonly #onVerified: NonNullable<VerifierOptions['onVerified']>;
  readonly #trusts: ReadonlyMap<string, Trust>;
  readonly #verdicts: VerdictCache;
  /** By all that a set of keys depends on. */
  readonly #keySets = new Map<string, KeySet>();

  constructor(config: Config, options: VerifierOptions) {
    this.#limits = config.limits;
    this.#now = options.now ?? Date.now;
    this.#onVerified = options.onVerified ?? (() => {});
    this.#trusts = new Map(
      Object.entries(config.providers).flatMap(([id, all]) =>
        perIssuer(all).map((provider) => [
          provider.issuer,
          { id, provider, keySet: this.#keySetOf(id, provider, config.jwks, options) },
        ]),
      ),
    );
    this.#verdicts = new VerdictCache(config.limits.tokenCacheEntries);
  }

  async verify(
    token: string,
    user: string,
    attempt: (issuer: string) => void = () => {},
  ): Promise<VerifiedToken> {
    if (token === '') {
      throw new ProxyError(
        'token_missing',
        { user },
        { cause: new Error('the password is empty') },
      );
    }
    try {
      assertLength(token, this.#limits.maxTokenBytes);
      return (await this.#recall(token, user)) ?? (await this.#verifyAfresh(token, user, attempt));
    } catch (error) {
      if (!(error instanceof TokenRefusal)) throw error;
      // No DETAIL, whatever the reason: it would tell a stranger which issuers and keys we know. The HINT depends on
      // nothing but what he sent.
      const hint = truncationHint(token);
      const said = hint === undefined ? {} : { hint };
      throw new ProxyError('token_rejected', { user }, { cause: error, ...said });
    }
  }

  warm(): void {
    for (const { keySet } of this.#trusts.values()) void keySet.warm();
  }

  keyStates(): KeyState[] {
    return [...this.#trusts.values()].map(({ keySet }) => keySet.state);
  }

  close(): void {
    for (const { keySet } of this.#trusts.values()) keySet.close();
    this.#verdicts.close();
  }

  #keySetOf(
    id: string,
    provider: ProviderConfig,
    config: JwksConfig,
    options: VerifierOptions,
  ): KeySet {
    const { issuer, jwksUri, jwksFile, algorithms } = provider;
    const name = JSON.stringify([id, issuer, jwksUri, jwksFile, algorithms, config]);
    const { predecessor } = options;
    const kept = predecessor instanceof TokenVerifier ? predecessor.#keySets.get(name) : undefined;
    const keySet = kept?.share() ?? new KeySet(id, provider, config, options);
    this.#keySets.set(name, keySet);
    return keySet;
  }

  /** The verdict on a token seen before, where its keys still stand and its time has not run out. */
  async #recall(token: string, user: string): Promise<VerifiedToken | undefined> {
    const verdict = this.#verdicts.get(token);
    if (verdict === undefined) return undefined;
    const { trust, keys, verified } = verdict;
    // A key that the issuer withdrew takes the tokens that it signed along.
    if (keys !== (await trust.keySet.current())) return undefined;
    checkTimes(verified.claims, { ...trust, user }, this.#now());
    this.#onVerified(trust.id, 'hit');
    return verified;
  }

  async #verifyAfresh(
    token: string,
    user: string,
    attempt: (issuer: string) => void,
  ): Promise<VerifiedToken> {
    const parsed = parseToken(token, this.#limits.maxTokenBytes);
    const { alg, kid, typ, claims } = parsed;
    attempt(typeof claims['iss'] === 'string' ? claims['iss'] : '');
    const trust = this.#trustOf(claims);
    const keys = await verifySignature(token, parsed, trust);

    const context = { ...trust, user };
    const now = this.#now();
    const expiresAt = checkTimes(claims, context, now);
    const verified: VerifiedToken = Object.freeze({
      provider: trust.id,
      issuer: trust.provider.issuer,
      subject: checkClaims(claims, { ...context, typ }),
      kid,
      alg,
      claims,
      expiresAt,
      toleranceMs: trust.provider.clockToleranceMs,
    });
    const lifetimeMs = expiresAt + verified.toleranceMs - now;
    this.#verdicts.set(token, { trust, keys, verified }, lifetimeMs);
    this.#onVerified(trust.id, 'miss');
    return verified;
  }

  #trustOf({ iss }: Claims): Trust {
    if (typeof iss !== 'string') throw new TokenRefusal('iss is missing or not a string');
    const trust = this.#trusts.get(iss);
    if (trust === undefined) {
      throw new TokenRefusal(`issuer "${printable(iss)}" is not that of any provider`);
    }
    return trust;
  }
}

/**
 * Verifies the signature with the key that the header asks for, of the issuer that the claims name; without a `kid`, with
 * one of the few that fit.
 *
 * @returns the keys that the issuer publishes at present.
 * @throws {TokenRefusal} with the reason.
 * @throws {ProxyError} keys_unavailable
 */
async function verifySignature(
  token: string,
  { alg, kid }: ParsedToken,
  { id, provider, keySet }: Trust,
): Promise<PublishedKeys> {
  // Attacks C1, C2: the header may choose among what the provider allows, which "none" and HS256 can never be.
  if (!provider.algorithms.some((one) => one === alg)) {
    throw new TokenRefusal(`alg "${printable(alg)}" is not allowed for provider "${id}"`);
  }
  const { keys, candidates } = await keySet.find(kid, alg);
  if (candidates.length === 0) {
    const which =
      kid === undefined
        ? `no kid, and none or too many keys for alg "${alg}"`
        : `no key with kid "${printable(kid)}"`;
    throw new TokenRefusal(`${which} at issuer "${printable(provider.issuer)}"`);
  }
  for (const { byAlgorithm } of candidates) {
    const key = byAlgorithm.get(alg);
    if (key === undefined) {
      throw new TokenRefusal(
        `the key with kid "${printable(kid ?? '')}" does not fit alg "${alg}"`,
      );
    }
    if (await isSignedWith(key, alg, token)) return keys;
  }
  throw new TokenRefusal('the signature does not verify');
}

/** @throws {TokenRefusal} where jose takes the token for no JWS at all. */
async function isSignedWith(key: CryptoKey, alg: string, token: string): Promise<boolean> {
  try {
    await compactVerify(token, key, { algorithms: [alg] });
    return true;
  } catch (error) {
    if (error instanceof errors.JWSSignatureVerificationFailed) return false;
    throw new TokenRefusal(`jose refused the token: ${(error as Error).name}`);
  }
}

const SWEEP_SECONDS = 60;

/**
 * Good verdicts, by SHA-256 of the token: neither the cache nor a core dump of it is a list of credentials. Refusals are
 * not kept, so that strangers cannot fill it.
 */
class VerdictCache {
  readonly #entries: NodeCache;
  readonly #maxEntries: number;

  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
    this.#entries = new NodeCache({ useClones: false, checkperiod: SWEEP_SECONDS });
  }

  get(token: string): Verdict | undefined {
    return this.#maxEntries === 0 ? undefined : this.#entries.get<Verdict>(digest(token));
  }

  set(token: string, verdict: Verdict, lifetimeMs: number): void {
    if (this.#maxEntries === 0) return;
    if (this.#entries.getStats().keys >= this.#maxEntries) this.#dropOldest();
    this.#entries.set(digest(token), verdict, lifetimeMs / 1000);
  }

  close(): void {
    this.#entries.flushAll();
    this.#entries.close();
  }

  /** Makes room for many at once, since listing the keys takes as long as there are keys. */
  #dropOldest(): void {
    const count = Math.ceil(this.#maxEntries / 10);
    this.#entries.del(this.#entries.keys().slice(0, count));
  }
}

function digest(token: string): string {
  return hash('sha256', token, 'base64url');
}
