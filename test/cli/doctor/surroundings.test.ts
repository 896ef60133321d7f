/** What is around the database: the way to it, its server, the files of the proxy. */
import { execFileSync } from 'node:child_process';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import {
  clockFindings,
  configuredTls,
  poolerFindings,
  tlsInUse,
} from '../../../src/cli/doctor/connection.ts';
import { fileFindings } from '../../../src/cli/doctor/files.ts';
import type { Finding } from '../../../src/cli/doctor/finding.ts';
import { versionFindings } from '../../../src/cli/doctor/server.ts';
import { parseConfig, type Config, type UpstreamConfig } from '../../../src/config.ts';
import { install, SESSION_SQL_VERSION } from '../../../src/session-sql/install.ts';
import { ROLES, SECRET, serious, Ward } from './ward.ts';

const codes = (findings: readonly Finding[]) =>
  findings.map(({ severity, code, object }) => [severity, code, object]);

describe('the version of the server', () => {
  it.each([
    [130_023, 'critical', 'server_unsupported'],
    [140_018, 'critical', 'server_outdated'],
    [140_019, 'warning', 'server_outdated'],
    [150_017, 'warning', 'server_outdated'],
    [160_009, 'critical', 'server_outdated'],
    [170_009, 'warning', 'server_outdated'],
    [180_003, 'warning', 'server_outdated'],
  ])('%i is found to be %s', (version, severity, code) => {
    expect(codes(versionFindings(version))).toEqual([[severity, code, 'server']]);
  });

  it.each([140_023, 150_018, 160_014, 170_010, 180_004, 180_011, 190_000])('%i is fine', (one) => {
    expect(versionFindings(one)).toEqual([]);
  });
});

describe('the way to the database', () => {
  const here = { processId: 7, backends: [7, 7], encrypted: false, skewMs: 0 };

  it('must lead to the backend that logged in', () => {
    expect(poolerFindings('x', here, 'critical')).toEqual([]);
    for (const backends of [
      [8, 8],
      [7, 8],
    ]) {
      expect(codes(poolerFindings('x', { ...here, backends }, 'critical'))).toEqual([
        ['critical', 'pooler', 'x'],
      ]);
    }
  });

  it.each([0, 5_000, -5_000])('may be %i ms apart', (skewMs) => {
    expect(clockFindings({ skewMs })).toEqual([]);
  });

  it.each([
    [5_001, 'ahead of'],
    [-90_000, 'behind'],
  ])('may not be %i ms apart', (skewMs, word) => {
    const [finding] = clockFindings({ skewMs });

    expect(finding).toMatchObject({ severity: 'warning', code: 'clock_skew' });
    expect(finding?.reason).toContain(word);
  });

  it('must be encrypted beyond this machine', () => {
    expect(tlsInUse('x', '127.0.0.1', here)).toEqual([]);
    expect(tlsInUse('x', '/run/postgresql', here)).toEqual([]);
    expect(tlsInUse('x', 'db.internal', { encrypted: true })).toEqual([]);
    expect(codes(tlsInUse('x', 'db.internal', here))).toEqual([['warning', 'tls_unused', 'x']]);
  });
});

