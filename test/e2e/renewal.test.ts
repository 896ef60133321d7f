/**
 * New tokens in the middle of a session, and what ends one: expiry by each policy, the longest lifetime, revocation, reload.
 *
 * Through real PostgreSQL, with node-postgres, postgres.js's protocol of prepared statements by hand, and psql where there is one.
 */
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

type Failing = pg.Client & { readonly failure: Promise<pg.DatabaseError> };

async function signIn(
  stack: Stack,
  sub: string,
  claims: Readonly<Record<string, unknown>> = {},
  expiresIn = 3_600,
): Promise<Failing> {
  const password = await stack.token(sub, claims, { expiresIn });
  const client = new pg.Client({ ...stack.as(sub), password });
  const failure = new Promise<pg.DatabaseError>((resolve) => {
    client.on('error', (error) => 'code' in error && resolve(error as pg.DatabaseError));
  });
  await client.connect();
  onTestFinished(() => client.end().catch(() => {}));
  return Object.assign(client, { failure });
}

const one = async (client: pg.Client, sql: string): Promise<unknown> => {
  const { rows } = await client.query<unknown[]>({ text: sql, rowMode: 'array' });
  return rows[0]?.[0];
};

describe('SET pgjot.token', () => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startStack({ provider: { clockToleranceMs: 0, roleClaim: '/role' } });
  });
  afterAll(() => stack?.close());

  const alice = (claims: object = {}, expiresIn = 3_600) =>
    signIn(stack, 'alice', { role: 'authenticated', ...claims }, expiresIn);
  const fresh = (sub: string, claims: object = {}, expiresIn = 3_600) =>
    stack.token(sub, { role: 'authenticated', ...claims }, { expiresIn });

  it('gives the session the new claims, and the life of the new token', async () => {
    const client = await alice({ plan: 'free' }, 2);
    await client.query("set pgjot.token = '" + (await fresh('alice', { plan: 'paid' })) + "'");

    expect(await one(client, "select auth.session() ->> 'plan'")).toBe('paid');
    await client.query('select pg_sleep(2.5)');

    expect(await one(client, 'select auth.user_id()')).toBe('alice');
    await stack.logged((line) => line['event'] === 'token_renewed' && line['subject'] === 'alice');
  });

  it('shortens the life of a session as well', async () => {
    const client = await alice();

    await client.query(`set pgjot.token to '${await fresh('alice', {}, 1)}'`);

    expect(await client.failure).toMatchObject({
      code: '57P01',
      message: 'terminating connection because the token expired',
    });
  });

  it('is a statement like others in the extended protocol, prepared under a name', async () => {
    const client = await alice({ plan: 'free' });
    const text = `SET pgjot.token = '${await fresh('alice', { plan: 'paid' })}'`;

    const { command } = await client.query({ name: 'renewal', text, values: [] });

    expect(command).toBe('SET');
    expect(await one(client, "select auth.session() ->> 'plan'")).toBe('paid');
  });

  it('works within a transaction, whose rollback does not bring the old claims back', async () => {
    const client = await alice({ plan: 'free' });
    await client.query('begin');
    await client.query(`SET pgjot.token = '${await fresh('alice', { plan: 'paid' })}'`);
    const within = await one(client, "select auth.session() ->> 'plan'");
    await client.query('rollback');

    expect(within).toBe('paid');
    expect(await one(client, "select auth.session() ->> 'plan'")).toBe('paid');
  });

  it.each<[string, () => Promise<string>, string]>([
    ['of another subject', () => fresh('bob'), 'it is for another user, role or database'],
    [
      'that does not grant the role',
      () => fresh('alice', { role: 'other' }),
      'it is for another user, role or database',
    ],
    ['that has expired', () => fresh('alice', {}, -1), 'it has expired'],
    ['that is no token', async () => 'x.y.z', 'its signature, issuer or claims are not good'],
    ['that is empty', async () => '', 'its signature, issuer or claims are not good'],
    [
      'that somebody else signed',
      async () => `${(await fresh('alice')).slice(0, -20)}${'A'.repeat(20)}`,
      'its signature, issuer or claims are not good',
    ],
  ])('refuses a token %s, and the session goes on as it was', async (_, token, why) => {
    const client = await alice({ plan: 'free' });

    await expect(client.query(`set pgjot.token = '${await token()}'`)).rejects.toMatchObject({
      severity: 'ERROR',
      code: '28P01',
      message: `the token was not accepted: ${why}`,
    });

    expect(await one(client, "select auth.session() ->> 'plan'")).toBe('free');
    expect(await one(client, 'select auth.user_id()')).toBe('alice');
  });

  it('of the token that the session has already is nothing new, and leaves no line in the log', async () => {
    const client = await signIn(stack, 'judy', { role: 'authenticated' });
    const token = await fresh('judy', { plan: 'paid' });
    const renewals = () => stack.logs.filter((line) => /token_renewed.*judy/.test(line)).length;

    for (let times = 0; times < 20; times++) await client.query(`SET pgjot.token = '${token}'`);

    expect(renewals()).toBe(1);
    expect(await one(client, "select auth.session() ->> 'plan'")).toBe('paid');
  });

  it('shows the token to nobody: neither to PostgreSQL nor to the log', async () => {
    const client = await alice();
    const token = await fresh('alice', { marked: 'marked-claim' });
    await client.query(`set pgjot.token = '${token}'`);
    await client
      .query(`set pgjot.token = '${await fresh('bob', { marked: 'marked-claim' })}'`)
      .catch(() => {});

    const seen = [
      await one(client, "select current_setting('pgjot.token', true)"),
      await one(client, 'select string_agg(query, $$ $$) from pg_stat_activity'),
      ...stack.logs,
    ].join('\n');
    expect(seen).not.toContain(token.split('.')[2]);
    expect(seen).not.toContain('eyJ');
    expect(seen).not.toContain('marked-claim');
  });
});

