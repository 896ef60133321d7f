/**
 * The corpus of startup parameters: users, databases, protocol options, replication, settings, and
 * `options` in every spelling that PostgreSQL's own parser takes.
 *
 * Where a setting is harmless the script logs in and reads it back, so that not only acceptance but
 * the value is compared.
 *
 * https://www.postgresql.org/docs/current/runtime-config-client.html
 */
import type { Login, WireCase } from './corpus.ts';
import {
  CODES,
  type Parameter,
  passwordMessage,
  query,
  startup,
  TERMINATE,
  version,
} from './bytes.ts';
import type { Step } from './probe.ts';

/** The cases of this file. */
export function parameterCases(): WireCase[] {
  return [
    ...users(),
    ...databases(),
    ...protocolOptions(),
    ...replication(),
    ...settings(),
    ...harmlessOptions(),
    ...brokenOptions(),
    ...harmfulSettings(),
  ];
}

/** A StartupMessage alone: what is answered before a password. */
function asks(
  name: string,
  shows: string,
  parameters: (login: Login) => readonly Parameter[],
  code: number = CODES.v3,
): WireCase {
  return { name, shows, steps: (login) => [startup(parameters(login), code)] };
}

/** A whole login with these parameters, then `SHOW` of one setting where one is named. */
function logsIn(
  name: string,
  shows: string,
  parameters: readonly Parameter[],
  setting?: string,
): WireCase {
  return {
    name,
    shows,
    steps: ({ user, database, password }): Step[] => [
      startup([['user', user], ['database', database], ...parameters]),
      'await reply',
      passwordMessage(password),
      'await reply',
      ...(setting === undefined ? [] : [query(`SHOW ${setting}`), 'await reply' as const]),
      TERMINATE,
    ],
  };
}

function users(): WireCase[] {
  const shows = 'who is asked for a password, and who is not';
  const one = (name: string, ...parameters: Parameter[]) => asks(name, shows, () => parameters);
  return [
    one('no user, but a database', ['database', 'app']),
    one('no user, but replication', ['replication', 'off']),
    one('an empty user', ['user', '']),
    one('an empty user and a database', ['user', ''], ['database', 'app']),
    one('USER in capitals', ['USER', 'u']),
    one('user and USER', ['user', 'u'], ['USER', 'v']),
    one('a blank before user', [' user', 'u']),
    one('a user of one blank', ['user', ' ']),
    one('a user that does not exist', ['user', 'nobody_knows_me']),
    one('a user with a newline', ['user', 'a\nFATAL:  forged']),
    one('a user with an escape sequence', ['user', '\u001b[2Jgone']),
    one('a user with quotes', ['user', `"a'; drop table x; --`]),
    one('a user that is no UTF-8', ['user', Buffer.of(0xff, 0xfe, 0x80)]),
    one('a user of 63 bytes', ['user', 'u'.repeat(63)]),
    one('a user of 64 bytes', ['user', 'u'.repeat(64)]),
    one('a user of 1,000 bytes', ['user', 'u'.repeat(1_000)]),
    one('a user of 9,000 bytes', ['user', 'u'.repeat(9_000)]),
    one('a token in place of the user', ['user', 'eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln']),
    one('user twice', ['user', 'u'], ['user', 'v']),
    one('user twice, the same', ['user', 'u'], ['user', 'u']),
    one('user twice, the last empty', ['user', 'u'], ['user', '']),
    one('user after another parameter', ['application_name', 'n'], ['user', 'u']),
  ];
}

function databases(): WireCase[] {
  const shows = 'which database is meant';
  const one = (name: string, ...parameters: Parameter[]) =>
    asks(name, shows, ({ user }) => [['user', user], ...parameters]);
  return [
    one('no database'),
    one('an empty database', ['database', '']),
    one('a database that does not exist', ['database', 'nowhere']),
    one('a database with a newline', ['database', 'app\nforged']),
    one('a database of 64 bytes', ['database', 'd'.repeat(64)]),
    one('a database of 1,000 bytes', ['database', 'd'.repeat(1_000)]),
    one('database twice', ['database', 'app'], ['database', 'postgres']),
    one('database twice, the same', ['database', 'app'], ['database', 'app']),
    {
      name: 'a whole login to a database that does not exist',
      shows,
      steps: ({ user, password }) => [
        startup([
          ['user', user],
          ['database', 'nowhere'],
        ]),
        'await reply',
        passwordMessage(password),
      ],
    },
    {
      name: 'a whole login without a database',
      shows,
      steps: ({ user, password }) => [
        startup([['user', user]]),
        'await reply',
        passwordMessage(password),
      ],
    },
  ];
}

