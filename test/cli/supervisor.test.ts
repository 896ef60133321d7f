/** What systemd is told, over a real socket like the one that it listens on, and that its unit is one that it takes. */
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/proxy.ts';
import { createSupervisor } from '../../src/cli/supervisor.ts';
import { exitOf, printed, ROOT, startCli, writeLonelyConfig } from '../support/cli.ts';
import { SECRET, until } from '../support/stack.ts';

const UNIT = join(ROOT, 'ops', 'pgjot.service');
const has = (program: string) => spawnSync('which', [program]).status === 0;
const missing = ['systemd-notify', 'python3'].filter((program) => !has(program));
if (missing.length > 0) console.log(`sd_notify is not tested: no ${missing.join(', ')} here`);

let folder: string;
let started: ChildProcess[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-notify-'));
});
afterEach(async () => {
  for (const child of started) {
    child.kill('SIGKILL');
    await exitOf(child);
  }
  started = [];
  rmSync(folder, { recursive: true, force: true });
});

/** A socket for NOTIFY_SOCKET, and what has come there, a line for each message. */
async function listen() {
  const socket = join(folder, 'notify');
  const script = fileURLToPath(new URL('notify.py', import.meta.url));
  const listener = spawn('python3', [script, socket]);
  started.push(listener);
  let text = '';
  listener.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
  await printed(listener, /ready\n/);
  return { socket, messages: () => text.split('\n').slice(1, -1) };
}

const withListener = describe.skipIf(missing.length > 0);

withListener('pgjot start under systemd', () => {
  it('says when it is ready, reloads, lives and stops, in that order', async () => {
    const { socket, messages } = await listen();
    const file = writeLonelyConfig(folder);
    const child = startCli(['start'], {
      cwd: folder,
      env: { PGJOT_MAIN_SECRET: SECRET, NOTIFY_SOCKET: socket, WATCHDOG_USEC: '400000' },
    });
    started.push(child);
    const others = () => messages().filter((one) => one !== 'WATCHDOG=1');

    await until(() => messages().includes('WATCHDOG=1'), 30_000);
    child.kill('SIGHUP');
    await until(() => others().length >= 3, 30_000);
    writeFileSync(file, '{}');
    await until(() => others().length >= 5, 30_000);
    child.kill('SIGTERM');

    expect(await exitOf(child)).toBe(0);
    const port = /:(\d+)$/.exec(others()[0] ?? '')?.[1];
    expect(others()).toEqual([
      `READY=1 STATUS=serving on 127.0.0.1:${port}`,
      expect.stringMatching(/^RELOADING=1 MONOTONIC_USEC=\d+$/) as string,
      `READY=1 STATUS=serving on 127.0.0.1:${port}`,
      expect.stringMatching(/^RELOADING=1 MONOTONIC_USEC=\d+$/) as string,
      `READY=1 STATUS=serving on 127.0.0.1:${port}; the last reload failed: see the log`,
      'STOPPING=1 STATUS=draining',
    ]);
  }, 90_000);

  it('gives the time of a reload by the clock that systemd compares it with', async () => {
    const { socket, messages } = await listen();
    using supervisor = createSupervisor({ ...process.env, NOTIFY_SOCKET: socket });
    const now = () =>
      Number(execFileSync('python3', ['-c', 'import time; print(time.monotonic_ns() // 1000)']));
    const before = now();

    supervisor.reloading();
    await supervisor.told();
    await until(() => messages().length > 0);

    const said = Number(/MONOTONIC_USEC=(\d+)/.exec(messages()[0] ?? '')?.[1]);
    expect(said).toBeGreaterThanOrEqual(before);
    expect(said).toBeLessThanOrEqual(now());
  });

  it('gives no sign of life for a watchdog that waits for another process', async () => {
    const { socket, messages } = await listen();
    const env = { ...process.env, NOTIFY_SOCKET: socket, WATCHDOG_USEC: '20000' };
    using own = createSupervisor({ ...env, WATCHDOG_PID: '1' });
    await new Promise((resolve) => setTimeout(resolve, 200));
    own.ready('here');
    await own.told();
    await until(() => messages().length > 0);

    expect(messages()).toEqual(['READY=1 STATUS=here']);
  });
});

describe('without systemd', () => {
  it('nothing is run', async () => {
    using supervisor = createSupervisor({});
    supervisor.ready('here');
    await supervisor.told();
  });
});

describe('the unit', () => {
  const text = readFileSync(UNIT, 'utf8');
  const seconds = (name: string) => Number(new RegExp(`^${name}=(\\d+)$`, 'm').exec(text)?.[1]);

  it('gives a drain the time that it may take', () => {
    const upstream = { host: 'a', database: 'a', secret: { env: 'A' }, roles: { a: { slots: 1 } } };
    const provider = { issuer: 'https://a', jwksFile: 'a', audience: 'a', roles: ['a'] };
    const defaults = parseConfig({ providers: { a: provider }, upstreams: { a: upstream } });

    expect(seconds('TimeoutStopSec') * 1000).toBeGreaterThan(defaults.sessions.drainTimeoutMs);
  });

  it.skipIf(!has('systemd-analyze'))('is one that systemd takes, and exposes little', () => {
    const copy = join(folder, 'pgjot.service');
    // It looks for the program, which this machine need not have.
    writeFileSync(copy, text.replace(/^ExecStart=pgjot /m, 'ExecStart=/bin/true '));

    const verified = spawnSync('systemd-analyze', ['verify', copy], { encoding: 'utf8' });
    const security = spawnSync(
      'systemd-analyze',
      ['security', '--offline=true', '--threshold=20', '--no-pager', copy],
      { encoding: 'utf8' },
    );

    expect(verified).toMatchObject({ status: 0, stderr: '' });
    expect(security.stdout).toMatch(/Overall exposure level for .*: [01]\.\d OK/);
    expect(security.status).toBe(0);
  });
});
