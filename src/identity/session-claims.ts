/**
 * The claims as SQL sees them: those that the configuration chose, and what was looked up in the database.
 *
 * They travel as JSON text made here, once: numbers of a looked-up row may have more digits than JavaScript's have, and
 * the tenant 9007199254740993 must not become its neighbour.
 */

/** What `auth.session()` is to return. */
export interface SessionClaims {
  readonly claims: Readonly<Record<string, unknown>>;
  /** The JSON text of a row, null where there was none, undefined where no lookup is configured. */
  readonly lookup: string | null | undefined;
}

/**
 * The chosen ones of a token's claims, and always `sub`; all of them where `names` is undefined.
 *
 * Never a claim named `lookup`: under that name policies read what the database said, and an issuer that lets users
 * choose claims would let them choose their tenant.
 */
export function chooseClaims(
  claims: Readonly<Record<string, unknown>>,
  names: readonly string[] | undefined,
): Readonly<Record<string, unknown>> {
  const chosen = Object.entries(claims).filter(
    ([name]) =>
      name !== 'lookup' && (name === 'sub' || names === undefined || names.includes(name)),
  );
  return Object.fromEntries(chosen);
}

/** The JSON text of the claims; those in `instead` replace the token's own, and undefined leaves one out. */
export function encodeClaims(
  { claims, lookup }: SessionClaims,
  instead: Readonly<Record<string, number | undefined>> = {},
): string {
  const text = JSON.stringify({ ...claims, ...instead });
  if (lookup === undefined) return text;
  const separator = text === '{}' ? '' : ',';
  return `${text.slice(0, -1)}${separator}"lookup":${lookup ?? 'null'}}`;
}
