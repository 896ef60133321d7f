/**
 * A hot standby of a test server: a base backup that follows its primary by streaming replication, read-only until promoted.
 *
 * Made with the server's own functions, for the packages hold no pg_basebackup. Does not stop with its primary.
 *
 * https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-LOWLEVEL-BASE-BACKUP
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { serverAccount } from '../../src/cli/dev/account.ts';
import { runnableBinaries } from '../../src/cli/dev/binaries.ts';
import { prepareCluster } from '../../src/cli/dev/cluster.ts';
import { startPostgres, type PostgresServer } from '../../src/cli/dev/postgres.ts';
import {
  binariesOf,
  inTemporaryFolder,
  type TestPostgres,
  type TestPostgresOptions,
  withSuperuser,
} from './postgres.ts';

/** A standby, or what was one before `promote()`. */
export interface Standby extends TestPostgres {
  /** Resolves when everything committed on the primary until now can be read here. */
  caughtUp(): Promise<void>;
  /** Ends the recovery: this server takes writes from now on, and follows nobody. */
  promote(): Promise<void>;
}

const CATCH_UP_TIMEOUT_MS = 10_000;
const COPY_ATTEMPTS = 5;

/** Starts a standby of `primary` on a port of its own, with its data in a folder of its own. The caller must `stop()` it. */
export async function startStandby(
  primary: PostgresServer,
  options: Pick<TestPostgresOptions, 'settings' | 'onLog'> = {},
): Promise<Standby> {
  const server = await inTemporaryFolder(async (dataDir) => {
    const binaries = binariesOf(primary.major);
    const { copy, backupLabel, settings } = await backUp(primary, binaries, dataDir);
    const ownConfiguration = await readFile(join(copy, 'postgresql.auto.conf'), 'utf8');
    return startPostgres({
      ...options,
      dataDir,
      binaries,
      settings: { ...settings, ...options.settings },
      files: {
        backup_label: backupLabel,
        'standby.signal': '',
        // Not a setting: on the command line every local user could read the password.
        'postgresql.auto.conf': `${ownConfiguration}\nprimary_conninfo = '${conninfo(primary)}'\n`,
      },
    });
  });
  return Object.assign(server, {
    caughtUp: () => caughtUp(primary, server),
    async promote() {
      await withSuperuser(server, (client) => client.query('select pg_promote(true)'));
    },
  });
}

interface Backup {
  readonly copy: string;
  readonly backupLabel: string;
  /** Those that must be at least as high on a standby as on its primary. */
  readonly settings: Record<string, string>;
}

/** Copies the data of a running server; between start and stop it writes the WAL that mends what was copied in the midst of a change. */
function backUp(primary: PostgresServer, binaries: string, dataDir: string): Promise<Backup> {
  const [start, stop] =
    primary.major >= 15
      ? [`pg_backup_start('standby', true)`, 'pg_backup_stop(false)']
      : [`pg_start_backup('standby', true, false)`, 'pg_stop_backup(false, false)'];
  return withSuperuser(primary, async (client) => {
    await client.query(`select ${start}`);
    const copy = await copyOf(primary, binaries, dataDir);
    const { rows } = await client.query<{ labelfile: string }>(`select labelfile from ${stop}`);
    const { rows: settings } = await client.query<{ name: string; setting: string }>(
      'select name, setting from pg_settings where name = any ($1)',
      [
        [
          'max_connections',
          'max_locks_per_transaction',
          'max_prepared_transactions',
          'max_wal_senders',
          'max_worker_processes',
        ],
      ],
    );
    return {
      copy,
      backupLabel: rows[0]?.labelfile ?? '',
      settings: Object.fromEntries(settings.map(({ name, setting }) => [name, setting])),
    };
  });
}

async function copyOf(primary: PostgresServer, binaries: string, dataDir: string) {
  const account = await serverAccount();
  const runnable = await runnableBinaries(binaries, account);
  const template = { dataDir: primary.dataDir, password: primary.superuser.password };
  for (let attempt = 1; ; attempt += 1) {
    try {
      const copy = (await prepareCluster({ dataDir, template }, runnable, account)).dataDir;
      // The primary's own: they would stop us from starting, and from replaying.
      for (const file of ['postmaster.pid', 'postmaster.opts']) await rm(join(copy, file));
      return copy;
    } catch (error) {
      // A file that was listed and is gone before it is copied, of a table dropped meanwhile for instance.
      const vanished = /No such file or directory/.test(String(error));
      if (!vanished || attempt === COPY_ATTEMPTS) throw error;
    }
  }
}

async function caughtUp(primary: PostgresServer, standby: PostgresServer): Promise<void> {
  const committed = await withSuperuser(primary, async (client) => {
    const { rows } = await client.query<{ lsn: string }>(
      'select pg_current_wal_flush_lsn()::text as lsn',
    );
    return rows[0]?.lsn;
  });
  const deadline = performance.now() + CATCH_UP_TIMEOUT_MS;
  await withSuperuser(standby, async (client) => {
    for (;;) {
      const { rows } = await client.query<{ replayed: boolean }>(
        'select pg_last_wal_replay_lsn() >= $1::pg_lsn as replayed',
        [committed],
      );
      if (rows[0]?.replayed === true) return;
      if (performance.now() > deadline) {
        throw new Error(`the standby has not replayed ${committed} within 10 s`);
      }
      await delay(5);
    }
  });
}

// The password is base64url: nothing to quote.
function conninfo({ host, port, superuser }: PostgresServer): string {
  return `host=${host} port=${port} user=${superuser.user} password=${superuser.password}`;
}
