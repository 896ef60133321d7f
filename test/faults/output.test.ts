/** A proxy whose surroundings fail: each thing is one clear line and an exit status, and nobody's session ends by it. */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createAuthority } from '../support/certificate.ts';
import { exitOf, ROOT, runCli, runShell, writeLonelyConfig } from '../support/cli.ts';
import { freePort } from '../support/sockets.ts';
import { SECRET, until } from '../support/stack.ts';

const MAIN = join(ROOT, 'dist', 'cli', 'main.js');

let folder: string;
let options: { cwd: string; env: Record<string, string> };
let servers: Server[] = [];
let started: ChildProcess[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-output-'));
  options = { cwd: folder, env: { PGJOT_MAIN_SECRET: SECRET } };
});
afterEach(async () => {
  for (const child of started) {
    child.kill('SIGKILL');
    await exitOf(child);
  }
  for (const server of servers) server.close();
  [started, servers] = [[], []];
  rmSync(folder, { recursive: true, force: true });
});

const takenPort = async () => {
  const server = createServer();
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
};
const writeConfig = (settings: object = {}) => writeLonelyConfig(folder, settings);

describe.each([1, 2])('pgjot start with %i workers', (workers) => {
  const start = (stdout: number | 'pipe') => {
    const stdio: ['ignore', typeof stdout, 'pipe'] = ['ignore', stdout, 'pipe'];
    const env = { ...process.env, ...options.env };
    const args = [MAIN, 'start', '--workers', String(workers)];
    const child = spawn(process.execPath, args, { cwd: folder, env, stdio });
    started.push(child);
    let stderr = '';
    child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    return { child, lines: () => stderr.split('\n').filter((line) => line !== '') };
  };
  /** Once it says so itself; its log cannot be asked. */
  const listening = async (port: number) =>
    until(
      () =>
        fetch(`http://127.0.0.1:${port}/`).then(
          () => true,
          () => false,
        ),
      30_000,
    );

  it('on a disk that is full says so once, serves, and ends with 0 when it is told to', async () => {
    const port = await freePort();
    writeConfig({ admin: { port } });
    const full = openSync('/dev/full', 'w');
    const { child, lines } = start(full);
    closeSync(full);
    await listening(port);
    await until(() => lines().length > 0, 30_000);

    const reload = await fetch(`http://127.0.0.1:${port}/reload`, { method: 'POST' });
    child.kill('SIGTERM');

    expect(reload.status).toBe(204);
    expect(await exitOf(child)).toBe(0);
    const own = lines().filter((line) => !line.includes('worker'));
    expect(own).toEqual([
      'pgjot: the log cannot be written (ENOSPC): its lines wait, up to 16 MiB',
    ]);
  }, 90_000);

  it('whose log nobody reads any more says so once, serves, and ends with 0', async () => {
    const port = await freePort();
    writeConfig({ admin: { port } });
    const { child, lines } = start('pipe');
    await listening(port);
    child.stdout?.destroy();
    const reload = await fetch(`http://127.0.0.1:${port}/reload`, { method: 'POST' });
    await until(() => lines().length > 0, 30_000);

    const again = await fetch(`http://127.0.0.1:${port}/reload`, { method: 'POST' });
    child.kill('SIGTERM');

    expect([reload.status, again.status]).toEqual([204, 204]);
    expect(await exitOf(child)).toBe(0);
    const own = lines().filter((line) => !line.includes('worker'));
    expect(own).toEqual(['pgjot: the log cannot be written (EPIPE): nobody reads it any more']);
  }, 90_000);

  it('loses no line when the disk has room again', async () => {
    const port = await freePort();
    writeConfig({ admin: { port } });
    // A file that may not grow, and then may: a file system of one's own would take root.
    const file = join(folder, 'log');
    const command = `exec 3>&2; ulimit -S -f 0; trap '' XFSZ; exec node '${MAIN}' start --workers ${workers} > '${file}' 2>&3`;
    const child = spawn('/bin/sh', ['-c', command], {
      cwd: folder,
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    started.push(child);
    let stderr = '';
    child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    await listening(port);
    await until(() => stderr.includes('pgjot: the log cannot be written (EFBIG)'), 30_000);

    const all = `${child.pid} $(pgrep -P ${child.pid})`;
    await runShell(`for one in ${all}; do prlimit --pid $one --fsize=unlimited; done`, options);
    await until(() => stderr.includes('pgjot: the log is written again; lines lost: 0'), 30_000);
    child.kill('SIGTERM');

    expect(await exitOf(child)).toBe(0);
    expect(readFileSync(file, 'utf8')).toContain('"event":"listening"');
  }, 90_000);

  it.each<[string, () => Promise<object>, number, RegExp]>([
    [
      'the port is taken',
      async () => ({ listen: { port: await takenPort() } }),
      1,
      /^pgjot: port \d+ on 127\.0\.0\.1 is taken\n$/,
    ],
    [
      'the port of the administrators’ endpoint is taken',
      async () => ({ admin: { port: await takenPort() } }),
      1,
      /^pgjot: port \d+ on 127\.0\.0\.1 is taken\n$/,
    ],
    [
      'a key cannot be read',
      async () => {
        const { cert } = createAuthority().issue();
        writeFileSync(join(folder, 'a.crt'), cert);
        return { listen: { port: 0, tls: { certFile: 'a.crt', keyFile: 'none.key' } } };
      },
      78,
      /^pgjot: listen\.tls\.keyFile: \S+none\.key cannot be read \(ENOENT\)\n$/,
    ],
    [
      'the configuration is wrong',
      async () => ({ limits: { maxClients: 'many' } }),
      78,
      /^pgjot: limits\.maxClients: [^\n]+\n$/,
    ],
  ])(
    'ends when %s, in one line',
    async (_, settings, status, line) => {
      writeConfig(await settings());

      const result = await runCli(['start', '--workers', String(workers)], options);

      expect(result).toMatchObject({ status, stderr: expect.stringMatching(line) as string });
    },
    60_000,
  );
});

describe('a command whose output cannot be written', () => {
  it('says so and ends with 1', async () => {
    const result = await runShell(`node '${MAIN}' --help > /dev/full`, options);

    expect(result).toMatchObject({
      status: 1,
      stderr: 'pgjot: standard output cannot be written (ENOSPC)\n',
    });
  });

  it('is silent where nobody reads on', async () => {
    const result = await runShell(`node '${MAIN}' --help | true`, options);

    expect(result).toMatchObject({ status: 0, stderr: '' });
  });
});
