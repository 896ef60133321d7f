/**
 * Reading into buffers that are used again, attacked where a mistake would show one user another one's bytes.
 *
 * Real sockets only. Every stream of bytes says whose it is and where each byte belongs, so a byte that
 * went astray is not just a wrong hash: it is found at once, with its place.
 */
import { createCipheriv, randomInt } from 'node:crypto';
import { once } from 'node:events';
import { PassThrough, type Duplex } from 'node:stream';
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { letGo, readInto, type ByteTaker } from '../../src/splice/reading.ts';
import { splice } from '../../src/splice/splice.ts';
import {
  closed,
  makePairs,
  nothingLeaked,
  openResources,
  type PairMaker,
} from '../support/sockets.ts';
import { until } from '../support/stack.ts';

const KIB = 1_024;
const MIB = 1_048_576;

let pairs: PairMaker;
let before: ReturnType<typeof openResources>;

beforeEach(async () => {
  before = openResources();
  pairs = await makePairs();
});

afterEach(async () => {
  await pairs[Symbol.asyncDispose]();
  // Every socket and timer is given back, whatever the test did to them.
  await nothingLeaked(before);
});

/** Bytes that only one sender sends: each depends on the sender and on its place in the stream. */
class Pattern {
  // A prime length, so that no shift by a buffer's size goes unnoticed.
  static readonly #LENGTH = 65_521;
  readonly #table: Buffer;
  at = 0;

  constructor(seed: number) {
    const key = Buffer.alloc(32, 0);
    key.writeUInt32BE(seed);
    const cipher = createCipheriv('aes-256-ctr', key, Buffer.alloc(16, 0));
    this.#table = cipher.update(Buffer.alloc(Pattern.#LENGTH, 0));
  }

  next(length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    for (const { from, to, size } of this.#pieces(length)) {
      this.#table.copy(bytes, to, from, from + size);
    }
    this.at += length;
    return bytes;
  }

