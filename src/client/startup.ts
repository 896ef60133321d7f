/**
 * The startup-parameter firewall: which of a client's startup parameters may reach the upstream, in canonical form.
 *
 * An allow-list, because a deny-list of texts is unsound: PostgreSQL takes names in any case, `-` for
 * `_`, backslash escapes inside names, and settings both as parameters and inside `options`. What
 * passes goes into a map from which the upstream's packet is built anew; nothing is ever forwarded.
 *
 * `options` is split as pg_split_opts() in PostgreSQL's postinit.c does, and read as
 * process_postgres_switches() would.
 */
import { RESERVED_PARAMETERS } from '../config-rules.ts';
import { ProxyError } from '../errors.ts';

/** Settings that any client may choose for its own session; each is USERSET in PostgreSQL and none says who anybody is. */
const ALLOWED: ReadonlySet<string> = new Set([
  'application_name',
  'bytea_output',
  'client_encoding',
  'client_min_messages',
  'datestyle',
  'default_transaction_deferrable',
  'default_transaction_isolation',
  'default_transaction_read_only',
  'extra_float_digits',
  'geqo',
  'idle_in_transaction_session_timeout',
  'idle_session_timeout',
  'intervalstyle',
  'jit',
  'lock_timeout',
  'plan_cache_mode',
  'search_path',
  'standard_conforming_strings',
  'statement_timeout',
  'timezone',
  'transaction_timeout',
]);

/** What a StartupMessage holds beside settings. */
const NO_SETTINGS: ReadonlySet<string> = new Set(['user', 'database', 'options', 'replication']);

const UPPER_CASE = /[A-Z]/;

const MAX_VALUE_BYTES = 1_024;
// Our own StartupMessage carries them too, beside longer names than the client's, and has the same 10,000 bytes.
const MAX_PARAMETERS_BYTES = 8_192;

/** What a StartupMessage asks for, once the firewall has had its say. */
export interface StartupRequest {
  /** The role asked for, not yet granted by anyone. */
  readonly user: string;
  /** The database asked for; PostgreSQL's default, the user's name, where none was sent. */
  readonly database: string;
  /** Settings that pass, by lower-case name. */
  readonly parameters: ReadonlyMap<string, string>;
}

/**
 * Judges the pairs of a StartupMessage; `alsoAllowed` holds the lower-case names that the configuration adds.
 *
 * A duplicate is refused: PostgreSQL takes the last of two `user`s, so a proxy that judged the first
 * would let the second in (attack B6).
 *
 * @throws {ProxyError} malformed_startup, user_missing, replication_unsupported, parameter_forbidden.
 */
export function judgeStartup(
  pairs: readonly (readonly [name: string, value: string])[],
  alsoAllowed: readonly string[],
): StartupRequest {
  const direct = new Map<string, string>();
  for (const [sent, value] of pairs) {
    // A protocol option, not a setting: the handshake has answered it with NegotiateProtocolVersion.
    if (sent.startsWith('_pq_.')) continue;
    const name = lowerCase(sent);
    // PostgreSQL knows these four in lower case only; `USER` is a setting to it, and an unknown one.
    if (name !== sent && NO_SETTINGS.has(name))
      throw new ProxyError('parameter_forbidden', { name });
    if (direct.has(name)) {
      throw new ProxyError('malformed_startup', { problem: 'a parameter is given twice' });
    }
    direct.set(name, value);
  }

  const user = take(direct, 'user');
  if (user === undefined || user === '') throw new ProxyError('user_missing');
  const database = take(direct, 'database') || user;
  refuseReplication(take(direct, 'replication'));
  // A parameter of its own beats the same setting inside `options`, as in PostgreSQL.
  const parameters = new Map([...parseOptions(take(direct, 'options') ?? ''), ...direct]);
  let bytes = 0;
  for (const [name, value] of parameters) {
    refuseUnlessAllowed(name, value, alsoAllowed);
    bytes += name.length + Buffer.byteLength(value) + 2;
    if (bytes > MAX_PARAMETERS_BYTES) throw new ProxyError('parameter_forbidden', { name });
  }
  return { user, database, parameters };
}

/** The settings that an `options` value makes, by canonical name, the last of each winning as in PostgreSQL. */
export function parseOptions(options: string): Map<string, string> {
  const settings = new Map<string, string>();
  const words = splitOptions(options);
  for (let index = 0; index < words.length; index++) {
    const word = words[index] as string;
    let assignment: string | undefined;
    if (word.startsWith('--')) assignment = word.slice(2);
    else if (word === '-c') assignment = words[++index];
    else if (word.startsWith('-c')) assignment = word.slice(2);
    const equals = assignment?.indexOf('=') ?? -1;
    // Any other switch (-f, -S, -W, …) or a bare word changes the server in ways nobody needs.
    if (assignment === undefined || equals < 1)
      throw new ProxyError('parameter_forbidden', { name: 'options' });
    settings.set(canonicalName(assignment.slice(0, equals)), assignment.slice(equals + 1));
  }
  return settings;
}

/** Splits at white space as isspace() knows it; a backslash takes the next character as it is. */
function splitOptions(options: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  for (let at = 0; at < options.length; at++) {
    const character = options[at] as string;
    if (/[ \t\n\v\f\r]/.test(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (character === '\\') {
      word = (word ?? '') + (options[++at] ?? '');
    } else {
      word = (word ?? '') + character;
    }
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** A setting's name in `options` as PostgreSQL would find it: there alone, `-` is read as `_`. */
function canonicalName(name: string): string {
  return lowerCase(name).replaceAll('-', '_');
}

/** ASCII letters in lower case, as guc_name_compare() folds them. */
function lowerCase(name: string): string {
  return UPPER_CASE.test(name) ? name.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase()) : name;
}

function refuseUnlessAllowed(name: string, value: string, alsoAllowed: readonly string[]): void {
  const known = ALLOWED.has(name) || alsoAllowed.includes(name);
  if (!known || RESERVED_PARAMETERS.test(name) || Buffer.byteLength(value) > MAX_VALUE_BYTES) {
    throw new ProxyError('parameter_forbidden', { name });
  }
}

/** PostgreSQL reads `replication` with parse_bool(), or as "database": only what is false for it passes. */
function refuseReplication(value: string | undefined): void {
  if (value === undefined) return;
  const text = value.toLowerCase();
  const isFalse =
    text !== '' &&
    (['false', 'no'].some((word) => word.startsWith(text)) || ['of', 'off', '0'].includes(text));
  if (!isFalse) throw new ProxyError('replication_unsupported');
}

function take(map: Map<string, string>, name: string): string | undefined {
  const value = map.get(name);
  map.delete(name);
  return value;
}
