/**
 * Goodbyes that the upstream never hears of, and what is then left of its stream: one that the next client can have.
 *
 * A goodbye counts as one only where nothing is under way. A backend that was handed on in the middle of anything would do
 * with the next one's words what the last one's cut-off message says (finding 5: reset smuggling).
 */
import { randomBytes, randomInt } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { SPLICE_TIMES, splice, type Outcome } from '../../src/splice/splice.ts';
import { encodeErrorFields, encodeReadyForQuery } from '../../src/wire/backend.ts';
import { encodeFrame, encodeString } from '../../src/wire/frame.ts';
import { Terminate, encodeQuery, encodeStatement } from '../../src/wire/frontend.ts';
import { readExactly } from '../../src/wire/read.ts';
import {
  closed,
  makePairs,
  nothingLeaked,
  openResources,
  readAll,
  type PairMaker,
} from '../support/sockets.ts';
import { everySplit, inPieces, pieceSizes } from '../support/splits.ts';
import { until } from '../support/stack.ts';

const KIB = 1_024;
const QUERY = encodeQuery('select 1');
const STATEMENT = encodeStatement('select $1', ['1']);
const SYNC = encodeFrame('S');
const READY = encodeReadyForQuery('I');
const FAILED = Buffer.concat([
  encodeErrorFields({ severity: 'ERROR', sqlstate: '42601', message: 'x' }),
  encodeReadyForQuery('E'),
]);
const IN_TRANSACTION = encodeReadyForQuery('T');
const COPY_IN = encodeFrame('G', Buffer.alloc(3));
const COPY_DATA = encodeFrame('d', Buffer.from('1\tXXXX\n'));
const REPORT = encodeFrame('S', encodeString('TimeZone'), encodeString('UTC'));
const never = new AbortController().signal;
const judge = () => new Promise<undefined>(() => {});

