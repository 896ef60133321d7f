/**
 * Frames: real ones read however they are cut, what was written read back, and hostile bytes refused in one of two ways.
 */
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  HEADER_BYTES,
  InvalidFrameLength,
  decodeString,
  encodeFrame,
  encodeInt32,
  encodeString,
  readFrame,
  takeFrame,
  type Frame,
} from '../../src/wire/frame.ts';
import { EndOfStream } from '../../src/wire/read.ts';
import { capture, saidBy } from '../support/capture.ts';
import { byteByByte, anyBytes, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const never = new AbortController().signal;
const MAX = 65_536;

/** All frames of a stream that gets these pieces, and how it ended. */
async function framesOf(
  pieces: readonly Buffer[],
  maxBytes = MAX,
): Promise<{ frames: Frame[]; end: unknown; held: number }> {
  const stream = new PassThrough();
  void (async () => {
    for (const piece of pieces) {
      stream.write(piece);
      await Promise.resolve();
    }
    stream.end();
  })();
  const frames: Frame[] = [];
  for (;;) {
    try {
      frames.push(await readFrame(stream, maxBytes, never));
    } catch (end) {
      return { frames, end, held: stream.readableHighWaterMark };
    }
  }
}

const typeOf = ({ type }: Frame) => String.fromCharCode(type);

describe('readFrame', () => {
  test('reads what PostgreSQL 18 really said', async () => {
    const said = saidBy('B', capture('extended-query'));

    const { frames, end } = await framesOf([said]);

    expect(frames.map(typeOf).join('')).toBe('12TDCZ12DDsZ3ZZ12DCZ');
    expect(Buffer.concat(frames.map((frame) => frame.bytes))).toEqual(said);
    expect(end).toMatchObject({ name: 'EndOfStream', received: 0 });
  });

  test('reads the same from every split and byte by byte', async () => {
    const said = saidBy('B', capture('function-call'));
    const { frames: whole } = await framesOf([said]);

    for (const pieces of [...everySplit(said), byteByByte(said)]) {
      expect((await framesOf(pieces)).frames).toEqual(whole);
    }
  });

  test('gives back what encodeFrame wrote', async () => {
    const type = fc.integer({ min: 0x21, max: 0x7e }).map((code) => String.fromCharCode(code));
    const message = fc.tuple(type, anyBytes(300));
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 8 }), pieceSizes, async (messages, sizes) => {
        const written = Buffer.concat(messages.map(([name, body]) => encodeFrame(name, body)));

        const { frames } = await framesOf(inPieces(written, sizes));

        expect(frames.map((frame) => [typeOf(frame), frame.body])).toEqual(messages);
      }),
      { numRuns: 100 },
    );
  });

  test.each([
    ['a length of 3, which cannot even hold itself', 3],
    ['a length of 0', 0],
    ['a negative length', -1],
    ['the smallest length there is', -(2 ** 31)],
    ['a length above the limit', MAX + 5],
    ['the largest length there is', 2 ** 31 - 1],
  ])('refuses %s before it waits for the body', async (_, length) => {
    const stream = new PassThrough();
    stream.write(Buffer.concat([Buffer.from('Z'), encodeInt32(length)]));

    await expect(readFrame(stream, MAX, never)).rejects.toBeInstanceOf(InvalidFrameLength);
  });

  test('reads a frame of exactly the limit, and one without a body', async () => {
    const { frames } = await framesOf([encodeFrame('d', Buffer.alloc(50)), encodeFrame('S')], 50);

    expect(frames.map(({ body }) => body.length)).toEqual([50, 0]);
  });

  test('throws only its two errors on random bytes, and holds no more than the limit', async () => {
    await fc.assert(
      fc.asyncProperty(anyBytes(400), pieceSizes, async (given, sizes) => {
        const { frames, end } = await framesOf(inPieces(given, sizes), 64);

        expect(end instanceof EndOfStream || end instanceof InvalidFrameLength).toBe(true);
        for (const { body } of frames) expect(body.length).toBeLessThanOrEqual(64);
        const walked = Buffer.concat(frames.map((frame) => frame.bytes));
        expect(walked).toEqual(given.subarray(0, walked.length));
      }),
      { numRuns: 200 },
    );
  });
});

