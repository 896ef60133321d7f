/**
 * What a server says: decoded from PostgreSQL's own bytes, encoded so that it decodes to the same, and safe on any bytes at all.
 */
import { parse } from 'pg-protocol';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import {
  AuthenticationCleartextPassword,
  AuthenticationOk,
  BACKEND,
  decodeBackendKeyData,
  decodeDataRow,
  decodeParameterStatus,
  decodeErrorFields,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
  encodeBackendKeyData,
  encodeErrorFields,
  encodeErrorResponse,
  encodeNegotiateProtocolVersion,
  encodeReadyForQuery,
} from '../../src/wire/backend.ts';
import { encodeFrame, encodeInt32, readFrame, type Frame } from '../../src/wire/frame.ts';
import { capture, saidBy } from '../support/capture.ts';
import { anyBytes } from '../support/splits.ts';

const never = new AbortController().signal;

async function frames(said: Buffer): Promise<Frame[]> {
  const stream = new PassThrough();
  stream.end(said);
  const all: Frame[] = [];
  for (let left = said.length; left > 0; ) {
    const frame = await readFrame(stream, 65_536, never);
    all.push(frame);
    left -= frame.bytes.length;
  }
  return all;
}

async function framesOfType(type: number, name: string): Promise<Frame[]> {
  return (await frames(saidBy('B', capture(name)))).filter((frame) => frame.type === type);
}

/** What node-postgres makes of a message: a reader that we did not write. */
async function readByPg(message: Buffer): Promise<Record<string, unknown>> {
  const stream = new PassThrough();
  const seen: unknown[] = [];
  const parsing = parse(stream, (one) => seen.push(one));
  stream.end(message);
  await parsing;
  expect(seen).toHaveLength(1);
  return seen[0] as Record<string, unknown>;
}

const noNul = fc.string({ unit: 'grapheme' }).map((text) => text.replaceAll('\0', ''));

describe('constant messages', () => {
  test.each([
    ['AuthenticationOk', AuthenticationOk, '520000000800000000'],
    ['AuthenticationCleartextPassword', AuthenticationCleartextPassword, '520000000800000003'],
    [
      'AuthenticationSASL, with OAUTHBEARER alone',
      encodeAuthenticationSASL(['OAUTHBEARER']),
      '52000000150000000a4f415554484245415245520000',
    ],
    [
      'AuthenticationSASLContinue, empty',
      encodeAuthenticationSASLContinue(''),
      '52000000080000000b',
    ],
    [
      'AuthenticationSASLContinue',
      encodeAuthenticationSASLContinue('{}'),
      '520000000a0000000b7b7d',
    ],
    ['ReadyForQuery', encodeReadyForQuery('I'), '5a0000000549'],
    [
      'BackendKeyData',
      encodeBackendKeyData(0x01020304, Buffer.from('cafebabe', 'hex')),
      '4b0000000c01020304cafebabe',
    ],
    [
      'NegotiateProtocolVersion, as PostgreSQL answers an unknown option',
      encodeNegotiateProtocolVersion(0x00030000, ['_pq_.foo']),
      '760000001500030000000000015f70715f2e666f6f00',
    ],
  ])('%s is what the manual says', (_, message, hex) => {
    expect(message.toString('hex')).toBe(hex);
  });
});

describe('ErrorResponse', () => {
  test("gives the fields of PostgreSQL's own", async () => {
    const [failure] = await framesOfType(BACKEND.ErrorResponse, 'function-call');

    const fields = decodeErrorFields((failure as Frame).body);

    expect(Object.fromEntries(fields)).toEqual({
      S: 'ERROR',
      V: 'ERROR',
      C: '22012',
      M: 'division by zero',
      F: 'int.c',
      L: '872',
      R: 'int4div',
    });
  });

  test('says the same to node-postgres as it was told', async () => {
    await fc.assert(
      fc.asyncProperty(
        noNul,
        fc.option(noNul, { nil: undefined }),
        fc.option(noNul, { nil: undefined }),
        async (message, detail, hint) => {
          const frame = encodeErrorFields({
            severity: 'FATAL',
            sqlstate: '28P01',
            message,
            detail,
            hint,
          });

          const seen = await readByPg(frame);

          expect(seen).toMatchObject({
            name: 'error',
            severity: 'FATAL',
            code: '28P01',
            detail,
            hint,
          });
          expect(seen['message']).toBe(message);
          expect(decodeErrorFields(frame.subarray(5)).get('M')).toBe(message);
        },
      ),
      { numRuns: 100 },
    );
  });

  test('cannot be split into other fields by a NUL', () => {
    const frame = encodeErrorFields({
      severity: 'FATAL',
      sqlstate: '28000',
      message: 'role "a\0C00000\0" is not permitted',
    });

    expect(Object.fromEntries(decodeErrorFields(frame.subarray(5)))).toEqual({
      S: 'FATAL',
      V: 'FATAL',
      C: '28000',
      M: 'role "aC00000" is not permitted',
    });
  });

  test('is nothing at all for what a client is not told', () => {
    const silent = new ProxyError('malformed_startup', { problem: 'x' }, { silent: true });

    expect(encodeErrorResponse(new ProxyError('client_lost'))).toBeUndefined();
    expect(encodeErrorResponse(silent)).toBeUndefined();
  });

  test("is PostgreSQL's own, byte for byte, where the error holds it", () => {
    const frame = encodeFrame(
      'E',
      Buffer.from('SFATAL\0C57P03\0Mthe database system is starting up\0\0'),
    );

    expect(encodeErrorResponse(new ProxyError('upstream_rejected', { frame }))).toBe(frame);
  });

  test.each([
    ['nothing', ''],
    ['only the terminator', '\0'],
    ['a field without its NUL', 'SERROR\0Mno end'],
    ['no SQLSTATE', 'SERROR\0Mtext\0\0'],
    ['the same field twice', 'Mfirst\0Msecond\0\0'],
  ])('is read without failing when it holds %s', (_, body) => {
    expect(decodeErrorFields(Buffer.from(body))).toBeInstanceOf(Map);
  });
});

