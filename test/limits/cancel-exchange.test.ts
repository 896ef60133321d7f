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
  readonly #subscribers = new Map<string, EventEmitter>();

  /** A proxy that is subscribed here, and has the session that all ask for, or has not. */
  proxy(name: string, forward: () => Promise<boolean> = async () => false): CancelExchange {
    const subscriber = new EventEmitter();
    this.#subscribers.set(name, subscriber);
    const publish = async (...published: Published) => {
      this.seen.push(published);
      return this.#subscribers.size;
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
