/**
 * Asking for the token: what counts as a password message, what does not (attack A7), and how much of it is held.
 */
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { askForToken } from '../../src/client/login.ts';
import { encodeFailure } from '../../src/client/oauthbearer.ts';
import type { Client } from '../../src/client/stream.ts';
import { ProxyError } from '../../src/errors.ts';
import type { Discovery } from '../../src/identity/authentication.ts';
import {
  AuthenticationCleartextPassword,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
} from '../../src/wire/backend.ts';
import { encodeFrame, encodeInt32, encodeString } from '../../src/wire/frame.ts';
import {
  encodePasswordMessage,
  encodeQuery,
  encodeSASLInitialResponse,
  encodeSASLResponse,
} from '../../src/wire/frontend.ts';
import { makePairs, type PairMaker } from '../support/sockets.ts';
import { anyBytes, byteByByte, everySplit, inPieces, pieceSizes } from '../support/splits.ts';

const never = new AbortController().signal;
const MAX_TOKEN = 300;

let pairs: PairMaker;
beforeEach(async () => {
  pairs = await makePairs();
});
afterEach(() => pairs[Symbol.asyncDispose]());

const DISCOVERY: Discovery = {
  openidConfiguration: 'https://id.example.com/.well-known/openid-configuration',
  scope: 'openid',
};

interface AskOptions {
  /** The client closes its side behind its pieces. */
  readonly end?: boolean;
  /** It is to sign in by OAUTHBEARER. */
  readonly discovery?: Discovery;
  /** What the verifier has to say of the token. */
  readonly verdict?: ProxyError;
}

