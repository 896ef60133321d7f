/**
 * `pgjot start --workers N` as it is installed, before a real PostgreSQL with the demo table, for tests that kill parts of it.
 */
import { execFileSync, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import type { ConfigInput } from '../../src/config.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { workerOf } from '../../src/upstream/cancel.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { exitOf, startCli, type CliOptions } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';
import { startTestPostgres, withSuperuser, type TestPostgres } from '../support/postgres.ts';
import { recordStack, recordUpstreamSecret } from '../support/record.ts';
import { SECRET, until } from '../support/stack.ts';

/** What fleets stand on: a server with slots, and an issuer. */
export interface Ground extends AsyncDisposable {
  readonly postgres: TestPostgres;
  readonly issuer: Issuer;
  readonly slots: number;
}

/** A running proxy of several workers. Dispose of it: whatever is left of it is killed. */
export interface Fleet extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly primary: ChildProcess;
  /** How long it took until it listened. */
  readonly startedInMs: number;
  /** Lines of its log, parsed. */
  readonly log: Record<string, unknown>[];
  /** What it has printed that is no log line. */
  readonly noise: string[];
  /** Process ids of the workers by number, as they are now. */
  workers(): Map<number, number>;
  /** The first log line for which this holds, of those since `from`. */
  logged(
    matches: (line: Record<string, unknown>) => boolean,
    from?: number,
  ): Promise<Record<string, unknown>>;
  /** Writes another configuration file, which the proxy watches. */
  configure(settings: Partial<ConfigInput>): Promise<void>;
  token(sub: string, claims?: Readonly<Record<string, unknown>>): string;
  login(sub?: string): Promise<RawClient>;
  /** So many sessions, one after the other: to as many workers as there are. */
  fill(count: number, sub?: string): Promise<RawClient[]>;
  /** Logs in until a session is on each worker; the first of each is returned, by number. */
  onEach(sub?: string): Promise<Map<number, RawClient>>;
}

/** Starts the ground of a test file. */
export async function startGround(slots: number): Promise<Ground> {
  recordStack();
  recordUpstreamSecret(SECRET, { authenticated: { slots } });
  const postgres = await startTestPostgres();
  const issuer = await startIssuer();
  await withSuperuser(postgres, (superuser) => superuser.query('create database app'));
  const work = async (admin: pg.Client) => {
    await install(admin, { secret: SECRET, roles: { authenticated: { slots } } });
    await installDemo(admin);
  };
  await withSuperuser(postgres, work, 'app');
  return {
    postgres,
    issuer,
    slots,
    async [Symbol.asyncDispose]() {
      await issuer.close();
      await postgres.stop();
    },
  };
}

/** The configuration of a fleet on this ground. */
export function configOf(
  ground: Ground,
  settings: Partial<ConfigInput> = {},
  pool: ConfigInput['upstreams'][string]['pool'] = {},
): ConfigInput {
  return {
    listen: { port: 0 },
    providers: { own: ground.issuer.provider({ roles: ['authenticated'] }) },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: ground.postgres.port,
        database: 'app',
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { authenticated: { slots: ground.slots } },
        pool,
      },
    },
    ...settings,
    log: { level: 'debug', ...settings.log },
  };
}

/** Starts a fleet, and waits until it listens. */
export async function startFleet(
  ground: Ground,
  options: {
    workers: number;
    pool?: Parameters<typeof configOf>[2];
    settings?: Partial<ConfigInput>;
  } & Pick<CliOptions, 'env' | 'under'>,
): Promise<Fleet> {
  const { workers, pool, settings = {}, env, ...rest } = options;
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-fleet-'));
  const configure = (changed: Partial<ConfigInput>) =>
    writeFile(join(folder, 'proxy.config.json'), JSON.stringify(configOf(ground, changed, pool)));
  await configure(settings);
  const startedAt = performance.now();
  const primary = startCli(['start', '--workers', String(workers)], {
    cwd: folder,
    env: { PGJOT_MAIN_SECRET: SECRET, ...env },
    ...rest,
  });
  const [log, noise] = [[] as Record<string, unknown>[], [] as string[]];
  readLines(primary, (line) => {
    if (line.startsWith('{')) log.push(JSON.parse(line) as Record<string, unknown>);
    else noise.push(line);
  });
  const logged: Fleet['logged'] = (matches, from = 0) => until(() => log.slice(from).find(matches));
  const listening = await Promise.race([
    until(() => log.find(({ event }) => event === 'listening'), 30_000),
    exitOf(primary).then((status) => {
      throw new Error(`ended with ${status}: ${noise.join('\n')}`);
    }),
  ]).catch((error: unknown) => {
    primary.kill('SIGKILL');
    throw error;
  });
  const startedInMs = performance.now() - startedAt;
  const { host, port } = listening as { host: string; port: number };
  const token: Fleet['token'] = (sub, claims = {}) => ground.issuer.mint({ sub, ...claims });
  const login = (sub = 'alice') => RawClient.login({ host, port, database: 'app' }, token(sub));
  return {
    host,
    port,
    primary,
    startedInMs,
    log,
    noise,
    workers: () => childrenOf(primary.pid as number),
    logged,
    configure,
    token,
    login,
    async fill(count, sub) {
      const clients: RawClient[] = [];
      while (clients.length < count) clients.push(await login(sub));
      return clients;
    },
    async onEach(sub) {
      const found = new Map<number, RawClient>();
      while (found.size < workers) {
        const client = await login(sub);
        const number = workerOf(client.key.processId);
        if (found.has(number)) client.destroy();
        else found.set(number, client);
      }
      return found;
    },
    async [Symbol.asyncDispose]() {
      const orphans = [...childrenOf(primary.pid as number).values()];
      // What runs it does not take it along.
      if (options.under !== undefined) {
        for (const [pid, parent] of processes())
          if (parent === primary.pid) process.kill(pid, 'SIGKILL');
      }
      primary.kill('SIGKILL');
      await exitOf(primary);
      await until(() => orphans.every((pid) => !isAlive(pid)));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Whether a process of this id is running; one that has ended and whose parent has not looked is not. */
export function isAlive(pid: number): boolean {
  const { stdout } = spawnSync('ps', ['-o', 'stat=', '-p', String(pid)], { encoding: 'utf8' });
  return stdout.trim() !== '' && !stdout.startsWith('Z');
}

/** All processes, each with its parent. */
function processes(): [pid: number, parent: number][] {
  const all = execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' });
  return [...all.matchAll(/^ *(\d+) +(\d+)/gm)].map(([, pid, parent]) => [
    Number(pid),
    Number(parent),
  ]);
}

/** Worker processes by number: they name themselves. */
function childrenOf(primary: number): Map<number, number> {
  const all = execFileSync('ps', ['-A', '-o', 'pid=,ppid=,args='], { encoding: 'utf8' });
  const rows = [...all.matchAll(/^ *(\d+) +(\d+) pgjot: worker (\d+)/gm)];
  return new Map(
    rows
      .filter(([, , parent]) => Number(parent) === primary)
      .map(([, pid, , number]) => [Number(number), Number(pid)]),
  );
}

function readLines(child: ChildProcess, onLine: (line: string) => void): void {
  for (const stream of [child.stdout, child.stderr]) {
    let rest = '';
    stream?.on('data', (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop() ?? '';
      lines.forEach(onLine);
    });
  }
}
