/**
 * The stage of one benchmark run: a temporary folder, free ports, and every program started on it.
 *
 * Ends exactly what it started, by process id, and removes its folder. Measures nothing itself except
 * what the kernel says of one program (CPU time and memory, Linux only).
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chownSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { serverAccount } from '../dist/cli/dev/account.js';

const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 10_000;

/**
 * @typedef {object} Program Something that runs until the stage closes.
 * @property {number} pid
 * @property {string} log The file that its log goes to.
 * @property {() => string} output The end of what it has logged.
 * @property {() => boolean} running
 * @property {() => Promise<void>} stop Ends it before the stage closes. Harmless to repeat.
 *
 * @typedef {object} LaunchOptions
 * @property {Record<string, string>} [env] Added to a bare environment: nothing of the caller's PG* variables counts.
 * @property {boolean} [unprivileged] As root, run it under an account without rights (PgBouncer insists).
 *
 * @typedef {Awaited<ReturnType<typeof openStage>>} Stage
 */

/** Makes the temporary folder; whoever calls it calls `close()` on every path. */
export async function openStage() {
  const account = await serverAccount();
  const folder = mkdtempSync(join(tmpdir(), 'pgjot-bench-'));
  if (account !== undefined) chownSync(folder, account.uid, account.gid);
  /** @type {(() => Promise<void>)[]} */
  const endings = [];
  /** @type {Set<import('node:child_process').ChildProcess>} */
  const started = new Set();
  let closed = false;
  let logs = 0;

  /**
   * Spawns a program that the stage ends when it closes, unless it has ended by then.
   *
   * @param {string} file
   * @param {readonly string[]} args
   * @param {LaunchOptions & { stdio?: import('node:child_process').StdioOptions }} [options]
   */
  function launch(file, args, options = {}) {
    if (closed) throw new Error('the benchmark is being stopped');
    const child = spawn(file, args, {
      cwd: folder,
      env: { PATH: process.env['PATH'], LC_ALL: 'C', HOME: folder, ...options.env },
      stdio: options.stdio ?? ['ignore', 'pipe', 'pipe'],
      ...(options.unprivileged === true ? account : undefined),
    });
    started.add(child);
    child.once('exit', () => started.delete(child));
    child.once('error', () => started.delete(child));
    return child;
  }

  /**
   * Runs a program to its end and gives back what it printed; `onStderrLine` sees lines as they come.
   *
   * @param {string} file
   * @param {readonly string[]} args
   * @param {LaunchOptions & { stdin?: number, onStderrLine?: (line: string) => void }} [options]
   */
  async function run(file, args, options = {}) {
    const child = launch(file, args, {
      ...options,
      stdio: [options.stdin ?? 'ignore', 'pipe', 'pipe'],
    });
    const stdout = collect(child.stdout);
    const stderr = collect(child.stderr, options.onStderrLine);
    const [code, signal] = await once(child, 'close');
    if (code !== 0) {
      throw new Error(`${file} ended with ${signal ?? code}: ${(stderr() || stdout()).trim()}`);
    }
    return stdout();
  }

  /**
   * Starts a server and waits until `ready` resolves. Its log goes to a file: a pipe would have to be read
   * by this program while it measures.
   *
   * @param {string} file
   * @param {readonly string[]} args
   * @param {LaunchOptions & { ready: () => Promise<void> }} options `ready` rejects for "not yet".
   * @returns {Promise<Program>}
   */
  async function serve(file, args, options) {
    logs += 1;
    const log = join(folder, `${basename(file)}-${logs}.log`);
    const fd = openSync(log, 'a');
    const child = launch(file, args, { ...options, stdio: ['ignore', fd, fd] });
    closeSync(fd);
    /** @type {Error | undefined} */
    let failure;
    child.once('error', (error) => {
      failure = error;
    });
    const output = () => readFileSync(log, 'utf8').slice(-8_192);
    const running = () => child.exitCode === null && child.signalCode === null;
    const deadline = Date.now() + START_DEADLINE_MS;
    for (;;) {
      try {
        await options.ready();
        return { pid: child.pid ?? 0, log, output, running, stop: () => quit(child) };
      } catch (error) {
        const over = failure !== undefined || !running() || Date.now() > deadline;
        if (over) {
          throw new Error(`${file} did not start: ${failure?.message ?? output()}`, {
            cause: error,
          });
        }
        await delay(50);
      }
    }
  }

  /** @param {import('node:child_process').ChildProcess} child */
  async function quit(child) {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), STOP_DEADLINE_MS);
    await gone;
    clearTimeout(timer);
  }

  /**
   * Leaves it to the stage to end something that it did not start itself; at once, if it is closed already.
   *
   * @param {() => Promise<void>} end
   */
  async function defer(end) {
    endings.push(end);
    if (closed) await close();
  }

  /** Ends everything, the latest first, and removes the folder. Harmless to repeat. */
  async function close() {
    closed = true;
    for (const child of [...started].toReversed()) await quit(child);
    for (let end = endings.pop(); end !== undefined; end = endings.pop()) await end();
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  }

  /**
   * Writes a file that only the account of the servers can read, and gives back its path.
   *
   * @param {string} name
   * @param {string} text
   */
  function write(name, text) {
    const file = join(folder, name);
    writeFileSync(file, text, { mode: 0o600 });
    if (account !== undefined) chownSync(file, account.uid, account.gid);
    return file;
  }

  return { folder, write, launch, run, serve, defer, close };
}

/** A TCP port that was free a moment ago. Programs that cannot be given port 0 get one of these. */
export async function freePort() {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no TCP port');
  return address.port;
}

/**
 * Resolves when something accepts on this port, rejects when nothing does.
 *
 * @param {number} port
 */
export async function accepts(port) {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
  } finally {
    socket.destroy();
  }
}

// The unit of utime and stime. It has been 100 on every Linux for twenty years, but it is cheap to ask.
const TICKS_PER_SECOND = process.platform === 'linux' ? Number(ask('getconf', ['CLK_TCK'])) : NaN;

/**
 * CPU time that a program has used since it started, in seconds, all its threads together; NaN where
 * the system is not Linux.
 *
 * @param {number} pid
 */
export function cpuSeconds(pid) {
  if (process.platform !== 'linux') return NaN;
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // The second field, the program's name, may hold spaces: count from behind its closing parenthesis.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/**
 * Memory of a program in MiB, now and at its highest; NaN where the system is not Linux.
 *
 * @param {number} pid
 */
export function residentMiB(pid) {
  if (process.platform !== 'linux') return { now: NaN, peak: NaN };
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  const kib = (/** @type {string} */ name) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]);
  return { now: kib('VmRSS') / 1024, peak: kib('VmHWM') / 1024 };
}

/**
 * How many files and sockets a program has open; NaN where the system is not Linux.
 *
 * @param {number} pid
 */
export function openFiles(pid) {
  return process.platform === 'linux' ? readdirSync(`/proc/${pid}/fd`).length : NaN;
}

/**
 * What a command prints, trimmed; the empty string when it is not there.
 *
 * @param {string} file
 * @param {readonly string[]} args
 */
export function ask(file, args) {
  try {
    return execFileSync(file, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
  } catch {
    return '';
  }
}

/**
 * @param {import('node:stream').Readable | null} stream
 * @param {(line: string) => void} [onLine]
 */
function collect(stream, onLine) {
  let text = '';
  let rest = '';
  stream?.setEncoding('utf8').on('data', (/** @type {string} */ chunk) => {
    text = (text + chunk).slice(-65_536);
    if (onLine === undefined) return;
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) onLine(line);
  });
  return () => text;
}
