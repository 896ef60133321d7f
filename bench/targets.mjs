/**
 * The columns of the table: every way to the same PostgreSQL, each with the credentials it asks for.
 *
 * All but pgjot are set up as their own manuals would for this job: one thread, session pooling where
 * there is pooling, loopback TCP, TLS to those clients alone that ask for it. Runs no measurement.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PGJOT, startPgjot } from './pgjot.mjs';
import { DATABASE } from './postgres.mjs';
import { CROWD, IDLE_SECONDS, SILENT } from './sizes.mjs';
import { accepts, ask, freePort } from './stage.mjs';

/**
 * @typedef {object} Target One way to the database.
 * @property {'direct' | 'pgjot' | 'pgbouncer' | 'haproxy' | 'pipe' | 'bare'} column
 * @property {boolean} authenticates Whether its clients must prove who they are.
 * @property {number} port
 * @property {string} user
 * @property {string} password
 * @property {readonly string[]} [passwords] Of as many users as there are clients, where each has one of its own.
 * @property {(count: number) => Promise<string[]>} [newcomers] Passwords of users who were never here before.
 * @property {string} [crowdUser] Whom a crowd signs in as, where it is somebody else.
 * @property {import('./stage.mjs').Program} [proxy] Absent for a direct connection.
 *
 * @typedef {import('./stage.mjs').Stage} Stage
 * @typedef {import('./postgres.mjs').Postgres} Postgres
 */

/**
 * Starts every proxy that is there; `missing` says which are not and why.
 *
 * @param {Stage} stage
 * @param {Postgres} postgres
 * @param {{ nodeArgs: readonly string[] }} options Arguments for the Node that runs pgjot, for a profiler.
 */
export async function startTargets(stage, postgres, options) {
  const { port, password } = postgres;
  /** @type {Target[]} */
  const targets = [
    { column: 'direct', authenticates: true, port, user: 'bench', password },
    { column: 'direct', authenticates: false, port, user: 'bench_trust', password: '' },
  ];
  /** @type {string[]} */
  const missing = [];
  if (!existsSync(PGJOT)) missing.push('pgjot is not built: its column is left out');
  else targets.push(await startPgjot(stage, postgres, options));
  if (version.pgbouncer() === '')
    missing.push('PgBouncer is not installed: its column is left out');
  else {
    targets.push(await startPgBouncer(stage, postgres, 'scram-sha-256'));
    targets.push(await startPgBouncer(stage, postgres, 'trust'));
  }
  if (version.haproxy() === '') missing.push('HAProxy is not installed: its column is left out');
  else targets.push(await startHaproxy(stage, postgres));
  targets.push(await startPipe(stage, postgres));
  targets.push(await startBare(stage, postgres));
  return { targets, missing };
}

/** What is installed, as each program says it; the empty string for what is not. */
export const version = {
  pgbench: (/** @type {string} */ bin) =>
    /\d[\d.]*/.exec(ask(join(bin, 'pgbench'), ['--version']))?.[0] ?? '',
  pgbouncer: () => /\d[\d.]*/.exec(ask('pgbouncer', ['--version']))?.[0] ?? '',
  haproxy: () => /\d+\.[\d.]+/.exec(ask('haproxy', ['-v']))?.[0] ?? '',
};

/**
 * PgBouncer, session pool. Its user list holds the SCRAM secret as PostgreSQL stores it, which is the
 * quickest way that PgBouncer has: with a plain password it derives the key anew at every login.
 *
 * @param {Stage} stage
 * @param {Postgres} postgres
 * @param {'scram-sha-256' | 'trust'} auth
 * @returns {Promise<Target>}
 */
export async function startPgBouncer(stage, postgres, auth) {
  const port = await freePort();
  const scram = auth === 'scram-sha-256';
  const user = scram ? 'bench' : 'bench_trust';
  const users = join(stage.folder, `pgbouncer-${auth}.txt`);
  writeFileSync(users, `"${user}" "${scram ? postgres.scramSecret : ''}"\n`);
  const { certificate } = postgres;
  const tls =
    certificate === undefined
      ? ''
      : `client_tls_sslmode = allow
client_tls_cert_file = ${certificate.certFile}
client_tls_key_file = ${certificate.keyFile}
`;
  const config = join(stage.folder, `pgbouncer-${auth}.ini`);
  writeFileSync(
    config,
    `[databases]
${DATABASE} = host=127.0.0.1 port=${postgres.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = ${auth}
auth_file = ${users}
pool_mode = session
default_pool_size = ${SILENT}
max_client_conn = ${CROWD * 8}
server_idle_timeout = ${IDLE_SECONDS}
server_tls_sslmode = disable
ignore_startup_parameters = extra_float_digits
${tls}`,
  );
  const proxy = await stage.serve('pgbouncer', [config], {
    unprivileged: true,
    ready: () => accepts(port),
  });
  const password = scram ? postgres.password : '';
  return { column: 'pgbouncer', authenticates: scram, port, user, password, proxy };
}

/**
 * HAProxy in TCP mode, one thread as the other proxies have. PostgreSQL asks the client for the password.
 *
 * @param {Stage} stage
 * @param {Postgres} postgres
 * @returns {Promise<Target>}
 */
export async function startHaproxy(stage, postgres) {
  const port = await freePort();
  const config = join(stage.folder, 'haproxy.cfg');
  writeFileSync(
    config,
    `global
  nbthread 1
  maxconn ${CROWD * 8}
defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen postgres
  bind 127.0.0.1:${port}
  server postgres 127.0.0.1:${postgres.port}
`,
  );
  const proxy = await stage.serve('haproxy', ['-db', '-f', config], {
    unprivileged: true,
    ready: () => accepts(port),
  });
  const { password } = postgres;
  return { column: 'haproxy', authenticates: true, port, user: 'bench', password, proxy };
}

/**
 * @param {Stage} stage
 * @param {Postgres} postgres
 * @returns {Promise<Target>}
 */
export async function startPipe(stage, postgres) {
  const port = await freePort();
  const script = fileURLToPath(new URL('./pipe.mjs', import.meta.url));
  const proxy = await stage.serve(process.execPath, [script, String(port), String(postgres.port)], {
    ready: () => accepts(port),
  });
  const { password } = postgres;
  return { column: 'pipe', authenticates: true, port, user: 'bench', password, proxy };
}

/**
 * @param {Stage} stage
 * @param {Postgres} postgres
 * @returns {Promise<Target>}
 */
async function startBare(stage, postgres) {
  const port = await freePort();
  const script = fileURLToPath(new URL('./bare.mjs', import.meta.url));
  const args = [script, String(port), String(postgres.port), DATABASE];
  const proxy = await stage.serve(process.execPath, args, { ready: () => accepts(port) });
  return { column: 'bare', authenticates: true, port, user: 'bench', password: 'any', proxy };
}
