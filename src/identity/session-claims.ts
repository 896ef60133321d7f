/**
 * The claims as SQL sees them: those that the configuration chose, and what was looked up in the database.
 *
 * They travel as JSON text made here, once: numbers of a looked-up row may have more digits than JavaScript's have, and
 * the tenant 9007199254740993 must not become its neighbour.
 */

/** What `auth.session()` is to return. */
export interface SessionClaims {
  readonly claims: Claims;
  /** The JSON text of a row, null where there was none, undefined where no lookup is configured. */
  readonly lookup: string | null | undefined;
}

/**
 * The chosen ones of a token's claims, and always `sub`; all of them where `names` is undefined.
 *
 * Never a claim named `lookup`: under that name policies read what the database said, and an issuer that lets users
 * choose claims would let them choose their tenant.
 *
 * @returns one and the same object, frozen, for the same two objects: whoever comes back with a token that is known has
 *   the claims of before, and is known by that.
 */
export function chooseClaims(claims: Claims, names: readonly string[] | undefined): Claims {
  // What could still change would make the choice of before wrong.
  if (!Object.isFrozen(claims)) return choose(claims, names);
  const choices = choicesBy(names ?? ALL);
  let chosen = choices.get(claims);
  if (chosen === undefined) {
    chosen = choose(claims, names);
    choices.set(claims, chosen);
  }
  return chosen;
}

type Claims = Readonly<Record<string, unknown>>;

/** Stands for the list that a configuration does not have. */
const ALL: readonly string[] = [];

/** By the configuration's list, then by the token's claims; both go when those do. */
const made = new WeakMap<readonly string[], WeakMap<Claims, Claims>>();

function choicesBy(names: readonly string[]): WeakMap<Claims, Claims> {
  let choices = made.get(names);
  if (choices === undefined) {
    choices = new WeakMap();
    made.set(names, choices);
  }
  return choices;
}

function choose(claims: Claims, names: readonly string[] | undefined): Claims {
  const chosen = Object.entries(claims).filter(
    ([name]) =>
      name !== 'lookup' && (name === 'sub' || names === undefined || names.includes(name)),
  );
  return Object.freeze(Object.fromEntries(chosen));
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
