/**
 * Resolves JSON Pointers in verified claims.
 *
 * Follows own members and array indexes alone; what is not there is `undefined`, never an error.
 *
 * https://www.rfc-editor.org/rfc/rfc6901
 */

const ARRAY_INDEX = /^(0|[1-9]\d*)$/;

/**
 * What `pointer` points to in `claims`, or `undefined`. `/constructor/name` must not find what every object inherits
 * (attack C7), nor `/roles/length` what every array has.
 */
export function resolvePointer(claims: unknown, pointer: string): unknown {
  let value = claims;
  for (const token of pointer.split('/').slice(1)) {
    const name = token.replaceAll('~1', '/').replaceAll('~0', '~');
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name))
      return undefined;
    if (Array.isArray(value) && !ARRAY_INDEX.test(name)) return undefined;
    value = (value as Record<string, unknown>)[name];
  }
  return value;
}
