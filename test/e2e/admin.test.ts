/** What administrators see of a proxy at work, and do to it: the endpoint, the proxy and PostgreSQL, all real. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SessionDescription } from '../../src/proxy.ts';
import { RawClient } from './raw-client.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({
    admin: { port: 0 },
    upstream: { pool: { reuse: 'same-identity', spares: 0 } },
  });
});
afterAll(() => stack?.close());

interface Answer {
  readonly status: number;
  // oxlint-disable-next-line typescript/no-explicit-any -- what is in it is what each test looks at
  readonly json: any;
}

async function ask(path: string, body?: object, method = 'GET', at = stack): Promise<Answer> {
  const response = await fetch(`http://127.0.0.1:${at.proxy.counts().adminPort}${path}`, {
    method: body === undefined ? method : 'POST',
    ...(body && {
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    }),
  });
  const text = await response.text();
  return { status: response.status, json: text === '' ? undefined : JSON.parse(text) };
}

const post = (path: string, at = stack) => ask(path, undefined, 'POST', at);
const sessions = async (query = ''): Promise<SessionDescription[]> =>
  (await ask(`/sessions${query}`)).json.sessions;

/** What becomes of a client that somebody ends. */
function endOf(client: pg.Client): Promise<string | undefined> {
  return new Promise((resolve) => {
    let code: string | undefined;
    client.on('error', (error: Error & { code?: string }) => (code ??= error.code));
    client.once('end', () => resolve(code));
  });
}

/** Connects, and closes what it connected when the test is over. */
async function visit(sub: string, overrides: pg.ClientConfig = {}) {
  const client = await stack.connect(sub, overrides);
  return Object.assign(client, {
    [Symbol.asyncDispose]: () => client.end().catch(() => {}),
  });
}

describe('GET /sessions', () => {
  it('tells who is on, since when, until when, and what they do', async () => {
    await using alice = await visit('alice', { application_name: 'psql' });
    await alice.query('begin');
    await alice.query("select repeat('x', 10000)");

    const [session] = await sessions('?sub=alice');

    expect(session).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      state: 'idle in transaction',
      address: '127.0.0.1',
      connectedAt: expect.stringMatching(/^\d{4}-.*Z$/),
      user: 'authenticated',
      database: 'app',
      applicationName: 'psql',
      provider: 'test',
      issuer: stack.issuer.url,
      subject: 'alice',
      role: 'authenticated',
      upstream: 'main',
      expiresAt: expect.stringMatching(/^\d{4}-.*Z$/),
      slot: expect.stringMatching(/^pgjot_authenticated_\d+$/),
      backendPid: expect.any(Number),
      bytes: { clientToUpstream: expect.any(Number), upstreamToClient: expect.any(Number) },
    });
    expect(session?.bytes?.upstreamToClient).toBeGreaterThan(10_000);
    const pid = await alice.query('select pg_backend_pid() as pid');
    expect(session?.backendPid).toBe(pid.rows[0].pid);
    const expiresInMs = Date.parse(session?.expiresAt as string) - Date.now();
    expect(expiresInMs).toBeGreaterThan(0);
  });

  it('never shows a token or a claim', async () => {
    const claims = { email: 'marked-claim@example.com' };
    const token = await stack.token('alice', claims);
    await using _ = await visit('alice', { password: token });

    const { json } = await ask('/sessions');

    const said = JSON.stringify(json);
    expect(said).toContain('alice');
    expect(said).not.toContain('marked-claim');
    for (const part of token.split('.')) expect(said).not.toContain(part);
  });

  it('tells each state in the words of pg_stat_activity', async () => {
    await using alice = await visit('alice');
    const state = async () => (await sessions('?sub=alice'))[0]?.state;

    expect(await state()).toBe('idle');
    await alice.query('begin');
    expect(await state()).toBe('idle in transaction');
    await alice.query('select 1/0').catch(() => {});
    expect(await state()).toBe('idle in transaction (aborted)');
    await alice.query('rollback');
    const sleep = alice.query('select pg_sleep(30)').catch(() => {});
    await until(async () => (await state()) === 'active');
    expect(
      (await post(`/sessions/${(await sessions('?sub=alice'))[0]?.id}/terminate`)).status,
    ).toBe(200);
    await sleep;
  });

  it('shows a stranger at the door as a login, and nothing of what they have not proved', async () => {
    using stranger = await RawClient.open(stack);

    await until(async () => (await sessions('?state=login')).length === 1);
    const [login] = await sessions('?state=login');

    expect(login).toEqual({
      id: expect.any(String),
      state: 'login',
      address: '127.0.0.1',
      connectedAt: expect.any(String),
    });
    stranger.destroy();
    await until(async () => (await sessions('?state=login')).length === 0);
  });

  it('comes in pages, whose end is told', async () => {
    const clients = await Promise.all(['a', 'b', 'c', 'd', 'e'].map((sub) => stack.connect(sub)));

    const found: SessionDescription[] = [];
    let after = '';
    for (let page = 0; page < 3; page++) {
      const { json } = await ask(`/sessions?limit=2&after=${after}`);
      expect(json.total).toBe(5);
      found.push(...json.sessions);
      after = json.next ?? '';
    }

    expect(after).toBe('');
    expect(new Set(found.map(({ subject }) => subject))).toEqual(
      new Set(['a', 'b', 'c', 'd', 'e']),
    );
    await Promise.all(clients.map((client) => client.end()));
  });

  it.each(['?limit=0', '?limit=1001', '?limit=x', '?subject=alice', '?state=asleep'])(
    'refuses %s',
    async (query) => {
      expect((await ask(`/sessions${query}`)).status).toBe(422);
    },
  );
});

