/**
 * What administrators see of several workers and have them do, over HTTP: all together, and what is left when one of them hangs.
 */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { SessionDescription } from '../../src/proxy.ts';
import { workerOf } from '../../src/upstream/cancel.ts';
import { query } from '../e2e/parity/bytes.ts';
import type { RawClient } from '../e2e/raw-client.ts';
import { exitOf } from '../support/cli.ts';
import { withSuperuser } from '../support/postgres.ts';
import { freePort } from '../support/sockets.ts';
import { until } from '../support/stack.ts';
import { startFleet, startGround, type Fleet, type Ground } from './fleet.ts';

vi.setConfig({ testTimeout: 60_000 });

const WORKERS = [1, 2, 3];
const SLOTS = 24;

let ground: Ground;
let fleet: Fleet;
let admin: { port: number };
beforeAll(async () => {
  ground = await startGround(SLOTS);
  admin = { port: await freePort() };
  fleet = await startFleet(ground, {
    workers: WORKERS.length,
    settings: { admin },
    pool: { reuse: 'same-identity', spares: 0 },
  });
});
afterAll(async () => {
  await fleet?.[Symbol.asyncDispose]();
  await ground?.[Symbol.asyncDispose]();
});

interface Answer {
  readonly status: number;
  // oxlint-disable-next-line typescript/no-explicit-any -- what is in it is what each test looks at
  readonly json: any;
  /** How long it took. */
  readonly ms: number;
}

async function ask(path: string, method = 'GET', body?: object): Promise<Answer> {
  const askedAt = performance.now();
  const response = await fetch(`http://127.0.0.1:${admin.port}${path}`, {
    method,
    ...(body && {
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    }),
  });
  const text = await response.text();
  const ms = performance.now() - askedAt;
  return { status: response.status, json: text === '' ? undefined : JSON.parse(text), ms };
}

const post = (path: string, body?: object) => ask(path, 'POST', body);
const sessions = async (selection = ''): Promise<SessionDescription[]> =>
  (await ask(`/sessions${selection}`)).json.sessions;
const authenticated = async () => (await ask('/pools')).json.pools[0].roles.authenticated;

const backendOf = async (client: RawClient): Promise<number> =>
  Number((await client.ask('select pg_backend_pid()')).rows[0]?.[0]);
const lives = async (client: RawClient) =>
  expect((await client.ask('select 1')).rows).toEqual([['1']]);

/** That this client has heard why it must go; it goes then, as any does. */
async function isTerminated(client: RawClient): Promise<void> {
  await client.end();
  client.destroy();
  expect(client.heard.at(-1)?.reply).toMatchObject({ severity: 'FATAL', sqlstate: '57P01' });
}

/** Every page of what is asked for, one behind the other; each must tell the same total. */
async function pages(
  asked: Readonly<Record<string, string>>,
  total: number,
): Promise<SessionDescription[]> {
  const all: SessionDescription[] = [];
  for (let after: string | undefined = ''; after !== undefined; ) {
    const parameters = new URLSearchParams({ ...asked, after }).toString();
    const { json } = await ask(`/sessions?${parameters}`);
    expect(json.total).toBe(total);
    expect(json.sessions.length).toBeLessThanOrEqual(Number(asked['limit']));
    all.push(...json.sessions);
    after = json.next;
  }
  return all;
}

/** A session of each of these on every worker; all are over when this is disposed of. */
async function visitors(...subs: string[]) {
  const each = new Map<string, Map<number, RawClient>>();
  for (const sub of subs) each.set(sub, await fleet.onEach(sub));
  const all = [...each.values()].flatMap((clients) => [...clients.values()]);
  // Those that found their worker taken have left.
  await until(async () => (await sessions()).length === all.length);
  return {
    all,
    of: (sub: string) => each.get(sub) as Map<number, RawClient>,
    async [Symbol.asyncDispose]() {
      for (const clients of each.values()) {
        for (const client of clients.values()) client.destroy();
      }
      await until(async () => (await sessions()).length === 0);
    },
  };
}

