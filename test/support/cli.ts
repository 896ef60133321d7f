/**
 * The command `pgjot` as a real process, built from this source.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** The project's folder. */
export const ROOT = fileURLToPath(new URL('../..', import.meta.url));

const MAIN = join(ROOT, 'dist', 'cli', 'main.js');

/** How to run it. */
export interface CliOptions {
  readonly cwd: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string;
  /** A command that runs it in its own place, by exec: `prlimit …`, `ip netns exec …`. */
  readonly under?: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

/** How it ended. */
export interface CliResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `pgjot` to its end. */
export async function runCli(args: readonly string[], options: CliOptions): Promise<CliResult> {
  return finished(startCli(args, options), options.input);
}

/** Runs a line of shell, as somebody would paste it, to its end. */
export async function runShell(line: string, options: CliOptions): Promise<CliResult> {
  return finished(spawn('/bin/sh', ['-c', line], spawnOptions(options)), options.input);
}

/** Starts `pgjot`; the caller ends it. */
export function startCli(args: readonly string[], options: CliOptions): ChildProcess {
  warnWhenStale();
  const [command = '', ...rest] = [...(options.under ?? []), process.execPath, MAIN, ...args];
  return spawn(command, rest, spawnOptions(options));
}

/** Lets `npx pgjot` and `require('pg')` work in a folder as they do in the project's. */
export function linkModules(folder: string): void {
  symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
}

/** Writes the configuration of a proxy that starts, whose PostgreSQL nobody needs and whose issuer has no keys; returns its file. */
export function writeLonelyConfig(folder: string, settings: object = {}): string {
  const config = {
    listen: { port: 0 },
    providers: {
      own: { issuer: 'https://id.example', jwksFile: 'jwks.json', audience: 'app', roles: ['a'] },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: 1,
        database: 'app',
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { a: { slots: 1 } },
        pool: { spares: 0 },
      },
    },
    log: { level: 'debug' },
    ...settings,
  };
  const file = join(folder, 'proxy.config.json');
  writeFileSync(file, JSON.stringify(config));
  writeFileSync(join(folder, 'jwks.json'), '{ "keys": [] }');
  return file;
}

/** Waits until the process has printed something that matches, and returns all that it printed until then. */
export async function printed(child: ChildProcess, pattern: RegExp): Promise<string> {
  let output = '';
  const ended = new AbortController();
  try {
    return await new Promise<string>((resolve, reject) => {
      const listen = (chunk: Buffer) => {
        output += chunk.toString();
        if (pattern.test(output)) resolve(output);
      };
      child.stdout?.on('data', listen);
      child.stderr?.on('data', listen);
      child.once('exit', () => reject(new Error(`ended without ${pattern}: ${output}`)));
      delay(60_000, undefined, { signal: ended.signal }).then(
        () => reject(new Error(`no ${pattern} within a minute: ${output}`)),
        () => {},
      );
    });
  } finally {
    ended.abort();
  }
}

/** The exit status of a process, or the signal that ended it. */
export async function exitOf(child: ChildProcess): Promise<number | NodeJS.Signals | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return child.exitCode ?? child.signalCode;
}

/** Command lines of all running processes that mention any of these texts. */
export function processesWith(texts: readonly string[]): string[] {
  const all = execFileSync('ps', ['-A', '-o', 'args'], { encoding: 'utf8' }).split('\n');
  return all.filter((line) => texts.some((text) => line.includes(text)));
}

/** Polls until the condition holds. */
export async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within 15 s: ${condition.toString()}`);
    await delay(25);
  }
}

function spawnOptions({ cwd, env, uid, gid }: CliOptions) {
  // PG* of whoever runs the tests would lead the clients elsewhere.
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('PG'));
  return {
    cwd,
    env: { ...Object.fromEntries(inherited), ...env },
    ...(uid !== undefined && { uid }),
    ...(gid !== undefined && { gid }),
  };
}

async function finished(child: ChildProcess, input = ''): Promise<CliResult> {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => err.push(chunk));
  // A command that fails early does not read its input.
  child.stdin?.on('error', () => {});
  child.stdin?.end(input);
  await once(child, 'close');
  return {
    status: child.exitCode,
    stdout: Buffer.concat(out).toString(),
    stderr: Buffer.concat(err).toString(),
  };
}

let checked = false;

/** `npm test` builds first; vitest alone would test yesterday's build. */
function warnWhenStale(): void {
  if (checked) return;
  const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
  const newest = Math.max(
    ...sources
      .filter((file) => /\.(ts|sql)$/.test(file))
      .map((file) => statSync(join(ROOT, 'src', file)).mtimeMs),
  );
  // The last thing that a build writes, whatever had changed.
  const built = statSync(join(ROOT, 'dist', 'session-sql', 'portable.sql'), {
    throwIfNoEntry: false,
  });
  if ((built?.mtimeMs ?? 0) < newest) {
    console.warn('dist is older than src, so this tests an old build: npm run build');
  }
  checked = true;
}
