/** What workers share, part by part: cancel keys, clients, questions and limits. */
import { Duplex } from 'node:stream';
import type { Socket } from 'node:net';
import { describe, expect, it, vi } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { ConfigError } from '../../src/errors.ts';
import { createCancels, MAX_WORKERS, workerOf, type CancelKey } from '../../src/upstream/cancel.ts';
import { localStore, ProxyLedger } from '../../src/limits/ledger.ts';
import { shareCancels } from '../../src/workers/cancels.ts';
import { Dispatch, type Taker } from '../../src/workers/dispatch.ts';
import { LedgerDesk, RemoteLedger, type LimitNote } from '../../src/workers/ledger.ts';
import { toPrimary, toWorker } from '../../src/workers/messages.ts';
import { answer, Questions } from '../../src/workers/questions.ts';
import { assertShareable, shareOf } from '../../src/workers/share.ts';
import { upstreamAt } from '../support/fake-postgres.ts';

const target = { upstream: upstreamAt(1), processId: 4_711, secretKey: Buffer.alloc(4) };
const keyOf = (worker: number, secret = 'c0ffee00'): CancelKey => ({
  processId: worker * 2 ** 24 + 7,
  secretKey: Buffer.from(secret, 'hex'),
});

describe('a cancel key', () => {
  it.each([1, 2, MAX_WORKERS])('names worker %i, and is random but for that', (worker) => {
    const cancels = createCancels(worker);
    const keys = Array.from({ length: 500 }, () => cancels.register(target, 0));

    expect(new Set(keys.map(({ processId }) => workerOf(processId)))).toEqual(new Set([worker]));
    expect(new Set(keys.map(({ processId }) => processId)).size).toBe(500);
    expect(new Set(keys.map(({ secretKey }) => secretKey.toString('hex'))).size).toBe(500);
    // An int32, and positive.
    expect(keys.every(({ processId }) => processId > 0 && processId <= 2 ** 31 - 1)).toBe(true);
  });

  it('goes to the worker that gave it out, and to nobody where there is none of that number', async () => {
    const sent: number[] = [];
    const own = createCancels(2);
    const forward = vi.spyOn(own, 'forward');
    const cancels = shareCancels(own, {
      worker: 2,
      workers: 4,
      arePeers: false,
      forward: async ({ processId }) => sent.push(workerOf(processId)) > 0,
    });

    for (const processId of [0, -1, -(2 ** 31), 7, 2 ** 31 - 1]) {
      await cancels.forward({ processId, secretKey: Buffer.alloc(4) });
    }
    for (let worker = 1; worker <= 6; worker++) await cancels.forward(keyOf(worker));

    expect(sent).toEqual([1, 3, 4]);
    expect(forward.mock.calls.map(([key]) => key)).toEqual([keyOf(2)]);
  });

  it('has one request under way and one behind it, and others go past; beyond 1,024 keys nobody is asked', async () => {
    let release = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    let asked = 0;
    const cancels = shareCancels(createCancels(1), {
      worker: 1,
      workers: 2,
      arePeers: false,
      forward: async () => {
        asked++;
        await released;
        return false;
      },
    });

    const flood = Array.from({ length: 50 }, () => cancels.forward(keyOf(2)));
    expect(asked).toBe(1);
    const strangers = Array.from({ length: 2_000 }, (_, i) =>
      cancels.forward(keyOf(2, i.toString(16).padStart(8, '0'))),
    );
    expect(asked).toBe(1_024);
    release();
    await Promise.all([...flood, ...strangers]);

    // The second of the flood, for a query that the first may have come too early for.
    expect(asked).toBe(1_025);
    await cancels.forward(keyOf(2));
    expect(asked).toBe(1_026);
  });
});

describe('clients', () => {
  const clientOf = () => new Duplex({ read() {}, write() {} }) as Socket;
  class Worker implements Taker {
    readonly clients: Socket[] = [];
    free = true;
    get open() {
      return this.clients.length;
    }
    take(client: Socket) {
      this.clients.push(client);
      this.free = false;
    }
  }

  it('go to the worker that has fewest, wait while none is free, and are sent away when that takes too long', () => {
    vi.useFakeTimers();
    const dispatch = new Dispatch(() => ({ maxWaiting: 2, patienceMs: 1_000 }));
    const [one, two] = [new Worker(), new Worker()];
    const clients = Array.from({ length: 7 }, clientOf);
    const arrive = (index: number) => dispatch.onArrival(clients[index] as Socket);

    arrive(0);
    expect(dispatch.waiting).toBe(1);
    dispatch.add(one);
    dispatch.add(two);
    arrive(1);
    arrive(2);
    two.free = true;
    dispatch.onFree();
    expect([one.open, two.open]).toEqual([1, 2]);
    one.free = true;
    two.free = true;
    arrive(3);
    expect([one.open, two.open]).toEqual([2, 2]);
    two.free = false;
    arrive(4);
    arrive(5);
    expect(dispatch.waiting).toBe(2);
    // One more than may wait.
    arrive(6);
    expect(clients.map(({ destroyed }) => destroyed)).toEqual([
      false,
      false,
      false,
      false,
      false,
      false,
      true,
    ]);
    vi.advanceTimersByTime(1_000);
    expect(clients.map(({ destroyed }) => destroyed)).toEqual([
      false,
      false,
      false,
      false,
      true,
      true,
      true,
    ]);

    expect([dispatch.waiting, vi.getTimerCount()]).toEqual([0, 0]);
    vi.useRealTimers();
  });

  it('are given to no worker that is gone, and all who wait are sent away at the end', () => {
    const dispatch = new Dispatch(() => ({ maxWaiting: 2, patienceMs: 60_000 }));
    const gone = new Worker();
    dispatch.add(gone);
    dispatch.remove(gone);
    const client = clientOf();
    dispatch.onArrival(client);

    dispatch.close();

    expect([gone.open, client.destroyed, dispatch.waiting]).toEqual([0, true, 0]);
  });
});

