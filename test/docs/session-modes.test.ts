/** The page on session modes: its blocks, each in the setting that it speaks of, and what it says of standbys and of the extension. */
import { createHmac } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import { createProxy, parseConfig, type ConfigInput } from '../../src/proxy.ts';
import { deriveIdentityKey, derivePassword } from '../../src/session-sql/credentials.ts';
import { install } from '../../src/session-sql/install.ts';
import { lacksCommands, run, versionOf } from '../clients/command.ts';
import { createAuthority } from '../support/certificate.ts';
import { hasExtension, postgresVersions, withSuperuser } from '../support/postgres.ts';
import { recordedLogger } from '../support/logger.ts';
import { SECRET, startStack, type Stack } from '../support/stack.ts';
import { startStandby } from '../support/standby.ts';
import { readDocument } from './document.ts';
import { startSite } from './site.ts';
import { transcript } from './terminal.ts';

// Most of these start servers, standbys and commands.
vi.setConfig({ testTimeout: 60_000 });

const blocks = readDocument('session-modes.md');

function block(language: string, remark = '') {
  const found = blocks.filter((one) => one.language === language && one.remark === remark);
  if (found.length !== 1) throw new Error(`${found.length} blocks of ${language} ${remark}`);
  return (found[0] as (typeof blocks)[number]).code;
}

it('has the blocks that are tried below, and no other', () => {
  expect(blocks.map(({ language, remark }) => `${language} ${remark}`.trim())).toEqual([
    'json',
    'sh',
    'sh pg_dump',
    'sql',
    'sql from portable',
    'conf pg_hba.conf',
    'conf pg_hba.conf with a certificate',
    'conf pg_ident.conf',
  ]);
});

/** Starts a proxy, signs `sub` in to `database` of it, and runs one query. */
async function askThrough(
  stack: Stack,
  config: ConfigInput,
  database: string,
  sql: string,
): Promise<unknown[]> {
  const proxy = createProxy(parseConfig(config), { logger: recordedLogger() });
  onTestFinished(() => proxy.close());
  const { port } = await proxy.start();
  const client = new pg.Client({ ...stack.as('alice'), port, database });
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

describe('replica', () => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startStack({ session: 'replica' });
  }, 60_000);
  afterAll(() => stack?.close());

  /** The document's configuration, with this test's servers in the place of its hosts. */
  function configuration(): ConfigInput {
    const written = JSON.parse(block('json')) as ConfigInput;
    const { secret } = stack.config.upstreams['main'] as ConfigInput['upstreams'][string];
    const ports: Record<string, number> = {
      'db.internal': stack.primary.port,
      'standby.internal': stack.postgres.port,
    };
    const upstreams = Object.entries(written.upstreams).map(([id, one]) => [
      id,
      {
        ...one,
        host: '127.0.0.1',
        port: ports[one.host],
        secret,
        roles: { authenticated: { slots: 20 } },
      },
    ]);
    return { ...stack.config, ...written, upstreams: Object.fromEntries(upstreams) };
  }

  it.each([
    ['app', false],
    ['app_read', true],
  ])('serves %s from the right server', async (database, recovering) => {
    const sql =
      'select pg_is_in_recovery() as recovering, count(*)::int, auth.user_id() from todos';

    const rows = await askThrough(stack, configuration(), database, sql);

    expect(rows).toEqual([{ recovering, count: 3, user_id: 'alice' }]);
  });

  it('is set up by the command for the primary, and not by one for the standby', async () => {
    await using site = await startSite();
    const { upstreams } = JSON.parse(block('json')) as ConfigInput;
    const { session } = upstreams['reader'] as ConfigInput['upstreams'][string];
    await site.configure({ upstreams: { reader: { ...site.main(), session } } });

    const onPrimary = await site.shell(block('sh'));
    const onStandby = await site.shell(block('sh').replace('main', 'reader'));

    expect(onPrimary).toMatchObject({ status: 0, stderr: '' });
    expect(onStandby).toMatchObject({
      status: 64,
      stderr:
        'pgjot: "reader" is a standby: what it has comes from its primary, so run setup for that\n',
    });
    const admin = await site.as('superuser');
    const { rows } = await admin.query('select count(*)::int as keys from pgjot.identity_key');
    expect(rows).toEqual([{ keys: 1 }]);
  });

  it('tells sessions of a promotion, and needs another configuration for new ones', async () => {
    const client = await stack.connect('alice');
    onTestFinished(() => client.end());
    await stack.primary.stop();
    await stack.standby?.promote();

    await expect(client.query('select * from todos')).rejects.toMatchObject({
      code: '55000',
      message: 'pgjot: this server is no standby any more, and the session has no identity',
    });
    await expect(stack.connect('alice')).rejects.toMatchObject({ code: '42501' });
    await stack.logged(({ cause }) =>
      JSON.stringify(cause ?? '').includes('the server is no standby'),
    );

    const { main } = stack.config.upstreams;
    const promoted = { main: { ...main, session: 'portable' } } as ConfigInput['upstreams'];
    const config = { ...stack.config, upstreams: promoted };
    const rows = await askThrough(stack, config, 'app', 'select count(*)::int from todos');
    expect(rows).toEqual([{ count: 3 }]);
  });
});