describe('several workers', () => {
  it('are alive and ready together', async () => {
    expect(await ask('/healthz')).toMatchObject({ status: 200, json: { alive: true } });
    expect(await ask('/readyz')).toMatchObject({
      status: 200,
      json: { ready: true, reasons: [], troubles: [] },
    });
  });

  it('show every session once, with its worker, the oldest first, page by page', async () => {
    await using visit = await visitors('alice', 'bob', 'carol');
    for (const sub of ['alice', 'bob', 'carol']) await visit.of(sub).get(2)?.ask('begin');

    const { json } = await ask('/sessions');
    const all = json.sessions as SessionDescription[];
    const paged = await pages({ limit: '2' }, all.length);
    // All of them on one worker.
    const asleep = await pages({ limit: '1', state: 'idle in transaction' }, 3);

    expect(json).toMatchObject({ total: 9, unanswered: [] });
    expect(json.next).toBeUndefined();
    const seen = all.map(({ backendPid, worker }) => [backendPid, worker]);
    const real = await Promise.all(
      visit.all.map(async (client) => [await backendOf(client), workerOf(client.key.processId)]),
    );
    expect(new Map(seen as [number, number][])).toEqual(new Map(real as [number, number][]));
    const times = all.map(({ connectedAt }) => connectedAt);
    expect(times).toEqual(times.toSorted());
    expect(paged.map(({ id }) => id)).toEqual(all.map(({ id }) => id));
    const bobs = await sessions('?sub=bob');
    expect(bobs.map(({ subject }) => subject)).toEqual(['bob', 'bob', 'bob']);
    expect(new Set(bobs.map(({ worker }) => worker))).toEqual(new Set(WORKERS));
    expect(asleep.map(({ subject, worker }) => [subject, worker])).toEqual([
      ['alice', 2],
      ['bob', 2],
      ['carol', 2],
    ]);
    expect((await ask('/sessions?sub=bob&limit=1')).json).toMatchObject({ total: 3 });
    expect(await sessions('?sub=nobody')).toEqual([]);
  });

  it('have the sum of their pools, as PostgreSQL counts it', async () => {
    await using _ = await visitors('alice', 'bob');

    const { json } = await ask('/pools');

    expect(json.unanswered).toEqual([]);
    expect(json.pools).toMatchObject([
      {
        upstream: 'main',
        port: ground.postgres.port,
        control: WORKERS.map((worker) => ({ worker, reachable: true, circuit: 'closed' })),
        roles: { authenticated: { slots: SLOTS, maxConnections: SLOTS, busy: 6, waiting: 0 } },
      },
    ]);
    await until(async () => {
      const { busy, idle } = await authenticated();
      const { rows } = await withSuperuser(ground.postgres, (superuser) =>
        superuser.query(
          "select count(*)::int as n from pg_stat_activity where usename like 'pgjot_authenticated_%'",
        ),
      );
      return busy === 6 && busy + idle === rows[0].n;
    });
  });

  it('each show the keys that they have', async () => {
    const { json } = await ask('/providers');

    expect(json.unanswered).toEqual([]);
    expect(json.providers).toMatchObject(
      WORKERS.map((worker) => ({
        worker,
        provider: 'own',
        issuer: ground.issuer.url,
        usable: true,
      })),
    );
    const [first, ...others] = json.providers.map(({ keys }: { keys: object[] }) => keys);
    expect(first.length).toBeGreaterThan(0);
    expect(others).toEqual([first, first]);
  });

  it('end one session, wherever it is, and no other', async () => {
    await using visit = await visitors('alice', 'bob');

    for (const [number, alice] of visit.of('alice')) {
      const session = (await sessions('?sub=alice')).find(({ worker }) => worker === number);
      const answer = await post(`/sessions/${session?.id}/terminate`);
      expect(answer).toMatchObject({ status: 200, json: { terminated: 1, unanswered: [] } });
      await isTerminated(alice);
      const again = await post(`/sessions/${session?.id}/terminate`);
      expect(again).toMatchObject({ status: 404, json: { problem: 'there is no such session' } });
    }

    for (const bob of visit.of('bob').values()) await lives(bob);
    await until(async () => (await sessions()).every(({ subject }) => subject === 'bob'));
    expect(await sessions()).toHaveLength(WORKERS.length);
  });

  it('end the sessions of a subject, in the middle of what they do, and nobody else', async () => {
    await using visit = await visitors('alice', 'bob');
    const working = [...visit.of('alice').values()].map((alice) =>
      alice.ask('select pg_sleep(60)').catch((error: { code: string }) => error.code),
    );
    await until(async () => (await sessions('?state=active')).length === WORKERS.length);

    const answer = await post('/terminate', { sub: 'alice' });

    expect(answer).toMatchObject({ status: 200, json: { terminated: 3, unanswered: [] } });
    expect(await Promise.all(working)).toEqual(['57P01', '57P01', '57P01']);
    for (const bob of visit.of('bob').values()) await lives(bob);
    expect((await post('/terminate', {})).status).toBe(422);
  });

  it('open new sessions for later logins once they are told to reconnect', async () => {
    const before = new Set<number>();
    await using visit = await visitors('alice');
    for (const alice of visit.of('alice').values()) before.add(await backendOf(alice));
    for (const bob of (await fleet.onEach('bob')).values()) {
      before.add(await backendOf(bob));
      bob.destroy();
    }
    await until(async () => {
      const { busy, idle } = await authenticated();
      return busy === 3 && idle >= 3;
    });

    const answer = await post('/pools/main/reconnect');

    expect(answer).toMatchObject({ status: 200, json: { inUse: 3, unanswered: [] } });
    expect(answer.json.closed).toBeGreaterThanOrEqual(3);
    for (const alice of visit.of('alice').values()) {
      await lives(alice);
      alice.destroy();
    }
    await until(async () => (await sessions()).length === 0);
    for (const sub of ['alice', 'bob']) {
      for (const later of (await fleet.onEach(sub)).values()) {
        expect(before).not.toContain(await backendOf(later));
        later.destroy();
      }
    }
    expect((await post('/pools/other/reconnect')).status).toBe(422);
  });

  it('accept tokens that are revoked no more, and end their sessions', async () => {
    await using visit = await visitors('mallory', 'bob');

    const answer = await post('/revocations', { iss: ground.issuer.url, sub: 'mallory' });

    expect(answer.status).toBe(204);
    for (const mallory of visit.of('mallory').values()) {
      await mallory.end();
      mallory.destroy();
    }
    for (const bob of visit.of('bob').values()) await lives(bob);
    // As many at once as reach every worker.
    await until(async () => {
      const attempts = WORKERS.map(() => fleet.login('mallory').catch((error: unknown) => error));
      for (const error of await Promise.all(attempts))
        expect(error).toMatchObject({ code: '28P01' });
      const refusing = fleet.log.filter(({ outcome }) => outcome === 'refused');
      return WORKERS.every((number) => refusing.some(({ worker }) => worker === number));
    });
  });

  it('have all read the configuration again when that is answered, or none has', async () => {
    const names = async () =>
      (await ask('/providers')).json.providers.map(
        ({ provider }: { provider: string }) => provider,
      );
    const renamed = ground.issuer.provider({ roles: ['authenticated'] });
    await fleet.configure({ admin, providers: { renamed } });

    const taken = await post('/reload');
    const after = await names();
    await fleet.configure({ admin, providers: {} });
    const refused = await post('/reload');
    const still = await names();
    await fleet.configure({ admin });

    expect(taken.status).toBe(204);
    expect(after).toEqual(['renamed', 'renamed', 'renamed']);
    expect(refused).toMatchObject({
      status: 422,
      json: { problem: expect.stringContaining('providers') },
    });
    expect(still).toEqual(after);
    expect((await post('/reload')).status).toBe(204);
    expect(await names()).toEqual(['own', 'own', 'own']);
  });
});