function protocolOptions(): WireCase[] {
  const shows = 'unknown protocol options are listed once in NegotiateProtocolVersion (A12)';
  const one = (name: string, code: number, ...options: Parameter[]) =>
    asks(name, shows, ({ user }) => [['user', user], ...options], code);
  const many = Array.from({ length: 50 }, (_, i): Parameter => [`_pq_.option_${i}`, String(i)]);
  return [
    one('one protocol option', CODES.v3, ['_pq_.x', '1']),
    one('one protocol option, no value', CODES.v3, ['_pq_.x', '']),
    one('two protocol options', CODES.v3, ['_pq_.x', '1'], ['_pq_.y', '2']),
    one('fifty protocol options', CODES.v3, ...many),
    one('the same protocol option twice', CODES.v3, ['_pq_.x', '1'], ['_pq_.x', '2']),
    one('a protocol option without a name', CODES.v3, ['_pq_.', '1']),
    one('a protocol option in capitals', CODES.v3, ['_PQ_.x', '1']),
    one('_pq_ without a dot', CODES.v3, ['_pq_', '1']),
    one('a protocol option in 3.2', CODES.v32, ['_pq_.x', '1']),
    one('a protocol option in 3.99', version(3, 99), ['_pq_.x', '1']),
    one('a protocol option with a newline', CODES.v3, ['_pq_.a\nb', '1']),
    asks('a protocol option and no user', shows, () => [['_pq_.x', '1']]),
    logsIn('a whole login with a protocol option', shows, [['_pq_.x', '1']]),
    {
      name: 'a whole login in 3.2',
      shows: 'protocol 3.2 is spoken to the end',
      steps: ({ user, database, password }) => [
        startup(
          [
            ['user', user],
            ['database', database],
          ],
          CODES.v32,
        ),
        'await reply',
        passwordMessage(password),
        'await reply',
        TERMINATE,
      ],
    },
  ];
}

function replication(): WireCase[] {
  const shows = 'a replication connection is never made by accident (B5)';
  const values = ['true', 'database', 'on', '1', 'yes', 't', 'TRUE', 'Database'];
  const falses = ['false', 'off', '0', 'no', 'f', 'FALSE', 'of'];
  const garbage = ['', 'maybe', 'o', 'databas', '2', ' true'];
  return [...values, ...falses, ...garbage].map((value) =>
    asks(`replication=${JSON.stringify(value)}`, shows, ({ user, database }) => [
      ['user', user],
      ['database', database],
      ['replication', value],
    ]),
  );
}

function settings(): WireCase[] {
  const shows = 'a setting that drivers send arrives as it was sent';
  const good: [name: string, value: string][] = [
    ['client_encoding', 'UTF8'],
    ['client_encoding', 'latin1'],
    ['client_encoding', "'utf-8'"],
    ['CLIENT_ENCODING', 'SQL_ASCII'],
    ['DateStyle', 'German, DMY'],
    ['datestyle', 'ISO'],
    ['IntervalStyle', 'iso_8601'],
    ['TimeZone', 'Europe/Vienna'],
    ['timezone', '-03:30'],
    ['application_name', 'one app'],
    ['application_name', ''],
    ['extra_float_digits', '2'],
    ['search_path', 'app, public'],
    ['search_path', '"$user"'],
    ['statement_timeout', '5s'],
    ['lock_timeout', '1234'],
    ['idle_in_transaction_session_timeout', '1min'],
    ['default_transaction_isolation', 'serializable'],
    ['default_transaction_read_only', 'on'],
    ['standard_conforming_strings', 'off'],
    ['bytea_output', 'escape'],
    ['geqo', 'off'],
    ['jit', 'off'],
    ['plan_cache_mode', 'force_custom_plan'],
    ['options', ''],
  ];
  const bad: [name: string, value: string][] = [
    ['client_encoding', 'klingon'],
    ['DateStyle', 'sideways'],
    ['TimeZone', 'Mars/Olympus'],
    ['statement_timeout', 'soon'],
    ['statement_timeout', '-5'],
    ['extra_float_digits', '99'],
    ['default_transaction_isolation', 'solitude'],
  ];
  const shown = (name: string) => (name === 'options' ? undefined : name);
  return [
    ...good.map(([name, value]) => logsIn(`${name}=${value}`, shows, [[name, value]], shown(name))),
    ...bad.map(([name, value]) =>
      logsIn(`${name}=${value}`, 'a value that cannot be is refused after the login', [
        [name, value],
      ]),
    ),
    logsIn(
      'application_name with control bytes',
      'a name cannot forge a line of a log (B9)',
      [['application_name', 'a\nb\u001b[2J']],
      'application_name',
    ),
    logsIn(
      'application_name of 100 bytes',
      shows,
      [['application_name', 'n'.repeat(100)]],
      'application_name',
    ),
    logsIn(
      'application_name twice',
      'a repeated parameter',
      [
        ['application_name', 'one'],
        ['application_name', 'two'],
      ],
      'application_name',
    ),
    logsIn(
      'application_name twice, in two cases',
      'a repeated parameter',
      [
        ['application_name', 'one'],
        ['Application_Name', 'two'],
      ],
      'application_name',
    ),
    logsIn(
      'a parameter that options sets too',
      'the parameter wins over options',
      [
        ['options', '-c application_name=from_options'],
        ['application_name', 'from_parameter'],
      ],
      'application_name',
    ),
    logsIn('a parameter without a name in the catalogue', 'unknown settings', [['no_such', '1']]),
    logsIn('a parameter spelt with a hyphen', 'a hyphen is none in a parameter of its own', [
      ['search-path', 'x'],
    ]),
    logsIn('a custom setting', 'nothing unknown reaches the session (B7)', [['a.b', 'c']]),
  ];
}