it('SET pgjot.token is refused in words where the session mode cannot', async () => {
  await using stack = await startStack({ session: 'replica' });
  const client = await signIn(stack, 'alice');

  const renewal = client.query(`set pgjot.token = '${await stack.token('alice')}'`);

  await expect(renewal).rejects.toMatchObject({
    code: '28P01',
    message: 'the token was not accepted: this session mode takes no new token: reconnect',
  });
  expect(await one(client, 'select auth.user_id()')).toBe('alice');
});

describe('a token that expires', () => {
  const LATE = 'terminating connection because the token expired';
  const policy = (sessions: object) => startStack({ provider: { clockToleranceMs: 0 }, sessions });

  it.each(['drain', 'terminate'] as const)('ends an idle session: %s', async (onTokenExpiry) => {
    await using stack = await policy({ onTokenExpiry });
    const client = await signIn(stack, 'alice', {}, 1);

    expect(await client.failure).toMatchObject({
      severity: 'FATAL',
      code: '57P01',
      message: LATE,
      hint: 'Reconnect with a fresh token.',
    });
  });

  it('lets a transaction finish with its rows and writes where it drains', async () => {
    await using stack = await policy({ onTokenExpiry: 'drain', graceMs: 5_000 });
    const client = await signIn(stack, 'alice', {}, 1);
    await client.query('begin');
    await client.query('select pg_sleep(1.3)');
    await client.query("insert into todos (user_id, task) values ('alice', 'late')");
    const rows = await one(client, "select count(*)::int from todos where task = 'late'");
    await client.query('commit');

    expect(rows).toBe(1);
    expect(await client.failure).toMatchObject({ code: '57P01', message: LATE });
    const after = await signIn(stack, 'alice');
    expect(await one(after, "select count(*)::int from todos where task = 'late'")).toBe(1);
  });

  it('cuts a transaction, a query and a COPY off at once where it terminates', async () => {
    await using stack = await policy({ onTokenExpiry: 'terminate' });
    const sleeping = await signIn(stack, 'alice', {}, 1);
    const within = await signIn(stack, 'alice', {}, 1);
    await within.query('begin');
    const startedAt = Date.now();

    await expect(sleeping.query('select pg_sleep(20)')).rejects.toThrow(LATE);

    expect(await within.failure).toMatchObject({ code: '57P01', message: LATE });
    expect(Date.now() - startedAt).toBeLessThan(3_000);
    await until(() => stack.proxy.counts().clients === 0);
    const { rows } = await withAdmin(
      stack,
      "select count(*)::int from pg_stat_activity where query like '%pg_sleep(20)%' and pid <> pg_backend_pid()",
    );
    expect(rows).toEqual([{ count: 0 }]);
  });

  it('ends nothing where that is ignored, and the identity stays', async () => {
    await using stack = await policy({ onTokenExpiry: 'ignore' });
    const client = await signIn(stack, 'alice', {}, 1);

    await client.query('select pg_sleep(1.5)');

    expect(await one(client, 'select auth.user_id()')).toBe('alice');
  });

  it('is announced by a NOTICE, once, while the client is idle or reads a result', async () => {
    await using stack = await policy({ noticeMs: 1_000 });
    // Of two to three seconds, since tokens expire at whole ones: the NOTICE comes while the query runs.
    const client = await signIn(stack, 'alice', {}, 3);
    const notices: unknown[] = [];
    client.on('notice', ({ severity, message, hint }) => notices.push({ severity, message, hint }));
    const rows = client.query('select i, pg_sleep(0.01) from generate_series(1, 250) i');

    expect((await rows).rows).toHaveLength(250);
    expect(notices).toEqual([
      {
        severity: 'NOTICE',
        message: expect.stringMatching(/^the token expires in [12] s$/),
        hint: "Reconnect with a fresh token, or SET pgjot.token = '…'.",
      },
    ]);
  });

  it('cannot be renewed within the grace: the session is ending, and the client is told so', async () => {
    await using stack = await policy({ onTokenExpiry: 'drain', graceMs: 5_000 });
    const client = await signIn(stack, 'alice', {}, 1);
    await client.query('begin');
    await client.query('select pg_sleep(1.3)');

    await expect(
      client.query(`set pgjot.token = '${await stack.token('alice')}'`),
    ).rejects.toMatchObject({
      code: '28P01',
      message: 'the token was not accepted: it came too late: the session is ending',
    });

    await stack.logged(
      (line) => line['event'] === 'token_refused' && line['reason'] === 'session_expired',
    );
    await client.query('rollback');
    expect(await client.failure).toMatchObject({ code: '57P01', message: LATE });
  });

  it('does not end a session sooner for being far in the future', async () => {
    await using stack = await policy({});
    const client = await signIn(stack, 'alice', {}, 3_000_000_000);

    await client.query('select pg_sleep(0.2)');

    expect(await one(client, 'select auth.user_id()')).toBe('alice');
  });

  it('is not the only end: a session has a longest lifetime, which no new token prolongs', async () => {
    await using stack = await policy({ maxLifetimeMs: 1_000 });
    const client = await signIn(stack, 'alice');
    await client.query(`set pgjot.token = '${await stack.token('alice')}'`);

    expect(await client.failure).toMatchObject({
      code: '57P01',
      message: 'terminating connection because its longest lifetime is over',
    });
  });
});