const NEWEST = postgresVersions()[0] as number;
const extended = postgresVersions().find((version) => hasExtension(version, 'pg_session_jwt'));
if (extended === undefined) {
  console.log(
    'skipped the extension in docs/session-modes.md: no PostgreSQL here has pg_session_jwt',
  );
}

describe('a fresh token in a session', () => {
  it.each([
    ['portable', 'taken', NEWEST],
    ['replica', 'reconnect', NEWEST],
    ...(extended === undefined ? [] : [['pg_session_jwt', 'reconnect', extended] as const]),
  ] as const)('in mode %s: %s', async (session, answer, version) => {
    await using stack = await startStack({ session, version });
    const client = await stack.connect('alice');

    const token = await stack.token('alice', { plan: 'pro' });
    const said = await client.query(`set pgjot.token = '${token}'`).then(
      () => 'taken',
      (error: Error) => error.message,
    );
    const { rows } = await client.query("select auth.session() ->> 'plan' as plan");
    await client.end();

    expect(said).toContain(answer);
    expect(rows).toEqual([{ plan: answer === 'taken' ? 'pro' : null }]);
  });
});

describe('a rotated secret', () => {
  it.each([
    ['replica', null, 0],
    ['portable', 'alice', 3],
  ] as const)('leaves sessions in mode %s to %s', async (session, user_id, count) => {
    await using stack = await startStack({
      session,
      slots: 2,
      upstream: { acquireTimeoutMs: 1_000 },
    });
    const client = await stack.connect('alice');

    await withSuperuser(
      stack.primary,
      (admin) =>
        install(admin, {
          secret: `${SECRET}, the next`,
          roles: { authenticated: { slots: 2 } },
          replicas: session === 'replica',
        }),
      'app',
    );
    await stack.standby?.caughtUp();
    const { rows } = await client.query('select auth.user_id(), count(*)::int from todos');
    const login = await stack.connect('alice').catch((error: pg.DatabaseError) => error.code);
    await client.end();

    expect(rows).toEqual([{ user_id, count }]);
    expect(login).toBe('08004');
  });
});

const dumped = postgresVersions().find((version) => version <= (versionOf('pg_dump') ?? 0));
const noDump = lacksCommands('dumps of the identity key', 'pg_dump');
if (!noDump && dumped === undefined)
  console.log('skipped dumps: pg_dump is older than every server here');

