/**
 * The folder `.pgjot`, where `pgjot dev` keeps what must survive a restart, and where `pgjot token` and `pgjot sql` find it.
 *
 * Every secret in it is mode 600. Removing the folder begins anew.
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { ConfigInput } from '../../config.ts';
import { CommandError } from '../failure.ts';

const FOLDER = '.pgjot';

/** Paths in the state folder of the current directory. */
export interface State {
  readonly folder: string;
  /** PostgreSQL's data folder. */
  readonly dataDir: string;
  readonly issuerFile: string;
  readonly secretFile: string;
  /** What the proxy of `pgjot dev` runs with; `pgjot check --config` accepts it. */
  readonly configFile: string;
  readonly proxyLog: string;
  readonly postgresLog: string;
}

/** Where things are, whether or not they exist yet. */
export function stateOf(directory: string = process.cwd()): State {
  const folder = resolve(directory, FOLDER);
  return {
    folder,
    dataDir: join(folder, 'postgres'),
    issuerFile: join(folder, 'issuer.json'),
    secretFile: join(folder, 'upstream.secret'),
    configFile: join(folder, 'proxy.config.json'),
    proxyLog: join(folder, 'proxy.log'),
    postgresLog: join(folder, 'postgres.log'),
  };
}

/** Makes the folder. Its `.gitignore` keeps the keys out of every repository. */
export async function createStateFolder(state: State): Promise<void> {
  // As root, PostgreSQL's account has to pass through to the data folder; it cannot list or read the rest.
  const mode = process.getuid?.() === 0 ? 0o711 : 0o700;
  await mkdir(state.folder, { recursive: true, mode });
  await writeFile(join(state.folder, '.gitignore'), '*\n');
}

/** Forgets keys, secret and configuration; the database is reset by its own launcher. */
export async function forgetState(state: State): Promise<void> {
  for (const file of [state.issuerFile, state.secretFile, state.configFile]) {
    await rm(file, { force: true });
  }
}

/** The secret from which the upstream passwords derive; made on first use. */
export async function upstreamSecret(state: State): Promise<string> {
  const found = await readFile(state.secretFile, 'utf8').catch(() => undefined);
  if (found !== undefined) return found.trim();
  const secret = randomBytes(32).toString('hex');
  await replaceFile(state.secretFile, `${secret}\n`);
  return secret;
}

/** Writes the configuration that the proxy runs with. */
export async function writeConfig(state: State, config: ConfigInput): Promise<void> {
  await replaceFile(state.configFile, `${JSON.stringify(config, null, 2)}\n`);
}

/**
 * The configuration that `pgjot dev` wrote last.
 *
 * @throws {CommandError} when `pgjot dev` has never run here.
 */
export function devConfigFile(state: State = stateOf()): string {
  if (!existsSync(state.configFile)) {
    throw new CommandError('unavailable', `no ${FOLDER} folder here: run "pgjot dev" first`);
  }
  return state.configFile;
}

/** Writes a file of mode 600 all at once: a reader sees the old one or the new one. */
export async function replaceFile(file: string, content: string): Promise<void> {
  const draft = `${file}.${process.pid}.new`;
  await writeFile(draft, content, { mode: 0o600 });
  await rename(draft, file);
}