describe('terminate', () => {
  it('ends one session with 57P01, whose client may come back', async () => {
    await using alice = await visit('alice');
    await using bob = await visit('bob');
    const ended = endOf(alice);
    const [session] = await sessions('?sub=alice');

    const answer = await post(`/sessions/${session?.id}/terminate`);

    expect(answer).toEqual({ status: 200, json: { terminated: 1 } });
    expect(await ended).toBe('57P01');
    await bob.query('select 1');
    await using again = await visit('alice');
    await again.query('select 1');
    const line = await stack.logged(
      (one) => one['reason'] === 'terminated' && one['session'] === session?.id,
    );
    expect(line).toMatchObject({ event: 'session_end', endedBy: 'proxy' });
  });

  it('ends the sessions of a subject in the middle of what they do, and nobody else', async () => {
    await using alice = await visit('alice');
    await using other = await visit('alice');
    await using bob = await visit('bob');
    const ended = [endOf(alice), endOf(other)];
    const busy = alice.query('select pg_sleep(30)').then(
      () => 'done',
      (error: { code?: string }) => error.code,
    );
    await until(async () => (await sessions('?sub=alice&state=active')).length === 1);

    const answer = await ask('/terminate', { iss: stack.issuer.url, sub: 'alice' });

    expect(answer).toEqual({ status: 200, json: { terminated: 2 } });
    expect(await busy).toBe('57P01');
    await Promise.all(ended);
    await bob.query('select 1');
    // Nobody works on for a client that is gone.
    await until(async () => {
      const admin = await stack.connect('carol');
      const { rows } = await admin.query(
        "select count(*)::int as n from pg_stat_activity where query like '%pg_sleep(30)%' and state = 'active' and pid <> pg_backend_pid()",
      );
      await admin.end();
      return rows[0].n === 0;
    });
  });

  it('ends a login that is under way', async () => {
    using stranger = await RawClient.open(stack);
    const [login] = await until(async () => {
      const found = await sessions('?state=login');
      return found.length === 1 && found;
    });

    expect((await post(`/sessions/${login?.id}/terminate`)).status).toBe(200);
    await until(() => stranger.closed);
  });

  it('takes no order that says not whom', async () => {
    await using alice = await visit('alice');

    for (const body of [{}, { sub: undefined }, { subject: 'alice' }, [], null, 'alice']) {
      expect((await ask('/terminate', body as object)).status).toBeOneOf([400, 415, 422]);
    }
    expect(() => stack.proxy.terminate({})).toThrow(RangeError);
    expect(() => stack.proxy.terminate({ sub: undefined })).toThrow(RangeError);

    await alice.query('select 1');
  });

  it('says when there is no such session', async () => {
    expect((await post('/sessions/00000000-0000-0000-0000-000000000000/terminate')).status).toBe(
      404,
    );
  });
});

describe('GET /pools', () => {
  it('counts slots and logins, and tells the limits', async () => {
    await using _ = await visit('alice');

    const { json } = await ask('/pools');

    expect(json.pools).toHaveLength(1);
    expect(json.pools[0]).toMatchObject({
      upstream: 'main',
      host: '127.0.0.1',
      port: stack.postgres.port,
      database: 'app',
      session: 'portable',
      limits: { maxConnections: null, maxWaiting: expect.any(Number) },
      control: [{ reachable: true, circuit: 'closed' }],
      roles: { authenticated: { slots: 20, maxConnections: 20, quarantined: 0, waiting: 0 } },
    });
    expect(json.pools[0].roles.authenticated.busy).toBeGreaterThanOrEqual(1);
  });
});