describe.skipIf(noDump || dumped === undefined)('a dump', () => {
  it('holds the key, unless that is left out', async () => {
    await using stack = await startStack({
      session: 'replica',
      ...(dumped !== undefined && { version: dumped }),
    });
    const { host, port, user, password } = stack.primary.superuser;
    const environment = { PGHOST: host, PGPORT: String(port), PGUSER: user, PGPASSWORD: password };
    const [command = '', ...options] = block('sh', 'pg_dump').trim().split(' ');
    const without = await run(command, options, environment);
    const whole = await run(command, options.slice(-1), environment);

    const { rows } = await withSuperuser(
      stack.primary,
      (admin) => admin.query("select encode(inner_block, 'hex') as key from pgjot.identity_key"),
      'app',
    );
    const [{ key }] = rows as [{ key: string }];
    expect(whole.stdout).toContain(key);
    expect(without).toMatchObject({ code: 0, stderr: '' });
    expect(without.stdout).not.toContain(key);
    expect(without.stdout).toContain('CREATE TABLE pgjot.identity_key');
  });
});

describe('the identity key', () => {
  it('lets whoever has it sign any identity for a session on the standby', async () => {
    await using stack = await startStack({ session: 'replica' });
    const client = await stack.connect('mallory');
    const { rows } = await client.query<{ slot: string; port: number }>(
      'select session_user::text as slot, inet_client_port() as port',
    );
    const now = Date.now();
    const about = { db: 'app', ...rows[0], iat: now, exp: now + 60_000, claims: { sub: 'alice' } };
    const signed = Buffer.from(JSON.stringify(about)).toString('base64');
    const sign = (key: Buffer) => createHmac('sha256', key).update(signed).digest('base64');
    const becoming = async (key: Buffer) => {
      await client.query(`set pgjot.identity = '${signed}.${sign(key)}'`);
      const { rows: who } = await client.query('select auth.user_id()');
      return who;
    };

    const guessed = await becoming(deriveIdentityKey('another secret of at least 32 characters'));
    const stolen = await becoming(deriveIdentityKey(SECRET));
    await client.end();

    expect(guessed).toEqual([{ user_id: null }]);
    expect(stolen).toEqual([{ user_id: 'alice' }]);
  });
});

describe.skipIf(extended === undefined)('pg_session_jwt', () => {
  const version = extended === undefined ? {} : { version: extended };

  it('takes a superuser once, and after that the administrator', async () => {
    await using site = await startSite(version);
    await site.configure({ upstreams: { main: { session: 'pg_session_jwt' } } });
    const superuser = await site.as('superuser');

    const before = await site.shell('pgjot setup main');
    await superuser.query(block('sql'));
    const after = await site.shell('pgjot setup main');
    const alice = await site.as('alice');
    const { rows } = await alice.query('select auth.user_id(), pgjot.user_id() as own');

    expect(before.status).toBe(1);
    expect(before.stderr).toContain('may not let clients use schema "auth" of the extension');
    expect(after).toMatchObject({ status: 0, stderr: '' });
    expect(rows).toEqual([{ user_id: 'alice', own: 'alice' }]);
  });

  it('follows portable once no policy names what goes', async () => {
    await using site = await startSite(version);
    await site.shell('pgjot setup main');
    await site.configure({ upstreams: { main: { session: 'pg_session_jwt' } } });
    const admin = await site.as('admin');
    const superuser = await site.as('superuser');
    await admin.query(
      'create table t (u text); create policy p on t using (u = (select auth.user_id()))',
    );
    const change = () => transcript(superuser, block('sql', 'from portable'));

    const refused = await change();
    await admin.query('alter policy p on t using (u = (select pgjot.user_id()))');
    const changed = await change();
    const setUp = await site.shell('pgjot setup main');
    const alice = await site.as('alice');
    const { rows } = await alice.query('select auth.user_id(), pgjot.user_id() as own');

    expect(refused).toContain('policy p on table t depends on function auth.user_id()');
    expect(changed).toBe('');
    expect(setUp).toMatchObject({ status: 0, stderr: '' });
    expect(rows).toEqual([{ user_id: 'alice', own: 'alice' }]);
  });

  it('serves a standby too', async () => {
    await using stack = await startStack({ session: 'pg_session_jwt', ...version });
    await using standby = await startStandby(stack.primary);
    const { main } = stack.config.upstreams;
    const upstreams = { main: { ...main, port: standby.port } } as ConfigInput['upstreams'];

    const sql =
      'select pg_is_in_recovery() as recovering, count(*)::int, auth.user_id() from todos';
    const rows = await askThrough(stack, { ...stack.config, upstreams }, 'app', sql);

    expect(rows).toEqual([{ recovering: true, count: 3, user_id: 'alice' }]);
  });

  it('believes whoever logs in as a slot past the proxy', async () => {
    await using stack = await startStack({ session: 'pg_session_jwt', ...version });
    const client = new pg.Client({ ...stack.admin, ...slotOf('authenticated') });
    await client.connect();

    await client.query(`set request.jwt.claims = '{"sub": "alice"}'`);
    const { rows } = await client.query('select auth.user_id(), pgjot.user_id() as own');
    await client.end();

    expect(rows).toEqual([{ user_id: 'alice', own: null }]);
  });
});

