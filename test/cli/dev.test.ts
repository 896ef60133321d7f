import { execFileSync, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { canEnter } from '../../src/cli/dev/account.ts';
import {
  eventually,
  exitOf,
  linkModules,
  printed,
  processesWith,
  ROOT,
  runCli,
  runShell,
  startCli,
  type CliOptions,
} from '../support/cli.ts';

const READY = /^pgjot is ready[\s\S]*forgets them\)/m;
const HAS_PSQL = succeeds('psql', ['--version']);

let folder: string;
let options: CliOptions;
let running: Dev[] = [];

beforeEach(async () => {
  // Mode 700, as `mktemp -d` makes it: as root, PostgreSQL's account cannot enter.
  folder = await mkdtemp(join(tmpdir(), 'pgjot-dev-'));
  options = { cwd: folder };
  linkModules(folder);
});

afterEach(async () => {
  for (const { child } of running) {
    child.kill('SIGTERM');
    await exitOf(child);
  }
  // As root the data lies elsewhere, in a folder of its own. Two of one folder share it.
  for (const { dataDir } of running) {
    await rm(dirname(dataDir), { recursive: true, force: true });
  }
  running = [];
  await rm(folder, { recursive: true, force: true });
});

describe('pgjot dev', () => {
  it('prints lines that work as they are, and Alice and Bob see different rows', async () => {
    const dev = await startDev();
    const lines = dev.output.split('\n').filter((line) => line.startsWith('  '));
    const runnable = lines.filter((line) => HAS_PSQL || !line.includes('psql -h'));
    if (!HAS_PSQL) console.log('psql is not installed: skipping the printed lines that call it');

    const results = [];
    for (const line of runnable) {
      results.push({ line, ...(await runShell(line, options)) });
    }

    expect(lines).toHaveLength(4);
    for (const { line, status, stdout } of results) {
      const alice = line.includes('--sub alice');
      expect({ line, status }).toEqual({ line, status: 0 });
      expect(stdout.includes('water the plants')).toBe(alice);
      expect(stdout.includes('tune the piano')).toBe(!alice);
    }
  }, 120_000);

  it('keeps rows and tokens over a restart, and is ready in under 10 s', async () => {
    const first = await startDev();
    const { stdout: token } = await runCli(['token', '--sub', 'alice'], options);
    await sql(['--sub', 'alice', "insert into todos (task) values ('kept')"]);
    await stopDev(first);

    const startedAt = Date.now();
    await startDev(['--port', String(first.port)]);
    const elapsed = Date.now() - startedAt;
    const seen = await runCli(['sql', '--token-file', '-', 'select task from todos'], {
      ...options,
      input: token,
    });

    expect(seen.stdout).toContain('kept');
    expect(elapsed).toBeLessThan(10_000);
  }, 60_000);

  it('forgets rows, keys and tokens with --reset', async () => {
    const first = await startDev();
    const { stdout: token } = await runCli(['token', '--sub', 'alice'], options);
    await sql(['--sub', 'alice', "insert into todos (task) values ('kept')"]);
    await stopDev(first);

    await startDev(['--port', String(first.port), '--reset']);
    const old = await runCli(['sql', '--token-file', '-', 'select 1'], {
      ...options,
      input: token,
    });
    const fresh = await sql(['--sub', 'alice', 'select task from todos']);

    expect(old.status).toBe(1);
    expect(old.stderr).toMatch(/^pgjot: FATAL 28P01: [^\n]*\n$/);
    expect(fresh).not.toContain('kept');
  }, 60_000);

  it('says that the port is taken, and leaves the other one alone', async () => {
    const first = await startDev();

    const second = await runCli(['dev', '--port', String(first.port)], options);

    expect(second).toEqual({
      status: 1,
      stdout: '',
      stderr: `pgjot: port ${first.port} is taken (by another "pgjot dev"?); choose one with --port\n`,
    });
    expect(await sql(['--sub', 'bob', 'select task from todos'])).toContain('tune the piano');
  }, 60_000);

  it('refuses to start twice on one folder, whatever the port', async () => {
    const first = await startDev();

    const second = await runCli(['dev', '--port', '0', '--reset'], options);

    expect(second.status).toBe(1);
    expect(second.stderr).toMatch(/^pgjot: process \d+ is already running on [^\n]+\n$/);
    expect(await sql(['--sub', 'bob', 'select task from todos'])).toContain('tune the piano');
    expect(first.child.exitCode).toBeNull();
  }, 60_000);

  it.each([[['SIGINT']], [['SIGTERM']], [['SIGHUP']], [['SIGINT', 'SIGINT']]] as const)(
    'leaves nothing running after %s',
    async (signals) => {
      const dev = await startDev();

      for (const signal of signals) dev.child.kill(signal);

      expect(await exitOf(dev.child)).toBe(0);
      expect(processesWith(dev.traces)).toEqual([]);
      expect(await isListening(dev.port)).toBe(false);
      expect(await isListening(dev.issuerPort)).toBe(false);
      expect(existsSync(join(dev.dataDir, 'postmaster.pid'))).toBe(false);
    },
    60_000,
  );

  it('says which log it cannot write, and starts nothing', async () => {
    const log = join(folder, '.pgjot', 'proxy.log');
    await mkdir(log, { recursive: true });

    const result = await runCli(['dev', '--port', '0'], options);

    expect(result).toEqual({
      status: 1,
      stdout: '',
      stderr: `pgjot: cannot write ${log} (EISDIR)\n`,
    });
    expect(existsSync(join(folder, '.pgjot', 'postgres.log'))).toBe(false);
  });

  it('takes PostgreSQL with it when it is killed, and starts again', async () => {
    const dev = await startDev();

    dev.child.kill('SIGKILL');

    await eventually(() => processesWith(dev.traces).length === 0);
    const again = await startDev();
    expect(await sql(['--sub', 'bob', 'select task from todos'])).toContain('tune the piano');
    expect(again.dataDir).toBe(dev.dataDir);
  }, 60_000);

  it('keeps its secrets where only their owner can read them', async () => {
    await startDev();

    const modes = await Promise.all(
      ['issuer.json', 'upstream.secret', 'postgres.password', 'proxy.config.json'].map(
        async (name) => (await stat(join(folder, '.pgjot', name))).mode & 0o777,
      ),
    );

    expect(modes).toEqual([0o600, 0o600, 0o600, 0o600]);
    expect(await readFile(join(folder, '.pgjot', '.gitignore'), 'utf8')).toBe('*\n');
  }, 60_000);

  it('writes a configuration that pgjot check accepts, online as well', async () => {
    await startDev();

    const file = '.pgjot/proxy.config.json';
    const result = await runCli(['check', '--online', '--config', file], options);

    expect(result).toEqual({ status: 0, stdout: `${file} is fine\n`, stderr: '' });
  }, 60_000);

  it('serves discovery and its public keys alone', async () => {
    const dev = await startDev();
    const get = async (path: string) => {
      const response = await fetch(`http://127.0.0.1:${dev.issuerPort}${path}`);
      return { status: response.status, body: (await response.json()) as Record<string, unknown> };
    };

    const discovery = await get('/.well-known/openid-configuration');
    const jwks = await get('/jwks.json');
    const other = await get('/issuer.json');

    expect(discovery.body['issuer']).toBe(`http://127.0.0.1:${dev.issuerPort}`);
    expect(discovery.body['jwks_uri']).toBe(`http://127.0.0.1:${dev.issuerPort}/jwks.json`);
    const [key] = jwks.body['keys'] as [Record<string, unknown>];
    expect(Object.keys(key).toSorted()).toEqual(['alg', 'crv', 'kid', 'kty', 'use', 'x', 'y']);
    expect(other.status).toBe(404);
  }, 60_000);

  it('works for an ordinary user in a folder that is theirs alone', async ({ skip }) => {
    if (process.getuid?.() !== 0) skip('every other test of this file runs as an ordinary user');
    const nobody = {
      uid: Number(execFileSync('id', ['-u', 'nobody'], { encoding: 'utf8' })),
      gid: Number(execFileSync('id', ['-g', 'nobody'], { encoding: 'utf8' })),
    };
    if (!(await canEnter(nobody, ROOT))) {
      console.log(`nobody cannot enter ${ROOT}: skipping pgjot dev as an ordinary user`);
      skip(`nobody cannot enter ${ROOT}`);
    }
    await chown(folder, nobody.uid, nobody.gid);
    await chmod(folder, 0o700);
    options = { cwd: folder, env: { HOME: folder }, ...nobody };

    const dev = await startDev();

    expect(await sql(['--sub', 'bob', 'select task from todos'])).toContain('tune the piano');
    expect(dev.dataDir).toBe(join(folder, '.pgjot', 'postgres'));
  }, 60_000);
});

