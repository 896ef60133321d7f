/**
 * The account that a local PostgreSQL runs as, and folders that this account can reach.
 *
 * PostgreSQL refuses to run as root. As root we therefore drop to an account that exists already, and
 * must then mind that it cannot enter a project under /root or a `mktemp -d`. Never adds an account.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chown, lstat, mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CommandError } from '../failure.ts';

const run = promisify(execFile);

/** An unprivileged account of this machine. */
export interface Account {
  readonly uid: number;
  readonly gid: number;
}

// `_postgres` is macOS's. `nobody` is the last resort: its other processes could read the data folder.
const CANDIDATES = ['postgres', '_postgres', 'nobody'];

/**
 * The account to run a server as: `undefined` stands for our own, which will do unless we are root.
 *
 * @throws {CommandError} when we are root and there is no other account to use.
 */
export async function serverAccount(): Promise<Account | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of CANDIDATES) {
    try {
      const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])]);
      return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
    } catch {
      // No such account; try the next.
    }
  }
  throw new CommandError(
    'unavailable',
    `PostgreSQL cannot run as root, and there is no account ${CANDIDATES.join(', ')} to run it as`,
  );
}

/** Whether the account may enter `folder`. Asks the kernel rather than reading modes, which do not tell about ACLs and mounts. */
export async function canEnter(account: Account | undefined, folder: string): Promise<boolean> {
  try {
    await run('/bin/sh', ['-c', 'cd "$1"', 'sh', folder], { ...account, cwd: '/' });
    return true;
  } catch {
    return false;
  }
}

/**
 * Folders of the account's own, mode 700, each made when it is asked for, best first.
 *
 * `purpose` and the hash of `key` make the name, so that the same files are found again.
 */
export async function* privateFolders(
  account: Account | undefined,
  purpose: string,
  key: string,
): AsyncGenerator<string> {
  const hash = createHash('sha256').update(key).digest('hex').slice(0, 12);
  const name = `pgjot-${account?.uid ?? process.getuid?.() ?? 0}-${purpose}-${hash}`;
  // $TMPDIR itself is often private to root, so the well-known ones follow.
  for (const parent of new Set([tmpdir(), '/tmp', '/var/tmp'])) {
    const folder = join(parent, name);
    if ((await canEnter(account, parent)) && (await claim(folder, account))) yield folder;
  }
}

/**
 * The best private folder.
 *
 * @throws {CommandError} when there is none to be had.
 */
export async function privateFolder(
  account: Account | undefined,
  purpose: string,
  key: string,
): Promise<string> {
  for await (const folder of privateFolders(account, purpose, key)) return folder;
  throw new CommandError(
    'unavailable',
    `no temporary folder for PostgreSQL's files: set TMPDIR to one that it may enter`,
  );
}

/** Makes the folder ours, or finds that it is. A folder that another user made first is never used: they could read or replace our files. */
async function claim(folder: string, account: Account | undefined): Promise<boolean> {
  try {
    await mkdir(folder, { mode: 0o700 });
    if (account !== undefined) await chown(folder, account.uid, account.gid);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') return false;
  }
  // Several test files start at once: between another's mkdir and chown the folder is root's.
  const owners = [account?.uid ?? process.getuid?.(), process.getuid?.()];
  // lstat, so that a symbolic link laid here beforehand is not followed.
  const found = await lstat(folder);
  if (!found.isDirectory() || !owners.includes(found.uid) || (found.mode & 0o077) !== 0)
    return false;
  if (account !== undefined && found.uid !== account.uid) {
    await chown(folder, account.uid, account.gid);
  }
  return true;
}
