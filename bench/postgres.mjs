/**
 * The PostgreSQL under all columns: a temporary server, the project's own version, filled by pgbench.
 *
 * Tuned so that the disk plays no part: what is compared is the way to the server, not the server. pgjot's
 * own roles and functions are not its business, see `pgjot.mjs`.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import pg from 'pg';
import { startPostgres } from '../dist/cli/dev/postgres.js';
import { CROWD, ROW_BYTES } from './sizes.mjs';
import { ask } from './stage.mjs';

export const DATABASE = 'bench';
/** 100,000 accounts a unit, as `pgbench -s`. */
const SCALE = 10;

const SETTINGS = {
  max_connections: String(CROWD * 2 + 200),
  shared_buffers: '256MB',
  autovacuum: 'off',
  jit: 'off',
  max_wal_size: '4GB',
};

const TLS_SETTINGS = { ssl: 'on', ssl_cert_file: 'server.crt', ssl_key_file: 'server.key' };

/** Everybody shows a password but `bench_trust`. */
const HBA = `host all bench_trust 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
`;

/**
 * @typedef {Awaited<ReturnType<typeof preparePostgres>>} Postgres
 * @typedef {import('./stage.mjs').Stage} Stage
 */

/**
 * The folder that holds pgbench and psql: `PG_BIN`, else the newest under /usr/lib/postgresql, else the first
 * in PATH. The real programs, not Debian's wrappers, whose start costs more than a login.
 */
export function findClients() {
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian) : [];
  const folders = [
    ...(process.env['PG_BIN'] === undefined ? [] : [process.env['PG_BIN']]),
    ...versions.toSorted((a, b) => Number(b) - Number(a)).map((name) => join(debian, name, 'bin')),
    ...(process.env['PATH'] ?? '').split(delimiter),
  ];
  const found = folders.find((folder) =>
    ['pgbench', 'psql'].every((name) => existsSync(join(folder, name))),
  );
  if (found === undefined) {
    throw new Error(
      'pgbench and psql were not found; install them (Debian: postgresql, macOS: postgresql@18) ' +
        'or say where they are: PG_BIN=folder npm run bench',
    );
  }
  return found;
}

/**
 * A running server with two login roles: `bench` must show its password (SCRAM), `bench_trust` has none.
 *
 * @param {Stage} stage
 */
export async function preparePostgres(stage) {
  const bin = findClients();
  const certificate = await makeCertificate(stage);
  const password = randomBytes(16).toString('hex');
  const server = await startPostgres({
    dataDir: join(stage.folder, 'postgres'),
    settings: { ...SETTINGS, ...(certificate && TLS_SETTINGS) },
    files: {
      'pg_hba.conf': HBA,
      ...(certificate && { 'server.crt': certificate.cert, 'server.key': certificate.key }),
    },
  });
  await stage.defer(() => server.stop());
  const { superuser, host, port } = server;
  await query(superuser, [`create database ${DATABASE}`]);
  const admin = { ...superuser, database: DATABASE };
  await stage.run(
    join(bin, 'pgbench'),
    ['-i', '-q', '-s', String(SCALE), '-h', host, '-p', String(port), '-U', admin.user, DATABASE],
    { env: { PGPASSWORD: admin.password } },
  );
  const rows = await query(admin, [
    `create role bench login password '${password}'`,
    'create role bench_trust login',
    'create unlogged table copied (filler text)',
    'grant insert on copied to public',
    'grant select on all tables in schema public to public',
    'vacuum analyze',
    'show server_version',
    "select rolpassword from pg_authid where rolname = 'bench'",
  ]);
  const [version, secret] = rows.slice(-2);
  return {
    bin,
    port,
    admin,
    password,
    /** What all servers show to clients that want TLS; undefined where none could be made. */
    certificate,
    scramSecret: String(secret?.['rolpassword']),
    version: String(version?.['server_version']),
  };
}

/**
 * One certificate for all servers, by the program `openssl`, because Node can make none.
 *
 * @param {Stage} stage
 */
async function makeCertificate(stage) {
  if (ask('openssl', ['version']) === '') return undefined;
  const keyFile = join(stage.folder, 'made.key');
  const wanted =
    'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1';
  const cert = await stage.run('openssl', [...wanted.split(' '), '-keyout', keyFile]);
  const key = readFileSync(keyFile, 'utf8');
  return {
    cert,
    key,
    certFile: stage.write('server.crt', cert),
    keyFile: stage.write('server.key', key),
  };
}

/**
 * How many clients the server has at present, pgjot's own connections among them.
 *
 * @param {Postgres} postgres
 */
export async function countBackends({ admin }) {
  const [row] = await query(admin, [
    "select count(*)::int as count from pg_stat_activity where backend_type = 'client backend'",
  ]);
  return Number(row?.['count']);
}

/**
 * Runs statements one by one on a connection of its own; gives back the first row of each.
 *
 * @param {import('pg').ClientConfig} where
 * @param {readonly string[]} statements
 */
async function query(where, statements) {
  /** @type {(Record<string, unknown> | undefined)[]} */
  const rows = [];
  const client = new pg.Client(where);
  await client.connect();
  try {
    for (const statement of statements) rows.push((await client.query(statement)).rows[0]);
  } finally {
    await client.end();
  }
  return rows;
}

/**
 * The stream that COPY in reads: a file, so that making it costs nothing while the clock runs.
 *
 * @param {Stage} stage
 * @param {number} megabytes
 */
export function writeCopyFile(stage, megabytes) {
  const file = join(stage.folder, `copy-${megabytes}.txt`);
  const row = `${'x'.repeat(ROW_BYTES.wide - 1)}\n`;
  const megabyte = Buffer.from(row.repeat(1_000_000 / ROW_BYTES.wide));
  writeFileSync(file, Buffer.concat(Array.from({ length: megabytes }, () => megabyte)));
  return file;
}