function harmlessOptions(): WireCase[] {
  const shows = 'options are read by the rules of pg_split_opts, whatever their spelling';
  const spelt: [options: string, setting: string][] = [
    ['-c search_path=x', 'search_path'],
    ['-csearch_path=x', 'search_path'],
    ['--search_path=x', 'search_path'],
    ['--search-path=x', 'search_path'],
    ['-c search-path=x', 'search_path'],
    ['-c Search_Path=x', 'search_path'],
    ['--SEARCH-PATH=x', 'search_path'],
    ['-c\tsearch_path=x', 'search_path'],
    ['-c\nsearch_path=x', 'search_path'],
    ['  -c   search_path=x  ', 'search_path'],
    ['-c se\\arch_path=x', 'search_path'],
    ['\\-c search_path=x', 'search_path'],
    ['-\\c search_path=x', 'search_path'],
    ['-c search_path=a\\ b', 'search_path'],
    ['-c search_path=a\\\\b', 'search_path'],
    ['-c search_path=', 'search_path'],
    ['-c search_path=a=b', 'search_path'],
    ['-c search_path=x -c search_path=y', 'search_path'],
    ['-c search_path=x -c statement_timeout=7s', 'statement_timeout'],
    ['-c search_path=x --statement-timeout=7s', 'statement_timeout'],
    ['-c search_path=x --statement-timeout=7s', 'search_path'],
    ['-c DateStyle=German', 'datestyle'],
    ['-c datestyle=iso,\\ dmy', 'datestyle'],
    ['-c timezone=UTC', 'timezone'],
    ['-c geqo=off', 'geqo'],
    ['-c application_name=a\\\tb', 'application_name'],
    [' ', 'search_path'],
    ['\t\n', 'search_path'],
    ['-c intervalstyle=postgres_verbose', 'intervalstyle'],
  ];
  return spelt.map(([options, setting]) =>
    logsIn(
      `options ${JSON.stringify(options)}, SHOW ${setting}`,
      shows,
      [['options', options]],
      setting,
    ),
  );
}

function brokenOptions(): WireCase[] {
  const shows = 'options that mean nothing are refused, not guessed at';
  const spelt = [
    '-c',
    '--',
    '-',
    'search_path=x',
    '-c search_path',
    '--search-path',
    '-c =x',
    '-c =',
    '-c search_path =x',
    '-x',
    '-c search_path=x trailing',
    '-c search_path=x \\',
    '-csearch_path',
    '-c "search_path=x"',
  ];
  return spelt.map((options) =>
    logsIn(`options ${JSON.stringify(options)}`, shows, [['options', options]]),
  );
}

function harmfulSettings(): WireCase[] {
  const shows = 'a setting that the proxy owns is refused before a password is asked (B1, B2, B3)';
  const names = [
    'role',
    'session_authorization',
    'pg_session_jwt.jwk',
    'request.jwt.claims',
    'pgjot.x',
    'session_preload_libraries',
    'local_preload_libraries',
  ];
  return names.flatMap((name) => [
    asks(`${name} as a parameter`, shows, ({ user }) => [
      ['user', user],
      [name, 'x'],
    ]),
    asks(`${name} in options`, shows, ({ user }) => [
      ['user', user],
      ['options', `-c ${name}=x`],
    ]),
  ]);
}
