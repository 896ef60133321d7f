/**
 * What the whole test run shares: the suites' packages, one freshly made cluster of each PostgreSQL to copy, and the search
 * at its end for secrets in all that was said.
 *
 * Starts no server. Roles, slots and their leases belong to a whole server, so test files that ran side by
 * side on one would compete for them; a server of its own from a copy costs a file a tenth of a second.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import type { TestProject } from 'vitest/node';
import { serverAccount, type Account } from '../../src/cli/dev/account.ts';
import { installedBinaries, runnableBinaries } from '../../src/cli/dev/binaries.ts';
import { cleanEnvironment, prepareCluster, type Cluster } from '../../src/cli/dev/cluster.ts';
import { startRecords } from './records.ts';
import { installSuite, packagedVersions, suiteFolder } from './suites.ts';

const run = promisify(execFile);

/** A PostgreSQL that tests can start, and the cluster to start it on. */
export interface Template {
  readonly major: number;
  readonly binaries: string;
  readonly dataDir: string;
  readonly password: string;
  /** Names of the extensions that `CREATE EXTENSION` would find. */
  readonly extensions: readonly string[];
}

/** Which versions a run uses beside the newest: `oldest` alone, as `npm test` does, or `all`. */
export type Versions = 'oldest' | 'all';

declare module 'vitest' {
  interface ProvidedContext {
    /** Newest first. */
    templates: Template[];
    /** Set by the configuration of a run. Default: `oldest`. */
    versions: Versions;
    /** Folder for what the run says, and for its secrets: see `record.ts`. */
    record: string;
  }
}

/** Called by vitest before the first test file; what it returns, after the last. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  await installSuite('clients', 'tests with the drivers and ORMs');
  await installSuite('oidc', 'signing in with a real OpenID provider');
  const account = await serverAccount();
  const base = await mkdtemp(join(tmpdir(), 'pgjot-templates-'));
  await chmod(base, 0o711);
  const templates: Template[] = [];
  const records = await startRecords();
  const remove = async () => {
    await records.remove();
    const folders = templates.map(({ dataDir }) => dirname(dataDir));
    for (const folder of [...folders, base]) await rm(folder, { recursive: true, force: true });
  };
  const add = async (folder: string) => {
    const binaries = await runnableBinaries(folder, account);
    const { major } = binaries;
    if (templates.some((one) => one.major === major)) return;
    const cluster = await prepareCluster({ dataDir: join(base, String(major)) }, binaries, account);
    const { dataDir, password } = cluster;
    const extensions = await availableExtensions(cluster, account);
    templates.push({ major, binaries: folder, dataDir, password, extensions });
  };
  const { versions = 'oldest' } = project.getProvidedContext() as { versions?: Versions };
  try {
    // Those that $PGJOT_POSTGRES_BIN names, as $PATH does, come first: they may carry an extension.
    const named = process.env['PGJOT_POSTGRES_BIN'] ?? '';
    for (const folder of named.split(delimiter)) if (folder !== '') await add(folder);
    await add(installedBinaries());
    const present = templates.map(({ major }) => major);
    for (const folder of await packagedBinaries(versions, present)) await add(folder);
  } catch (error) {
    await remove();
    throw error;
  }
  templates.sort((a, b) => b.major - a.major);
  tellWhatIsMissing(templates);
  project.provide('templates', templates);
  project.provide('versions', versions);
  project.provide('record', records.folder);
  const secrets = templates.map(({ password }) => ({
    kind: 'password of a superuser',
    bytes: Buffer.from(password),
  }));
  return async () => {
    try {
      console.error(await records.search(secrets));
    } catch (error) {
      // Vitest prints what is thrown here, and would end with 0 all the same.
      process.exitCode = 1;
      throw error;
    } finally {
      await remove();
    }
  };
}

/** Installs the versions under `test/versions` that this run wants and has not; returns where their binaries are. */
async function packagedBinaries(versions: Versions, present: readonly number[]): Promise<string[]> {
  const packaged = await packagedVersions();
  const wanted = versions === 'all' ? packaged : packaged.slice(0, 1);
  const folders: string[] = [];
  for (const major of wanted.filter((one) => !present.includes(one))) {
    const suite = `versions/${major}` as const;
    if (await installSuite(suite, `tests on PostgreSQL ${major}`)) {
      folders.push(installedBinaries(join(suiteFolder(suite), 'package.json')));
    }
  }
  return folders;
}

/** Asks PostgreSQL itself, which alone knows its share folder; stand-alone, so that no port is needed. */
async function availableExtensions(
  { binaries, dataDir }: Cluster,
  account: Account | undefined,
): Promise<string[]> {
  const asking = run(
    join(binaries.folder, 'postgres'),
    ['--single', '-D', dataDir, 'postgres'],
    cleanEnvironment(account),
  );
  asking.child.stdin?.end("select string_agg(name, ',') as names from pg_available_extensions\n");
  const { stdout } = await asking;
  const names = /names = "([^"]*)"/.exec(stdout)?.[1];
  if (names === undefined) throw new Error(`PostgreSQL ${binaries.major} said: ${stdout}`);
  return names.split(',');
}

function tellWhatIsMissing(templates: readonly Template[]): void {
  if (templates.some(({ extensions }) => extensions.includes('pg_session_jwt'))) return;
  const majors = templates.map(({ major }) => major).join(', ');
  console.error(
    `session mode pg_session_jwt is not tested: no PostgreSQL here (${majors}) has the extension; $PGJOT_POSTGRES_BIN may name some that have`,
  );
}