describe('takeFrame', () => {
  test('goes over all that has arrived whole, and leaves what has not to whoever waits for it', async () => {
    const said = saidBy('B', capture('function-call'));
    const { frames: whole } = await framesOf([said]);

    for (const pieces of [...everySplit(said), byteByByte(said)]) {
      const stream = new PassThrough();
      const frames: Frame[] = [];
      let arrived = 0;
      for (const piece of pieces) {
        stream.write(piece);
        arrived += piece.length;
        for (let frame; (frame = takeFrame(stream, MAX)) !== undefined; ) frames.push(frame);
        const taken = frames.reduce((sum, { bytes }) => sum + bytes.length, 0);
        expect(taken + stream.readableLength).toBe(arrived);
      }

      expect(frames).toEqual(whole);
      expect(stream.eventNames()).toEqual(new PassThrough().eventNames());
    }
  });

  test('leaves what lies behind a frame in the stream, be it part of one or no frame at all', async () => {
    const stream = new PassThrough();
    stream.write(Buffer.concat([encodeFrame('Z', Buffer.from('I')), Buffer.from('D\0\0\0\x09ab')]));

    expect(takeFrame(stream, MAX)?.body.toString()).toBe('I');
    expect(takeFrame(stream, MAX)).toBeUndefined();
    expect(stream.readableLength).toBe(7);
    const rest = readFrame(stream, MAX, never);
    stream.write('cde');
    expect((await rest).body.toString()).toBe('abcde');
  });

  test('takes what came before the end, leaves half a frame there, and takes nothing of a stream that broke', async () => {
    const ended = new PassThrough();
    ended.end(Buffer.concat([encodeFrame('Z', Buffer.from('I')), Buffer.from('D\0\0\0\x09')]));
    await new Promise(setImmediate);
    const broken = new PassThrough().on('error', () => {});
    broken.write(encodeFrame('Z', Buffer.from('I')));
    broken.destroy(new Error('reset'));

    expect(takeFrame(ended, MAX)?.body.toString()).toBe('I');
    expect(takeFrame(ended, MAX)).toBeUndefined();
    await expect(readFrame(ended, MAX, never)).rejects.toBeInstanceOf(EndOfStream);
    expect(takeFrame(broken, MAX)).toBeUndefined();
    await expect(readFrame(broken, MAX, never)).rejects.toBeInstanceOf(EndOfStream);
  });

  test.each([3, 0, -1, -(2 ** 31), MAX + 5, 2 ** 31 - 1])(
    'refuses a length of %d as soon as the header has arrived',
    (length) => {
      const stream = new PassThrough();
      stream.write(Buffer.concat([Buffer.from('Z'), encodeInt32(length)]));

      expect(() => takeFrame(stream, MAX)).toThrow(InvalidFrameLength);
    },
  );
});

describe('encodeFrame', () => {
  test('counts the length without the type byte, and with itself', () => {
    const frame = encodeFrame('Z', Buffer.from('I'));

    expect(frame.toString('hex')).toBe('5a0000000549');
    expect(frame).toHaveLength(HEADER_BYTES + 1);
  });
});

describe('strings', () => {
  test('are UTF-8 with a NUL behind', () => {
    expect(encodeString('ä').toString('hex')).toBe('c3a400');
    expect(encodeString('')).toEqual(Buffer.from([0]));
  });

  test('cannot hold a NUL, which would turn the rest into another field', () => {
    expect(() => encodeString('app\0role\0postgres')).toThrow(TypeError);
  });

  test('are read back as written', () => {
    const text = fc.string({ unit: 'grapheme' }).map((given) => given.replaceAll('\0', ''));
    fc.assert(
      fc.property(text, text, (first, second) => {
        const body = Buffer.concat([encodeString(first), encodeString(second)]);

        const one = decodeString(body, 0);
        const two = decodeString(body, one?.next ?? -1);

        expect([one?.text, two?.text, two?.next]).toEqual([first, second, body.length]);
      }),
    );
  });

  test('end within the body or not at all', () => {
    fc.assert(
      fc.property(anyBytes(50), fc.nat(60), (body, start) => {
        const string = decodeString(body, start);

        if (string === undefined) expect(body.subarray(start).includes(0)).toBe(false);
        else expect(body[string.next - 1]).toBe(0);
      }),
    );
  });
});

test('a 32-bit integer keeps its sign and its high bit', () => {
  expect(encodeInt32(-1).toString('hex')).toBe('ffffffff');
  expect(encodeInt32(2 ** 31).toString('hex')).toBe('80000000');
  expect(encodeInt32(80_877_103).toString('hex')).toBe('04d2162f');
});
