/**
 * `readExactly` and `skip`: as many bytes as asked for, from real sockets and from streams that end anywhere.
 */
import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { EndOfStream, readExactly, skip } from '../../src/wire/read.ts';
import { makePairs } from '../support/sockets.ts';
import { byteByByte, anyBytes, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const never = new AbortController().signal;

/** A stream to which these pieces are written one after the other, each in a turn of its own. */
function streamOf(pieces: readonly Buffer[]): PassThrough {
  const stream = new PassThrough();
  void (async () => {
    for (const piece of pieces) {
      stream.write(piece);
      await new Promise(setImmediate);
    }
    stream.end();
  })();
  return stream;
}

describe('readExactly', () => {
  test('gives the same bytes however they were cut', async () => {
    const whole = Buffer.from('0123456789');

    for (const pieces of [...everySplit(whole), byteByByte(whole)]) {
      const stream = streamOf(pieces);

      expect(String(await readExactly(stream, 3, never))).toBe('012');
      expect(String(await readExactly(stream, 1, never))).toBe('3');
      expect(String(await readExactly(stream, 6, never))).toBe('456789');
    }
  });

  test('leaves what was not asked for in the stream', async () => {
    const stream = streamOf([Buffer.from('abcdef')]);

    await readExactly(stream, 2, never);

    expect(stream.readableLength).toBe(4);
    expect(stream.listenerCount('readable')).toBe(0);
  });

  test('takes what has arrived already without listening for more, even behind the end', async () => {
    const stream = new PassThrough();
    stream.end('abcdef');
    // The end has been seen by then, and not been read yet.
    await new Promise(setImmediate);
    const listened: unknown[] = [];
    stream.on('newListener', (name: unknown) => listened.push(name));

    expect(String(await readExactly(stream, 2, never))).toBe('ab');
    expect(String(await readExactly(stream, 4, never))).toBe('cdef');
    expect(listened).toEqual([]);
    await expect(readExactly(stream, 1, never)).rejects.toMatchObject({ received: 0 });
  });

  test('gives nothing at once when nothing is asked for, even after the end', async () => {
    const stream = new PassThrough();
    stream.destroy();

    expect(await readExactly(stream, 0, never)).toHaveLength(0);
  });

  test('says how much had arrived when the peer ends before the rest', async () => {
    const reading = readExactly(streamOf([Buffer.from('ab'), Buffer.from('c')]), 4, never);

    await expect(reading).rejects.toMatchObject({ name: 'EndOfStream', received: 3 });
  });

  test('says so when the stream breaks, had already ended, or was destroyed before', async () => {
    const broken = new PassThrough();
    const reading = readExactly(broken, 4, never);
    const cause = new Error('reset');
    broken.destroy(cause);
    const ended = streamOf([]);
    ended.resume();
    await once(ended, 'end');

    await expect(reading).rejects.toMatchObject({ name: 'EndOfStream', received: 0, cause });
    await expect(readExactly(ended, 1, never)).rejects.toBeInstanceOf(EndOfStream);
    await expect(readExactly(broken, 1, never)).rejects.toBeInstanceOf(EndOfStream);
  });

  test('rejects with the reason when the signal aborts, before or during the wait, and drops no byte', async () => {
    const stream = new PassThrough();
    stream.write('ab');
    const abort = new AbortController();
    const reason = new Error('too late');
    const reading = readExactly(stream, 4, abort.signal);

    abort.abort(reason);

    await expect(reading).rejects.toBe(reason);
    await expect(readExactly(stream, 1, abort.signal)).rejects.toBe(reason);
    stream.write('cd');
    expect(String(await readExactly(stream, 4, never))).toBe('abcd');
    expect(stream.eventNames().filter((name) => name === 'readable')).toEqual([]);
  });

  test('reads 64 KiB at once from a real socket', async () => {
    await using pairs = await makePairs();
    const { accepted, connected } = await pairs.plain();
    // Far more than a stream buffers in any version of Node.
    const sent = Buffer.alloc(65_535, 'x');
    connected.write(sent);

    expect((await readExactly(accepted, sent.length, never)).equals(sent)).toBe(true);
  });

  test('sees the reset of a real socket as the end', async () => {
    await using pairs = await makePairs();
    const { accepted, connected } = await pairs.plain();
    const reading = readExactly(accepted, 4, never);

    connected.resetAndDestroy();

    await expect(reading).rejects.toMatchObject({
      name: 'EndOfStream',
      cause: { code: 'ECONNRESET' },
    });
  });

  test('never resolves with another number of bytes than asked for, whatever arrives', async () => {
    await fc.assert(
      fc.asyncProperty(
        anyBytes(200),
        pieceSizes,
        fc.array(fc.nat(60), { maxLength: 10 }),
        async (given, sizes, wanted) => {
          const stream = streamOf(inPieces(given, sizes));
          const read: Buffer[] = [];
          let failure: unknown;
          for (const length of wanted) {
            const piece = await readExactly(stream, length, never).catch((error: unknown) => {
              failure = error;
            });
            if (piece === undefined) break;
            expect(piece).toHaveLength(length);
            read.push(piece);
          }
          const got = Buffer.concat(read);
          expect(got).toEqual(given.subarray(0, got.length));
          if (failure !== undefined) expect(failure).toBeInstanceOf(EndOfStream);
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe('skip', () => {
  test('forgets exactly as much as asked for and holds only a piece of it', async () => {
    await using pairs = await makePairs();
    const { accepted, connected } = await pairs.plain();
    // Far more than a stream buffers in any version of Node.
    const sent = Buffer.alloc(400_000, 'x');
    connected.write(Buffer.concat([sent, Buffer.from('after')]));

    await skip(accepted, sent.length, never);

    expect(String(await readExactly(accepted, 5, never))).toBe('after');
    expect(accepted.readableHighWaterMark).toBeLessThan(sent.length);
  });

  test('says so when the peer ends first', async () => {
    await expect(skip(streamOf([Buffer.from('ab')]), 5_000, never)).rejects.toBeInstanceOf(
      EndOfStream,
    );
  });
});
