/**
 * The frame walker: the same frames, first bytes and boundaries under any chunking, and calm under any bytes.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FrameWalker } from '../../src/splice/frames.ts';
import { encodeFrame, encodeInt32 } from '../../src/wire/frame.ts';
import { capture, captureNames, saidBy } from '../support/capture.ts';
import { byteByByte, anyBytes, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const WATCHED = 0x5a; // Z

/** What a walker told of these chunks, each event with how many chunks had been walked by then. */
function walk(chunks: readonly Buffer[]) {
  const types: number[] = [];
  const statuses: number[] = [];
  const walker = new FrameWalker(WATCHED, {
    onFrame: (type) => types.push(type),
    onFirstByte: (byte) => statuses.push(byte),
  });
  const boundaries: boolean[] = [walker.atBoundary];
  for (const chunk of chunks) {
    walker.walk(chunk);
    boundaries.push(walker.atBoundary);
  }
  return { types, statuses, boundaries, walker };
}

/** What the protocol says of the same bytes, by the simplest code there is. */
function oracle(stream: Buffer) {
  const types: number[] = [];
  const statuses: number[] = [];
  const ends = new Set([0]);
  let at = 0;
  let lost = false;
  while (at + 5 <= stream.length) {
    const length = stream.readInt32BE(at + 1);
    if (length < 4) {
      lost = true;
      break;
    }
    types.push(stream[at] as number);
    if (stream[at] === WATCHED && length > 4 && at + 5 < stream.length) {
      statuses.push(stream[at + 5] as number);
    }
    at += 1 + length;
    ends.add(at);
  }
  return { types, statuses, ends, lost };
}

/** Frames as they come: mostly the watched one and small ones. */
const frames = fc
  .array(fc.tuple(fc.constantFrom('Z', 'D', 'C', 'd', 'E', '\0', '\xff'), anyBytes(40)), {
    maxLength: 12,
  })
  .map((messages) => Buffer.concat(messages.map(([type, body]) => encodeFrame(type, body))));

describe('FrameWalker', () => {
  test('is at a boundary before anything has come', () => {
    expect(walk([]).walker).toMatchObject({ atBoundary: true, lost: false });
  });

  test('tells the frames, statuses and boundaries of any valid frames under any chunking', () => {
    fc.assert(
      fc.property(frames, pieceSizes, (stream, sizes) => {
        const pieces = inPieces(stream, sizes);
        const truth = oracle(stream);

        const { types, statuses, boundaries } = walk(pieces);

        expect({ types, statuses }).toEqual({ types: truth.types, statuses: truth.statuses });
        let walked = 0;
        for (const [index, piece] of pieces.entries()) {
          walked += piece.length;
          expect(boundaries[index + 1]).toBe(truth.ends.has(walked));
        }
      }),
      { numRuns: 1_000 },
    );
  });

  test.each(captureNames().filter((name) => !name.startsWith('p') || name === 'pipeline'))(
    'tells the same of "%s" whole, in every split and byte by byte',
    (name) => {
      const said = saidBy('B', capture(name));
      const { types, statuses } = oracle(said);

      for (const pieces of [...everySplit(said), byteByByte(said)]) {
        const told = walk(pieces);
        expect(told.types).toEqual(types);
        expect(told.statuses).toEqual(statuses);
        expect(told.walker.atBoundary).toBe(true);
      }
    },
  );

  test('never throws on random bytes, agrees with the protocol, and once lost stays lost', () => {
    fc.assert(
      fc.property(anyBytes(300), pieceSizes, frames, (stream, sizes, more) => {
        const truth = oracle(stream);

        const { types, statuses, walker } = walk(inPieces(stream, sizes));

        expect({ types, statuses, lost: walker.lost }).toEqual({
          types: truth.types,
          statuses: truth.statuses,
          lost: truth.lost,
        });
        if (!walker.lost) return;
        walker.walk(more);
        expect(types).toEqual(truth.types);
        expect(walker.atBoundary).toBe(false);
      }),
      { numRuns: 1_000 },
    );
  });

  test.each([3, 0, -1, -(2 ** 31)])(
    'is lost for good at a length of %i, whole or split',
    (length) => {
      const header = Buffer.concat([Buffer.from('Z'), encodeInt32(length)]);

      for (const pieces of everySplit(header)) {
        const { types, walker } = walk([...pieces, encodeFrame('C')]);
        expect(walker).toMatchObject({ lost: true, atBoundary: false });
        expect(types).toEqual([]);
      }
    },
  );

  test('keeps nothing of a frame of two gigabytes but a number', () => {
    const header = Buffer.concat([Buffer.from('d'), encodeInt32(2 ** 31 - 1)]);
    const chunk = Buffer.alloc(1_048_576);
    let left = 2 ** 31 - 1 - 4;
    const { walker, types } = walk([header]);

    for (; left > chunk.length; left -= chunk.length) walker.walk(chunk);
    expect(walker.atBoundary).toBe(false);
    walker.walk(Buffer.alloc(left));

    expect(walker.atBoundary).toBe(true);
    walker.walk(encodeFrame('Z', Buffer.from('I')));
    expect(types).toEqual([0x64, WATCHED]);
  });

  test('expects no first byte of a watched frame that has no body', () => {
    const { statuses } = walk([encodeFrame('Z'), encodeFrame('D', Buffer.from('x'))]);

    expect(statuses).toEqual([]);
  });
});
