/**
 * Every way a connection can fail, in one table: what the client is told, and how loudly we log it.
 *
 * A failure has several audiences (the client, the operator, a metric, one day an HTTP caller), and
 * each of them is a column here, never an `if` somewhere else. `message` and `detail` are safe to
 * show to a hostile client; whatever is not goes into `cause`, which only `log.ts` reads.
 *
 * SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
 */

/**
 * One row of the table.
 *
 * `sent` is what reaches the client: a FATAL or ERROR ErrorResponse, nothing at all, or (`upstream`)
 * the bytes that PostgreSQL itself sent. `message` may name values in braces that the thrower fills in.
 */
export interface ErrorSpec {
  readonly sqlstate: string | undefined;
  readonly sent: 'FATAL' | 'ERROR' | 'nothing' | 'upstream';
  readonly message: string;
  readonly http: number | undefined;
  readonly log: 'debug' | 'info' | 'warn' | 'error';
}

// The user is told that a login failed but not (much about) why: the words are those of
// auth_failed() in PostgreSQL's auth.c.
const AUTH_FAILED = 'password authentication failed for user "{user}"';
/** What auth_failed() says to a client that signs in by OAUTHBEARER. Not 28P01, by which libpq blames a password file. */
const OAUTH_FAILED = {
  sqlstate: '28000',
  message: 'OAuth bearer authentication failed for user "{user}"',
} as const;
const UPSTREAM_CLOSED = 'server closed the connection unexpectedly';

/** The table. README documents it and `test/docs.test.ts` holds the two equal. */
export const ERRORS = {
  probe: row(undefined, 'nothing', 'connection closed before it said anything', undefined, 'debug'),
  address_denied: row(undefined, 'nothing', 'the address may not connect', undefined, 'debug'),
  proxy_header_invalid: row(
    undefined,
    'nothing',
    'invalid PROXY protocol header: {problem}',
    undefined,
    'warn',
  ),
  malformed_startup: row('08P01', 'FATAL', 'invalid startup packet layout: {problem}', 400, 'info'),
  bytes_before_tls: row(
    '08P01',
    'FATAL',
    'received unencrypted data after {request}',
    undefined,
    'warn',
  ),
  unsupported_protocol: row(
    '0A000',
    'FATAL',
    'unsupported frontend protocol {version}: server supports 3.0 to 3.2',
    undefined,
    'info',
  ),
  replication_unsupported: row(
    '0A000',
    'FATAL',
    'replication connections are not supported',
    undefined,
    'info',
  ),
  parameter_forbidden: row(
    '42501',
    'FATAL',
    'permission denied to set parameter "{name}"',
    400,
    'info',
  ),
  tls_required: row('28000', 'FATAL', 'connection requires TLS', 403, 'info'),
  user_missing: row(
    '28000',
    'FATAL',
    'no PostgreSQL user name specified in startup packet',
    undefined,
    'info',
  ),
  login_timeout: row('57014', 'FATAL', 'canceling authentication due to timeout', 408, 'info'),
  unexpected_message: row('08P01', 'FATAL', '{problem}', 400, 'info'),
  token_missing: row('28P01', 'FATAL', AUTH_FAILED, 401, 'info'),
  token_rejected: row('28P01', 'FATAL', AUTH_FAILED, 401, 'info'),
  token_expired: row('28P01', 'FATAL', AUTH_FAILED, 401, 'info'),
  claims_rejected: row('28P01', 'FATAL', AUTH_FAILED, 401, 'info'),
  token_revoked: row('28P01', 'FATAL', AUTH_FAILED, 401, 'warn'),
  oauth_discovery: row(OAUTH_FAILED.sqlstate, 'FATAL', OAUTH_FAILED.message, 401, 'info'),
  authzid_unsupported: row(
    '0A000',
    'FATAL',
    'client uses authorization identity, but it is not supported',
    undefined,
    'info',
  ),
  role_forbidden: row('28000', 'FATAL', 'role "{role}" is not permitted to log in', 403, 'warn'),
  lookup_empty: row('28000', 'FATAL', 'no entry for this user in the database', 403, 'warn'),
  lookup_failed: row('57P03', 'FATAL', 'could not look up the user at the moment', 503, 'error'),
  keys_unavailable: row('57P03', 'FATAL', 'cannot verify tokens at the moment', 503, 'error'),
  too_many_clients: row('53300', 'FATAL', 'sorry, too many clients already', 503, 'warn'),
  too_many_attempts: row('53400', 'FATAL', 'too many connection attempts', 429, 'warn'),
  pool_timeout: row('53300', 'FATAL', 'timed out waiting for an upstream connection', 503, 'warn'),
  draining: row('57P03', 'FATAL', 'the proxy is shutting down', 503, 'info'),
  upstream_unreachable: row('08001', 'FATAL', 'could not connect to the server', 503, 'error'),
  upstream_login_rejected: row(
    '08004',
    'FATAL',
    'the server rejected the connection',
    502,
    'error',
  ),
  upstream_rejected: row(undefined, 'upstream', 'the server refused the connection', 503, 'warn'),
  session_setup_failed: row(
    '42501',
    'FATAL',
    'permission denied to set role "{role}"',
    403,
    'error',
  ),
  claims_too_large: row('54000', 'FATAL', 'the claims are too large for a session', 413, 'warn'),
  upstream_lost: row('08006', 'FATAL', UPSTREAM_CLOSED, 502, 'warn'),
  upstream_protocol: row('08006', 'FATAL', UPSTREAM_CLOSED, 502, 'error'),
  client_lost: row(undefined, 'nothing', 'the client went away', undefined, 'info'),
  client_idle: row(
    '57P05',
    'FATAL',
    'terminating connection due to idle-session timeout',
    undefined,
    'info',
  ),
  transaction_idle: row(
    '25P03',
    'FATAL',
    'terminating connection due to idle-in-transaction timeout',
    undefined,
    'info',
  ),
  session_revoked: row(
    '57P01',
    'FATAL',
    'terminating connection because its token is accepted no more',
    undefined,
    'warn',
  ),
  lifetime_over: row(
    '57P01',
    'FATAL',
    'terminating connection because its longest lifetime is over',
    undefined,
    'info',
  ),
  session_expired: row(
    '57P01',
    'FATAL',
    'terminating connection because the token expired',
    undefined,
    'info',
  ),
  shutdown: row(
    '57P01',
    'FATAL',
    'terminating connection due to administrator command',
    undefined,
    'info',
  ),
  terminated: row(
    '57P01',
    'FATAL',
    'terminating connection due to administrator command',
    undefined,
    'info',
  ),
  feature_unsupported: row(
    '0A000',
    'ERROR',
    '"{feature}" is not supported with poolMode "transaction"',
    400,
    'info',
  ),
  internal: row('XX000', 'FATAL', 'internal error', 500, 'error'),
} as const satisfies Record<string, ErrorSpec>;

