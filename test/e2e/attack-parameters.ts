/**
 * What a client must not say in its StartupMessage, and every way that PostgreSQL has to say it.
 */

/** Names that a client must not set at startup, in any spelling: who somebody is, and what code is loaded. */
export const OWNED = [
  'pg_session_jwt.jwk',
  'pg_session_jwt.jwt',
  'pgjot.identity',
  'pgjot.token',
  'request.jwt.claims',
  'request.jwt.claim.sub',
  'role',
  'session_authorization',
  'pgjot.x',
  'session_preload_libraries',
  'local_preload_libraries',
];

/** Every way that PostgreSQL's `options` lets one say it. `[name, value]` → the value of `options`. */
export const SPELLINGS: [spelling: string, options: (name: string, value: string) => string][] = [
  ['-c k=v', (name, value) => `-c ${name}=${value}`],
  ['-ck=v', (name, value) => `-c${name}=${value}`],
  ['--k=v', (name, value) => `--${name}=${value}`],
  ['--k=v with hyphens', (name, value) => `--${name.replaceAll('_', '-')}=${value}`],
  ['-c k=v with hyphens', (name, value) => `-c ${name.replaceAll('_', '-')}=${value}`],
  ['-c k=v in capitals', (name, value) => `-c ${name.toUpperCase()}=${value}`],
  [
    '-c k=v in mixed case',
    (name, value) => `-c ${name.replace(/^./, (c) => c.toUpperCase())}=${value}`,
  ],
  ['-c, tab, k=v', (name, value) => `-c\t${name}=${value}`],
  ['-c, newline, k=v', (name, value) => `-c\n${name}=${value}`],
  ['-c, vertical tab, k=v', (name, value) => `-c\v${name}=${value}`],
  ['-c k=v, name escaped', (name, value) => `-c ${name.slice(0, 2)}\\${name.slice(2)}=${value}`],
  ['-c k=v, every byte escaped', (name, value) => `-c ${name.replaceAll(/./g, '\\$&')}=${value}`],
  ['-c escaped', (name, value) => `\\-\\c ${name}=${value}`],
  ['behind a harmless one', (name, value) => `-c geqo=off -c ${name}=${value}`],
  ['before a harmless one', (name, value) => `-c ${name}=${value} -c geqo=off`],
  ['in blanks', (name, value) => `   -c    ${name}=${value}   `],
  ['with an empty value', (name) => `-c ${name}=`],
];
