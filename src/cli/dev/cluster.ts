/**
 * The data folder of a local PostgreSQL: where it lies, how it is made, and that nobody else is using it.
 *
 * Starts no server, and never touches a data folder that it did not make.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chown, mkdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { CommandError } from '../failure.ts';
import { canEnter, privateFolder, type Account } from './account.ts';
import type { Binaries } from './binaries.ts';

const run = promisify(execFile);

/** The superuser's name in every cluster of ours. */
export const SUPERUSER = 'postgres';

/** Where the cluster shall be, and how it comes to be. */
export interface ClusterOptions {
  /**
   * The data folder. Beside it, `<dataDir>.password` (mode 600) keeps the superuser's password. As root,
   * where the server's account cannot enter it, the data lies in a private temporary folder instead.
   */
  readonly dataDir: string;
  /** Removes what the data folder holds and begins anew. */
  readonly reset?: boolean;
  /** A cluster that no server runs on, to be copied instead of running initdb: ten times as fast. */
  readonly template?: Pick<Cluster, 'dataDir' | 'password'>;
}

/** A cluster that can be started. */
export interface Cluster {
  readonly dataDir: string;
  readonly password: string;
  readonly binaries: Binaries;
  readonly account: Account | undefined;
}

/**
 * Finds the cluster or makes it, and waits until no other server uses it.
 *
 * @throws {CommandError} when the folder is in use, or holds something that this PostgreSQL cannot start.
 */
export async function prepareCluster(
  options: ClusterOptions,
  binaries: Binaries,
  account: Account | undefined,
): Promise<Cluster> {
  const asked = resolve(options.dataDir);
  const passwordFile = `${asked}.password`;
  // Only as root does somebody else, the server's account, have to pass through.
  await mkdir(dirname(asked), { recursive: true, mode: account === undefined ? 0o700 : 0o711 });
  const inPlace = await canEnter(account, dirname(asked));
  const dataDir = inPlace
    ? asked
    : join(await privateFolder(account, 'data', asked), basename(asked));
  await waitUntilUnused(dataDir);
  if (options.reset === true) {
    await rm(dataDir, { recursive: true, force: true });
    await rm(passwordFile, { force: true });
  }

  const found = await clusterMajor(dataDir);
  const password = await readFile(passwordFile, 'utf8').catch(() => undefined);
  if (found === undefined || password === undefined) {
    if (found !== undefined && inPlace) {
      throw new CommandError('failure', `${passwordFile} is missing; start with --reset`);
    }
    const fresh = await createCluster(options, { dataDir, passwordFile, binaries, account });
    return { dataDir, password: fresh, binaries, account };
  }
  if (found !== binaries.major) {
    throw new CommandError(
      'failure',
      `${dataDir} belongs to PostgreSQL ${found}, this is ${binaries.major}; start with --reset to begin anew`,
    );
  }
  return { dataDir, password, binaries, account };
}

async function clusterMajor(dataDir: string): Promise<number | undefined> {
  const text = await readFile(join(dataDir, 'PG_VERSION'), 'utf8').catch(() => undefined);
  return text === undefined ? undefined : Number.parseInt(text, 10);
}

interface Place {
  readonly dataDir: string;
  readonly passwordFile: string;
  readonly binaries: Binaries;
  readonly account: Account | undefined;
}

/** The folder appears under its name only when all is done, so an interrupted run leaves no half cluster. */
async function createCluster(options: ClusterOptions, place: Place): Promise<string> {
  const { dataDir, account } = place;
  const draft = `${dataDir}.new`;
  await rm(dataDir, { recursive: true, force: true });
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { mode: 0o700 });
  if (account !== undefined) await chown(draft, account.uid, account.gid);
  const password = options.template?.password ?? randomBytes(24).toString('base64url');
  try {
    if (options.template === undefined) await initdb(draft, password, place);
    else await run('cp', ['-R', `${options.template.dataDir}/.`, draft], cleanEnvironment(account));
  } catch (error) {
    await rm(draft, { recursive: true, force: true });
    const { stderr } = error as { stderr?: string };
    const reason = firstLine(stderr || String(error)).replace(/^initdb: error: /, '');
    throw new CommandError('failure', `cannot create ${dataDir}: ${reason}`, { cause: error });
  }
  await writePrivately(place.passwordFile, password, undefined);
  await rename(draft, dataDir);
  return password;
}

async function initdb(folder: string, password: string, place: Place): Promise<void> {
  const { binaries, account } = place;
  const passwordFile = `${folder}.password`;
  await writePrivately(passwordFile, password, account);
  // PostgreSQL's own collation where it has one, so that no library or machine changes the order of rows.
  const locale =
    binaries.major >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8'] : [];
  const args = [
    `--pgdata=${folder}`,
    `--username=${SUPERUSER}`,
    `--pwfile=${passwordFile}`,
    '--auth=scram-sha-256',
    '--encoding=UTF8',
    '--locale=C',
    ...locale,
    '--no-sync',
  ];
  try {
    await run(join(binaries.folder, 'initdb'), args, cleanEnvironment(account));
  } finally {
    await rm(passwordFile, { force: true });
  }
}

/** A server of a process that was killed takes a moment to shut down; one that stays belongs to somebody. */
async function waitUntilUnused(dataDir: string): Promise<void> {
  const deadline = Date.now() + 5_000;
  for (;;) {
    const pid = await postmasterPid(dataDir);
    if (pid === undefined || !isAlive(pid)) return;
    if (Date.now() > deadline) {
      throw new CommandError(
        'failure',
        `process ${pid} is already running on ${dataDir} (of another "pgjot dev" in this folder?)`,
      );
    }
    await delay(50);
  }
}

async function postmasterPid(dataDir: string): Promise<number | undefined> {
  const text = await readFile(join(dataDir, 'postmaster.pid'), 'utf8').catch(() => '');
  const pid = Number.parseInt(text, 10);
  return Number.isNaN(pid) ? undefined : pid;
}

/** A clean environment: PGPORT, PGDATA, LD_LIBRARY_PATH and the like must not reach the server. */
export function cleanEnvironment(account: Account | undefined) {
  const { PATH = '/usr/bin:/bin', TZ } = process.env;
  // Old versions insist on entering the current folder, which the account may not.
  return { ...account, cwd: '/', env: { PATH, LC_ALL: 'C', ...(TZ === undefined ? {} : { TZ }) } };
}

/** Writes a file that only its owner may read. An older one is removed first: its mode and owner would stay. */
export async function writePrivately(
  file: string,
  content: string,
  owner: Account | undefined,
): Promise<void> {
  await unlink(file).catch(() => {});
  await writeFile(file, content, { mode: 0o600, flag: 'wx' });
  if (owner !== undefined) await chown(file, owner.uid, owner.gid);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function firstLine(text: string): string {
  return text.trim().split('\n')[0] ?? '';
}