/** A stream whose chunks are cut exactly as they were given, which no socket promises. */
class Line extends Duplex {
  readonly #heard: Buffer[] = [];
  override _read(): void {}
  override _write(chunk: Buffer, _: string, written: () => void): void {
    this.#heard.push(Buffer.from(chunk));
    written();
  }
  get heard(): Buffer {
    return Buffer.concat(this.#heard);
  }
  async says(...chunks: readonly Buffer[]): Promise<void> {
    for (const chunk of chunks) {
      this.push(chunk);
      await turn();
    }
  }
  async ends(): Promise<void> {
    this.push(null);
    await turn();
  }
}

/** A splice between two lines. */
function lines(screened = false) {
  const client = new Line();
  const upstream = new Line();
  for (const line of [client, upstream]) line.on('error', () => {});
  const peers = { client: { stream: client as Duplex }, upstream: { stream: upstream as Duplex } };
  const running = splice(peers.client, peers.upstream, {
    judge: screened ? judge : undefined,
    times: { ...SPLICE_TIMES, halfCloseMs: 60_000 },
  });
  let outcome: Outcome | undefined;
  void running.done.then((how) => (outcome = how));
  return {
    done: running.done,
    say: (frames: Buffer) => running.say(frames),
    finish: (error: ProxyError, graceMs: number) => running.finish(error, graceMs),
    client,
    upstream,
    outcome: () => outcome,
  };
}

/** What happens in a session, in order: who says what. */
type Script = readonly (readonly ['client' | 'upstream', Buffer])[];

/** Conversations after which nothing is under way. */
const COMPLETE: Record<string, Script> = {
  'nothing at all': [],
  'a query': [
    ['client', QUERY],
    ['upstream', READY],
  ],
  'a statement': [
    ['client', STATEMENT],
    ['upstream', READY],
  ],
  'a COPY': [
    ['client', QUERY],
    ['upstream', COPY_IN],
    ['client', Buffer.concat([COPY_DATA, COPY_DATA, encodeFrame('c')])],
    ['upstream', READY],
  ],
  'a transaction that failed and was rolled back': [
    ['client', QUERY],
    ['upstream', FAILED],
    ['client', QUERY],
    ['upstream', READY],
  ],
  'an error that was followed by a Sync': [
    ['client', STATEMENT.subarray(0, -SYNC.length)],
    ['upstream', FAILED.subarray(0, -READY.length)],
    ['client', SYNC],
    ['upstream', READY],
  ],
};

/** The six ways of attack F1, and a few more: in each, something is under way. */
const CUT: Record<string, Script> = {
  'inside a Query': [['client', QUERY.subarray(0, -3)]],
  'inside a Query that was never to end': [
    ['client', Buffer.concat([Buffer.from('Q\x3f\xff\xff\xff', 'latin1'), QUERY])],
  ],
  'inside a CopyData that is sized for the reset': [['client', Buffer.from('d\0\0\0\x24')]],
  'inside a header': [['client', QUERY.subarray(0, 3)]],
  'behind a statement without Sync': [['client', STATEMENT.subarray(0, -SYNC.length)]],
  'behind an error without Sync': [
    ['client', STATEMENT.subarray(0, -SYNC.length)],
    ['upstream', FAILED.subarray(0, -READY.length)],
  ],
  'in the middle of COPY IN': [
    ['client', QUERY],
    ['upstream', COPY_IN],
    ['client', COPY_DATA],
  ],
  'in a transaction': [
    ['client', QUERY],
    ['upstream', IN_TRANSACTION],
  ],
  'in a failed transaction': [
    ['client', QUERY],
    ['upstream', FAILED],
  ],
  'while a query runs': [['client', QUERY]],
  'while the second of two queries runs': [
    ['client', Buffer.concat([QUERY, QUERY])],
    ['upstream', READY],
  ],
  'inside an answer': [
    ['client', QUERY],
    ['upstream', READY.subarray(0, -1)],
  ],
  'inside a notice': [['upstream', encodeFrame('N', Buffer.alloc(9)).subarray(0, 8)]],
  'after bytes that are no frames': [['client', Buffer.from('Q\0\0\0\0')]],
  'after an answer that is no frame': [['upstream', Buffer.from('Z\0\0\0\0')]],
};

const GOODBYES = ['Terminate', 'an end', 'both'] as const;

async function play(
  one: ReturnType<typeof lines>,
  script: Script,
  sizes: readonly number[],
): Promise<Buffer> {
  for (const [who, bytes] of script) await one[who].says(...inPieces(bytes, sizes));
  return Buffer.concat(script.flatMap(([who, bytes]) => (who === 'client' ? [bytes] : [])));
}

async function leave(client: Line, goodbye: (typeof GOODBYES)[number]): Promise<void> {
  if (goodbye !== 'an end') await client.says(Terminate);
  if (goodbye !== 'Terminate') await client.ends();
}

describe('a goodbye', () => {
  test.each(Object.keys(COMPLETE))(
    'after %s ends it, and the upstream hears nothing of it',
    async (name) => {
      await fc.assert(
        fc.asyncProperty(
          pieceSizes,
          fc.constantFrom(...GOODBYES),
          fc.boolean(),
          async (sizes, goodbye, screened) => {
            const one = lines(screened);
            const said = await play(one, COMPLETE[name] as Script, sizes);
            await leave(one.client, goodbye);

            expect(one.outcome()).toMatchObject({
              endedBy: 'client',
              error: undefined,
              busy: false,
              idle: true,
              bytes: { clientToUpstream: said.length },
            });
            expect(one.upstream.heard).toEqual(said);
            expect(one.upstream.writable).toBe(true);
            one.client.destroy();
            one.upstream.destroy();
          },
        ),
        { numRuns: 60 },
      );
    },
  );

  test.each(Object.keys(CUT))('%s is passed on, and nobody gets that backend', async (name) => {
    await fc.assert(
      fc.asyncProperty(
        pieceSizes,
        fc.constantFrom(...GOODBYES),
        fc.boolean(),
        async (sizes, goodbye, screened) => {
          const one = lines(screened);
          const said = await play(one, CUT[name] as Script, sizes);
          await leave(one.client, goodbye);
          expect(one.outcome()).toBeUndefined();
          // A screen may still hold what could become a statement about the token.
          if (goodbye !== 'Terminate') {
            const goodbyes = goodbye === 'both' ? [Terminate] : [];
            expect(one.upstream.heard).toEqual(Buffer.concat([said, ...goodbyes]));
            expect(one.upstream.writableEnded).toBe(true);
          }
          // Whatever the upstream makes of it, and whoever then hangs up.
          await one.upstream.says(...(goodbye === 'both' ? [READY] : []));
          await one.upstream.ends();

          expect((await one.done).idle).toBe(false);
          one.client.destroy();
          one.upstream.destroy();
        },
      ),
      { numRuns: 40 },
    );
  });

  test('in pieces is one: its type says it', async () => {
    for (const screened of [false, true]) {
      for (const pieces of everySplit(Terminate)) {
        const one = lines(screened);
        await one.client.says(...pieces);

        expect(one.outcome()).toMatchObject({ endedBy: 'client', idle: true });
        expect(one.upstream.heard).toHaveLength(0);
      }
    }
  });

  test.each([
    ['a length below any', Buffer.from('X\0\0\0\0')],
    ['a length that no message may have', Buffer.from('X\x7f\xff\xff\xff', 'latin1')],
    ['a negative length', Buffer.from('X\xff\xff\xff\xff', 'latin1')],
    ['a body', Buffer.from('X\0\0\0\x08body')],
    ['a body that never comes', Buffer.from('X\0\0\0\x08')],
    ['a query behind it', Buffer.concat([Terminate, QUERY])],
  ])('with %s is one', async (_, bytes) => {
    for (const screened of [false, true]) {
      const one = lines(screened);
      await one.client.says(bytes, QUERY);

      expect(one.outcome()).toMatchObject({ endedBy: 'client', idle: true });
      expect(one.upstream.heard).toHaveLength(0);
    }
  });

  test('with the beginning of a message behind it is as good as none where that is held back', async () => {
    const one = lines(true);
    await one.client.says(Buffer.concat([Terminate, QUERY.subarray(0, 3)]));

    expect(one.upstream.heard).toEqual(Terminate);
    await one.upstream.ends();
    expect(await one.done).toMatchObject({ endedBy: 'client', error: undefined, idle: false });
  });

  test('behind a query in one piece goes on with it', async () => {
    const one = lines();
    await one.client.says(Buffer.concat([QUERY, Terminate]));
    await one.upstream.says(READY);

    expect(one.upstream.heard).toEqual(Buffer.concat([QUERY, Terminate]));
    await one.upstream.ends();
    expect(await one.done).toMatchObject({ endedBy: 'client', idle: false });
  });

  test('that was said before the splice began is one', async () => {
    const client = new Line();
    const upstream = new Line();
    client.push(Terminate);

    const outcome = await splice({ stream: client }, { stream: upstream }).done;

    expect(outcome.idle).toBe(true);
    expect(upstream.heard).toHaveLength(0);
    expect(upstream.listenerCount('end')).toBe(new Line().listenerCount('end'));
    expect(upstream.listenerCount('data')).toBe(0);
  });

  test('of a client that breaks off is none', async () => {
    const one = lines();
    one.client.destroy(new Error('ECONNRESET'));

    expect(await one.done).toMatchObject({ endedBy: 'client', idle: false });
    expect((await one.done).error?.code).toBe('client_lost');
  });

  test('comes too late where the upstream has ended or its session is to end', async () => {
    const ended = lines();
    await ended.upstream.ends();
    const finishing = lines();
    await finishing.client.says(QUERY.subarray(0, 4));
    finishing.finish(new ProxyError('session_expired'), 60_000);
    await finishing.client.says(QUERY.subarray(4));
    await finishing.client.says(Terminate);
    await finishing.upstream.says(READY);

    expect((await ended.done).idle).toBe(false);
    expect((await finishing.done).idle).toBe(false);
  });

  test('tells whether the upstream has reported a setting', async () => {
    const [silent, telling] = [lines(), lines()];
    await telling.upstream.says(REPORT);
    for (const one of [silent, telling]) await one.client.says(Terminate);

    expect(await silent.done).toMatchObject({ idle: true, reported: false });
    expect(await telling.done).toMatchObject({ idle: true, reported: true });
  });
});

describe('an upstream that is left behind', () => {
  let pairs: PairMaker;
  let before: ReturnType<typeof openResources>;
  const held: { stream: Duplex }[] = [];
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => void warnings.push(warning);

  beforeEach(async () => {
    before = openResources();
    pairs = await makePairs();
    process.on('warning', onWarning);
  });

  afterEach(async () => {
    process.off('warning', onWarning);
    for (const { stream } of held.splice(0)) stream.destroy();
    await pairs[Symbol.asyncDispose]();
    await nothingLeaked(before);
    // Of too many listeners, above all.
    for (const warning of warnings.splice(0)) throw warning;
  });

  /** One side, whose stream is given back after the test. */
  function peer(stream: Duplex): { stream: Duplex } {
    const side = { stream };
    held.push(side);
    return side;
  }

  const listenersOf = (stream: Duplex) =>
    Object.fromEntries(stream.eventNames().map((name) => [name, stream.listenerCount(name)]));
  const open = () => readdirSync('/proc/self/fd').length;

  /** A client's whole session on an upstream that others have used and will use; the client reads late now and then. */
  async function visit(upstream: { stream: Duplex }, backend: Duplex): Promise<Outcome> {
    const { accepted, connected } = await pairs.plain();
    const client = { stream: accepted as Duplex };
    const { done } = splice(client, upstream, { judge: randomInt(2) === 0 ? judge : undefined });
    const question = encodeQuery(randomBytes(randomInt(1, 3 * KIB)).toString('hex'));
    const answer = Buffer.concat([
      encodeFrame('D', randomBytes(randomInt(10) === 0 ? randomInt(400 * KIB) : randomInt(200))),
      READY,
    ]);
    const asked = readExactly(backend, question.length, never);
    connected.write(question);
    expect((await asked).equals(question)).toBe(true);
    backend.write(answer);
    expect((await readExactly(connected, answer.length, never)).equals(answer)).toBe(true);
    if (randomInt(2) === 0) connected.write(Terminate);
    connected.end();
    const outcome = await done;
    accepted.destroy();
    await closed(accepted);
    client.stream.destroy();
    await closed(client.stream);
    connected.destroy();
    return outcome;
  }

  test.each(['plain', 'tls'] as const)(
    'serves one client after the other, byte for byte, with nothing left over: %s',
    { timeout: 120_000 },
    async (kind) => {
      const { accepted: backend, connected } = await pairs[kind]();
      const upstream = peer(connected);
      const reset = encodeQuery('DISCARD ALL');
      let left: { listeners: object; stream: Duplex; open: number } | undefined;
      for (let round = 0; round < 1_000; round++) {
        expect((await visit(upstream, backend)).idle).toBe(true);
        left ??= { listeners: listenersOf(upstream.stream), stream: upstream.stream, open: open() };

        // What is asked of it in between is answered in small and large pieces.
        const answer = randomBytes(round % 50 === 0 ? 300 * KIB : randomInt(1, 500));
        upstream.stream.write(reset);
        expect((await readExactly(backend, reset.length, never)).equals(reset)).toBe(true);
        backend.write(answer);
        const read = await readExactly(upstream.stream, answer.length, never);
        expect(read.equals(answer)).toBe(true);
      }

      expect(upstream.stream).toBe(left?.stream);
      expect(listenersOf(upstream.stream)).toEqual(left?.listeners);
      expect(upstream.stream.listenerCount('error')).toBeLessThanOrEqual(2);
      expect(upstream.stream.listenerCount('data')).toBe(0);
      expect(open()).toBeLessThanOrEqual((left?.open ?? 0) + 8);
    },
  );

  test.each(['plain', 'tls'] as const)(
    'keeps what its backend says before anybody reads, however much: %s',
    async (kind) => {
      const { accepted: backend, connected } = await pairs[kind]();
      const upstream = peer(connected);
      const outside = await pairs.plain();
      const { done } = splice(peer(outside.accepted), upstream);
      const words = randomBytes(500 * KIB);

      outside.connected.write(Terminate);
      // From its very end on, before anybody has heard of it.
      void done.then(() => backend.write(words));
      expect((await done).idle).toBe(true);
      for (let again = 0; again < 20; again++) await turn();
      expect(upstream.stream.isPaused()).toBe(true);

      expect((await readExactly(upstream.stream, words.length, never)).equals(words)).toBe(true);
    },
  );

  test.each(['FIN', 'RST'] as const)(
    'tells those who read it of its end, and nobody else: %s',
    async (how) => {
      const { accepted: backend, connected } = await pairs.plain();
      const upstream = peer(connected);
      const outside = await pairs.plain();
      const { done } = splice(peer(outside.accepted), upstream);
      outside.connected.write(Terminate);
      await done;

      if (how === 'FIN') backend.end();
      else backend.resetAndDestroy();

      await expect(readExactly(upstream.stream, 1, never)).rejects.toThrow('closed the connection');
      upstream.stream.destroy();
      await closed(upstream.stream);
      await expect(readExactly(upstream.stream, 1, never)).rejects.toThrow('closed the connection');
    },
  );

  test('ends a splice that begins when it has ended', async () => {
    const { accepted: backend, connected } = await pairs.plain();
    const upstream = peer(connected);
    expect((await visit(upstream, backend)).idle).toBe(true);
    backend.end();
    const outside = await pairs.plain();
    const { done } = splice(peer(outside.accepted), upstream);

    expect(await done).toMatchObject({ endedBy: 'upstream', idle: false });
    expect((await done).error?.code).toBe('upstream_lost');
  });
});

describe('a session that ends while a token is judged', () => {
  test.each(['plain', 'tls'] as const)(
    'reads on and forgets, so that the client hears of it and can leave: %s',
    async (kind) => {
      await using pairs = await makePairs();
      const { accepted, connected } = await pairs[kind]();
      const inside = await pairs.plain();
      const client = { stream: accepted as Duplex };
      const upstream = { stream: inside.connected as Duplex };
      let judging = () => {};
      const begun = new Promise<void>((resolve) => (judging = resolve));
      const session = splice(client, upstream, {
        judge: () => (judging(), new Promise(() => {})),
      });
      connected.write(encodeQuery("SET pgjot.token = 'a.b.c'"));
      await begun;
      const heard = readAll(connected);

      session.finish(new ProxyError('session_expired'), 10);
      expect(await session.done).toMatchObject({ endedBy: 'proxy', idle: false, busy: true });
      // More than any buffer on the way takes.
      connected.end(Buffer.alloc(16 * KIB * KIB, 'x'));
      client.stream.end();

      expect(String((await heard).subarray(0, 1))).toBe('E');
      await until(() => client.stream.readableEnded);
      upstream.stream.destroy();
      client.stream.destroy();
    },
  );
});
