/**
 * The rules with which a provider tells its kinds of tokens apart: the header's `typ`, the authorized party, and claims that must have certain values.
 *
 * What every token must fulfil is `claims.ts`; a provider's preset chooses its rules in `presets.ts`. Decides, and
 * leaves it to the caller to refuse.
 *
 * https://www.rfc-editor.org/rfc/rfc8725#section-3.12 (mutually exclusive validation rules for different kinds of JWTs)
 */
import type { ProviderConfig } from '../config.ts';
import { printable } from '../errors.ts';
import { resolvePointer } from './pointer.ts';
import type { Claims } from './token.ts';

/** The settings that are judged here. */
type Rules = Pick<ProviderConfig, 'typ' | 'authorizedParties' | 'claims'>;

// Who asked for the token: OpenID Connect's name for it, OAuth's (RFC 9068; Amazon Cognito), and that of Entra ID's version 1.
const PARTY_CLAIMS = ['azp', 'client_id', 'appid'];

/**
 * The first rule that a token breaks, as the end of a sentence that names a claim but never its value; `undefined` where
 * it breaks none.
 *
 * @param typ the header's `typ`; signed, as the claims are.
 */
export function brokenRule(
  { typ: kinds, authorizedParties, claims: rules }: Rules,
  claims: Claims,
  typ: string | undefined,
): string | undefined {
  // Attack C13: one issuer's ID tokens, access tokens and logout tokens have the same signature.
  if (kinds !== undefined && !kinds.some((kind) => mediaType(kind) === mediaType(typ ?? ''))) {
    return 'header "typ" is missing or names another kind of token';
  }
  if (authorizedParties !== undefined) {
    const named = PARTY_CLAIMS.filter((name) => Object.hasOwn(claims, name));
    if (named.length === 0) return 'claim "azp" is missing';
    const stranger = named.find((name) => !authorizedParties.some((one) => one === claims[name]));
    if (stranger !== undefined) return `claim "${stranger}" names another party`;
  }
  for (const [pointer, accepted] of Object.entries(rules)) {
    if (!claimMatches(claims, pointer, accepted)) {
      return `claim "${printable(pointer)}" is missing or has another value`;
    }
  }
  return undefined;
}

/**
 * Whether what `pointer` points to is one of `accepted` or, if it is an array, holds one of them. `null` accepts a claim
 * that is not there.
 */
export function claimMatches(
  claims: Claims,
  pointer: string,
  accepted: readonly (string | number | boolean | null)[],
): boolean {
  const value = resolvePointer(claims, pointer) ?? null;
  const values: readonly unknown[] = Array.isArray(value) ? value : [value];
  // A null inside of an array is a value like any other, not an absence.
  return values.some(
    (one) => accepted.some((wanted) => wanted === one) && (one !== null || value === null),
  );
}

/** `typ` without its default prefix and in lower case, as media types are compared (RFC 7515 section 4.1.9). */
function mediaType(typ: string): string {
  return typ.toLowerCase().replace(/^application\//, '');
}
