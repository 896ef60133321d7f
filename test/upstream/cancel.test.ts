/**
 * Cancel keys: good for one session and its backend alone, worthless to everybody else and afterwards.
 */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { cancelQuery, createCancels, type CancelKey } from '../../src/upstream/cancel.ts';
import { readStartupPacket } from '../../src/wire/startup.ts';
import { readExactly } from '../../src/wire/read.ts';
import * as fake from '../support/fake-postgres.ts';
import { nothingLeaked, openResources } from '../support/sockets.ts';
import { until } from '../support/stack.ts';

const SECRET = Buffer.from('c0ffee00', 'hex');

let before: ReturnType<typeof openResources>;
beforeEach(() => {
  before = openResources();
});
afterEach(() => nothingLeaked(before));

/** A server that notes each CancelRequest and then closes, when it is told to. */
async function startTarget(closes: Promise<void> = Promise.resolve()) {
  const seen: string[] = [];
  const server = await fake.startFakePostgres([
    async ({ stream, signal }) => {
      const { code, body } = await readStartupPacket(stream, signal);
      seen.push(`${code} ${body.readInt32BE(0)} ${body.subarray(4).toString('hex')}`);
      await closes;
      stream.end();
    },
  ]);
  const target = { upstream: fake.upstreamAt(server.port), processId: 4_711, secretKey: SECRET };
  return { server, seen, target };
}

const REQUEST = `80877102 4711 ${SECRET.toString('hex')}`;

describe('a key', () => {
  test("is random, of the protocol's length, and never the upstream's", async () => {
    const cancels = createCancels();
    const { server, target } = await startTarget();
    const keys = Array.from({ length: 100 }, (_, index) => cancels.register(target, index % 3));

    expect(new Set(keys.map(({ processId }) => processId)).size).toBe(100);
    for (const [index, { processId, secretKey }] of keys.entries()) {
      expect(processId).toBeGreaterThan(0);
      expect(secretKey).toHaveLength(index % 3 === 2 ? 32 : 4);
      expect(secretKey.equals(SECRET)).toBe(false);
    }
    await server[Symbol.asyncDispose]();
  });

  test("is turned into the upstream's own, and the answer is that PostgreSQL has taken it", async () => {
    let close = () => {};
    const closes = new Promise<void>((resolve) => {
      close = resolve;
    });
    const { server, seen, target } = await startTarget(closes);
    const cancels = createCancels();
    const key = cancels.register(target, 0);
    let forwarded = false;
    const forwarding = cancels.forward(key).then(() => {
      forwarded = true;
    });
    await until(() => seen.length === 1);
    expect(forwarded).toBe(false);

    close();
    await forwarding;

    expect(seen).toEqual([REQUEST]);
    await server[Symbol.asyncDispose]();
  });

  test.each<[string, (key: CancelKey) => CancelKey]>([
    ['another process id', (key) => ({ ...key, processId: key.processId ^ 1 })],
    [
      'another secret',
      (key) => ({ ...key, secretKey: Buffer.from(key.secretKey.map((byte) => byte ^ 1)) }),
    ],
    ['a shorter secret', (key) => ({ ...key, secretKey: key.secretKey.subarray(0, 3) })],
    [
      'a longer secret',
      (key) => ({ ...key, secretKey: Buffer.concat([key.secretKey, Buffer.alloc(1)]) }),
    ],
    ['no secret', (key) => ({ ...key, secretKey: Buffer.alloc(0) })],
    ["the upstream's own key", () => ({ processId: 4_711, secretKey: SECRET })],
  ])('with %s cancels nothing', async (_, change) => {
    const { server, target } = await startTarget();
    const cancels = createCancels();
    const key = cancels.register(target, 0);

    await cancels.forward(change(key));

    expect(server.backends).toHaveLength(0);
    await server[Symbol.asyncDispose]();
  });

  test('cancels nothing any more once it is revoked', async () => {
    const { server, target } = await startTarget();
    const cancels = createCancels();
    const key = cancels.register(target, 2);
    await cancels.revoke(key);

    await cancels.forward(key);

    expect(server.backends).toHaveLength(0);
    await server[Symbol.asyncDispose]();
  });

  test('is not revoked before a cancel under way has ended, so that none can hit the next query', async () => {
    let close = () => {};
    const { server, seen, target } = await startTarget(
      new Promise<void>((resolve) => {
        close = resolve;
      }),
    );
    const cancels = createCancels();
    const key = cancels.register(target, 0);
    const forwarding = cancels.forward(key);
    await until(() => seen.length === 1);
    const order: string[] = [];

    const revoking = cancels.revoke(key).then(() => order.push('revoked'));
    void forwarding.then(() => order.push('forwarded'));
    await new Promise(setImmediate);
    expect(order).toEqual([]);
    close();
    await revoking;

    await forwarding;
    expect(order).toHaveLength(2);
    await server[Symbol.asyncDispose]();
  });

  test('costs one connection at a time and two in all, however often it is used at once (attack G2)', async () => {
    const { server, seen, target } = await startTarget();
    const cancels = createCancels();
    const key = cancels.register(target, 0);

    await Promise.all(Array.from({ length: 200 }, () => cancels.forward(key)));

    // The second, because the first may have met an earlier query than the others mean.
    expect(seen).toEqual([REQUEST, REQUEST]);
    await cancels.forward(key);
    expect(seen).toHaveLength(3);
    await server[Symbol.asyncDispose]();
  });

  test('that is revoked takes the cancel that waits behind another with it', async () => {
    let close = () => {};
    const { server, seen, target } = await startTarget(
      new Promise<void>((resolve) => {
        close = resolve;
      }),
    );
    const cancels = createCancels();
    const key = cancels.register(target, 0);
    const forwarding = [cancels.forward(key), cancels.forward(key)];
    await until(() => seen.length === 1);

    const revoking = cancels.revoke(key);
    close();
    await Promise.all([revoking, ...forwarding]);

    expect(seen).toEqual([REQUEST]);
    await server[Symbol.asyncDispose]();
  });
});

describe('cancelQuery', () => {
  test('tells nobody when there is nobody to tell', async () => {
    const { server, target } = await startTarget();
    await server[Symbol.asyncDispose]();

    await expect(cancelQuery(target)).resolves.toBe('unreachable');
  });

  test('survives a reset, after which nobody knows whether it was taken', async () => {
    const request: fake.Step = async ({ stream, signal }) =>
      void (await readExactly(stream, 16, signal));
    const server = await fake.startFakePostgres([request, fake.reset]);

    const upstream = fake.upstreamAt(server.port);
    expect(await cancelQuery({ upstream, processId: 1, secretKey: SECRET })).toBe('unanswered');

    await server[Symbol.asyncDispose]();
  });
});