describe('one look at a real server', () => {
  let ward: Ward;
  beforeAll(async () => {
    ward = await Ward.healthy('admin');
  });
  afterAll(() => ward[Symbol.asyncDispose]());

  it('notices another clock', async () => {
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 60_000 });
    try {
      expect(codes(serious(await ward.examine('admin')))).toEqual([
        ['warning', 'clock_skew', 'server'],
      ]);
    } finally {
      vi.useRealTimers();
    }
  });

  it('notices a pooler that hands out backends of its own', async () => {
    await using pooler = await rekeyingRelay(ward.database.server.port);

    const findings = await ward.examine('admin', { config: ward.config({ port: pooler.port }) });

    expect(codes(serious(findings))).toEqual([['critical', 'pooler', 'the control connection']]);
  });

  it('notices that the configuration leads to another server', async () => {
    await using other = await Ward.bare();
    await install(other.admin, { secret: SECRET, roles: ROLES });

    const { port } = other.database.server;
    const findings = await ward.examine('admin', { config: ward.config({ port }) });

    expect(codes(serious(findings))).toEqual([
      ['critical', 'other_server', 'the control connection'],
    ]);
  });

  it('notices a secret that is not the one that setup was given, and setup mends it', async () => {
    const secret = 'another secret of thirty-two chars';
    const [finding, ...more] = serious(await ward.examine('admin', { secret }));

    expect(more).toEqual([]);
    expect(finding).toMatchObject({ severity: 'critical', code: 'control_login' });
    expect(finding?.mend.shell).toMatch(/^pgjot setup main --config /);
    expect(JSON.stringify(finding)).not.toContain(secret);
    await install(ward.admin, { secret, roles: ROLES });
    expect(serious(await ward.examine('admin', { secret }))).toEqual([]);
    await ward.setup('admin');
  });

  it('notices a port at which nobody answers', async () => {
    const closed = await rekeyingRelay(1);
    await closed[Symbol.asyncDispose]();

    const findings = serious(
      await ward.examine('admin', { config: ward.config({ port: closed.port }) }),
    );

    expect(codes(findings)).toEqual([['critical', 'control_login', 'the control connection']]);
    expect(findings[0]?.reason).toContain('ECONNREFUSED');
    expect(findings[0]?.mend.manual).toBeDefined();
  });

  it('notices a role of the configuration that is not there, and setup makes it', async () => {
    const roles = { ...ROLES, auditor: { slots: 1 } };
    const examine = () => ward.examine('admin', { config: ward.config({ roles }) });

    expect(codes(serious(await examine()))).toEqual([
      ['critical', 'group_missing', 'role auditor'],
    ]);
    await ward.setup('admin', { roles });
    expect(serious(await examine())).toEqual([]);
    await ward.setup('admin');
  });

  it('notices more slots than max_connections has room for', async () => {
    await using small = await Ward.bare({ settings: { max_connections: '20' } });
    const roles = { authenticated: { slots: 12 } };
    await small.setup('admin', { roles });
    await small.superuser.query('revoke create on schema public from public');
    const found = serious(await small.examine('superuser', { config: small.config({ roles }) }));

    expect(codes(found)).toEqual([['warning', 'max_connections', 'server']]);
    expect(found[0]?.mend.sql).toBe('alter system set max_connections = 23;');
    expect(
      serious(
        await small.examine('superuser', {
          config: small.config({ roles: { authenticated: { slots: 9 } } }),
        }),
      ).map(({ code }) => code),
    ).not.toContain('max_connections');
  });

  it('notices that clients can prepare transactions, which are then their whole role’s', async () => {
    await using lax = await Ward.bare({ settings: { max_prepared_transactions: '2' } });
    await lax.setup('admin');
    await lax.superuser.query('revoke create on schema public from public');
    const found = serious(await lax.examine('superuser'));

    expect(codes(found)).toEqual([['warning', 'prepared_transactions', 'server']]);
    expect(found[0]?.mend.sql).toBe('alter system set max_prepared_transactions = 0;');
  });

  it('notices what pg_hba.conf lets in, where it may look', async () => {
    const file = join(ward.database.server.dataDir, 'pg_hba.conf');
    const before = await readFile(file, 'utf8');
    await writeFile(
      file,
      [
        'host all all 127.0.0.1/32 scram-sha-256',
        'host app +authenticated 10.0.0.0/8 trust',
        'host app pgjot_control 10.0.0.1/32 trust',
        'host app somebody_else 10.0.0.1/32 trust',
        'host other all 10.0.0.1/32 trust',
        'host all all 0.0.0.0/0 scram-sha-256',
        'host all all all scram-sha-256',
        'host all all all reject\n',
      ].join('\n'),
    );

    const asSuperuser = await ward.examine('superuser');
    const asAdmin = await ward.examine('admin');

    expect(codes(asSuperuser)).toEqual([
      ['critical', 'hba_trust', 'pg_hba.conf line 2'],
      ['critical', 'hba_trust', 'pg_hba.conf line 3'],
      ['advice', 'hba_open', 'pg_hba.conf line 6'],
      ['advice', 'hba_open', 'pg_hba.conf line 7'],
    ]);
    expect(codes(asAdmin)).toEqual([['advice', 'hba_unknown', 'pg_hba.conf']]);
    await writeFile(file, before);
    expect(await ward.examine('superuser')).toEqual([]);
  });

  it('notices a newer version, a guard that is gone, and that nothing is installed at all', async () => {
    await ward.superuser.query(
      `create or replace function pgjot.version() returns text language sql immutable parallel safe return '${SESSION_SQL_VERSION + 1}'`,
    );
    expect(codes(serious(await ward.examine('admin')))).toEqual([
      ['warning', 'version_newer', 'schema pgjot'],
    ]);
    await ward.superuser.query(
      `create or replace function pgjot.version() returns text language sql immutable parallel safe return '${SESSION_SQL_VERSION}'`,
    );

    await ward.superuser.query('drop table pgjot.drop_owned_guard');
    expect(codes(serious(await ward.examine('admin')))).toEqual([
      ['critical', 'drop_owned_guard', 'table pgjot.drop_owned_guard'],
    ]);
    await ward.setup('admin');
    expect(serious(await ward.examine('admin'))).toEqual([]);

    await using bare = await Ward.bare();
    await bare.superuser.query('revoke create on schema public from public');
    expect(codes(serious(await bare.examine('admin')))).toEqual([
      ['critical', 'control_login', 'the control connection'],
      ['critical', 'not_installed', 'schema pgjot'],
      ['critical', 'group_missing', 'role authenticated'],
      ['critical', 'group_missing', 'role analyst'],
    ]);
    await bare.setup('admin');
    expect(serious(await bare.examine('admin'))).toEqual([]);
  });

  it('runs nothing of a schema pgjot that somebody else made', async () => {
    await using bare = await Ward.bare();
    await bare.superuser.query(`
      create role trapper; create schema pgjot authorization trapper;
      create function pgjot.version() returns text language plpgsql as $$ begin raise 'sprung'; end $$;
      create schema trap; grant usage on schema trap to public;
      create function trap.spring(oid, oid) returns bool language plpgsql as $$ begin raise 'sprung'; end $$;
      create operator trap.= (leftarg = oid, rightarg = oid, function = trap.spring)`);
    await bare.superuser.query('set search_path = trap, pg_catalog');

    const found = codes(await bare.examine('superuser'));

    expect(found).toContainEqual(['critical', 'wrong_owner', 'schema pgjot']);
  });
});

