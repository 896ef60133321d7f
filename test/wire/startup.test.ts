/**
 * The packets without a type byte: real clients' ones, every length there is, and StartupMessages that come back as they were written.
 */
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { encodeInt32, encodeString } from '../../src/wire/frame.ts';
import { EndOfStream } from '../../src/wire/read.ts';
import {
  PROTOCOL_3_0,
  REQUEST_CODE,
  decodeParameters,
  encodeCancelRequest,
  encodeSSLRequest,
  encodeStartupMessage,
  readStartupPacket,
} from '../../src/wire/startup.ts';
import { capture } from '../support/capture.ts';
import { byteByByte, anyBytes, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const never = new AbortController().signal;

function packetFrom(pieces: readonly Buffer[]): ReturnType<typeof readStartupPacket> {
  const stream = new PassThrough();
  for (const piece of pieces) stream.write(piece);
  stream.end();
  return readStartupPacket(stream, never);
}

/** The chunks that a captured client sent first. */
function firstSaid(name: string): Buffer[] {
  return capture(name).lines.flatMap((line) => (line.from === 'F' ? [line.bytes] : []));
}

describe('readStartupPacket', () => {
  test("reads psql's SSLRequest, StartupMessage and CancelRequest", async () => {
    const [ssl, startup] = firstSaid('psql') as [Buffer, Buffer];
    const [cancel] = firstSaid('psql-cancel') as [Buffer];

    expect(await packetFrom([ssl])).toEqual({
      code: REQUEST_CODE.SSLRequest,
      body: Buffer.alloc(0),
    });
    const { code, body } = await packetFrom([startup]);
    expect(code).toBe(PROTOCOL_3_0);
    expect(decodeParameters(body)).toEqual([
      ['user', 'postgres'],
      ['database', 'postgres'],
      ['application_name', 'psql'],
    ]);
    const request = await packetFrom([cancel]);
    expect(request.code).toBe(REQUEST_CODE.CancelRequest);
    expect(request.body).toHaveLength(8);
  });

  test.each(['pg', 'postgres-js'])('reads the StartupMessage of %s', async (client) => {
    const [first] = firstSaid(client) as [Buffer];

    const { code, body } = await packetFrom([first]);

    expect(code).toBe(PROTOCOL_3_0);
    expect(Object.fromEntries(decodeParameters(body))).toMatchObject({
      user: 'postgres',
      database: 'postgres',
    });
  });

  test('reads the same from every split and byte by byte', async () => {
    const [, startup] = firstSaid('psql') as [Buffer, Buffer];
    const whole = await packetFrom([startup]);

    for (const pieces of [...everySplit(startup), byteByByte(startup)]) {
      expect(await packetFrom(pieces)).toEqual(whole);
    }
  });

  // Attack A6: the packet's own length word; PostgreSQL compares it less four with 10,000.
  test.each([0, 1, 4, 7, 10_005, 65_536, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1])(
    'refuses a length of %i in silence, before a byte of the body has come',
    async (length) => {
      const stream = new PassThrough();
      stream.write(encodeInt32(length));

      await expect(readStartupPacket(stream, never)).rejects.toMatchObject({
        code: 'malformed_startup',
        silent: true,
      });
    },
  );

  test.each([8, 9, 10_003, 10_004])('waits for the body at a length of %i', async (length) => {
    const body = Buffer.alloc(length - 4, 1);

    const { body: rest } = await packetFrom([encodeInt32(length), body]);

    expect(rest).toHaveLength(length - 8);
  });

  test('throws only its own errors on random bytes', async () => {
    await fc.assert(
      fc.asyncProperty(anyBytes(64), pieceSizes, async (given, sizes) => {
        const result = await packetFrom(inPieces(given, sizes)).catch((error: unknown) => error);

        if (result instanceof Error) {
          const known = result instanceof EndOfStream || ProxyError.is(result, 'malformed_startup');
          expect(known).toBe(true);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe('decodeParameters', () => {
  const text = fc
    .string({ unit: 'grapheme', minLength: 1 })
    .map((given) => given.replaceAll('\0', '') || 'x');
  const pairs = fc.array(fc.tuple(text, fc.oneof(text, fc.constant(''))));

  test('gives back what encodeStartupMessage wrote, in order, with its duplicates', async () => {
    await fc.assert(
      fc.asyncProperty(pairs, async (given) => {
        const message = encodeStartupMessage(given);
        fc.pre(message.length <= 10_004);

        const { code, body } = await packetFrom([message]);

        expect(code).toBe(PROTOCOL_3_0);
        expect(decodeParameters(body)).toEqual(given);
      }),
      { numRuns: 100 },
    );
  });

  test.each([
    ['nothing, not even a terminator', Buffer.alloc(0)],
    ['no terminator behind the last pair', Buffer.from('user\0alice\0')],
    ['a byte behind the terminator', Buffer.from('user\0alice\0\0x')],
    ['a pair behind the terminator', Buffer.from('user\0alice\0\0role\0admin\0\0')],
    ['a name without a value', Buffer.from('user\0')],
    ['a value without its NUL', Buffer.from('user\0alice')],
    ['a name that is not UTF-8', Buffer.from([0xff, 0, 0x61, 0, 0])],
    ['an overlong encoding of a letter', Buffer.from([0xc1, 0xb5, 0, 0x61, 0, 0])],
  ])('refuses %s', (_, body) => {
    expect(() => decodeParameters(body)).toThrow(
      expect.objectContaining({ code: 'malformed_startup', silent: false }),
    );
  });

  test('throws only malformed_startup on random bytes, and never makes a name up', () => {
    fc.assert(
      fc.property(anyBytes(80), (body) => {
        try {
          const again = decodeParameters(body).flatMap(([name, value]) => [
            encodeString(name),
            encodeString(value),
          ]);
          expect(Buffer.concat([...again, Buffer.from([0])])).toEqual(body);
        } catch (error) {
          expect(ProxyError.is(error, 'malformed_startup')).toBe(true);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe('what we send', () => {
  test('a StartupMessage cannot be given another parameter by a NUL in a value', () => {
    const pairs = [['application_name', 'x\0role\0postgres']] as const;

    expect(() => encodeStartupMessage(pairs)).toThrow(TypeError);
  });

  test("the SSLRequest and the CancelRequest are libpq's", () => {
    const [ssl] = firstSaid('psql') as [Buffer];
    const [cancel] = firstSaid('psql-cancel') as [Buffer];

    expect(encodeSSLRequest()).toEqual(ssl);
    expect(encodeCancelRequest(cancel.readInt32BE(8), cancel.subarray(12))).toEqual(cancel);
  });

  test.each([4, 32, 256])('a CancelRequest holds a key of %i bytes whole', async (length) => {
    const key = Buffer.alloc(length, 9);

    const { code, body } = await packetFrom([encodeCancelRequest(-5, key)]);

    expect([code, body.readInt32BE(0)]).toEqual([REQUEST_CODE.CancelRequest, -5]);
    expect(body.subarray(4)).toEqual(key);
  });
});
