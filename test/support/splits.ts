/**
 * Every way to cut a byte string: in two, byte by byte, and at random.
 */
import fc from 'fast-check';

/** Every way to cut it in two, the whole first: `n` ways for `n` bytes. */
export function* everySplit(bytes: Buffer): Generator<Buffer[]> {
  yield [bytes];
  for (let at = 1; at < bytes.length; at++) yield [bytes.subarray(0, at), bytes.subarray(at)];
}

/** One byte at a time. */
export function byteByByte(bytes: Buffer): Buffer[] {
  return Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
}

/** Pieces of the sizes given, in turn and over again; what is left comes last. */
export function inPieces(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = Math.max(1, sizes[turn % sizes.length] ?? bytes.length);
    pieces.push(bytes.subarray(at, at + size));
    at += size;
  }
  return pieces;
}

/** Sizes for `inPieces`: mostly tiny, where headers are split, sometimes larger than any message. */
export const pieceSizes: fc.Arbitrary<number[]> = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: 1, max: 7 }) },
    fc.integer({ min: 1, max: 999 }),
  ),
  { minLength: 1, maxLength: 20 },
);

/** Any bytes at all. */
export function anyBytes(maxLength: number): fc.Arbitrary<Buffer> {
  return fc.uint8Array({ maxLength }).map((array) => Buffer.from(array));
}