describe('reconnect', () => {
  it('has what ALTER ROLE … SET has changed reach the next login, whoever was on', async () => {
    const marker = async (client: pg.Client) =>
      (await client.query("select current_setting('work_mem') as value")).rows[0].value;
    // One session waits for alice to come back, another is bob's now.
    await (await stack.connect('alice')).end();
    await using bob = await visit('bob');
    await until(() => (stack.proxy.counts().upstreams['main']?.['authenticated']?.idle ?? 0) >= 1);
    const before = await marker(bob);
    await stack.change("alter database app set work_mem = '77MB'");

    // As PostgreSQL has it: sessions that are open know nothing of it.
    const kept = await stack.connect('alice');
    expect(await marker(kept)).toBe(before);
    await kept.end();
    await until(() => (stack.proxy.counts().upstreams['main']?.['authenticated']?.idle ?? 0) >= 1);
    const { status, json } = await post('/pools/main/reconnect');

    expect(status).toBe(200);
    expect(json.closed).toBeGreaterThanOrEqual(1);
    expect(json.inUse).toBeGreaterThanOrEqual(1);
    // Who is on is not disturbed.
    expect(await marker(bob)).toBe(before);
    const alice = await stack.connect('alice');
    expect(await marker(alice)).toBe('77MB');
    await alice.end();
    await bob.end();
    await until(() => stack.proxy.counts().clients === 0);
    const again = await stack.connect('bob');
    expect(await marker(again)).toBe('77MB');
    await again.end();
    await stack.change('alter database app reset work_mem');
  });

  it('says when there is no such upstream', async () => {
    expect((await post('/pools/other/reconnect')).status).toBe(422);
  });
});

describe('GET /providers', () => {
  it('tells the keys by name, their age, and when they are fetched again', async () => {
    await (await stack.connect('alice')).end();

    const { json } = await ask('/providers');

    expect(json.providers).toEqual([
      {
        provider: 'test',
        issuer: stack.issuer.url,
        source: expect.stringContaining('http://127.0.0.1'),
        usable: true,
        keys: expect.arrayContaining([
          { kid: expect.any(String), algorithms: expect.arrayContaining([expect.any(String)]) },
        ]),
        ageMs: expect.any(Number),
        readAt: expect.any(String),
        freshUntil: expect.any(String),
        usableUntil: expect.any(String),
        nextRefreshAt: expect.any(String),
      },
    ]);
    expect(JSON.stringify(json)).not.toMatch(/"(n|x|y|d)":/);
  });
});

describe('GET /readyz', () => {
  it('says ready while clients can be served', async () => {
    await until(async () => (await ask('/readyz')).status === 200);
    expect((await ask('/readyz')).json).toEqual({ ready: true, reasons: [], troubles: [] });
    expect((await ask('/healthz')).json).toEqual({ alive: true });
  });

  it('says unready while the upstream is down, and lives', async () => {
    await using other = await startStack({ admin: { port: 0 }, slots: 4 });
    await until(async () => (await ask('/readyz', undefined, 'GET', other)).status === 200);

    await other.postgres.stop();
    const down = await until(async () => {
      const answer = await ask('/readyz', undefined, 'GET', other);
      return answer.status === 503 && answer;
    });

    expect(down.json).toMatchObject({
      ready: false,
      reasons: ['upstreams'],
      troubles: [{ upstream: 'main', cause: expect.any(String) }],
    });
    expect((await ask('/healthz', undefined, 'GET', other)).status).toBe(200);
    expect((await ask('/pools', undefined, 'GET', other)).json.pools[0].control[0]).toMatchObject({
      reachable: false,
    });
  });

  it('says unready while no provider has keys, and why', async () => {
    await using other = await startStack({
      admin: { port: 0 },
      slots: 4,
      provider: { jwksUri: 'http://127.0.0.1:9/jwks.json' },
    });

    const answer = await until(async () => {
      const { status, json } = await ask('/readyz', undefined, 'GET', other);
      return status === 503 && json.reasons.join() === 'providers' && json;
    });

    expect(answer.troubles).toEqual([
      { provider: 'test', issuer: other.issuer.url, cause: expect.stringMatching(/.+/) },
    ]);
  });
});

describe('POST /drain', () => {
  it('answers, is unready, lets busy sessions end, and closes', async () => {
    await using other = await startStack({ admin: { port: 0 }, slots: 4 });
    const busy = await other.connect('alice');
    await busy.query('begin');
    const idle = await other.connect('bob');
    const ended = endOf(idle);

    expect(await post('/drain', other)).toEqual({ status: 202, json: { draining: true } });

    expect(await ended).toBe('57P01');
    expect(await ask('/readyz', undefined, 'GET', other)).toMatchObject({
      status: 503,
      json: { reasons: ['draining'] },
    });
    await expect(other.connect('carol')).rejects.toThrow(/ECONNREFUSED|shutting down/);
    await busy.query('select 1');
    await busy.query('commit').catch(() => {});
    // The last session takes the endpoint with it.
    const isGone = () =>
      ask('/healthz', undefined, 'GET', other).then(
        () => false,
        () => true,
      );
    await until(isGone);
  });
});