/** The stable, snake_case name of a failure; also the `reason` in logs and metrics. */
export type ErrorCode = keyof typeof ERRORS;

type Placeholder<Text extends string> = Text extends `${string}{${infer Name}}${infer Rest}`
  ? Name | Placeholder<Rest>
  : never;

/** The values that a code's message names, for instance `{ user }` for `token_rejected`. */
export type MessageValues<Code extends ErrorCode> = {
  readonly [Name in Placeholder<(typeof ERRORS)[Code]['message']>]: string;
};

/** What a `ProxyError` may carry beside its code and the values of its message. */
export interface ProxyErrorOptions {
  /** Client-safe DETAIL. Never a claim's value, never an upstream host. */
  readonly detail?: string;
  /** Client-safe HINT: what to do about it. */
  readonly hint?: string;
  /** For the log alone: the underlying error, or a sentence. Must not hold the token. */
  readonly cause?: unknown;
  /** Close without a word although the code has an ErrorResponse, as PostgreSQL does before it has read a whole startup packet. */
  readonly silent?: boolean;
  /** Whose token was refused although its signature is good, or whose keys are not to be had: for metrics. */
  readonly provider?: string;
  /** For `upstream_rejected` alone: the ErrorResponse frame that PostgreSQL sent, to be passed on as it is. */
  readonly frame?: Buffer;
  /** How the client presents its token, where that is not as a password: what was to be 28P01 is said as PostgreSQL says it then. */
  readonly method?: 'oauth';
}

type ProxyErrorArguments<Code extends ErrorCode> = [keyof MessageValues<Code>] extends [never]
  ? [options?: ProxyErrorOptions]
  : [values: MessageValues<Code>, options?: ProxyErrorOptions];

