/**
 * SQL files with the settings and secrets that they read: as a script for psql, or run in one transaction.
 */
import { readFile } from 'node:fs/promises';
import pg from 'pg';

/** SQL files, and the settings that they read, by name; those in `secrets` are shown to nobody. */
export interface Script {
  readonly settings: Readonly<Record<string, string>>;
  readonly secrets?: Readonly<Record<string, string>>;
  readonly files: readonly string[];
}

/** The part of a NoticeResponse that we read. */
interface Notice {
  readonly severity: string | undefined;
  readonly message: string | undefined;
}

/** The statements of the script, in order, for psql; in place of each secret a remark. */
export async function plan({ settings, secrets = {}, files }: Script): Promise<readonly string[]> {
  return [
    '-- psql -X -v ON_ERROR_STOP=1 -f …\nBEGIN;',
    ...Object.entries(settings).map(
      ([name, value]) => `SET LOCAL ${name} = ${pg.escapeLiteral(value)};`,
    ),
    LOCK_TIMEOUT,
    SECRETS,
    ...Object.keys(secrets).map(
      (name) => `-- Here pgjot setup adds the row "${name}". Without it, standbys serve nobody.`,
    ),
    ...(await Promise.all(files.map(readSql))),
    'COMMIT;',
  ];
}

/**
 * Runs the script in one transaction and returns what its INFO messages said.
 *
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function run(
  admin: pg.Client,
  { settings, secrets = {}, files }: Script,
): Promise<readonly string[]> {
  const texts = await Promise.all(files.map(readSql));
  const changes: string[] = [];
  const onNotice = ({ severity, message }: Notice) => {
    if (severity === 'INFO') changes.push(message ?? '');
  };
  admin.on('notice', onNotice);
  try {
    await inTransaction(admin, async () => {
      await admin.query(LOCK_TIMEOUT);
      for (const [name, value] of Object.entries(settings)) {
        await admin.query('SELECT pg_catalog.set_config($1, $2, true)', [name, value]);
      }
      await admin.query(SECRETS);
      const rows = Object.entries(secrets).map(([name, value]) => `${name}\t${value}\n`);
      await copyIn(admin, 'COPY pg_temp.pgjot_secret FROM STDIN', rows.join(''));
      for (const text of texts) await admin.query(text);
    });
  } finally {
    admin.off('notice', onNotice);
  }
  return changes;
}

// A client that holds a lock on its own slot must not keep an administrator waiting for ever, and everybody behind him.
const LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s';";
const SECRETS =
  'CREATE TEMP TABLE pgjot_secret (name text PRIMARY KEY, value text) ON COMMIT DROP;';

/** What `pg` asks of a query of its own, as far as COPY needs it; `connection` is its protocol's. */
interface CopyConnection {
  query(sql: string): void;
  sendCopyFromChunk(chunk: Buffer): void;
  endCopyFrom(): void;
}

/** Runs `COPY … FROM STDIN`. `pg` knows the messages but has no method for it. */
function copyIn(admin: pg.Client, sql: string, rows: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const nothing = () => {};
    const copy = {
      submit: (connection: CopyConnection) => connection.query(sql),
      handleCopyInResponse(connection: CopyConnection) {
        connection.sendCopyFromChunk(Buffer.from(rows));
        connection.endCopyFrom();
      },
      handleError: (error: Error) => reject(error),
      handleReadyForQuery: () => resolve(),
      handleCommandComplete: nothing,
      handleRowDescription: nothing,
      handleDataRow: nothing,
      handleEmptyQuery: nothing,
      handlePortalSuspended: nothing,
      handleCopyData: nothing,
    };
    admin.query(copy as unknown as pg.Submittable);
  });
}

/** Lets `work` use a transaction, which is committed when it resolves and rolled back when it fails. */
export async function inTransaction(admin: pg.Client, work: () => Promise<void>): Promise<void> {
  await admin.query('BEGIN');
  try {
    await work();
    await admin.query('COMMIT');
  } catch (error) {
    // The connection itself may be what failed; the first error is the one that explains.
    await admin.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

// The build copies the .sql files beside the compiled module, so one relative path serves both.
function readSql(file: string): Promise<string> {
  return readFile(new URL(file, import.meta.url), 'utf8');
}
