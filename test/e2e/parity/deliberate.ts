/**
 * Where pgjot answers otherwise than PostgreSQL on purpose, and why. Whatever is not listed here must be the same.
 *
 * A reviewed list, not a place to silence a test: every row must match a case, and differ from what
 * PostgreSQL answers to it, or the test fails.
 */

/** One difference. `cases` are matched against a case's name; the answer is pgjot's, without the beginning of TLS. */
export interface Difference {
  readonly cases: RegExp;
  readonly pgjot: string;
  readonly because: string;
  /** The error's text is PostgreSQL's all the same. */
  readonly sameWords?: true;
}

/** The list. The first row that matches counts. */
export const DELIBERATE: readonly Difference[] = [
  {
    cases: /^protocol [12]\.\d+/,
    pgjot: '0A000, closes',
    because: 'an ErrorResponse has a SQLSTATE; the format before 7.4 had none, and nobody reads it',
  },
  {
    cases: /^a login, then EOF$/,
    pgjot: 'asks password, closes',
    because:
      'who closes before being let in, with no query sent, can never ask for anything: no session is made ready for nobody',
  },
  {
    cases: /^GSSENCRequest, then protocol 2\.0$/,
    pgjot: 'N, 0A000, closes',
    because: 'as protocol 2.0 without GSSENCRequest',
  },
  {
    cases: /^(SSL|GSSENC)Request and (?!EOF).* in one segment$/,
    pgjot: '08P01, closes',
    because:
      'bytes behind the request end the connection before it is answered; PostgreSQL answers first, and with TLS takes them for a ClientHello',
  },
  {
    cases: /^direct TLS, then (SSL|GSSENC)Request$/,
    pgjot: 'tls postgresql, 0A000, closes',
    because: 'encryption inside encryption is refused alike however the first began',
  },
  {
    cases: /^(user twice|database twice)/,
    pgjot: '08P01, closes',
    because:
      'PostgreSQL takes the last of two, other servers the first: nobody may depend on which (B6)',
  },
  {
    cases: /^application_name twice/,
    pgjot: '08P01, closes',
    because: 'duplicates are refused for every parameter, in whatever case (B6)',
  },
  {
    cases: /^a user that is no UTF-8$/,
    pgjot: '08P01, closes',
    because: 'two byte strings must never decode to the same name',
  },
  {
    cases: /^replication="(?!f|FALSE|of|0|n)/,
    pgjot: '0A000, closes',
    because: 'no replication connection, nor anything that might be meant as one (B5)',
  },
  {
    cases: /^(a protocol option in capitals|_pq_ without a dot|user and USER|USER in capitals)$/,
    pgjot: '42501, closes',
    because: 'a parameter that is not on the list is refused before the password, not after it',
  },
  {
    cases:
      /^(role|session_authorization|pg_session_jwt\.jwk|request\.jwt\.claims|pgjot\.x|\w+_preload_libraries) (as a parameter|in options)$/,
    pgjot: '42501, closes',
    because:
      'these say who somebody is or load code: refused before a password is asked for (B1–B3)',
  },
  {
    cases:
      /^(a parameter without a name in the catalogue|a custom setting|a parameter spelt with a hyphen)$/,
    pgjot: '42501, closes',
    because:
      'a parameter that is not on the list is refused before the password, not after it (B7)',
  },
  {
    cases:
      /^options "(-c|--|-|search_path=x|-c search_path|--search-path|-c =x?|-c search_path =x|-x|-c search_path=x (trailing|\\\\)|-csearch_path|-c \\"search_path=x\\")"$/,
    pgjot: '42501, closes',
    because: 'options that are not settings are refused before the password, not after it',
  },
  {
    cases: /^password (declaring length|of (65,536|70,000) bytes)/,
    pgjot: 'asks password, 08P01, closes',
    because: 'PostgreSQL writes "invalid message length" into its log only; we tell the client',
  },
  {
    cases: /^a whole login (to a database that does not exist|without a database)$/,
    pgjot: 'asks password, 28000, closes',
    because:
      'a database without a route is refused by the policy, which does not say whether it exists',
  },
  {
    cases:
      /^(client_encoding=klingon|DateStyle=sideways|TimeZone=Mars\/Olympus|statement_timeout=(soon|-5)|extra_float_digits=99|default_transaction_isolation=solitude|options "-c search_path=a\\\\ b", SHOW search_path)$/,
    pgjot: 'asks password, 22023, closes',
    because:
      'AuthenticationOk is held back until the session is ready, so that a client sees one clean error',
    sameWords: true,
  },
];

/** Cases where both refuse with the same SQLSTATE, and pgjot's text is another on purpose. */
export const OTHER_WORDS: readonly Pick<Difference, 'cases' | 'because'>[] = [
  {
    cases: /^high bytes everywhere/,
    because: 'not even a terminator is looked for in what is no UTF-8',
  },
  {
    cases: /^GSSENCRequest, then startup$/,
    because: 'with TLS required: our rule is tls.mode, not a line that pg_hba.conf lacks',
  },
  {
    cases: /^password of length 5, the NUL/,
    because: 'an empty password is refused in the words of any other wrong one (token_missing)',
  },
];