describe('a question', () => {
  it('gets its own answer, or its failure with all problems', async () => {
    const asked: { id: number; question: string }[] = [];
    const questions = new Questions<string>((ask) => asked.push(ask));
    const [first, second] = [questions.ask('a', 1_000), questions.ask('b', 1_000)];
    const problems = [{ path: 'x', message: 'is wrong' }];

    questions.settle(await answer(asked[1]?.id ?? 0, () => 'for b'));
    questions.settle(
      await answer(asked[0]?.id ?? 0, () => {
        throw new ConfigError(problems);
      }),
    );

    expect(await second).toBe('for b');
    await expect(first).rejects.toMatchObject({ name: 'ConfigError', problems });
    expect(questions.size).toBe(0);
  });

  it('is over when its time is, or nobody is there any more', async () => {
    vi.useFakeTimers();
    const questions = new Questions<string>(() => {});
    const late = questions.ask('a', 1_000).catch((error: Error) => error.message);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await late).toBe('has not answered within 1000 ms');
    const orphan = questions.ask('b', 1_000).catch((error: Error) => error.message);

    questions.close();

    expect(await orphan).toBe('is gone');
    await expect(questions.ask('c', 1_000)).rejects.toThrow('is gone');
    expect([questions.size, vi.getTimerCount()]).toEqual([0, 0]);
    // Too late.
    questions.settle({ kind: 'answer', id: 1 });
    vi.useRealTimers();
  });
});

describe('a message', () => {
  it.each([undefined, null, 1, 'start', {}, { kind: 'toString' }, { kind: 1 }])(
    'is not %j',
    (message) => {
      expect(() => toWorker(message)).toThrow(TypeError);
      expect(() => toPrimary(message)).toThrow(TypeError);
    },
  );
});

const config = (maxConnections: number, ofRole = maxConnections, spares = 4) =>
  parseConfig({
    providers: {
      own: {
        issuer: 'https://id.example',
        jwksUri: 'https://id.example/k',
        audience: 'a',
        roles: ['r'],
      },
    },
    upstreams: {
      main: {
        host: 'db',
        database: 'd',
        secret: { env: 'S' },
        roles: { r: { slots: 100, maxConnections: ofRole } },
        pool: { maxConnections, spares },
      },
    },
  });

describe('a share', () => {
  it.each([
    [10, 4],
    [4, 4],
    [7, 2],
    [100, 127],
  ])('of %i connections among %i workers adds up', (maxConnections, workers) => {
    if (maxConnections < workers) {
      expect(() => assertShareable(config(maxConnections), workers)).toThrow(
        `upstreams.main.pool.maxConnections: is less than the number of workers, ${workers}`,
      );
      return;
    }
    expect(() => assertShareable(config(maxConnections), workers)).not.toThrow();
    const shares = Array.from({ length: workers }, (_, index) =>
      shareOf(config(maxConnections), index + 1, workers),
    );
    const sum = (of: (one: (typeof shares)[number]) => number | undefined) =>
      shares.reduce((total, one) => total + (of(one) ?? Number.NaN), 0);

    expect(sum(({ upstreams }) => upstreams['main']?.pool.maxConnections)).toBe(maxConnections);
    expect(sum(({ upstreams }) => upstreams['main']?.roles['r']?.maxConnections)).toBe(
      maxConnections,
    );
    expect(
      Math.min(...shares.map(({ upstreams }) => upstreams['main']?.pool.maxConnections ?? 0)),
    ).toBeGreaterThan(0);
  });

  it('of the spares is at least one, where there are any', () => {
    const spares = (of: number) =>
      shareOf(config(100, 100, of), 3, 4).upstreams['main']?.pool.spares;

    expect([spares(0), spares(1), spares(4), spares(5)]).toEqual([0, 1, 1, 2]);
  });
});

describe('a login that the ledger has not answered in time', () => {
  it('is told to have left by its worker', async () => {
    const told: LimitNote[] = [];
    const ledger = new RemoteLedger({
      tell: (note) => told.push(note),
      ask: () => Promise.reject(new Error('has not answered within 10000 ms')),
      maxPerSubject: () => undefined,
    });

    const admitted = ledger.admit('192.0.2.1', new AbortController().signal);

    await expect(admitted).rejects.toThrow('has not answered');
    expect(told).toEqual([{ what: 'leave', id: 1 }]);
  });

  it.each<[string, (desk: LedgerDesk, user: Parameters<LedgerDesk['onNote']>[0]) => void]>([
    ['it has left', (desk, user) => desk.onNote(user, { what: 'leave', id: 1 })],
    ['its worker is gone', (desk, user) => desk.onGone(user)],
  ])('is not counted when the store answers at last, and %s', async (_, leave) => {
    const { limits } = config(2);
    let admit = (_isRoom: boolean) => {};
    const take = () => new Promise<boolean>((resolve) => (admit = resolve));
    const store = { ...localStore(() => limits), loginsByAddress: { take } };
    const ledger = new ProxyLedger(limits, () => {}, store);
    const desk = new LedgerDesk(ledger);
    const user = { tell: () => {} };

    const asked = desk.onQuestion(user, { what: 'admit', id: 1, address: '192.0.2.1' });
    expect(ledger.counts().clients).toBe(1);
    leave(desk, user);
    admit(true);
    await asked;

    expect(ledger.counts().clients).toBe(0);
  });
});
