/** `pgjot doctor` as its user sees it: words, JSON and exit status. */
import { rm } from 'node:fs/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { runCli, type CliOptions } from '../../support/cli.ts';
import { SECRET, Ward } from './ward.ts';

const PASSWORD = 'admin-password';

let ward: Ward;
let options: CliOptions;
beforeAll(async () => {
  ward = await Ward.healthy('admin');
});
afterAll(() => ward[Symbol.asyncDispose]());
beforeEach(async () => {
  await ward.configFile();
  const { host, port } = ward.database.server;
  const PGJOT_ADMIN_URL = `postgres://admin:${PASSWORD}@${host}:${port}/app`;
  options = { cwd: ward.folder, env: { PGJOT_MAIN_SECRET: SECRET, PGJOT_ADMIN_URL } };
});

const doctor = (...args: string[]) => runCli(['doctor', 'main', ...args], options);

describe('pgjot doctor', () => {
  it('exits with 0 where it has nothing but advice', async () => {
    expect(await doctor()).toEqual({
      status: 0,
      stdout: [
        'advice hba_unknown: pg_hba.conf',
        '  Only a superuser can look whether it lets slots and pgjot_control in from elsewhere than the proxy.',
        '    → run pgjot doctor as superuser, or look at the rules of the firewall',
        '',
        '0 critical, 0 warning, 1 advice\n',
      ].join('\n'),
      stderr: '',
    });
  });

  it('exits with 1 otherwise, and prints what can be pasted', async () => {
    await ward.admin.query('create table public.open ()');
    await ward.superuser.query('grant execute on function pgjot.sweep() to public');

    const { status, stdout } = await doctor();

    expect(status).toBe(1);
    expect(stdout).toContain(
      [
        'critical table_without_rls: table public.open',
        '  Every client reads or changes all of its rows.',
        '    alter table public.open enable row level security, force row level security;\n',
      ].join('\n'),
    );
    expect(stdout).toMatch(/\n2 critical, 0 warning, 1 advice\n$/);
    const pasted = stdout
      .split('\n')
      .filter((line) => /^ {4}[a-z]/.test(line))
      .join('\n');
    await ward.admin.query(pasted);
    expect((await doctor()).status).toBe(0);
  });

  it('prints JSON', async () => {
    await ward.admin.query('create table public.open_again ()');

    const { status, stdout } = await doctor('--json');

    expect(status).toBe(1);
    expect(JSON.parse(stdout)).toEqual({
      findings: [
        {
          severity: 'critical',
          code: 'table_without_rls',
          object: 'table public.open_again',
          reason: 'Every client reads or changes all of its rows.',
          mend: {
            sql: 'alter table public.open_again enable row level security, force row level security;',
          },
        },
        expect.objectContaining({ code: 'hba_unknown' }),
      ],
    });
    await ward.admin.query('drop table public.open_again');
  });

  it('spells control characters out, so that no name rewrites the terminal', async () => {
    await ward.admin.query('create table public."\u001b[2J\u202e" ()');

    const { stdout } = await doctor();

    expect(stdout).toContain(String.raw`table public."\x1B[2J\u202E"`);
    expect(stdout).not.toContain('\u001b');
    await ward.admin.query('drop table public."\u001b[2J\u202e"');
  });

  it.each([
    ['an upstream that is not configured', ['nope'], {}, 64, /"nope" is not an upstream/],
    ['no administrator', ['main'], { PGJOT_ADMIN_URL: '' }, 64, /set PGJOT_ADMIN_URL/],
    [
      'a server that does not answer',
      ['main'],
      { PGJOT_ADMIN_URL: `postgres://admin:${PASSWORD}@127.0.0.1:1/app` },
      69,
      /cannot connect with PGJOT_ADMIN_URL: /,
    ],
    ['no secret', ['main'], { PGJOT_MAIN_SECRET: '' }, 78, /upstreams\.main\.secret: /],
    ['no configuration', ['main', '--config', 'none.json'], {}, 78, /none\.json/],
  ])('refuses %s, in one line', async (_, args, env, status, message) => {
    const result = await runCli(['doctor', ...args], {
      ...options,
      env: { ...options.env, ...env },
    });

    expect(result).toMatchObject({ status, stdout: '' });
    expect(result.stderr).toMatch(/^pgjot: [^\n]*\n$/);
    expect(result.stderr).toMatch(message);
    expect(result.stderr).not.toContain(PASSWORD);
  });

  it('says the password in no output', async () => {
    await ward.admin.query(`alter role pgjot_authenticated_1 set work_mem = '1MB'`);
    const outputs = [await doctor(), await doctor('--json')];
    await ward.setup('admin');

    for (const { status, stdout, stderr } of outputs) {
      expect(status).toBe(1);
      expect(stdout + stderr).not.toContain(PASSWORD);
      expect(stdout + stderr).not.toContain(SECRET);
    }
    await rm(ward.folder, { recursive: true });
  });
});