describe('a worker that hangs', () => {
  it('is named by every answer, holds none of them up, and is back when it goes on', async () => {
    await using visit = await visitors('alice', 'bob', 'carol');
    const all = await sessions();
    const idOf = (sub: string, number: number) =>
      all.find(({ subject, worker }) => subject === sub && worker === number)?.id;
    const hung = fleet.workers().get(2) as number;
    const silent = { unanswered: [2] };
    process.kill(hung, 'SIGSTOP');

    try {
      // At one time, so that it takes two seconds in all.
      const [alive, ready, page, pools, providers, unknown, elsewhere, here, reconnect] =
        await Promise.all([
          ask('/healthz'),
          ask('/readyz'),
          ask('/sessions'),
          ask('/pools'),
          ask('/providers'),
          post('/sessions/none/terminate'),
          post(`/sessions/${idOf('alice', 1)}/terminate`),
          post(`/sessions/${idOf('alice', 2)}/terminate`),
          post('/pools/main/reconnect'),
        ]);
      const subject = await post('/terminate', { sub: 'bob' });

      expect(alive).toMatchObject({ status: 200, json: { alive: true } });
      expect(ready).toMatchObject({
        status: 200,
        json: {
          ready: true,
          reasons: [],
          troubles: [{ worker: 2, cause: 'it has not answered' }],
        },
      });
      expect(page).toMatchObject({ status: 200, json: { ...silent, total: expect.any(Number) } });
      expect(page.json.sessions.some(({ worker }: { worker: number }) => worker === 2)).toBe(false);
      expect(pools).toMatchObject({ status: 200, json: silent });
      expect(pools.json.pools[0].control).toMatchObject([{ worker: 1 }, { worker: 3 }]);
      expect(providers).toMatchObject({
        status: 200,
        json: { ...silent, providers: [{ worker: 1 }, { worker: 3 }] },
      });
      expect(unknown).toMatchObject({ status: 504, json: { ...silent, terminated: 0 } });
      expect(elsewhere).toMatchObject({ status: 200, json: { ...silent, terminated: 1 } });
      expect(here).toMatchObject({ status: 504, json: { ...silent, terminated: 0 } });
      expect(reconnect).toMatchObject({ status: 504, json: silent });
      expect(subject).toMatchObject({ status: 504, json: { ...silent, terminated: 2 } });
      // 0.9 s and 2 s, on a machine that has other work too.
      expect(ready.ms).toBeLessThan(page.ms);
      for (const { ms } of [page, pools, providers, here, reconnect, subject]) {
        expect(ms).toBeLessThan(8_000);
      }
    } finally {
      process.kill(hung, 'SIGCONT');
    }

    // What it was told it has done now.
    await isTerminated(visit.of('alice').get(2) as RawClient);
    for (const bob of visit.of('bob').values()) await isTerminated(bob);
    for (const carol of visit.of('carol').values()) await lives(carol);
    const whole = await until(async () => {
      const { json } = await ask('/sessions');
      return json.total === 4 && json.unanswered.length === 0 && json;
    });
    expect(whole.sessions.map(({ subject }: SessionDescription) => subject)).toEqual([
      'alice',
      'carol',
      'carol',
      'carol',
    ]);
    expect((await ask('/readyz')).json.troubles).toEqual([]);
    expect((await post('/pools/main/reconnect')).status).toBe(200);
    // It was not given up.
    expect(fleet.workers().get(2)).toBe(hung);
  });
});

describe('a drain', () => {
  it('is shown until the last session of all workers is over', async () => {
    const [idle, busy] = [await fleet.onEach('alice'), await fleet.onEach('bob')];
    for (const bob of busy.values()) await bob.ask('begin');

    const answers = [await post('/drain'), await post('/drain')];
    await Promise.all([...idle.values()].map(isTerminated));
    await until(async () => (await sessions()).every(({ subject }) => subject === 'bob'));
    const [ready, alive, left] = [await ask('/readyz'), await ask('/healthz'), await sessions()];

    for (const answer of answers) {
      expect(answer).toMatchObject({ status: 202, json: { draining: true } });
    }
    expect(ready).toMatchObject({ status: 503, json: { ready: false, reasons: ['draining'] } });
    expect(alive.status).toBe(200);
    expect(left).toHaveLength(WORKERS.length);
    await expect(fleet.login('carol')).rejects.toThrow('ECONNREFUSED');
    for (const bob of busy.values()) {
      await lives(bob);
      bob.send(query('commit'));
      await bob.next('Z');
      await isTerminated(bob);
    }
    expect(await exitOf(fleet.primary)).toBe(0);
    expect(fleet.noise).toEqual([]);
  });
});
