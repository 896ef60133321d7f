/**
 * What the whole test run shares: the suites' packages, and one freshly made cluster of each PostgreSQL to copy.
 *
 * Starts no server. Roles, slots and their leases belong to a whole server, so test files that ran side by
 * side on one would compete for them; a server of its own from a copy costs a file a tenth of a second.
 */
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import type { TestProject } from 'vitest/node';
import { serverAccount } from '../../src/cli/dev/account.ts';
import { installedBinaries, runnableBinaries } from '../../src/cli/dev/binaries.ts';
import { prepareCluster } from '../../src/cli/dev/cluster.ts';
import { installSuites, suiteFolder } from './suites.ts';

/** A PostgreSQL that tests can start, and the cluster to start it on. */
export interface Template {
  readonly major: number;
  readonly binaries: string;
  readonly dataDir: string;
  readonly password: string;
}

declare module 'vitest' {
  interface ProvidedContext {
    /** Newest first. */
    templates: Template[];
  }
}

/** Called by vitest before the first test file; what it returns, after the last. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  await installSuites();
  const account = await serverAccount();
  const base = await mkdtemp(join(tmpdir(), 'pgjot-templates-'));
  await chmod(base, 0o711);
  const templates: Template[] = [];
  const remove = async () => {
    const folders = templates.map(({ dataDir }) => dirname(dataDir));
    for (const folder of [...folders, base]) await rm(folder, { recursive: true, force: true });
  };
  try {
    for (const folder of binaryFolders()) {
      const binaries = await runnableBinaries(folder, account);
      if (templates.some(({ major }) => major === binaries.major)) continue;
      const dataDir = join(base, String(binaries.major));
      const cluster = await prepareCluster({ dataDir }, binaries, account);
      templates.push({
        major: binaries.major,
        binaries: folder,
        dataDir: cluster.dataDir,
        password: cluster.password,
      });
    }
  } catch (error) {
    await remove();
    throw error;
  }
  templates.sort((a, b) => b.major - a.major);
  project.provide('templates', templates);
  return remove;
}

/** Folders of `initdb` and `postgres`: the package's, test/versions', and those that $PGJOT_POSTGRES_BIN names, as $PATH does. */
function binaryFolders(): string[] {
  const folders = [installedBinaries()];
  try {
    folders.push(installedBinaries(join(suiteFolder('versions'), 'package.json')));
  } catch {
    // Said already, when the suite could not be installed.
  }
  const named = process.env['PGJOT_POSTGRES_BIN'] ?? '';
  return [...folders, ...named.split(delimiter).filter((folder) => folder !== '')];
}