/**
 * A failure of one connection, by its code in the table.
 *
 * The values interpolated into `message` must be constants or names that the client itself sent; they
 * are cut to 63 bytes' worth of characters and stripped of control characters (attack B9: a user name
 * that forges a log line).
 */
export class ProxyError<Code extends ErrorCode = ErrorCode> extends Error {
  override readonly name = 'ProxyError';
  readonly code: Code;
  readonly detail: string | undefined;
  readonly hint: string | undefined;
  readonly provider: string | undefined;
  readonly silent: boolean;
  readonly frame: Buffer | undefined;
  /** The row of the table, in the words of the method by which the client signs in. */
  readonly spec: ErrorSpec;

  constructor(code: Code, ...rest: ProxyErrorArguments<Code>) {
    const named = ERRORS[code].message.includes('{');
    const values = (named ? rest[0] : undefined) as Record<string, string> | undefined;
    const options: ProxyErrorOptions | undefined = named ? rest[1] : rest[0];
    const spec = specOf(code, options?.method);
    super(fill(spec.message, values), { cause: options?.cause });
    this.code = code;
    this.spec = spec;
    this.detail = options?.detail;
    this.hint = options?.hint;
    this.provider = options?.provider;
    this.silent = options?.silent ?? ERRORS[code].sent === 'nothing';
    this.frame = options?.frame;
  }

  /** Whether `error` is a `ProxyError` with this code. */
  static is<C extends ErrorCode>(error: unknown, code: C): error is ProxyError<C> {
    return error instanceof ProxyError && error.code === code;
  }

  /**
   * Any thrown value as a `ProxyError`: what is not one already is a bug of ours, `internal`, of which
   * the client learns only the session's id in the log.
   */
  static from(error: unknown, session?: string): ProxyError {
    if (error instanceof ProxyError) return error;
    const detail = session === undefined ? {} : { detail: `connection ${session}` };
    return new ProxyError('internal', { cause: error, ...detail });
  }
}

const EXHAUSTED = new Set(['EMFILE', 'ENFILE', 'EADDRNOTAVAIL', 'EAGAIN', 'ENOBUFS', 'ENOMEM']);

/** Whether a connection could not be opened for want of something of ours: descriptors, ports, memory. The peer may be well. */
export function isExhausted(error: unknown): boolean {
  return EXHAUSTED.has((error as NodeJS.ErrnoException | undefined)?.code ?? '');
}

/** A startup or command-line mistake: every problem found, each with where it is. Exit status 78 (EX_CONFIG of sysexits.h). */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly ConfigProblem[];

  constructor(problems: readonly ConfigProblem[]) {
    super(problems.map(({ path, message }) => `${path}: ${message}`).join('\n'));
    this.problems = problems;
  }
}

/** One mistake in the configuration; `path` is dotted, as in `upstreams.main.host`. */
export interface ConfigProblem {
  readonly path: string;
  readonly message: string;
}

function specOf(code: ErrorCode, method: ProxyErrorOptions['method']): ErrorSpec {
  const spec: ErrorSpec = ERRORS[code];
  return method === 'oauth' && spec.sqlstate === '28P01' ? { ...spec, ...OAUTH_FAILED } : spec;
}

// NAMEDATALEN - 1: PostgreSQL shows no name longer than this either.
const MAX_NAME_CHARACTERS = 63;

function fill(template: string, values: Record<string, string> | undefined): string {
  if (values === undefined) return template;
  return template.replaceAll(/\{(\w+)\}/g, (_, name: string) => printable(values[name] ?? ''));
}

/**
 * A name that a client sent, fit for a message or a log line: no control characters, at most 63
 * characters, and nothing that looks like a token (attack C21: the token sent as the user name).
 */
export function printable(name: string): string {
  if (/eyJ[\w-]*/.test(name)) return '[token]';
  const clean = name.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?');
  return clean.length > MAX_NAME_CHARACTERS ? `${clean.slice(0, MAX_NAME_CHARACTERS)}…` : clean;
}

function row<
  const State extends string | undefined,
  const Sent extends ErrorSpec['sent'],
  const Message extends string,
>(sqlstate: State, sent: Sent, message: Message, http: number | undefined, log: ErrorSpec['log']) {
  return { sqlstate, sent, message, http, log };
}
