/**
 * Runs PostgreSQL's own command-line clients as a user would: by name, with PG* variables.
 *
 * Judges nothing: a failed command is an answer too.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';
import type { Stack } from './todos.ts';

/** How a command ended. `code` is null when a signal ended it. */
export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A libpq environment. */
export type Environment = Readonly<Record<string, string>>;

/** Whether any of these commands is absent; when one is, a line says so, and the suite that asked skips itself. */
export function lacksCommands(suite: string, ...commands: readonly string[]): boolean {
  const absent = commands.filter((command) => versionOf(command) === undefined);
  if (absent.length === 0) return false;
  console.log(`skipped ${suite}: no ${absent.join(', ')} on the PATH`);
  return true;
}

/** The major version that `command --version` prints; undefined where there is no such command. */
export function versionOf(command: string): number | undefined {
  const { stdout, error } = spawnSync(command, ['--version'], { encoding: 'utf8' });
  if (error !== undefined) return undefined;
  return Number(/\b(\d+)(?:\.|devel|beta|rc)/.exec(stdout)?.[1]);
}

/** The environment in which libpq signs `sub` in to the stack. Nothing of the surrounding PG* variables gets in. */
export async function signedIn(
  stack: Stack,
  sub: string,
  changes: Environment = {},
): Promise<Environment> {
  return {
    PGHOST: stack.host,
    PGPORT: String(stack.port),
    PGDATABASE: stack.database,
    PGUSER: 'authenticated',
    PGPASSWORD: await stack.token(sub),
    ...changes,
  };
}

/** The environment in which libpq reaches the stack's PostgreSQL itself, as superuser. */
export function asAdmin({ admin }: Stack, changes: Environment = {}): Environment {
  return {
    PGHOST: String(admin.host),
    PGPORT: String(admin.port),
    PGDATABASE: String(admin.database),
    PGUSER: String(admin.user),
    PGPASSWORD: typeof admin.password === 'string' ? admin.password : '',
    ...changes,
  };
}

/** Starts a command that the end of the test ends. Its standard input stays open. */
export function start(
  command: string,
  arguments_: readonly string[],
  environment: Environment,
): ChildProcess & { stdin: NonNullable<ChildProcess['stdin']> } {
  const { PATH, HOME, TMPDIR } = process.env;
  const child = spawn(command, arguments_, {
    env: { PATH, HOME, TMPDIR, LC_ALL: 'C.UTF-8', ...environment },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  onTestFinished(() => {
    child.kill('SIGKILL');
  });
  return child;
}

/** Runs a command to its end, with `input` as all of its standard input. */
export async function run(
  command: string,
  arguments_: readonly string[],
  environment: Environment,
  input = '',
): Promise<Outcome> {
  const child = start(command, arguments_, environment);
  child.stdin.on('error', () => undefined).end(input);
  return await ending(child);
}

/** Resolves with everything that a started command prints from now on, when it has ended. */
export async function ending(child: ChildProcess): Promise<Outcome> {
  const [[code], stdout, stderr] = await Promise.all([
    once(child, 'close') as Promise<[number | null]>,
    child.stdout === null ? '' : text(child.stdout),
    child.stderr === null ? '' : text(child.stderr),
  ]);
  return { code, stdout, stderr };
}

/** Resolves when a started command has printed `pattern` on its standard output. */
export async function printed(child: ChildProcess, pattern: RegExp): Promise<string> {
  const { stdout } = child;
  if (stdout === null) throw new Error('the command has no standard output');
  let seen = '';
  return await new Promise((resolve, reject) => {
    const settle = () => {
      stdout.off('data', onData);
      child.off('close', onClose);
    };
    const onData = (chunk: Buffer) => {
      seen += chunk.toString();
      if (!pattern.test(seen)) return;
      settle();
      resolve(seen);
    };
    const onClose = () => {
      settle();
      reject(new Error(`ended without printing ${String(pattern)}: ${seen}`));
    };
    stdout.on('data', onData);
    child.once('close', onClose);
  });
}

/** Makes a folder that the end of the test removes. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'pgjot-clients-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
}
