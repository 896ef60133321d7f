/**
 * COPY of much data each way, with the memory of the proxy flat: `PGJOT_BULK_MB` megabytes, 256 unless told.
 *
 * The proxy runs in a process of its own. The kernel keeps that process's peak (VmHWM), so nothing is
 * missed between two looks.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startStack } from '../support/stack.ts';
import { lacksCommands, run, signedIn } from './command.ts';
import type { Stack } from './todos.ts';

const MEGABYTE = 2 ** 20;
const MEGABYTES = Number(process.env['PGJOT_BULK_MB'] ?? 256);
const ALLOWED_GROWTH = 64 * MEGABYTE;
const LINE = 'x'.repeat(1023);
const TIMEOUT_MS = 60_000 + MEGABYTES * 500;

const root = fileURLToPath(new URL('../..', import.meta.url));

describe.skipIf(lacksCommands('bulk COPY', 'psql') || lacksProc())('a bulk COPY', () => {
  let stack: Stack;
  let proxy: ProxyProcess | undefined;
  beforeAll(async () => {
    stack = await startStack();
    // Slots belong to one proxy at a time.
    await stack.proxy.close();
    proxy = await startProxyProcess(stack);
  }, 120_000);
  afterAll(async () => {
    await proxy?.stop();
    await stack?.close();
  });

  const psql = async (...commands: string[]) => {
    if (proxy === undefined) throw new Error('the proxy is only there inside tests');
    const environment = await signedIn(stack, 'alice', { PGPORT: String(proxy.port), LINE });
    const outcome = await run(
      'psql',
      ['-X', '-A', '-t', '-q', ...commands.flatMap((command) => ['-c', command])],
      environment,
    );
    expect(outcome).toMatchObject({ code: 0, stderr: '' });
    return outcome.stdout.trim();
  };
  const copyOut = async (megabytes: number, program = 'wc -c') => {
    const rows = `select repeat('x', ${LINE.length}) from generate_series(1, ${megabytes * 1024})`;
    const bytes = await psql(`\\copy (${rows}) to program '${program}'`);
    expect(Number(bytes)).toBe(megabytes * MEGABYTE);
  };
  const copyIn = async (megabytes: number, ...prepare: string[]) => {
    const totals = await psql(
      'create temporary table sink (line text)',
      ...prepare,
      `\\copy sink from program 'yes "$LINE" | head -n ${megabytes * 1024}'`,
      'select count(*), sum(length(line)) from sink',
    );
    expect(totals).toBe(`${megabytes * 1024}|${megabytes * 1024 * LINE.length}`);
  };
  const measure = async (what: string, copy: (megabytes: number) => Promise<void>) => {
    // Compiled code and buffers of the first bytes are no growth.
    await copy(8);
    const growth = await (proxy as ProxyProcess).growthDuring(async () => {
      const started = performance.now();
      await copy(MEGABYTES);
      const seconds = (performance.now() - started) / 1000;
      console.log(`COPY ${what}: ${MEGABYTES} MB at ${Math.round(MEGABYTES / seconds)} MB/s`);
    });
    console.log(`COPY ${what}: the proxy grew by ${(growth / MEGABYTE).toFixed(1)} MB`);
    expect(growth).toBeLessThan(ALLOWED_GROWTH);
  };

  it('out of the database leaves the memory flat', { timeout: TIMEOUT_MS }, async () => {
    await measure('out', (megabytes) => copyOut(megabytes));
  });

  it('into the database leaves the memory flat', { timeout: TIMEOUT_MS }, async () => {
    await measure('in', (megabytes) => copyIn(megabytes));
  });

  it('waits for a client that reads late', { timeout: TIMEOUT_MS }, async () => {
    await measure('out, read late', (megabytes) => copyOut(megabytes, 'sleep 2; wc -c'));
  });

  it('waits for a database that reads late', { timeout: TIMEOUT_MS }, async () => {
    // A statement trigger runs after PostgreSQL has asked for the data and before it reads any.
    const readLate = [
      `create function pg_temp.pause() returns trigger language plpgsql
         as 'begin perform pg_sleep(2); return null; end'`,
      'create trigger pause before insert on sink execute function pg_temp.pause()',
    ];

    await measure('in, read late', (megabytes) => copyIn(megabytes, ...readLate));
  });
});

interface ProxyProcess {
  readonly port: number;
  /** Bytes between the memory at the start of `work` and its peak until the end of it. */
  growthDuring(work: () => Promise<void>): Promise<number>;
  stop(): Promise<void>;
}

async function startProxyProcess(stack: Stack): Promise<ProxyProcess> {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-bulk-'));
  const config = join(folder, 'proxy.config.json');
  await writeFile(config, JSON.stringify({ ...stack.config, log: { level: 'silent' } }));
  const script = fileURLToPath(new URL('proxy-process.js', import.meta.url));
  const child = fork(script, [join(root, 'dist', 'proxy.js'), config], { execArgv: [] });
  const exited = once(child, 'exit');
  const stop = async () => {
    if (child.connected) child.disconnect();
    await exited;
    await rm(folder, { recursive: true });
  };
  const [address] = (await Promise.race([
    once(child, 'message'),
    exited.then(async () => {
      await stop();
      throw new Error('the proxy ended before it listened');
    }),
  ])) as [{ port: number }];
  return {
    port: address.port,
    async growthDuring(work) {
      // 5 sets the peak back to what there is now: proc(5).
      await writeFile(`/proc/${child.pid}/clear_refs`, '5');
      const before = await memory(child.pid, 'VmRSS');
      await work();
      return (await memory(child.pid, 'VmHWM')) - before;
    },
    stop,
  };
}

async function memory(pid: number | undefined, field: 'VmRSS' | 'VmHWM'): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]) * 1024;
}

function lacksProc(): boolean {
  if (existsSync('/proc/self/clear_refs')) return false;
  console.log('skipped bulk COPY: memory is read from /proc, which this system does not have');
  return true;
}
