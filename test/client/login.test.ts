/**
 * Asking for the token: what counts as a password message, what does not (attack A7), and how much of it is held.
 */
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { askForToken } from '../../src/client/login.ts';
import type { Client } from '../../src/client/stream.ts';
import { ProxyError } from '../../src/errors.ts';
import { AuthenticationCleartextPassword } from '../../src/wire/backend.ts';
import { encodeFrame, encodeInt32, encodeString } from '../../src/wire/frame.ts';
import { encodePasswordMessage, encodeQuery } from '../../src/wire/frontend.ts';
import { makePairs, type PairMaker } from '../support/sockets.ts';
import { anyBytes, byteByByte, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const never = new AbortController().signal;
const MAX_TOKEN = 300;

let pairs: PairMaker;
beforeEach(async () => {
  pairs = await makePairs();
});
afterEach(() => pairs[Symbol.asyncDispose]());

/** Asks a client that sends these pieces, each in a turn of its own, and then nothing more. */
async function ask(pieces: readonly Buffer[], { end = false } = {}) {
  const { accepted, connected } = await pairs.plain();
  const client: Client = { stream: accepted, encrypted: false, address: '' };
  const heard: Buffer[] = [];
  connected.on('data', (chunk: Buffer) => heard.push(chunk));
  const question = { user: 'alice', maxTokenBytes: MAX_TOKEN, discovery: undefined };
  const asking = askForToken(client, question, never).then(
    ({ token }) => ({ token }),
    (error: unknown) => ({ error: error as ProxyError }),
  );
  for (const piece of pieces) {
    connected.write(piece);
    if (pieces.length < 20) await turn();
  }
  if (end) connected.end();
  const result = await asking;
  connected.destroy();
  return { ...result, heard, held: accepted.readableLength };
}

const codeOf = (result: { error: ProxyError } | { token: string }) =>
  'error' in result ? result.error.code : undefined;

describe('askForToken', () => {
  test('asks for a clear password and hands over exactly what came', async () => {
    const { token, heard } = (await ask([encodePasswordMessage('a.b.c')])) as {
      token: string;
      heard: Buffer[];
    };

    expect(token).toBe('a.b.c');
    expect(Buffer.concat(heard)).toEqual(AuthenticationCleartextPassword);
  });

  test('takes the message however it was cut', async () => {
    const message = encodePasswordMessage('a.b.c');

    for (const pieces of [...everySplit(message), byteByByte(message)]) {
      expect(await ask(pieces)).toMatchObject({ token: 'a.b.c' });
    }
  });

  test('leaves what a hasty client sent behind it in the stream (attack A8)', async () => {
    const query = encodeQuery('select 1');

    const result = await ask([Buffer.concat([encodePasswordMessage('a.b.c'), query])]);

    expect(result).toMatchObject({ token: 'a.b.c', held: query.length });
  });

  test('does not interpret bytes that are not ASCII', async () => {
    const message = encodeFrame('p', Buffer.from([0xc3, 0xa4, 0xff, 0]));

    expect(await ask([message])).toMatchObject({ token: '\u00c3\u00a4\u00ff' });
  });

  test('calls an empty password token_missing', async () => {
    expect(codeOf(await ask([encodeFrame('p', Buffer.from([0]))]))).toBe('token_missing');
  });

  describe('attack A7: refuses as unexpected_message', () => {
    test.each([
      ['another type of message', encodeQuery('select 1')],
      ['another type, before its length has come', Buffer.from('Q')],
      ['the type byte 0', Buffer.from([0])],
      ['a length of 0', Buffer.concat([Buffer.from('p'), encodeInt32(0)])],
      ['a length of 3', Buffer.concat([Buffer.from('p'), encodeInt32(3)])],
      ['a negative length', Buffer.concat([Buffer.from('p'), encodeInt32(-1)])],
      ['a length of 65,536', Buffer.concat([Buffer.from('p'), encodeInt32(65_536)])],
      ['the largest length', Buffer.concat([Buffer.from('p'), encodeInt32(2 ** 31 - 1)])],
      ['no body, not even a NUL', encodeFrame('p')],
      ['no NUL at the end', encodeFrame('p', Buffer.from('a.b.c'))],
      ['a NUL in the middle', encodeFrame('p', Buffer.from('a.b\0c\0'))],
      ['a second string', encodeFrame('p', encodeString('a.b.c'), encodeString('x'))],
      ['a NUL more', encodeFrame('p', Buffer.from('a.b.c\0\0'))],
    ])('%s', async (_, bytes) => {
      expect(codeOf(await ask([bytes]))).toBe('unexpected_message');
    });
  });

  test('takes a token of exactly the limit and no byte more', async () => {
    const fits = 'x'.repeat(MAX_TOKEN);

    expect(await ask([encodePasswordMessage(fits)])).toMatchObject({ token: fits });
    expect(codeOf(await ask([encodePasswordMessage(`${fits}x`)]))).toBe('token_rejected');
  });

  test('reads and forgets a token that is too long, so that the client hears why', async () => {
    const result = await ask([encodePasswordMessage('x'.repeat(65_000))]);

    expect(codeOf(result)).toBe('token_rejected');
    expect(result.held).toBe(0);
    const cause = (result as { error: ProxyError }).error.cause as Error;
    expect(cause.message).toMatch(/65000 bytes.*limits\.maxTokenBytes/);
  });

  test.each([
    ['before anything', Buffer.alloc(0)],
    ['in the header', Buffer.from('p\0')],
    ['in the token', encodePasswordMessage('a.b.c').subarray(0, 7)],
    ['in a token that is too long', encodePasswordMessage('x'.repeat(9_000)).subarray(0, 5_000)],
  ])('says client_lost when the client leaves %s', async (_, bytes) => {
    expect(codeOf(await ask([bytes], { end: true }))).toBe('client_lost');
  });

  test("rejects with the signal's reason", async () => {
    const { accepted } = await pairs.plain();
    const reason = new ProxyError('login_timeout');

    const asking = askForToken(
      { stream: accepted, encrypted: false, address: '' },
      { user: 'u', maxTokenBytes: 9, discovery: undefined },
      AbortSignal.abort(reason),
    );

    await expect(asking).rejects.toBe(reason);
  });

  test('throws nothing but its own errors on random bytes, and never a token that was not sent', async () => {
    const mostlyPassword = fc.oneof(
      anyBytes(40),
      anyBytes(40).map((body) => encodeFrame('p', body)),
      anyBytes(40).map((body) =>
        encodeFrame('p', Buffer.from(body.map((byte) => byte || 1)), Buffer.from([0])),
      ),
    );
    await fc.assert(
      fc.asyncProperty(mostlyPassword, pieceSizes, async (bytes, sizes) => {
        const result = await ask(inPieces(bytes, sizes), { end: true });

        if ('token' in result) {
          const sent = Buffer.from(result.token, 'latin1');
          expect(bytes.subarray(5, 5 + sent.length)).toEqual(sent);
        } else {
          expect(result.error).toBeInstanceOf(ProxyError);
          expect(['unexpected_message', 'token_missing', 'client_lost']).toContain(codeOf(result));
        }
      }),
      { numRuns: 100 },
    );
  });
});