describe('ParameterStatus', () => {
  test("gives PostgreSQL's settings", async () => {
    const said = await framesOfType(BACKEND.ParameterStatus, 'pg');

    const settings = said.map(({ body }) => decodeParameterStatus(body));
    expect(settings.find((one) => one?.name === 'server_version')?.value).toMatch(/^18\b/);
    expect(settings).not.toContain(undefined);
  });

  test.each(['', 'name', 'name\0', 'name\0value'])(
    'is undefined when it ends early: %j',
    (body) => {
      expect(decodeParameterStatus(Buffer.from(body))).toBeUndefined();
    },
  );
});

describe('DataRow', () => {
  test("gives PostgreSQL's columns", async () => {
    const rows = await framesOfType(BACKEND.DataRow, 'extended-query');

    expect(rows.map(({ body }) => decodeDataRow(body))).toEqual([['1'], ['1'], ['2'], ['1']]);
  });

  test('tells NULL from an empty text, and gives back any columns', () => {
    fc.assert(
      fc.property(fc.array(fc.option(noNul)), (columns) => {
        const count = Buffer.alloc(2);
        count.writeInt16BE(columns.length);
        const fields = columns.map((text) =>
          text === null
            ? encodeInt32(-1)
            : Buffer.concat([encodeInt32(Buffer.byteLength(text)), Buffer.from(text)]),
        );

        expect(decodeDataRow(Buffer.concat([count, ...fields]))).toEqual(columns);
      }),
    );
  });

  test.each([
    ['no count', '00'],
    ['a column that is missing', '0001'],
    ['a length that is cut off', '0001000000'],
    ['a column longer than the frame', '00010000000541'],
    ['a length of -2', '0001fffffffe'],
    ['the longest length', '00017fffffff41'],
  ])('is refused with %s', (_, hex) => {
    expect(decodeDataRow(Buffer.from(hex, 'hex'))).toBeUndefined();
  });
});

describe('BackendKeyData', () => {
  test("gives PostgreSQL's own key, and back what was encoded", async () => {
    const [said] = await framesOfType(BACKEND.BackendKeyData, 'pg');

    const key = decodeBackendKeyData(said as Frame);

    expect(key?.processId).toBeGreaterThan(0);
    expect(key?.secretKey).toHaveLength(4);
    expect(encodeBackendKeyData(key?.processId ?? 0, key?.secretKey as Buffer)).toEqual(
      said?.bytes,
    );
  });

  test.each([
    [3, false],
    [4, true],
    [32, true],
    [256, true],
    [257, false],
  ])('with a secret of %i bytes is read: %s', async (length, good) => {
    const [frame] = await frames(encodeBackendKeyData(1, Buffer.alloc(length, 7)));

    expect(decodeBackendKeyData(frame as Frame)?.secretKey).toEqual(
      good ? Buffer.alloc(length, 7) : undefined,
    );
  });
});

test('no decoder throws, or reads outside its frame, on random bytes', () => {
  fc.assert(
    fc.property(anyBytes(120), (body) => {
      const within = Buffer.concat([Buffer.alloc(9, 1), body, Buffer.from('BEYOND\0BEYOND')]);
      const view = within.subarray(9, 9 + body.length);
      const frame = { type: 0, body: view, bytes: view };

      const fields = decodeErrorFields(view);
      const row = decodeDataRow(view);
      const key = decodeBackendKeyData(frame);
      const status = decodeParameterStatus(view);

      expect(fields).toEqual(decodeErrorFields(body));
      expect(row).toEqual(decodeDataRow(body));
      expect(status).toEqual(decodeParameterStatus(body));
      expect(key).toEqual(decodeBackendKeyData({ type: 0, body, bytes: body }));
    }),
    { numRuns: 500 },
  );
});
