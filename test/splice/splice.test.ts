/**
 * How a splice ends and what it says, between real sockets: half-close, last words, stalls, and whose fault it was.
 */
import type { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { SPLICE_TIMES, splice, type Outcome, type SpliceTimes } from '../../src/splice/splice.ts';
import {
  decodeErrorFields,
  encodeErrorFields,
  encodeReadyForQuery,
} from '../../src/wire/backend.ts';
import { encodeFrame } from '../../src/wire/frame.ts';
import { Terminate, encodeQuery } from '../../src/wire/frontend.ts';
import {
  closed,
  makePairs,
  nothingLeaked,
  openResources,
  readAll,
  type PairMaker,
} from '../support/sockets.ts';
import { until } from '../support/stack.ts';

const MIB = 1_048_576;
const QUERY = encodeQuery('select 1');
const READY = encodeReadyForQuery('I');
const IN_TRANSACTION = encodeReadyForQuery('T');
const EXPIRED = new ProxyError('session_expired');

let pairs: PairMaker;
let before: ReturnType<typeof openResources>;
const held: { stream: Duplex }[] = [];

beforeEach(async () => {
  before = openResources();
  pairs = await makePairs();
});

afterEach(async () => {
  // The proxy's part: a splice closes neither of its sides.
  for (const { stream } of held.splice(0)) stream.destroy();
  await pairs[Symbol.asyncDispose]();
  await nothingLeaked(before);
});

/** A client and a backend with a splice between them. */
async function session(times: Partial<SpliceTimes> = {}) {
  const outside = await pairs.plain();
  const inside = await pairs.plain();
  const client = { stream: outside.accepted as Duplex };
  const upstream = { stream: inside.connected as Duplex };
  held.push(client, upstream);
  const running = splice(client, upstream, {
    times: { ...SPLICE_TIMES, halfCloseMs: 60_000, ...times },
  });
  let ended: Outcome | undefined;
  void running.done.then((outcome) => (ended = outcome));
  return {
    done: running.done,
    say: (frames: Buffer) => running.say(frames),
    finish: (error: ProxyError, graceMs: number) => running.finish(error, graceMs),
    /** The far ends. */
    client: outside.connected,
    backend: inside.accepted,
    /** What the splice holds. */
    inner: { client, upstream },
    outcome: () => ended,
    /** The proxy's part: closes both sides, which the splice itself never does. */
    close() {
      client.stream.end();
      upstream.stream.destroy();
    },
  };
}

/** Sends from one side and waits until the other has it. */
async function pass(from: Duplex, to: Duplex, bytes: Buffer): Promise<void> {
  const seen: Buffer[] = [];
  const listener = (chunk: Buffer) => seen.push(chunk);
  to.on('data', listener).resume();
  from.write(bytes);
  await until(() => Buffer.concat(seen).length >= bytes.length);
  to.off('data', listener);
  to.pause();
  expect(Buffer.concat(seen).equals(bytes)).toBe(true);
}

/** Turns of the event loop in which something wrong would have happened. */
async function aWhile(): Promise<void> {
  for (let turns = 0; turns < 30; turns++) await turn();
}

/** The SQLSTATE and severity of the one ErrorResponse in these bytes. */
function lastWords(bytes: Buffer): { sqlstate: unknown; severity: unknown } {
  expect(String.fromCharCode(bytes[0] ?? 0)).toBe('E');
  expect(bytes).toHaveLength(bytes.readInt32BE(1) + 1);
  const fields = decodeErrorFields(bytes.subarray(5));
  return { sqlstate: fields.get('C'), severity: fields.get('S') };
}

describe('a splice', () => {
  test('passes bytes both ways untouched and counts them', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);
    await pass(one.backend, one.client, READY);

    await pass(one.client, one.backend, QUERY);
    one.client.end(Terminate);
    const said = await readAll(one.backend);
    one.backend.end();

    expect(said).toEqual(Terminate);
    expect(await one.done).toEqual({
      endedBy: 'client',
      error: undefined,
      busy: false,
      idle: false,
      reported: false,
      bytes: {
        clientToUpstream: 2 * QUERY.length + Terminate.length,
        upstreamToClient: READY.length,
      },
    });
    one.close();
  });

  test.each([
    ['a client that never reads', 'backend', 'client'],
    ['a backend that never reads', 'client', 'backend'],
  ] as const)('holds a bounded number of bytes for %s', async (_, from, to) => {
    const one = await session();
    const sender = one[from];
    const sink = from === 'client' ? one.inner.upstream : one.inner.client;
    const source = from === 'client' ? one.inner.client : one.inner.upstream;
    one[to].pause();
    const chunk = encodeFrame('d', Buffer.alloc(256 * 1_024));

    // Until nothing moves any more: every buffer on the way is full.
    let taken = -1;
    await until(async () => {
      while (sender.writableLength < MIB) sender.write(chunk);
      await aWhile();
      const still = sender.bytesWritten - sender.writableLength === taken;
      taken = sender.bytesWritten - sender.writableLength;
      return still && sink.stream.writableLength > 0;
    });

    expect(sink.stream.writableLength).toBeLessThanOrEqual(2 * 65_536);
    expect(source.stream.readableLength).toBeLessThanOrEqual(65_536);
    expect(one.outcome()).toBeUndefined();
    one.client.destroy();
    one.backend.destroy();
    await one.done;
    one.close();
  });
});

