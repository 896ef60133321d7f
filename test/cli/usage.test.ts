import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodeJwt, decodeProtectedHeader } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createIssuer } from '../../src/cli/dev/mint.ts';
import { createStateFolder, stateOf } from '../../src/cli/dev/state.ts';
import { runCli, type CliOptions } from '../support/cli.ts';

let folder: string;
/** A folder in which `pgjot dev` has run before. */
let here: CliOptions;
/** One in which it has not. */
let elsewhere: CliOptions;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-usage-'));
  here = { cwd: folder };
  elsewhere = { cwd: tmpdir() };
  const state = stateOf(folder);
  await createStateFolder(state);
  await createIssuer(state, 6433);
});

afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe('pgjot', () => {
  it.each([
    ['no command', []],
    ['an unknown command', ['nope']],
    ['a name that every object has', ['constructor']],
    ['an unknown option', ['check', '--nope']],
    ['a missing argument', ['sql']],
    ['too many arguments', ['start', 'here']],
    ['a missing required option', ['token']],
    ['a claim without a value', ['token', '--sub', 'a', '--claim', 'role']],
    ['a duration without a unit', ['token', '--sub', 'a', '--expires', '60']],
    ['a port that is none', ['dev', '--port', '65536']],
    ['sql by nobody', ['sql', 'select 1', '--config', 'none']],
  ])('refuses %s with status 64 or 78 and nothing on standard output', async (_, args) => {
    const { status, stdout, stderr } = await runCli(args, here);

    expect([64, 78]).toContain(status);
    expect(stdout).toBe('');
    expect(stderr).not.toBe('');
    expect(stderr).not.toContain('    at ');
  });

  it('words its own refusals and those of the option parser alike, in one line', async () => {
    const { stderr } = await runCli(['check', '--nope'], here);

    expect(stderr).toBe("pgjot: unknown option '--nope'\n");
  });

  it('has help for every command, on standard output', async () => {
    const all = await runCli(['--help'], here);
    const names = [...all.stdout.matchAll(/^ {2}([\w-]+) .*$/gm)].map(([, name]) => name ?? '');
    const commands = names.filter((name) => name !== 'help');
    const helps = await Promise.all(commands.map((name) => runCli([name, '--help'], here)));

    expect(commands.join(' ')).toBe(
      'dev start check setup doctor explain provider rotate-secret issuer token sql',
    );
    expect(all.stdout).toContain('Exit status:');
    for (const help of helps) {
      expect(help.status).toBe(0);
      expect(help.stdout).toMatch(/^Usage: pgjot/);
    }
  });

  it('knows its version', async () => {
    expect((await runCli(['--version'], here)).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});

describe('pgjot token', () => {
  it('prints a token alone, good for an hour', async () => {
    const { status, stdout, stderr } = await runCli(['token', '--sub', 'alice'], here);
    const claims = decodeJwt(stdout.trim());

    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^[\w-]+\.[\w-]+\.[\w-]+\n$/);
    expect(decodeProtectedHeader(stdout.trim())).toMatchObject({ alg: 'ES256', typ: 'JWT' });
    expect(claims).toMatchObject({
      iss: 'http://127.0.0.1:6433',
      aud: 'pgjot-dev',
      sub: 'alice',
    });
    expect((claims.exp ?? 0) - (claims.iat ?? 0)).toBe(3600);
  });

  it('takes further claims, as JSON where they are JSON, and they win', async () => {
    const args = ['token', '--sub', 'alice'];
    const claims = ['org=acme', 'admin=true', 'a={"b":[1]}', 'url=x=y', 'aud=other', 'empty='];

    const { stdout } = await runCli([...args, ...claims.flatMap((one) => ['--claim', one])], here);

    expect(decodeJwt(stdout.trim())).toMatchObject({
      org: 'acme',
      admin: true,
      a: { b: [1] },
      url: 'x=y',
      aud: 'other',
      empty: '',
    });
  });

  it.each([
    ['90s', 90],
    ['15m', 900],
    ['2h', 7200],
    ['7d', 604_800],
    ['-1m', -60],
  ])('expires after %s', async (duration, seconds) => {
    const { stdout } = await runCli(['token', '--sub', 'a', '--expires', duration], here);
    const { exp = 0, iat = 0 } = decodeJwt(stdout.trim());

    expect(exp - iat).toBe(seconds);
  });

  it('says to run pgjot dev first where that has never run', async () => {
    const result = await runCli(['token', '--sub', 'alice'], elsewhere);

    expect(result).toEqual({
      status: 69,
      stdout: '',
      stderr: 'pgjot: no development issuer here: run "pgjot dev" first\n',
    });
  });
});

describe('pgjot sql', () => {
  it('says to run pgjot dev first where that has never run', async () => {
    const result = await runCli(['sql', '--sub', 'alice', 'select 1'], elsewhere);

    expect(result.status).toBe(69);
    expect(result.stderr).toMatch(/^pgjot: [^\n]*run "pgjot dev" first\n$/);
  });
});
