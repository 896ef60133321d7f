/**
 * A real PostgreSQL for a test file: its own server, on a copy of the cluster that `global-setup.ts` made.
 *
 * Every server is empty: the session functions are installed by the tests that want them.
 */
import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Client } from 'pg';
import { inject } from 'vitest';
import { startPostgres, type PostgresServer } from '../../src/cli/dev/postgres.ts';
import type { Template } from './global-setup.ts';

/** What a test may ask of its server. */
export interface TestPostgresOptions {
  /** A major version, or `older` for the oldest there is. Default: the newest, 18. */
  readonly version?: number | 'older';
  /** Lines for postgresql.conf. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Files for the data folder, mode 600: certificates, pg_hba.conf. */
  readonly files?: Readonly<Record<string, string>>;
  /** Hears every line that the server logs. */
  readonly onLog?: (line: string) => void;
}

/** The major versions that this run can start, newest first: `describe.each(postgresVersions())`. */
export function postgresVersions(): number[] {
  return inject('templates').map(({ major }) => major);
}

/** Whether this run is about the versions: it has all of them, and time for each. */
export function isVersionsRun(): boolean {
  return inject('versions') === 'all';
}

/** The older of the versions, or undefined (then the run has said why): `describe.skipIf(olderPostgres() === undefined)`. */
export function olderPostgres(): number | undefined {
  return postgresVersions().slice(1).at(-1);
}

/** Whether `CREATE EXTENSION name` can succeed on a version. */
export function hasExtension(version: TestPostgresOptions['version'], name: string): boolean {
  return templateFor(version).extensions.includes(name);
}

/** The folder of `initdb` and `postgres` of a version. */
export function binariesOf(version: TestPostgresOptions['version']): string {
  return templateFor(version).binaries;
}

/** A server whose `stop()`, `immediate` unless told otherwise, removes its data as well. */
export type TestPostgres = PostgresServer & AsyncDisposable;

/** Starts a server on a free port. The caller must `stop()` it. */
export async function startTestPostgres(options: TestPostgresOptions = {}): Promise<TestPostgres> {
  const { version, settings, ...rest } = options;
  const template = templateFor(version);
  return inTemporaryFolder((dataDir) =>
    startPostgres({
      dataDir,
      binaries: template.binaries,
      template,
      settings: { max_connections: '300', ...settings },
      ...rest,
    }),
  );
}

/** Lets `start` start a server on a data folder that does not exist yet, and that goes when the server stops. */
export async function inTemporaryFolder(
  start: (dataDir: string) => Promise<PostgresServer>,
): Promise<TestPostgres> {
  const base = await mkdtemp(join(tmpdir(), 'pgjot-test-'));
  await chmod(base, 0o711);
  let server: PostgresServer;
  try {
    server = await start(join(base, 'data'));
  } catch (error) {
    await rm(base, { recursive: true, force: true });
    throw error;
  }
  const stop: PostgresServer['stop'] = async (mode = 'immediate') => {
    await server.stop(mode);
    // Not the same where $TMPDIR is private to root; then the data has a folder of its own.
    for (const folder of [dirname(server.dataDir), base]) {
      await rm(folder, { recursive: true, force: true });
    }
  };
  // Not a spread: `pid` and `exited` change with every restart.
  return Object.assign(Object.create(server) as PostgresServer, {
    stop,
    [Symbol.asyncDispose]: () => stop(),
  });
}

/** Connects as superuser. The caller must `end()` the client. */
export async function connectAsSuperuser(
  server: PostgresServer,
  database = server.superuser.database,
): Promise<Client> {
  const client = new Client({ ...server.superuser, database });
  await client.connect();
  return client;
}

/** Lets `work` use a superuser's connection, which is closed when it is done. */
export async function withSuperuser<T>(
  server: PostgresServer,
  work: (client: Client) => Promise<T>,
  database?: string,
): Promise<T> {
  const client = await connectAsSuperuser(server, database);
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Makes an empty database, under a name that no other test uses, and returns the name. */
export async function createDatabase(server: PostgresServer): Promise<string> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  await withSuperuser(server, (admin) => admin.query(`CREATE DATABASE ${name}`));
  return name;
}

function templateFor(version: TestPostgresOptions['version']): Template {
  const templates = inject('templates');
  const wanted = version === 'older' ? olderPostgres() : (version ?? templates[0]?.major);
  const template = templates.find(({ major }) => major === wanted);
  if (template === undefined) {
    throw new Error(`no PostgreSQL ${version ?? ''} here: ${postgresVersions().join(', ')}`);
  }
  return template;
}