describe('half-close', () => {
  test("passes the client's end on and still brings the answer that it asked for", async () => {
    const one = await session();
    const answer = readAll(one.client);
    one.client.end(QUERY);
    await readAll(one.backend);

    one.backend.end(READY);

    expect(await one.done).toMatchObject({ endedBy: 'client', error: undefined, busy: false });
    one.close();
    expect(await answer).toEqual(READY);
  });

  test('gives a client that is only half there no longer than halfCloseMs, and says that the backend is busy', async () => {
    const one = await session({ halfCloseMs: 30 });

    one.client.end(QUERY);

    expect(await one.done).toMatchObject({ endedBy: 'client', error: undefined, busy: true });
    one.close();
  });

  test('counts as the end of the client when the backend resets instead of closing', async () => {
    const one = await session();
    one.client.end(Buffer.concat([QUERY, Terminate]));
    await readAll(one.backend);

    one.backend.resetAndDestroy();

    expect(await one.done).toMatchObject({ endedBy: 'client', error: undefined, idle: false });
    one.close();
  });
});

describe('when the client goes', () => {
  test('by a reset in a query, it is client_lost and the backend is busy', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);

    one.client.resetAndDestroy();

    const outcome = await one.done;
    expect(outcome).toMatchObject({ endedBy: 'client', busy: true });
    expect(outcome.error?.code).toBe('client_lost');
    one.close();
  });

  test('by a reset when idle, the backend is not busy', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);
    await pass(one.backend, one.client, READY);

    one.client.resetAndDestroy();

    expect(await one.done).toMatchObject({ endedBy: 'client', busy: false });
    one.close();
  });

  test('in the middle of a message, the backend counts as busy', async () => {
    const one = await session({ halfCloseMs: 30 });
    await pass(one.client, one.backend, QUERY.subarray(0, 7));

    one.client.destroy();

    expect(await one.done).toMatchObject({ endedBy: 'client', busy: true });
    one.close();
  });
});

describe('when the upstream goes', () => {
  test.each(['FIN', 'RST'] as const)(
    'by a %s without a word, the client hears FATAL 08006',
    async (how) => {
      const one = await session();
      await pass(one.client, one.backend, QUERY);
      const heard = readAll(one.client);

      if (how === 'FIN') one.backend.end();
      else one.backend.resetAndDestroy();

      const outcome = await one.done;
      expect(outcome).toMatchObject({ endedBy: 'upstream', busy: false });
      expect(outcome.error?.code).toBe('upstream_lost');
      one.close();
      expect(lastWords(await heard)).toEqual({ sqlstate: '08006', severity: 'FATAL' });
    },
  );

  test('in the middle of a message, nothing is said that would be read as part of it', async () => {
    const one = await session();
    const row = encodeFrame('D', Buffer.alloc(100)).subarray(0, 50);
    await pass(one.backend, one.client, row);
    const heard = readAll(one.client);

    one.backend.end();

    expect((await one.done).error?.code).toBe('upstream_lost');
    one.close();
    expect(await heard).toHaveLength(0);
  });

  test('with a FATAL of its own, that is passed on and nothing is added', async () => {
    const one = await session();
    const fatal = encodeErrorFields({
      severity: 'FATAL',
      sqlstate: '57P01',
      message: 'terminating connection due to administrator command',
    });
    const heard = readAll(one.client);

    one.backend.end(fatal);

    expect(await one.done).toMatchObject({ endedBy: 'upstream', error: undefined, busy: false });
    one.close();
    expect(await heard).toEqual(fatal);
  });

  test('after a query has failed, that error does not explain its end', async () => {
    const one = await session();
    const error = encodeErrorFields({ severity: 'ERROR', sqlstate: '22012', message: 'x' });
    const heard = readAll(one.client);

    one.backend.end(Buffer.concat([error, READY]));

    expect((await one.done).error?.code).toBe('upstream_lost');
    one.close();
    const words = (await heard).subarray(error.length + READY.length);
    expect(lastWords(words)).toEqual({ sqlstate: '08006', severity: 'FATAL' });
  });
});