async function withAdmin(stack: Stack, sql: string): Promise<pg.QueryResult> {
  const admin = new pg.Client(stack.admin);
  await admin.connect();
  try {
    return await admin.query(sql);
  } finally {
    await admin.end();
  }
}

describe('a revocation', () => {
  const REVOKED = 'terminating connection because its token is accepted no more';
  let folder: string;
  let file: string;
  let stack: Stack;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pgjot-revoked-'));
    file = join(folder, 'revoked.json');
    await writeFile(file, '[]');
    stack = await startStack({ revocations: { file }, admin: { port: 0 } });
  });
  afterAll(async () => {
    await stack?.close();
    await rm(folder, { recursive: true, force: true });
  });

  /** As editors and configuration management do it. */
  const write = async (entries: unknown) => {
    await writeFile(`${file}.new`, typeof entries === 'string' ? entries : JSON.stringify(entries));
    await rename(`${file}.new`, file);
  };
  const post = (path: string, body: string, headers: Record<string, string> = {}) =>
    fetch(`http://127.0.0.1:${stack.proxy.counts().adminPort}${path}`, {
      method: 'POST',
      body,
      headers: { 'content-type': 'application/json', ...headers },
    });

  it.each<[string, () => object]>([
    ['by jti', () => ({ jti: 'session-1' })],
    ['by subject', () => ({ sub: 'carol', iss: stack.issuer.issuer })],
    [
      'by when it was issued',
      () => ({ iss: stack.issuer.issuer, sub: 'carol', issuedBefore: Date.now() / 1000 + 5 }),
    ],
  ])('in the file ends live sessions within a second, and lets nobody in: %s', async (_, entry) => {
    const carol = await signIn(stack, 'carol', { jti: 'session-1' });
    const dave = await signIn(stack, 'dave', { jti: 'session-2' });
    const running = carol.query('select pg_sleep(30)').catch((error: Error) => error);

    const startedAt = performance.now();
    await write([entry()]);

    expect(await running).toMatchObject({ message: REVOKED, code: '57P01' });
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    await expect(signIn(stack, 'carol', { jti: 'session-1' })).rejects.toMatchObject({
      code: '28P01',
    });
    expect(await one(dave, 'select auth.user_id()')).toBe('dave');
    await write([]);
    await until(() =>
      signIn(stack, 'carol', { jti: 'session-1' }).then(
        () => true,
        () => false,
      ),
    );
  });

  it('refuses a login at once that is waiting for its session', async () => {
    await using other = await startStack({ slots: 1, upstream: { acquireTimeoutMs: 9_000 } });
    const heidi = await signIn(other, 'heidi');
    const ivan = signIn(other, 'ivan').catch((error: Error) => error);
    await until(() => other.proxy.counts().upstreams['main']?.['authenticated']?.waiting === 1);
    const startedAt = performance.now();

    other.proxy.revoke({ sub: 'ivan' });

    expect(await ivan).toMatchObject({ code: '28P01' });
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    expect(await one(heidi, 'select auth.user_id()')).toBe('heidi');
    await until(() => other.proxy.counts().upstreams['main']?.['authenticated']?.waiting === 0);
  });

  it('of all tokens that were issued before is none of nobody', async () => {
    await using other = await startStack({
      roles: { anonymous: { slots: 1 } },
      anonymous: { enabled: true },
    });
    other.proxy.revoke({ issuedBefore: Date.now() / 1000 + 60 });
    const nobody = new pg.Client({ ...other.as('x'), user: 'anonymous', password: '' });
    await nobody.connect();

    expect(await one(nobody, 'select auth.user_id()')).toBe(null);
    await nobody.end();
    await expect(signIn(other, 'alice')).rejects.toMatchObject({ code: '28P01' });
  });

  it('by an administrator holds at once, and for as long as the process', async () => {
    const erin = await signIn(stack, 'erin');

    expect((await post('/revocations', JSON.stringify({ sub: 'erin' }))).status).toBe(204);

    expect(await erin.failure).toMatchObject({ code: '57P01', message: REVOKED });
    await expect(signIn(stack, 'erin')).rejects.toMatchObject({ code: '28P01' });
    await stack.logged((line) => line['event'] === 'login' && line['reason'] === 'token_revoked');
  });

  it.each([
    ['nothing', '{}', 422],
    ['an issuer alone, which would end everybody', '{"iss":"x"}', 422],
    ['what is not known', '{"sub":"a","also":1}', 422],
    ['no JSON', '{', 400],
    ['too much', JSON.stringify({ sub: 'x'.repeat(20_000) }), 413],
  ])('is not accepted of %s', async (_, body, status) => {
    expect((await post('/revocations', body)).status).toBe(status);
  });

  it('is nothing that a page in a browser can ask for', async () => {
    const asked = await post('/revocations', '{"sub":"alice"}', { origin: 'https://evil.example' });

    expect(asked.status).toBe(403);
    await signIn(stack, 'alice');
  });

  it('file that is wrong changes nothing, and says so', async () => {
    await write([{ sub: 'frank' }]);
    await until(() =>
      signIn(stack, 'frank').then(
        () => false,
        () => true,
      ),
    );

    await write('[{"sub":');
    await stack.logged((line) => line['event'] === 'revocations_unreadable');

    await expect(signIn(stack, 'frank')).rejects.toMatchObject({ code: '28P01' });
    await write([]);
  });

  it('of a token holds for a renewal too', async () => {
    const client = await signIn(stack, 'grace', { jti: 'first' });
    await write([{ jti: 'second' }]);
    await until(() =>
      signIn(stack, 'grace', { jti: 'second' }).then(
        () => false,
        () => true,
      ),
    );
    const second = await stack.token('grace', { jti: 'second' });
    const third = await stack.token('grace', { jti: 'third' });

    await expect(client.query(`set pgjot.token = '${second}'`)).rejects.toMatchObject({
      message: 'the token was not accepted: it was revoked',
    });
    await client.query(`set pgjot.token = '${third}'`);
    await write([{ jti: 'first' }, { jti: 'third' }]);

    expect(await client.failure).toMatchObject({ message: REVOKED });
    await write([]);
  });
});