describe('the configuration', () => {
  const tls = (host: string, mode?: 'disable' | 'require' | 'verify-ca' | 'verify-full') => {
    const input = wardless();
    const upstream = { ...input.upstreams.main, host, tls: mode === undefined ? {} : { mode } };
    const config = parseConfig({ ...input, upstreams: { main: upstream } });
    return codes(configuredTls('main', mainOf(config), config));
  };

  it('is to verify the certificate of a database on another machine', () => {
    const path = 'upstreams.main.tls.mode';

    expect(tls('127.0.0.1')).toEqual([]);
    expect(tls('db.internal')).toEqual([]);
    expect(tls('db.internal', 'disable')).toEqual([['critical', 'upstream_tls', path]]);
    expect(tls('db.internal', 'require')).toEqual([['warning', 'upstream_tls', path]]);
    expect(tls('db.internal', 'verify-ca')).toEqual([['advice', 'upstream_tls', path]]);
  });

  it('is not to take tokens in clear', () => {
    const listen = { host: '0.0.0.0', allowPlaintext: true, tls: { mode: 'allow' as const } };
    const config = parseConfig({ ...wardless(), listen });

    expect(codes(configuredTls('main', mainOf(config), config))).toEqual([
      ['warning', 'client_tls', 'listen.tls.mode'],
    ]);
  });

  it.each([
    [0o600, 0o600, []],
    [0o644, 0o600, [['advice', 'config_file_readable']]],
    [0o664, 0o600, [['critical', 'config_file_writable']]],
    [0o600, 0o640, [['warning', 'secret_file_mode']]],
    [0o600, 0o604, [['critical', 'secret_file_mode']]],
    [0o600, 0o620, [['critical', 'secret_file_mode']]],
  ])('of mode %o with a secret of mode %o', async (configMode, secretMode, expected) => {
    await using ward = await folderOnly();
    const secretFile = join(ward.folder, "it's a secret");
    const configFile = join(ward.folder, 'proxy.config.json');
    await writeFile(secretFile, SECRET);
    await writeFile(configFile, '{}');
    await chmod(secretFile, secretMode);
    await chmod(configFile, configMode);
    const config = parseConfig(wardless({ file: secretFile }));

    const found = fileFindings(configFile, config, mainOf(config));

    expect(found.map(({ severity, code }) => [severity, code])).toEqual(expected);
    for (const { mend } of found) execFileSync('/bin/sh', ['-c', mend.shell ?? 'false']);
    expect(fileFindings(configFile, config, mainOf(config))).toEqual([]);
  });
});

function mainOf(config: Config): UpstreamConfig {
  return config.upstreams['main'] as UpstreamConfig;
}

/** A configuration with an upstream that nobody connects to. */
function wardless(secret: { env: string } | { file: string } = { env: 'X' }) {
  return {
    providers: {
      own: {
        issuer: 'https://id.example.com',
        jwksFile: '/jwks.json',
        audience: 'app',
        roles: ['r'],
      },
    },
    upstreams: {
      main: { host: '127.0.0.1', database: 'app', secret, roles: { r: { slots: 1 } } },
    },
  };
}

async function folderOnly() {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-files-'));
  return {
    folder,
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  };
}

/** Passes everything on, but gives out cancel keys of its own, as every pooler does. */
async function rekeyingRelay(port: number) {
  const server: Server = createServer((client) => {
    const upstream = connect(port, '127.0.0.1');
    client.on('error', () => upstream.destroy()).pipe(upstream);
    upstream.on('error', () => client.destroy());
    upstream.on('data', (chunk: Buffer) => {
      // BackendKeyData of protocol 3.0: 'K', length 12, process id, secret key.
      const at = chunk.indexOf(Buffer.from([0x4b, 0, 0, 0, 12]));
      if (at !== -1) chunk.writeInt32BE(chunk.readInt32BE(at + 5) + 1, at + 5);
      client.write(chunk);
    });
    upstream.on('end', () => client.end());
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: () =>
      new Promise<void>((closed) => {
        server.close(() => closed());
      }),
  };
}