describe('finish', () => {
  test('speaks at once between two requests', async () => {
    const one = await session();
    const heard = readAll(one.client);

    one.finish(EXPIRED, 60_000);

    expect(await one.done).toMatchObject({ endedBy: 'proxy', error: EXPIRED, busy: false });
    one.close();
    expect(lastWords(await heard)).toEqual({ sqlstate: '57P01', severity: 'FATAL' });
  });

  test('waits for the end of a transaction and speaks right behind its ReadyForQuery', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);
    one.finish(EXPIRED, 60_000);
    await pass(one.backend, one.client, IN_TRANSACTION);
    await aWhile();
    expect(one.outcome()).toBeUndefined();
    await pass(one.client, one.backend, QUERY);
    const heard = readAll(one.client);

    one.backend.write(READY);

    expect(await one.done).toMatchObject({ endedBy: 'proxy', error: EXPIRED, busy: false });
    one.close();
    const bytes = await heard;
    expect(bytes.subarray(0, READY.length)).toEqual(READY);
    expect(lastWords(bytes.subarray(READY.length)).sqlstate).toBe('57P01');
  });

  test('waits no longer than the grace, and then says that the backend is busy', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);
    const heard = readAll(one.client);

    one.finish(EXPIRED, 20);

    expect(await one.done).toMatchObject({ endedBy: 'proxy', error: EXPIRED, busy: true });
    one.close();
    expect(lastWords(await heard).sqlstate).toBe('57P01');
  });

  test('says nothing when the grace is over in the middle of a message', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);
    await pass(one.backend, one.client, encodeFrame('D', Buffer.alloc(100)).subarray(0, 9));
    const heard = readAll(one.client);

    one.finish(EXPIRED, 20);

    expect(await one.done).toMatchObject({ endedBy: 'proxy', error: EXPIRED, busy: true });
    one.close();
    expect(await heard).toHaveLength(0);
  });

  test('keeps the first error, and the shortest grace', async () => {
    const one = await session();
    await pass(one.client, one.backend, QUERY);

    one.finish(EXPIRED, 60_000);
    one.finish(new ProxyError('shutdown'), 20);
    one.finish(new ProxyError('shutdown'), 60_000);

    expect((await one.done).error).toBe(EXPIRED);
    one.finish(new ProxyError('shutdown'), 0);
    one.close();
  });
});

describe('a side that takes no byte', () => {
  test('for stallMs counts as gone where it is the client', async () => {
    const one = await session({ stallMs: 100 });
    const chunk = encodeFrame('d', Buffer.alloc(MIB));
    one.client.pause();

    for (let written = 0; written < 32; written++) one.backend.write(chunk);

    const outcome = await one.done;
    expect(outcome.endedBy).toBe('client');
    expect(outcome.error?.code).toBe('client_lost');
    one.inner.client.stream.destroy();
    one.close();
  });

  test('for however long is only busy where it is the upstream: it executes, and reads later', async () => {
    const one = await session({ stallMs: 50 });
    const chunk = encodeFrame('d', Buffer.alloc(MIB));
    one.backend.pause();
    for (let written = 0; written < 24; written++) one.client.write(chunk);
    await until(() => one.inner.upstream.stream.writableLength > 0);
    const over = Promise.race([
      one.done,
      new Promise((resolve) => setTimeout(resolve, 300, 'not over')),
    ]);
    expect(await over).toBe('not over');

    let received = 0;
    one.backend.on('data', (piece: Buffer) => (received += piece.length));
    one.backend.resume();

    await until(() => received === 24 * chunk.length);
    one.client.resetAndDestroy();
    await one.done;
    one.close();
  });

  test('for a while only, and then goes on, is not gone', async () => {
    const one = await session({ stallMs: 2_000 });
    const chunk = encodeFrame('d', Buffer.alloc(MIB));
    one.client.pause();
    for (let written = 0; written < 24; written++) one.backend.write(chunk);
    await until(() => one.inner.client.stream.writableLength > 0);

    let received = 0;
    one.client.on('data', (piece: Buffer) => (received += piece.length));
    one.client.resume();

    await until(() => received === 24 * chunk.length);
    expect(one.outcome()).toBeUndefined();
    one.client.resetAndDestroy();
    await one.done;
    one.close();
  });
});

describe('a side that is gone before the splice begins', () => {
  test.each(['client', 'upstream'] as const)('ends it at once: %s', async (side) => {
    const outside = await pairs.plain();
    const inside = await pairs.plain();
    const gone = side === 'client' ? outside.accepted : inside.connected;
    gone.destroy();
    await closed(gone);

    const client = { stream: outside.accepted };
    const upstream = { stream: inside.connected };
    held.push(client, upstream);

    const outcome = await splice(client, upstream).done;

    expect(outcome.endedBy).toBe(side);
    expect(outcome.error?.code).toBe(side === 'client' ? 'client_lost' : 'upstream_lost');
  });
});
