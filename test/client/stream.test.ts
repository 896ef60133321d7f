/**
 * Last words that arrive: whatever the peer still sends, and whatever it does not read.
 */
import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { farewell, send } from '../../src/client/stream.ts';
import { welcome } from '../../src/client/welcome.ts';
import { encodeErrorFields } from '../../src/wire/backend.ts';
import { encodeFrame } from '../../src/wire/frame.ts';
import {
  closed,
  makePairs,
  nothingLeaked,
  openResources,
  readAll,
  type PairMaker,
} from '../support/sockets.ts';
import { until } from '../support/stack.ts';

const WORDS = encodeErrorFields({ severity: 'FATAL', sqlstate: '28P01', message: 'no' });

let pairs: PairMaker;
let before: ReturnType<typeof openResources>;
beforeEach(async () => {
  before = openResources();
  pairs = await makePairs();
});
afterEach(async () => {
  await pairs[Symbol.asyncDispose]();
  await nothingLeaked(before);
});

describe('farewell', () => {
  test.each(['plain', 'tls'] as const)(
    'is heard although unread bytes are pending: %s',
    async (kind) => {
      const { accepted, connected } = await pairs[kind]();
      connected.write(Buffer.alloc(40_000, 'x'));
      await until(() => accepted.readableLength > 0);
      const heard = readAll(connected);
      connected.once('end', () => connected.end());

      await farewell(accepted, WORDS);

      expect(await heard).toEqual(WORDS);
      expect(accepted.destroyed).toBe(true);
    },
  );

  test('waits for a peer that is slow to close, but not for ever', async () => {
    const { accepted, connected } = await pairs.plain();
    const heard = readAll(connected);
    const started = performance.now();

    await farewell(accepted, WORDS);

    expect(await heard).toEqual(WORDS);
    expect(performance.now() - started).toBeGreaterThan(900);
    expect(accepted.destroyed).toBe(true);
  });

  test('does not listen to a peer that never stops talking', async () => {
    const { accepted, connected } = await pairs.plain();
    const flood = setInterval(() => connected.write(Buffer.alloc(100_000)), 1);
    const started = performance.now();

    await farewell(accepted, WORDS);
    clearInterval(flood);

    expect(performance.now() - started).toBeLessThan(900);
    connected.destroy();
  });

  test.each([
    [undefined, false],
    [10_000, true],
  ])(
    'lets a slow peer have what is on its way for as long as it may: %s ms',
    async (flushMs, whole) => {
      const { accepted, connected } = await pairs.plain();
      const bytes = Buffer.alloc(16 * 1_048_576);
      connected.pause();
      accepted.write(bytes);
      let received = 0;
      connected.on('data', (chunk: Buffer) => (received += chunk.length));
      connected.on('error', () => {});
      connected.pause();

      const said = farewell(accepted, WORDS, flushMs);
      // Longer than the linger alone.
      await new Promise((resolve) => setTimeout(resolve, 1_300));
      connected.resume();
      connected.once('end', () => connected.end());
      await said;
      await closed(connected);

      expect(received === bytes.length + WORDS.length).toBe(whole);
    },
  );

  test('is over at once when the stream is gone, and may be said twice', async () => {
    const { accepted, connected } = await pairs.plain();
    connected.destroy();

    await farewell(accepted);
    await farewell(accepted, WORDS);

    expect(accepted.destroyed).toBe(true);
  });

  test('survives a peer that resets instead of listening', async () => {
    const { accepted, connected } = await pairs.plain();
    connected.resetAndDestroy();

    await farewell(accepted, WORDS);

    expect(accepted.destroyed).toBe(true);
  });
});

describe('send', () => {
  test('waits until the bytes are on their way', async () => {
    const { accepted, connected } = await pairs.plain();
    const bytes = Buffer.alloc(16 * 1_048_576);
    let sent = false;
    const sending = send(accepted, bytes).then(() => {
      sent = true;
    });
    await until(() => accepted.bytesWritten > 0 && accepted.writableLength > 0);
    expect(sent).toBe(false);

    connected.resume();
    await sending;

    expect(accepted.writableLength).toBe(0);
  });

  test('rejects when the peer is gone', async () => {
    const { accepted } = await pairs.plain();
    accepted.destroy();

    await expect(send(accepted, WORDS)).rejects.toMatchObject({ code: 'client_lost' });
  });
});

test('welcome says Ok, what the upstream reported byte for byte, our key, and ReadyForQuery once', async () => {
  const { accepted, connected } = await pairs.plain();
  const greeting = [
    encodeFrame('S', Buffer.from('TimeZone\0UTC\0')),
    encodeFrame('N', Buffer.from('SNOTICE\0\0')),
  ];
  const cancelKey = { processId: 7, secretKey: Buffer.alloc(32, 5) };

  await welcome({ stream: accepted, encrypted: false }, { greeting, cancelKey });

  const [heard] = (await once(connected, 'data')) as [Buffer];
  expect(heard.toString('hex')).toBe(
    [
      '520000000800000000',
      ...greeting.map((frame) => frame.toString('hex')),
      `4b0000002800000007${'05'.repeat(32)}`,
      '5a0000000549',
    ].join(''),
  );
});
