/** Cancel requests among proxies, as somebody sees and repeats them who can read and write in the store. */
import { EventEmitter } from 'node:events';
import { describe, expect, it } from 'vitest';
import { CancelExchange } from '../../src/limits/cancel-exchange.ts';
import type { RedisLink } from '../../src/limits/redis-link.ts';

const KEY = { processId: 4_711, secretKey: Buffer.from('c0ffee00', 'hex') };

/** A proxy's link to a store that gives what is published there to nobody but us. */
function linkOf(proxy: string) {
  const published: string[] = [];
  const subscriber = new EventEmitter();
  const publish = async (_channel: string, text: string) => published.push(text) && 1;
  const link = {
    proxy,
    subscriber,
    ask: async (question: (redis: object) => Promise<unknown>) => question({ publish }),
    keyFor: () => Buffer.alloc(32, 7),
  };
  return { link: link as unknown as RedisLink, published, subscriber };
}

describe('a cancel request that was overheard', () => {
  it.each([1, 10_000])(
    'is served once, though %i others came before it is sent again',
    async (others) => {
      const sender = linkOf('one');
      const exchange = new CancelExchange(sender.link, async () => false);
      for (let count = 0; count <= others; count++) await exchange.ask(KEY);
      const { link, subscriber } = linkOf('other');
      let served = 0;
      new CancelExchange(link, async () => ++served > 0).open();
      const [overheard] = sender.published;

      for (const [index, text] of sender.published.entries()) {
        subscriber.emit('message', 'pgjot:cancel', text);
        if (index % 500 === 0) await new Promise(setImmediate);
      }
      expect(served).toBe(others + 1);
      subscriber.emit('message', 'pgjot:cancel', overheard);

      expect(served).toBe(others + 1);
    },
  );
});