interface Dev {
  readonly child: ChildProcess;
  readonly output: string;
  readonly port: number;
  readonly issuerPort: number;
  readonly dataDir: string;
  /** Texts by which the processes that it starts are known. */
  readonly traces: readonly string[];
}

/** Starts it in the test's folder, and waits until it says that it is ready. */
async function startDev(args: readonly string[] = ['--port', '0']): Promise<Dev> {
  const child = startCli(['dev', ...args], options);
  const output = await printed(child, READY);
  const log = await readFile(join(folder, '.pgjot', 'proxy.config.json'), 'utf8');
  const config = JSON.parse(log) as {
    listen: { port: number };
    providers: { dev: { issuer: string } };
    upstreams: { dev: { port: number } };
  };
  const dataDir = dataDirOf(config.upstreams.dev.port);
  const pid = (await readFile(join(dataDir, 'postmaster.pid'), 'utf8')).split('\n')[0];
  const dev = {
    child,
    output,
    port: config.listen.port,
    issuerPort: Number(new URL(config.providers.dev.issuer).port),
    dataDir,
    traces: [dataDir, `kill -INT "$0" ${pid}`],
  };
  running.push(dev);
  return dev;
}

/** From the command line of the server itself, since as root the folder is not where one would look. */
function dataDirOf(port: number): string {
  const line = processesWith([`port=${port}`]).find((one) => one.includes('postgres -D'));
  return /postgres -D (\S+)/.exec(line ?? '')?.[1] ?? '';
}

async function stopDev(dev: Dev): Promise<void> {
  dev.child.kill('SIGTERM');
  await exitOf(dev.child);
}

async function sql(args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await runCli(['sql', ...args], options);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  return stdout;
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}

function succeeds(command: string, args: readonly string[]): boolean {
  try {
    execFileSync(command, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}
