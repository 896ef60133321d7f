/** Cancel requests among proxies, as somebody sees, withholds and repeats them who can read and write in the store. */
import { EventEmitter } from 'node:events';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { CancelExchange } from '../../src/limits/cancel-exchange.ts';
import type { RedisLink } from '../../src/limits/redis-link.ts';

const KEY = { processId: 4_711, secretKey: Buffer.from('c0ffee00', 'hex') };

type Published = readonly [channel: string, text: string];

/** A store that is in the hands of somebody else: what is published there he has, and he delivers what he likes. */
class HostileStore {
  readonly seen: Published[] = [];
  /** What the store says when something is published, and when. */
  counts: (() => Promise<number>) | undefined;
  readonly #subscribers = new Map<string, EventEmitter>();

  /** A proxy that is subscribed here, and has the session that all ask for, or has not. */
  proxy(name: string, forward: () => Promise<boolean> = async () => false): CancelExchange {
    const subscriber = new EventEmitter();
    this.#subscribers.set(name, subscriber);
    const publish = async (...published: Published) => {
      this.seen.push(published);
      return this.counts?.() ?? this.#subscribers.size;
    };
    const link = {
      proxy: name,
      subscriber,
      ask: async (question: (redis: object) => Promise<unknown>) => question({ publish }),
      keyFor: () => Buffer.alloc(32, 7),
    };
    const exchange = new CancelExchange(link as unknown as RedisLink, forward);
    exchange.open();
    return exchange;
  }

  /** As an honest one would. */
  async deliver(published: Published | undefined): Promise<void> {
    const [channel, text] = published as Published;
    const [, , name] = channel.split(':');
    for (const [one, subscriber] of this.#subscribers) {
      if (name === undefined || name === one) subscriber.emit('message', channel, text);
    }
    for (let turn = 0; turn < 5; turn++) await Promise.resolve();
  }
}

/** Somebody asks by way of proxy `one` for a session of `other`'s: until that one has been sent the request. */
async function requested(store: HostileStore) {
  let served = 0;
  const one = store.proxy('one');
  store.proxy('other', async () => ++served > 0);
  const found = one.ask(KEY);
  await store.deliver(store.seen[0]);
  await store.deliver(store.seen[1]);
  return { found, request: store.seen[2], served: () => served };
}

afterEach(() => {
  vi.useRealTimers();
});

describe('a cancel request', () => {
  it('is served where its session is, and whoever asked hears of it', async () => {
    const store = new HostileStore();
    const { found, request, served } = await requested(store);
    await store.deliver(request);
    await store.deliver(store.seen[3]);

    expect(await found).toBe(true);
    expect(served()).toBe(1);
  });

  it('that was overheard is served once, however often anything is sent again', async () => {
    const store = new HostileStore();
    const { request, served } = await requested(store);
    await store.deliver(request);
    for (let round = 0; round < 3; round++) {
      for (const published of store.seen.slice()) await store.deliver(published);
    }

    expect(served()).toBe(1);
  });

  it('that was overheard is served once, though twelve thousand others come before it is sent again', async () => {
    const store = new HostileStore();
    const { request, served } = await requested(store);
    await store.deliver(request);
    for (let count = 0; count < 12_000; count++) await store.deliver(store.seen[0]);
    await store.deliver(request);

    expect(served()).toBe(1);
  });

  it.each([
    [4_900, 1],
    [5_100, 0],
  ])('that is held back for %i ms is served %i times', async (ms, times) => {
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] });
    const store = new HostileStore();
    const { request, served } = await requested(store);
    await vi.advanceTimersByTimeAsync(ms);
    await store.deliver(request);

    expect(served()).toBe(times);
  });

  it.each([
    [6_900, 1],
    [7_100, 0],
  ])(
    'whose call is held back for %i ms, and then itself too, is served %i times, and never when its client has been told',
    async (ms, times) => {
      vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] });
      const store = new HostileStore();
      let served = 0;
      const one = store.proxy('one');
      store.proxy('other', async () => ++served > 0);
      const told = one.ask(KEY);
      await vi.advanceTimersByTimeAsync(ms);
      await store.deliver(store.seen[0]);
      await store.deliver(store.seen[1]);
      await vi.advanceTimersByTimeAsync(4_900);
      if (store.seen[2] !== undefined) await store.deliver(store.seen[2]);
      await vi.advanceTimersByTimeAsync(300);

      expect(served).toBe(times);
      expect(await told).toBe(false);
    },
  );

  it.each([
    ['by an answer that is sent twice', 3],
    ['by a store that counts too few proxies', 1],
    ['because the store does not say how many proxies there are', undefined],
  ])('that is held back makes nobody believe that it is over %s', async (_, receivers) => {
    const store = new HostileStore();
    let say = (_receivers: number | undefined): void => {};
    store.counts = () =>
      new Promise((resolve, reject) => {
        say = (count) => (count === undefined ? reject(new Error('timeout')) : resolve(count));
        store.counts = undefined;
      });
    const one = store.proxy('one');
    store.proxy('two');
    let served = 0;
    store.proxy('other', async () => ++served > 0);
    let isTold = false;
    const told = one.ask(KEY).finally(() => (isTold = true));
    for (const sent of [0, 1, 2]) await store.deliver(store.seen[sent]);
    const [toTwo, toOther] = store.seen.slice(3);
    await store.deliver(toTwo);
    const answer = store.seen[5];
    await store.deliver(answer);
    await store.deliver(answer);
    say(receivers);
    await store.deliver(answer);
    expect(isTold).toBe(false);

    await store.deliver(toOther);
    await store.deliver(store.seen[6]);
    expect(await told).toBe(true);
    expect(served).toBe(1);
  });

  it('is not made of a ticket that comes when nobody waits any more', async () => {
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] });
    const store = new HostileStore();
    const one = store.proxy('one');
    store.proxy('other', async () => true);
    const found = one.ask(KEY);
    await store.deliver(store.seen[0]);
    await vi.advanceTimersByTimeAsync(12_000);
    expect(await found).toBe(false);
    await store.deliver(store.seen[1]);

    expect(store.seen).toHaveLength(2);
  });
});