describe('a reload', () => {
  it('ends the sessions of a provider, role or upstream that is gone, and no other', async () => {
    await using stack = await startStack({
      roles: { authenticated: { slots: 4 }, analyst: { slots: 2 } },
      provider: { roles: ['authenticated', 'analyst'] },
    });
    const analyst = new pg.Client({ ...stack.as('alice'), user: 'analyst' });
    const failure = new Promise((resolve) => analyst.on('error', resolve));
    await analyst.connect();
    const alice = await signIn(stack, 'alice');
    const { providers } = stack.config;
    const test = providers['test'] as NonNullable<(typeof providers)[string]>;

    stack.proxy.reload(
      parseConfig({ ...stack.config, providers: { test: { ...test, roles: ['authenticated'] } } }),
    );

    expect(await failure).toMatchObject({ code: '57P01' });
    expect(await one(alice, 'select auth.user_id()')).toBe('alice');

    stack.proxy.reload(
      parseConfig({
        ...stack.config,
        providers: { other: { ...test, issuer: 'https://other.example' } },
      }),
    );

    expect(await alice.failure).toMatchObject({
      code: '57P01',
      message: 'terminating connection because its token is accepted no more',
    });
    await expect(signIn(stack, 'alice')).rejects.toMatchObject({ code: '28P01' });
    await analyst.end().catch(() => {});
  });

  it('ends the sessions that a claim no longer leads to their upstream, or no longer grants their role', async () => {
    await using stack = await startStack();
    const { providers, upstreams } = stack.config;
    const test = providers['test'] as NonNullable<(typeof providers)[string]>;
    const main = upstreams['main'] as NonNullable<(typeof upstreams)[string]>;
    const routed = (acme: string, provider: object = {}) =>
      parseConfig({
        ...stack.config,
        providers: { test: { ...test, ...provider } },
        upstreams: { main, other: { ...main, database: 'elsewhere' } },
        routes: [{ byClaim: '/org', upstreams: { acme, globex: 'main' } }],
      });
    stack.proxy.reload(routed('main'));
    const alice = await signIn(stack, 'alice', { org: 'acme' });
    const bob = await signIn(stack, 'bob', { org: 'globex' });
    const carol = await signIn(stack, 'carol', { org: 'globex', role: 'authenticated' });

    stack.proxy.reload(routed('other'));
    expect(await alice.failure).toMatchObject({ code: '57P01' });
    expect(await one(bob, 'select auth.user_id()')).toBe('bob');

    stack.proxy.reload(routed('other', { roleClaim: '/role' }));
    expect(await bob.failure).toMatchObject({ code: '57P01' });
    expect(await one(carol, 'select auth.user_id()')).toBe('carol');
    const { cause } = await stack.logged(
      (line) => line['event'] === 'session_end' && line['subject'] === 'bob',
    );
    expect(cause).toBe('the claim at /role does not name role "authenticated"');
  });

  it('has logins that fail at the old upstream try at the new one', async () => {
    await using stack = await startStack({ slots: 1, upstream: { acquireTimeoutMs: 700 } });
    const alice = await signIn(stack, 'alice');
    const { main } = stack.config.upstreams;
    const bob = signIn(stack, 'bob');
    await until(() => stack.proxy.counts().upstreams['main']?.['authenticated']?.waiting === 1);

    stack.proxy.reload(
      parseConfig({
        ...stack.config,
        upstreams: { main: { ...(main as NonNullable<typeof main>), acquireTimeoutMs: 8_000 } },
      }),
    );
    await until(() => stack.proxy.counts().upstreams['main']?.['authenticated']?.waiting === 1);
    await alice.end();

    expect(await one(await bob, 'select auth.user_id()')).toBe('bob');
  });

  it('asks administrators for the token that is in the file now, and logs neither', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-admin-token-'));
    onTestFinished(() => rm(folder, { recursive: true, force: true }));
    const file = join(folder, 'token');
    const [old, fresh] = ['an', 'another'].map(
      (article) => `${article}-administrators-token-of-32-letters`,
    );
    await writeFile(file, old as string);
    await using stack = await startStack({ admin: { port: 0, token: { file } } });
    const look = async (token: string | undefined) => {
      const url = `http://127.0.0.1:${stack.proxy.counts().adminPort}/sessions`;
      return (await fetch(url, { headers: { authorization: `Bearer ${token}` } })).status;
    };
    await writeFile(file, fresh as string);
    const before = [await look(old), await look(fresh)];

    stack.proxy.reload(parseConfig(stack.config));

    expect(before).toEqual([200, 401]);
    expect([await look(old), await look(fresh)]).toEqual([401, 200]);
    const line = await stack.logged(({ event }) => event === 'reloaded');
    expect(line['needsRestart']).toEqual([]);
    expect(stack.logs.join()).not.toContain('administrators-token');
  });

  it('keeps the sessions of an issuer that spells itself in two ways, as long as both are configured', async () => {
    await using stack = await startStack({ provider: { issuer: ['one-way', 'the-other'] } });
    const alice = await signIn(stack, 'alice', { iss: 'the-other' });
    const { limits, providers } = stack.config;
    const test = providers['test'] as NonNullable<(typeof providers)[string]>;

    stack.proxy.reload(parseConfig({ ...stack.config, limits: { ...limits, maxClients: 5 } }));
    expect(await one(alice, 'select auth.user_id()')).toBe('alice');

    stack.proxy.reload(
      parseConfig({ ...stack.config, providers: { test: { ...test, issuer: 'one-way' } } }),
    );
    expect(await alice.failure).toMatchObject({ code: '57P01' });
  });

  it('is what new tokens of old sessions are judged by', async () => {
    await using stack = await startStack();
    const alice = await signIn(stack, 'alice');
    const { providers } = stack.config;
    const test = providers['test'] as NonNullable<(typeof providers)[string]>;

    stack.proxy.reload(
      parseConfig({ ...stack.config, providers: { test: { ...test, requiredClaims: ['amr'] } } }),
    );

    const without = await stack.token('alice');
    await expect(alice.query(`set pgjot.token = '${without}'`)).rejects.toMatchObject({
      code: '28P01',
    });
    await alice.query(`set pgjot.token = '${await stack.token('alice', { amr: ['mfa'] })}'`);
    expect(await one(alice, "select auth.session() -> 'amr'")).toEqual(['mfa']);
  });

  it('is what a client is judged by that was at its password prompt', async () => {
    await using stack = await startStack();
    const { providers } = stack.config;
    const test = providers['test'] as NonNullable<(typeof providers)[string]>;
    const token = await stack.token('alice');
    const client = new pg.Client({
      ...stack.as('alice'),
      password() {
        stack.proxy.reload(
          parseConfig({
            ...stack.config,
            providers: { test: { ...test, requiredClaims: ['amr'] } },
          }),
        );
        return token;
      },
    });

    await expect(client.connect()).rejects.toMatchObject({ code: '28P01' });
  });

  it('keeps sessions and slots of what stays, takes new limits, and refuses what is wrong', async () => {
    await using stack = await startStack({ slots: 2 });
    const first = await signIn(stack, 'alice');
    const { limits } = stack.config;

    stack.proxy.reload(parseConfig({ ...stack.config, limits: { ...limits, maxClients: 2 } }));
    const second = await signIn(stack, 'bob');

    await expect(signIn(stack, 'carol')).rejects.toMatchObject({ code: '53300' });
    expect(() =>
      stack.proxy.reload(
        parseConfig({ ...stack.config, revocations: { file: '/nowhere/revoked.json' } }),
      ),
    ).toThrow('revocations.file: cannot be read (ENOENT)');
    expect(await one(first, 'select auth.user_id()')).toBe('alice');
    expect(await one(second, 'select auth.user_id()')).toBe('bob');
    await stack.logged((line) => line['event'] === 'reloaded');
  });

  it('moves new sessions to an upstream that has changed, while old ones end as they like', async () => {
    await using stack = await startStack({ slots: 4 });
    const old = await signIn(stack, 'alice');
    const { main } = stack.config.upstreams;

    stack.proxy.reload(
      parseConfig({
        ...stack.config,
        upstreams: { main: { ...(main as NonNullable<typeof main>), acquireTimeoutMs: 1_234 } },
      }),
    );
    const young = await signIn(stack, 'bob');

    expect(await one(old, 'select auth.user_id()')).toBe('alice');
    expect(await one(young, 'select auth.user_id()')).toBe('bob');
    await old.end();
    await young.end();
    await until(() => stack.proxy.counts().clients === 0);
  });
});