const slotOf = (role: string) => ({
  user: `pgjot_${role}_1`,
  password: derivePassword(SECRET, `pgjot_${role}_1`),
});

describe('pg_hba.conf', () => {
  /** What the tests' servers have, for everybody else. */
  const REST = '\nhost all all all scram-sha-256\n';

  it('lets slots in from the proxy alone', async () => {
    const rules = block('conf', 'pg_hba.conf').replaceAll('10.0.0.5', '127.0.0.1');
    await using stack = await startStack({
      upstreamTls: true,
      files: { 'pg_hba.conf': rules + REST },
    });
    const from = (localAddress: string) =>
      new pg.Client({
        ...stack.admin,
        ...slotOf('authenticated'),
        ssl: { ca: stack.authority.ca },
        stream: () => elsewhere(stack.postgres.port, localAddress),
      });

    const client = await stack.connect('alice');
    const { rows } = await client.query('select count(*)::int from todos');
    await client.end();
    expect(rows).toEqual([{ count: 3 }]);

    const near = from('127.0.0.1');
    await near.connect();
    const { rows: nobody } = await near.query('select auth.user_id()');
    await near.end();
    expect(nobody).toEqual([{ user_id: null }]);

    if (process.platform !== 'linux') return console.log('skipped: 127.0.0.2 is of Linux alone');
    await expect(from('127.0.0.2').connect()).rejects.toMatchObject({
      code: '28000',
      message: expect.stringContaining('pg_hba.conf rejects connection'),
    });
  });

  it('lets slots in with the certificate alone, whatever their password', async () => {
    const authority = createAuthority();
    await using stack = await startStack({
      upstreamTls: true,
      settings: { ssl_ca_file: 'clients.crt' },
      files: {
        'pg_hba.conf': block('conf', 'pg_hba.conf with a certificate') + REST,
        'pg_ident.conf': `${block('conf', 'pg_ident.conf')}\n`,
        'clients.crt': authority.ca,
      },
    });
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-certificate-'));
    onTestFinished(() => rm(folder, { recursive: true, force: true }));
    const [certFile, keyFile] = [join(folder, 'pgjot.crt'), join(folder, 'pgjot.key')];
    const { cert, key } = authority.issue(['pgjot']);
    await writeFile(certFile, cert);
    await writeFile(keyFile, key, { mode: 0o600 });
    const { main } = stack.config.upstreams;
    const tls = { ...main?.tls, certFile, keyFile };
    const config = { ...stack.config, upstreams: { main: { ...main, tls } } } as ConfigInput;

    const rows = await askThrough(stack, config, 'app', 'select count(*)::int from todos');
    const slot = new pg.Client({
      ...stack.admin,
      ...slotOf('authenticated'),
      ssl: { ca: stack.authority.ca },
    });

    expect(rows).toEqual([{ count: 3 }]);
    await expect(slot.connect()).rejects.toMatchObject({
      code: '28000',
      message: 'connection requires a valid client certificate',
    });
  });
});

/** A socket from another address of this machine, to connect when `pg` says so. */
function elsewhere(port: number, localAddress: string) {
  const socket = connect({ host: '127.0.0.1', port, localAddress });
  // pg connects by itself; this one is connected already.
  return Object.assign(socket, { connect: () => socket });
}
