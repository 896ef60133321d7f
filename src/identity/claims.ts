/**
 * Checks the claims of a token whose signature has verified: time, audience, subject, and that PostgreSQL can store them.
 *
 * jose would check some of this and let more pass than we want (an infinite `exp`, a numeric `sub`, an `iat` of
 * tomorrow), so none of its claim checks are used. Knows nothing of roles: that is `policy.ts`.
 *
 * https://www.rfc-editor.org/rfc/rfc7519#section-4.1
 */
import type { ProviderConfig } from '../config.ts';
import { printable, ProxyError } from '../errors.ts';
import { brokenRule } from './rules.ts';
import type { Claims } from './token.ts';

/** Who asks, and under which rules. `user` is what StartupMessage said: unverified, for the message alone. */
export interface ClaimsContext {
  readonly id: string;
  readonly provider: ProviderConfig;
  readonly user: string;
  /** The header's. */
  readonly typ?: string | undefined;
}

// The last second of the year 9999, the largest date that PostgreSQL, JavaScript and people all read alike.
const MAX_SECONDS = 253_402_300_799;
const MAX_SUBJECT_BYTES = 255;
// eslint-disable-next-line no-control-regex
const CONTROL_CHARACTERS = /[\u0000-\u001f\u007f-\u009f]/;
// What jsonb refuses: U+0000 and halves of surrogate pairs.
// eslint-disable-next-line no-control-regex
const UNSTORABLE = /[\u0000\p{Cs}]/u;

/**
 * Checks everything that depends on the time, so it runs at each login, for tokens seen before as well.
 *
 * @param now wall clock, in milliseconds since the epoch.
 * @returns `exp` in milliseconds since the epoch, without tolerance.
 * @throws {ProxyError} token_expired, claims_rejected
 */
export function checkTimes(claims: Claims, context: ClaimsContext, now: number): number {
  const { clockToleranceMs, maxTokenAgeMs } = context.provider;
  const exp = timeOf(claims, 'exp', context);
  const nbf = timeOf(claims, 'nbf', context);
  const iat = timeOf(claims, 'iat', context);

  if (exp === undefined || exp <= 0) throw rejected('exp', 'is missing or not a time', context);
  if (now >= exp + clockToleranceMs) {
    throw outOfTime('The token has expired.', `exp was ${now - exp} ms ago`, context);
  }
  if (nbf !== undefined && nbf > now + clockToleranceMs) {
    throw outOfTime('The token is not valid yet.', `nbf is in ${nbf - now} ms`, context);
  }
  if (iat !== undefined && iat > now + clockToleranceMs) {
    throw outOfTime('The token was issued in the future.', `iat is in ${iat - now} ms`, context);
  }
  if (maxTokenAgeMs !== undefined) {
    if (iat === undefined) throw rejected('iat', 'is missing', context);
    if (now - iat > maxTokenAgeMs + clockToleranceMs) {
      throw outOfTime('The token is too old.', `iat was ${now - iat} ms ago`, context);
    }
  }
  return Math.floor(exp);
}

/**
 * Checks everything that stays true for as long as the token does.
 *
 * @returns `sub`: not empty, at most 255 bytes, no control characters.
 * @throws {ProxyError} claims_rejected
 */
export function checkClaims(claims: Claims, context: ClaimsContext): string {
  const { audience, anyAudience, requiredClaims } = context.provider;
  if (!anyAudience && !isForAudience(claims['aud'], audience ?? [])) {
    throw rejected('aud', 'is missing or names another audience', context);
  }
  const { sub } = claims;
  if (
    typeof sub !== 'string' ||
    sub === '' ||
    Buffer.byteLength(sub) > MAX_SUBJECT_BYTES ||
    CONTROL_CHARACTERS.test(sub)
  ) {
    throw rejected('sub', 'is missing or not a fit subject', context);
  }
  // Attack C13: a logout token carries the same iss, aud and sub as the ID token. What tells it apart is "events" (RFC 8417).
  if (typeof claims['events'] === 'object' && !Array.isArray(claims['events'])) {
    throw rejected('events', 'makes it a security event, not a sign-in', context);
  }
  for (const name of requiredClaims) {
    if (!Object.hasOwn(claims, name) || claims[name] === null) {
      throw rejected(name, 'is missing', context);
    }
  }
  const broken = brokenRule(context.provider, claims, context.typ);
  if (broken !== undefined) throw refused(broken, context);
  for (const [name, value] of Object.entries(claims)) {
    if (UNSTORABLE.test(name) || !isStorable(value)) {
      throw rejected(name, 'holds something that PostgreSQL cannot store unchanged', context);
    }
  }
  return sub;
}

function timeOf(claims: Claims, name: string, context: ClaimsContext): number | undefined {
  const seconds = claims[name];
  if (seconds === undefined) return undefined;
  // Attack C9: 1e999 parses as Infinity, and arithmetic on it makes timers fire at once.
  if (typeof seconds !== 'number' || Math.abs(seconds) > MAX_SECONDS) {
    throw rejected(name, 'is missing or not a time', context);
  }
  return seconds * 1000;
}

function isForAudience(aud: unknown, accepted: readonly string[]): boolean {
  const named: unknown[] = Array.isArray(aud) ? aud : [aud];
  return (
    named.every((one) => typeof one === 'string') && named.some((one) => accepted.includes(one))
  );
}

/**
 * Whether jsonb gives `value` back as it is. An integer beyond 2^53 is not: JSON.parse has rounded it already, so the
 * tenant 9007199254740993 would read the rows of tenant 9007199254740992.
 */
function isStorable(value: unknown): boolean {
  if (typeof value === 'string') return !UNSTORABLE.test(value);
  if (typeof value === 'number') {
    return Number.isInteger(value) ? Number.isSafeInteger(value) : Number.isFinite(value);
  }
  if (typeof value !== 'object' || value === null) return true;
  return Object.entries(value).every(
    ([name, inner]) => !UNSTORABLE.test(name) && isStorable(inner),
  );
}

function rejected(claim: string, problem: string, context: ClaimsContext): ProxyError {
  return refused(`claim "${printable(claim)}" ${problem}`, context);
}

function refused(sentence: string, { user, id }: ClaimsContext): ProxyError {
  return new ProxyError(
    'claims_rejected',
    { user },
    {
      detail: `The ${sentence}.`,
      cause: new Error(`${sentence} (provider "${id}")`),
      provider: id,
    },
  );
}

function outOfTime(detail: string, reason: string, { user, id }: ClaimsContext): ProxyError {
  const cause = new Error(`${reason} (provider "${id}")`);
  return new ProxyError('token_expired', { user }, { detail, cause, provider: id });
}