/** Asks a client that sends these pieces, each in a turn of its own, and then nothing more. */
async function ask(
  pieces: readonly Buffer[],
  { end = false, discovery, verdict }: AskOptions = {},
) {
  const { accepted, connected } = await pairs.plain();
  const client: Client = { stream: accepted, encrypted: false };
  const heard: Buffer[] = [];
  connected.on('data', (chunk: Buffer) => heard.push(chunk));
  const question = { user: 'alice', maxTokenBytes: MAX_TOKEN, discovery };
  const asking = askForToken(client, question, never)
    .then(({ token, refuse }) => (verdict === undefined ? { token } : refuse(verdict)))
    .then(
      (presented) => presented,
      (error: unknown) => ({ error: error as ProxyError }),
    );
  for (const piece of pieces) {
    connected.write(piece);
    if (pieces.length < 20) await turn();
  }
  if (end) connected.end();
  const result = await asking;
  const held = accepted.readableLength;
  // What was said may still be on its way.
  const silence = new Promise((resolve) => connected.once('end', resolve).once('close', resolve));
  accepted.end();
  await silence;
  connected.destroy();
  return { ...result, heard, held };
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
      { stream: accepted, encrypted: false },
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

describe('askForToken by OAUTHBEARER', () => {
  const discovery = DISCOVERY;
  const OFFER = encodeAuthenticationSASL(['OAUTHBEARER']);
  const FAILURE = encodeAuthenticationSASLContinue(encodeFailure(DISCOVERY));
  const KVSEP = encodeSASLResponse('\x01');

  /** SASLInitialResponse with this value of `auth`. */
  const bearer = (auth: string) =>
    encodeSASLInitialResponse('OAUTHBEARER', `n,,\x01auth=${auth}\x01\x01`);
  const askOAuth = (pieces: readonly Buffer[], options: AskOptions = {}) =>
    ask(pieces, { discovery, ...options });
  const hearing = async (pieces: readonly Buffer[], options: AskOptions = {}) => {
    const result = await askOAuth(pieces, options);
    return { ...result, heard: Buffer.concat(result.heard) };
  };
  const refused = new ProxyError(
    'token_expired',
    { user: 'alice' },
    { detail: 'The token has expired.', hint: 'a hint', cause: new Error('why') },
  );

  test('offers that mechanism alone, and hands over the token', async () => {
    expect(await hearing([bearer('Bearer a.b.c')])).toMatchObject({ token: 'a.b.c', heard: OFFER });
  });

  test('takes the messages however they were cut', async () => {
    const message = bearer('Bearer a.b.c');

    for (const pieces of [...everySplit(message), byteByByte(message)]) {
      expect(await askOAuth(pieces)).toMatchObject({ token: 'a.b.c' });
    }
    const exchange = Buffer.concat([bearer(''), KVSEP]);
    for (const pieces of [...everySplit(exchange), byteByByte(exchange)]) {
      expect(codeOf(await askOAuth(pieces))).toBe('oauth_discovery');
    }
  });

  test('asks once more where the token does not come with the name of the mechanism', async () => {
    const without = encodeFrame('p', encodeString('OAUTHBEARER'), encodeInt32(-1));
    const response = encodeSASLResponse('n,,\x01auth=Bearer a.b.c\x01\x01');

    expect(await hearing([without, response])).toMatchObject({
      token: 'a.b.c',
      heard: Buffer.concat([OFFER, encodeAuthenticationSASLContinue('')]),
    });
    expect(codeOf(await askOAuth([without, encodeFrame('p')]))).toBe('unexpected_message');
  });

  test('leaves what a hasty client sent behind the token in the stream', async () => {
    const query = encodeQuery('select 1');

    const result = await askOAuth([Buffer.concat([bearer('Bearer a.b.c'), query])]);

    expect(result).toMatchObject({ token: 'a.b.c', held: query.length });
  });

  test('tells a client without a token where to get one, and then calls it oauth_discovery', async () => {
    const result = await hearing([bearer(''), KVSEP]);

    expect(codeOf(result)).toBe('oauth_discovery');
    expect(result.heard).toEqual(Buffer.concat([OFFER, FAILURE]));
    expect((result as { error: ProxyError }).error).toMatchObject({
      message: 'OAuth bearer authentication failed for user "alice"',
      spec: { sqlstate: '28000', log: 'info' },
    });
  });

  test('is content with a client that goes once it has been told', async () => {
    expect(codeOf(await askOAuth([bearer('')], { end: true }))).toBe('oauth_discovery');
  });

  test.each([
    ['with nothing', encodeFrame('p'), 'malformed OAUTHBEARER message'],
    ['with a token', bearer('Bearer a.b.c'), 'malformed OAUTHBEARER message'],
    ['with two separators', encodeSASLResponse('\x01\x01'), 'malformed OAUTHBEARER message'],
    ['with a query', encodeQuery('x'), 'expected SASL response, got message type 81'],
  ])('refuses one that answers that %s', async (_, answer, message) => {
    const { error } = (await askOAuth([bearer(''), answer])) as { error: ProxyError };

    expect([error.code, error.message]).toEqual(['unexpected_message', message]);
  });

  test('refuses a token as RFC 7628 has it: the failure, a separator, the error', async () => {
    const result = await hearing([bearer('Bearer a.b.c'), KVSEP], { verdict: refused });

    expect(result.heard).toEqual(Buffer.concat([OFFER, FAILURE]));
    expect((result as { error: ProxyError }).error).toMatchObject({
      code: 'token_expired',
      message: 'OAuth bearer authentication failed for user "alice"',
      detail: 'The token has expired.',
      hint: 'a hint',
      cause: new Error('why'),
      spec: { sqlstate: '28000' },
    });
  });

  test.each<[string, readonly Buffer[]]>([
    ['goes away', []],
    ['goes away in the middle of its answer', [KVSEP.subarray(0, 3)]],
    ['answers with nothing', [encodeFrame('p')]],
    ['answers with another token', [bearer('Bearer d.e.f')]],
    ['answers with a query', [encodeQuery('select 1')]],
    ['answers with a frame of impossible length', [Buffer.from('p\xff\xff\xff\xff', 'latin1')]],
    ['answers at length', [encodeSASLResponse('\x01'.repeat(60_000))]],
  ])('attack: a token was refused although its sender %s', async (_, answer) => {
    const pieces = [bearer('Bearer a.b.c'), ...answer];

    expect(codeOf(await askOAuth(pieces, { verdict: refused, end: true }))).toBe('token_expired');
    expect(codeOf(await askOAuth([bearer('Basic x'), ...answer], { end: true }))).toBe(
      'token_rejected',
    );
  });

  test.each([
    ['a client without a token', '', 'login_timeout'],
    ['a token that was refused', 'Basic x', 'token_rejected'],
  ])('runs out of time with %s', async (_, auth, code) => {
    const { accepted, connected } = await pairs.plain();
    const login = new AbortController();
    const client: Client = { stream: accepted, encrypted: false };
    const question = { user: 'alice', maxTokenBytes: MAX_TOKEN, discovery };
    const asking = askForToken(client, question, login.signal).catch((error: unknown) => error);
    connected.write(bearer(auth));
    let heard = 0;
    await new Promise<void>((resolve) => {
      connected.on('data', (chunk: Buffer) => {
        heard += chunk.length;
        if (heard === OFFER.length + FAILURE.length) resolve();
      });
    });
    login.abort(new ProxyError('login_timeout'));

    expect(await asking).toMatchObject({ code });
  });

  test('says nothing of tokens where the trouble is not with the token', async () => {
    const verdict = new ProxyError('keys_unavailable');

    const result = await hearing([bearer('Bearer a.b.c')], { verdict });

    expect((result as { error: ProxyError }).error).toBe(verdict);
    expect(result.heard).toEqual(OFFER);
  });

  test('answers every token that is none the same', async () => {
    const answers = new Set<string>();
    for (const auth of ['Bearer ', 'Basic x', 'Bearer a b', 'Bearer %', 'x', ' ', '']) {
      const result = await hearing([bearer(auth), KVSEP]);
      const { message, detail, hint, spec } = (result as { error: ProxyError }).error;
      answers.add(JSON.stringify([result.heard, message, detail, hint, spec.sqlstate]));
    }

    expect(answers.size).toBe(1);
  });

  test.each([
    [
      'another type of message',
      encodeQuery('select 1'),
      /^expected SASL response, got message type 81$/,
    ],
    ['a PasswordMessage', encodePasswordMessage('a.b.c'), /^client selected an invalid SASL/],
    [
      'SCRAM',
      encodeSASLInitialResponse('SCRAM-SHA-256', 'n,,n=,r=x'),
      /^client selected an invalid/,
    ],
    [
      'a length of 3',
      Buffer.concat([Buffer.from('p'), encodeInt32(3)]),
      /^invalid message length$/,
    ],
    [
      'a length of 65,536',
      Buffer.concat([Buffer.from('p'), encodeInt32(65_536)]),
      /^invalid message/,
    ],
    [
      'a channel that is bound',
      encodeSASLInitialResponse('OAUTHBEARER', 'p=x,,\x01'),
      /^malformed/,
    ],
  ])('refuses %s as unexpected_message, and says no more', async (_, bytes, message) => {
    const result = await hearing([bytes]);

    expect(codeOf(result)).toBe('unexpected_message');
    expect((result as { error: ProxyError }).error.message).toMatch(message);
    expect(result.heard).toEqual(OFFER);
  });

  test('hands over a token of the limit, and reads and forgets what cannot hold one within it', async () => {
    const fits = 'x'.repeat(MAX_TOKEN);
    const long = bearer(`Bearer ${'x'.repeat(60_000)}`);

    const result = await askOAuth([long, KVSEP]);

    expect(await askOAuth([bearer(`Bearer ${fits}`)])).toMatchObject({ token: fits });
    expect(codeOf(result)).toBe('token_rejected');
    expect(result.held).toBe(0);
    const cause = (result as { error: ProxyError }).error.cause as Error;
    expect(cause.message).toMatch(/more than limits\.maxTokenBytes/);
  });

  test.each([
    ['before anything', Buffer.alloc(0)],
    ['in the header', Buffer.from('p\0')],
    ['in the token', bearer('Bearer a.b.c').subarray(0, 30)],
  ])('says client_lost when the client leaves %s', async (_, bytes) => {
    expect(codeOf(await askOAuth([bytes], { end: true }))).toBe('client_lost');
  });

  test('throws nothing but its own errors on random bytes, and never a token that was not sent', async () => {
    const response = fc.oneof(
      anyBytes(30).map((bytes) => bytes.toString('latin1')),
      anyBytes(10).map((bytes) => `n,,\x01auth=Bearer ${bytes.toString('latin1')}\x01\x01`),
    );
    const frame = fc.oneof(
      anyBytes(40),
      anyBytes(40).map((body) => encodeFrame('p', body)),
      response.map((text) =>
        encodeFrame(
          'p',
          encodeString('OAUTHBEARER'),
          encodeInt32(text.length),
          Buffer.from(text, 'latin1'),
        ),
      ),
    );
    await fc.assert(
      fc.asyncProperty(frame, pieceSizes, async (bytes, sizes) => {
        const result = await askOAuth(inPieces(bytes, sizes), { end: true });

        if ('token' in result) {
          expect(bytes.includes(Buffer.from(`Bearer ${result.token}`, 'latin1'))).toBe(true);
        } else {
          expect(result.error).toBeInstanceOf(ProxyError);
          expect([
            'unexpected_message',
            'authzid_unsupported',
            'token_missing',
            'token_rejected',
            'oauth_discovery',
            'client_lost',
          ]).toContain(codeOf(result));
        }
      }),
      { numRuns: 150 },
    );
  });
});