  /** In which piece of the stream the first byte is that does not belong there; -1 if all do. */
  firstStranger(chunk: Buffer): number {
    for (const { from, to, size } of this.#pieces(chunk.length)) {
      if (chunk.compare(this.#table, from, from + size, to, to + size) !== 0) return this.at + to;
    }
    this.at += chunk.length;
    return -1;
  }

  *#pieces(length: number): Generator<{ from: number; to: number; size: number }> {
    for (let to = 0; to < length; ) {
      const from = (this.at + to) % Pattern.#LENGTH;
      const size = Math.min(length - to, Pattern.#LENGTH - from);
      yield { from, to, size };
      to += size;
    }
  }
}

/** Sends `total` bytes of a pattern in random pieces with random pauses, as fast as the other side takes them. */
async function sendPattern(
  stream: Duplex,
  seed: number,
  total: number,
  largest: number,
): Promise<void> {
  const pattern = new Pattern(seed);
  const gone = closed(stream);
  while (pattern.at < total && !stream.destroyed) {
    const size = Math.min(
      total - pattern.at,
      randomInt(3) === 0 ? randomInt(1, 64) : randomInt(1, largest),
    );
    if (!stream.write(pattern.next(size)) && !stream.destroyed) {
      await Promise.race([new Promise((resolve) => stream.once('drain', resolve)), gone]);
    }
    if (randomInt(8) === 0) await turn();
  }
}

/** Reads and judges a pattern, once `begun`, with random pauses; resolves with how much came before the end. */
async function receivePattern(
  stream: Duplex,
  seed: number,
  begun: Promise<unknown> = Promise.resolve(),
): Promise<number> {
  const pattern = new Pattern(seed);
  let stranger = -1;
  const over = new Promise<void>((resolve) => {
    stream.once('end', resolve);
    stream.once('close', resolve);
  });
  await Promise.race([begun, closed(stream)]);
  stream.on('data', (chunk: Buffer) => {
    if (stranger === -1) stranger = pattern.firstStranger(chunk);
    if (randomInt(40) !== 0) return;
    stream.pause();
    setTimeout(() => stream.resume(), randomInt(4));
  });
  await over;
  if (stranger !== -1) throw new Error(`a byte of somebody else after ${stranger} of ${seed}`);
  return pattern.at;
}

/** A taker that keeps every chunk as it was given, by reference. */
class Keeper implements ByteTaker {
  readonly chunks: Buffer[] = [];
  answer = true;
  holds = true;
  more = true;
  take(chunk: Buffer): boolean {
    this.chunks.push(chunk);
    return this.answer;
  }
  holdsBytes(): boolean {
    return this.holds;
  }
  expectsMore(): boolean {
    return this.more;
  }
  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

describe('readInto', () => {
  test('moves a plain socket to one that reads faster, for an accepted and for a connected one', async () => {
    const { accepted, connected } = await pairs.plain();

    for (const socket of [accepted, connected]) {
      const reader = readInto(socket, new Keeper());
      expect(reader).not.toBe(socket);
      reader.on('error', () => {});
      await closed(socket);
      expect(reader.destroyed).toBe(false);
      reader.destroy();
    }
  });

  test('gives what was already buffered first, then what comes', async () => {
    const { accepted, connected } = await pairs.plain();
    connected.write('early ');
    await once(accepted, 'readable');
    const keeper = new Keeper();

    const reader = readInto(accepted, keeper);
    connected.write('late');

    await until(() => keeper.bytes.length === 10);
    expect(String(keeper.bytes)).toBe('early late');
    reader.destroy();
  });

  test.each(['plain', 'tls'] as const)(
    'stops when told, and goes on at resume(): %s',
    async (kind) => {
      const { accepted, connected } = await pairs[kind]();
      const keeper = new Keeper();
      keeper.answer = false;
      const reader = readInto(accepted, keeper);

      connected.write(Buffer.alloc(300 * KIB, 'x'));
      await until(() => keeper.chunks.length === 1);
      for (let again = 0; again < 20; again++) await turn();
      expect(keeper.chunks).toHaveLength(1);

      keeper.answer = true;
      reader.resume();
      await until(() => keeper.bytes.length === 300 * KIB);
      reader.destroy();
    },
  );

  test('stops at early bytes when told, and goes on at resume()', async () => {
    const { accepted, connected } = await pairs.plain();
    connected.write('early');
    await once(accepted, 'readable');
    const keeper = new Keeper();
    keeper.answer = false;
    const reader = readInto(accepted, keeper);

    connected.write('late');
    for (let again = 0; again < 20; again++) await turn();
    expect(String(keeper.bytes)).toBe('early');

    keeper.answer = true;
    reader.resume();
    await until(() => String(keeper.bytes) === 'earlylate');
    reader.destroy();
  });

  test('never writes into a chunk that is still referred to, of its own or of another socket', async () => {
    const all = await Promise.all(
      Array.from({ length: 6 }, async (_, seed) => {
        const { accepted, connected } = await pairs.plain();
        const keeper = new Keeper();
        return { seed, keeper, connected, reader: readInto(accepted, keeper) };
      }),
    );

    // Up to several MiB, so that full buffers, their successors and small tails all occur.
    const total = 3 * MIB;
    await Promise.all(
      all.map(({ seed, connected }) => sendPattern(connected, seed, total, 400 * KIB)),
    );
    await until(() => all.every(({ keeper }) => keeper.bytes.length === total));

    for (const { seed, keeper, reader } of all) {
      expect(new Pattern(seed).firstStranger(keeper.bytes)).toBe(-1);
      expect(keeper.chunks.some((chunk) => chunk.length === 32 * KIB)).toBe(true);
      reader.destroy();
    }
  });

  test('uses a buffer again once nobody holds it', async () => {
    const { accepted, connected } = await pairs.plain();
    const keeper = new Keeper();
    keeper.holds = false;
    const reader = readInto(accepted, keeper);

    connected.write(Buffer.alloc(8 * MIB));
    await until(() => keeper.chunks.reduce((sum, chunk) => sum + chunk.length, 0) === 8 * MIB);

    const large = keeper.chunks.filter((chunk) => chunk.length === 32 * KIB);
    const buffers = new Set(large.map((chunk) => chunk.buffer));
    expect(large.length).toBeGreaterThan(8);
    expect(buffers.size).toBeLessThan(large.length / 2);
    reader.destroy();
  });

  test('reads small chunks into one small buffer without a copy, and leaves it to who holds on to it', async () => {
    const { accepted, connected } = await pairs.plain();
    const keeper = new Keeper();
    keeper.holds = false;
    const reader = readInto(accepted, keeper);
    const pattern = new Pattern(7);
    const send = async (chunks: number) => {
      for (let left = chunks; left > 0; left--) {
        const taken = keeper.chunks.length;
        connected.write(pattern.next(100));
        await until(() => keeper.chunks.length > taken);
      }
      return keeper.chunks.slice(-chunks);
    };

    // The first two say that more like them will come.
    await send(2);
    const free = await send(20);
    expect(new Set(free.map((chunk) => chunk.buffer)).size).toBe(1);
    expect(free[0]?.buffer.byteLength).toBe(2 * KIB);

    keeper.holds = true;
    keeper.chunks.length = 0;
    const expected = new Pattern(7);
    expected.at = pattern.at;
    await send(20);
    expect(keeper.chunks[0]?.buffer).toBe(free[0]?.buffer);
    expect(expected.firstStranger(keeper.bytes)).toBe(-1);
    reader.destroy();
  });

  test("never shows the next taker's bytes to the last one, who has not written all of its own yet", async () => {
    const { accepted, connected } = await pairs.plain();
    const [last, next] = [new Keeper(), new Keeper()] as const;
    last.holds = false;
    next.holds = false;
    const reader = readInto(accepted, last);
    const send = async (keeper: Keeper, byte: string) => {
      const taken = keeper.chunks.length;
      connected.write(Buffer.alloc(100, byte));
      await until(() => keeper.chunks.length > taken);
    };
    for (let again = 0; again < 3; again++) await send(last, 'a');
    last.holds = true;
    await send(last, 'a');
    const held = last.chunks.at(-1) as Buffer;
    expect(held.buffer.byteLength).toBe(2 * KIB);

    letGo(reader);
    expect(readInto(reader, next)).toBe(reader);
    for (let again = 0; again < 5; again++) await send(next, 'b');

    expect(String(held)).toBe('a'.repeat(100));
    reader.destroy();
  });

  test('reads what is a little larger than the small buffer in one piece', async () => {
    const { accepted, connected } = await pairs.plain();
    const keeper = new Keeper();
    keeper.holds = false;
    const reader = readInto(accepted, keeper);
    const send = async (bytes: number) => {
      keeper.chunks.length = 0;
      connected.write(Buffer.alloc(bytes));
      await until(() => keeper.bytes.length === bytes);
      return keeper.chunks.length;
    };

    for (let again = 0; again < 4; again++) await send(100);
    expect(await send(2_500)).toBe(2);
    for (let again = 0; again < 4; again++) expect(await send(2_500)).toBe(1);
    reader.destroy();
  });

  test('tells the end, a reset and a close as events of the stream it returns', async () => {
    const ended = await pairs.plain();
    const reset = await pairs.plain();
    const readers = [ended, reset].map(({ accepted }) => readInto(accepted, new Keeper()));
    const errors: NodeJS.ErrnoException[] = [];
    for (const reader of readers) reader.on('error', (error) => errors.push(error));

    ended.connected.end();
    reset.connected.resetAndDestroy();
    await once(readers[0] as Duplex, 'end');
    await closed(readers[1] as Duplex);

    expect(errors.map(({ code }) => code)).toEqual(['ECONNRESET']);
    // Its other half is still open: the peer may read on.
    (readers[0] as Duplex).end('bye');
    const [chunk] = (await once(ended.connected, 'data')) as [Buffer];
    expect(String(chunk)).toBe('bye');
    await closed(readers[0] as Duplex);
  });

  test('reads by data events whatever is no plain socket', async () => {
    const { accepted, connected } = await pairs.tls();
    const stream = new PassThrough();
    const keepers = [new Keeper(), new Keeper()] as const;

    expect(readInto(accepted, keepers[0])).toBe(accepted);
    expect(readInto(stream, keepers[1])).toBe(stream);
    connected.write('over TLS');
    stream.write('through');

    await until(
      () => String(keepers[0].bytes) === 'over TLS' && String(keepers[1].bytes) === 'through',
    );
  });

  test.each<[string, (socket: Socket, peer: Socket) => Promise<unknown> | void]>([
    ['is destroyed', (socket) => void socket.destroy()],
    ['was ended by us', (socket) => void socket.end()],
    ['still has bytes to write', (socket) => void socket.write(Buffer.alloc(16 * MIB))],
    [
      'has read an end that it has not delivered',
      async (socket, peer) => {
        peer.end('last words');
        await once(socket, 'readable');
        await until(
          () => (socket as unknown as { _readableState: { ended: boolean } })._readableState.ended,
        );
      },
    ],
  ])('does not move a socket that %s', async (_, prepare) => {
    const { accepted, connected } = await pairs.plain();
    await prepare(accepted, connected);

    const reader = readInto(accepted, new Keeper());

    expect(reader).toBe(accepted);
  });

  test('still delivers the words and the end of a peer that left before', async () => {
    const { accepted, connected } = await pairs.plain();
    connected.end('last words');
    await once(accepted, 'readable');
    await until(
      () => (accepted as unknown as { _readableState: { ended: boolean } })._readableState.ended,
    );
    const keeper = new Keeper();

    const reader = readInto(accepted, keeper);
    await once(reader, 'end');

    expect(String(keeper.bytes)).toBe('last words');
  });

  test("leaves the listener's count right: it closes when the moved socket has closed, not before", async () => {
    const { accepted, connected } = await pairs.plain();
    const { server } = pairs;
    const count = () =>
      new Promise<number>((resolve, reject) => {
        server.getConnections((error, open) => (error ? reject(error) : resolve(open)));
      });
    const reader = readInto(accepted, new Keeper());
    reader.on('error', () => {});
    await closed(accepted);

    expect(await count()).toBe(1);
    let serverClosed = false;
    server.close(() => {
      serverClosed = true;
    });
    for (let again = 0; again < 20; again++) await turn();
    expect(serverClosed).toBe(false);

    connected.destroy();
    reader.destroy();
    await until(() => serverClosed);
    // For the tidying up after the test, which closes a listener.
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  });
});

/** One session: a client and a backend with a splice between them, each sending its own pattern. */
async function session(index: number, tlsToClient: boolean) {
  const client = await (tlsToClient ? pairs.tls() : pairs.plain());
  const backend = await pairs.plain();
  return {
    index,
    client: client.connected,
    backend: backend.accepted,
    inner: {
      client: { stream: client.accepted as Duplex },
      backend: { stream: backend.connected as Duplex },
    },
  };
}

type Session = Awaited<ReturnType<typeof session>>;

const clientSeed = ({ index }: Session) => 1_000 + index;
const backendSeed = ({ index }: Session) => 2_000 + index;

/** Resolves when the kernel has taken all it will for this stream, so that bytes wait in the proxy itself. */
const isFull = (peer: { stream: Duplex }) => until(() => peer.stream.writableLength > 0);

describe('many splices that share one buffer', () => {
  test('never mix the bytes of anybody: readers that stall, random sizes, TLS beside plain, early bytes', {
    timeout: 90_000,
  }, async () => {
    const sessions = await Promise.all(
      Array.from({ length: 12 }, (_, index) => session(index, index % 4 === 3)),
    );
    await Promise.all(
      sessions.map(async (one) => {
        const largest = [3 * KIB, 20 * KIB, 70 * KIB, 600 * KIB][one.index % 4] as number;
        // More than the kernel holds, so that every reader that begins late makes the proxy wait.
        const total = 16 * MIB;
        const sending = [
          sendPattern(one.client, clientSeed(one), total, largest),
          sendPattern(one.backend, backendSeed(one), total, largest),
        ];
        // Some bytes are there before the splice begins.
        if (one.index % 3 === 0) await once(one.inner.client.stream, 'readable');
        const times = { halfCloseMs: 60_000, stallMs: 60_000 };
        const { done } = splice(one.inner.client, one.inner.backend, { times });
        const received = [
          receivePattern(one.backend, clientSeed(one), isFull(one.inner.backend)),
          receivePattern(one.client, backendSeed(one), isFull(one.inner.client)),
        ];
        await Promise.all(sending);
        // The backend's end must come last: it ends the splice.
        one.client.end();
        await received[0];
        one.backend.end();

        const { bytes } = await done;
        expect(bytes).toEqual({ clientToUpstream: total, upstreamToClient: total });
        one.inner.client.stream.end();
        expect(await Promise.all(received)).toEqual([total, total]);
        one.inner.backend.stream.destroy();
      }),
    );
  });

  test('never mix the bytes of anybody while others are cut off by FIN and RST at random', {
    timeout: 90_000,
  }, async () => {
    const sessions = await Promise.all(
      Array.from({ length: 24 }, (_, index) => session(index, index % 6 === 5)),
    );
    const outcomes = await Promise.all(
      sessions.map(async (one) => {
        const times = { halfCloseMs: 50, stallMs: 1_000 };
        const { done } = splice(one.inner.client, one.inner.backend, { times });
        // Half of them stall until the cut, so that it finds the buffers full.
        const stalled = one.index % 4 < 2 ? closed(one.inner.client.stream) : undefined;
        const received = [
          receivePattern(one.backend, clientSeed(one), stalled),
          receivePattern(one.client, backendSeed(one), stalled),
        ];
        const total = 12 * MIB;
        void sendPattern(one.client, clientSeed(one), total, 30 * KIB);
        void sendPattern(one.backend, backendSeed(one), total, 200 * KIB);
        const victim = one.index % 2 === 0 ? one.client : one.backend;
        setTimeout(() => {
          if (one.index % 3 === 0) victim.destroy();
          else if (one.index % 3 === 1 && !(victim instanceof TLSSocket)) victim.resetAndDestroy();
          else victim.end();
        }, randomInt(250));

        const outcome = await done;
        one.inner.client.stream.destroy();
        one.inner.backend.stream.destroy();
        // Rejects when a single byte was not its own. Where the backend was cut off before its first byte, all that its
        // client has heard is that it is gone.
        const [toBackend, toClient] = await Promise.allSettled(received);
        if (toBackend?.status === 'rejected') throw toBackend.reason;
        if (toClient?.status === 'rejected' && outcome.bytes.upstreamToClient > 0) {
          throw toClient.reason;
        }
        return outcome;
      }),
    );

    for (const { endedBy } of outcomes) expect(endedBy).toMatch(/client|upstream/);
  });

  test('never show a new session what an old one left in the buffers', async () => {
    for (let round = 0; round < 20; round++) {
      const one = await session(round, false);
      const { done } = splice(one.inner.client, one.inner.backend);
      const received = receivePattern(one.backend, clientSeed(one));
      const total = randomInt(1, 200 * KIB);
      await sendPattern(one.client, clientSeed(one), total, 100 * KIB);
      one.client.end();

      expect(await received).toBe(total);
      one.backend.destroy();
      await done;
      one.inner.client.stream.destroy();
      one.inner.backend.stream.destroy();
    }
  });
});
