/**
 * The messages of OAUTHBEARER: what is taken, what is refused with PostgreSQL's words, and that nothing in between exists.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  assertConcession,
  decodeSASLInitialResponse,
  encodeFailure,
  parseBearer,
  parseClientResponse,
} from '../../src/client/oauthbearer.ts';
import { ProxyError } from '../../src/errors.ts';
import { encodeInt32, encodeString } from '../../src/wire/frame.ts';
import { anyBytes } from '../support/splits.ts';

/** What a function throws, which must be an error of ours. */
function failure(attempt: () => unknown): ProxyError {
  try {
    attempt();
  } catch (error) {
    expect(error).toBeInstanceOf(ProxyError);
    return error as ProxyError;
  }
  throw new Error('it did not fail');
}

/** A client's response in which `^` stands for the separator. */
const written = (text: string) => Buffer.from(text.replaceAll('^', '\x01'), 'latin1');

/** The body of a SASLInitialResponse. */
function initial(mechanism: string, response: Buffer, length = response.length): Buffer {
  return Buffer.concat([encodeString(mechanism), encodeInt32(length), response]);
}

describe('decodeSASLInitialResponse', () => {
  const response = written('n,,^auth=Bearer a.b.c^^');

  test('returns the response', () => {
    expect(decodeSASLInitialResponse(initial('OAUTHBEARER', response))).toEqual(response);
  });

  test('knows an empty response from none', () => {
    const none = initial('OAUTHBEARER', Buffer.alloc(0), -1);

    expect(decodeSASLInitialResponse(none)).toBeUndefined();
    expect(decodeSASLInitialResponse(initial('OAUTHBEARER', Buffer.alloc(0)))).toHaveLength(0);
  });

  const INVALID = 'client selected an invalid SASL authentication mechanism';
  const CUT = 'insufficient data left in message';
  test.each<[string, Buffer, string]>([
    ['of SCRAM', initial('SCRAM-SHA-256', response), INVALID],
    ['of SCRAM with channel binding', initial('SCRAM-SHA-256-PLUS', response), INVALID],
    ['of OAUTHBEARER with channel binding', initial('OAUTHBEARER-PLUS', response), INVALID],
    ['of the mechanism in lower case', initial('oauthbearer', response), INVALID],
    ['of no mechanism', initial('', response), INVALID],
    ['that is a PasswordMessage', encodeString('eyJh.eyJz.c2ln'), INVALID],
    ['without the NUL of the mechanism', Buffer.from('OAUTHBEARER'), 'invalid string in message'],
    ['of no bytes', Buffer.alloc(0), 'invalid string in message'],
    ['without a length', encodeString('OAUTHBEARER'), CUT],
    ['with half a length', initial('OAUTHBEARER', Buffer.alloc(0)).subarray(0, 14), CUT],
    ['longer than its frame', initial('OAUTHBEARER', response, response.length + 1), CUT],
    ['of the largest length', initial('OAUTHBEARER', response, 2 ** 31 - 1), CUT],
    ['of a length below -1', initial('OAUTHBEARER', response, -2), CUT],
    ['of the lowest length', initial('OAUTHBEARER', response, -(2 ** 31)), CUT],
    [
      'shorter than its frame',
      initial('OAUTHBEARER', response, response.length - 1),
      'invalid message format',
    ],
    ['that is there and not', initial('OAUTHBEARER', response, -1), 'invalid message format'],
  ])('refuses one %s', (_, body, message) => {
    const { code, message: said } = failure(() => decodeSASLInitialResponse(body));

    expect([code, said]).toEqual(['unexpected_message', message]);
  });

  test('returns nothing but what stands in the frame, whatever the bytes', () => {
    const body = fc.oneof(
      anyBytes(40),
      fc.tuple(anyBytes(20), fc.integer({ min: -3, max: 25 })).map(([bytes, length]) => {
        return initial('OAUTHBEARER', bytes, length);
      }),
    );
    fc.assert(
      fc.property(body, (bytes) => {
        let found: Buffer | undefined;
        try {
          found = decodeSASLInitialResponse(bytes);
        } catch (error) {
          expect(ProxyError.is(error, 'unexpected_message')).toBe(true);
          return;
        }
        const length = found === undefined ? -1 : found.length;
        expect(initial('OAUTHBEARER', found ?? Buffer.alloc(0), length)).toEqual(bytes);
      }),
    );
  });
});

describe('parseClientResponse', () => {
  test.each<[string, string, string]>([
    ['a token', 'n,,^auth=Bearer a.b.c^^', 'Bearer a.b.c'],
    ['nothing, which asks where to get one', 'n,,^auth=^^', ''],
    ['a client that could have bound a channel', 'y,,^auth=Bearer a^^', 'Bearer a'],
    ['host and port', 'n,,^host=a.example^port=6432^auth=Bearer a^^', 'Bearer a'],
    ['keys that nobody knows', 'n,,^x=1^auth=Bearer a^y=^^', 'Bearer a'],
    ['keys that begin as auth does', 'n,,^authz=Bearer b^auth=Bearer a^AUTH=c^^', 'Bearer a'],
    ['a value that holds an equals sign', 'n,,^auth=Bearer a==^^', 'Bearer a=='],
    ['a value of white space', 'n,,^auth= \t\r\n^^', ' \t\r\n'],
  ])('takes %s', (_, text, auth) => {
    expect(parseClientResponse(written(text))).toBe(auth);
  });

  test.each<[string, string, string]>([
    ['nothing', '', 'The message is empty.'],
    ['a NUL', 'n,,^auth=Bearer a\0^^', 'Message length does not match input length.'],
    ['a NUL at the end', 'n,,^auth=Bearer a^^\0', 'Message length does not match input length.'],
    [
      'a channel that is bound',
      'p=tls-unique,,^auth=Bearer a^^',
      'The server does not support channel binding for OAuth, but the client message includes channel binding data.',
    ],
    ['another flag', 'x,,^auth=Bearer a^^', `Unexpected channel-binding flag "'x'".`],
    ['a flag in upper case', 'N,,^auth=Bearer a^^', `Unexpected channel-binding flag "'N'".`],
    ['no header', '^auth=Bearer a^^', 'Unexpected channel-binding flag "0x01".'],
    ['the separator alone', '^', 'Unexpected channel-binding flag "0x01".'],
    ['a flag beyond ASCII', '\xff,,^auth=Bearer a^^', 'Unexpected channel-binding flag "0xff".'],
    ['the flag alone', 'n', 'Comma expected, but found character "0x00".'],
    ['no comma', 'n;,^auth=Bearer a^^', `Comma expected, but found character "';'".`],
    [
      'an attribute that is no authorization identity',
      'n,m=x,^auth=Bearer a^^',
      `Unexpected attribute "'m'" in client-first-message.`,
    ],
    ['one comma alone', 'n,', 'Unexpected attribute "0x00" in client-first-message.'],
    ['the header alone', 'n,,', 'Key-value separator expected, but found character "0x00".'],
    [
      'no separator',
      'n,,auth=Bearer a^^',
      `Key-value separator expected, but found character "'a'".`,
    ],
    ['nothing behind the separator', 'n,,^', 'Message did not contain a final terminator.'],
    ['no pairs', 'n,,^^', 'Message does not contain an auth value.'],
    ['no auth', 'n,,^host=h^^', 'Message does not contain an auth value.'],
    ['two auths', 'n,,^auth=Bearer a^auth=Bearer b^^', 'Message contains multiple auth values.'],
    ['two auths, the first empty', 'n,,^auth=^auth=a^^', 'Message contains multiple auth values.'],
    ['no end', 'n,,^auth=Bearer a^', 'Message did not contain a final terminator.'],
    ['half a pair', 'n,,^auth=Bearer a', 'Message contains an unterminated key/value pair.'],
    ['a key without a value', 'n,,^auth^^', 'Message contains a key without a value.'],
    ['an empty key', 'n,,^=Bearer a^^', 'Message contains an empty key name.'],
    ['a digit in a key', 'n,,^auth2=Bearer a^^', 'Message contains an invalid key name.'],
    ['white space before a key', 'n,,^ auth=Bearer a^^', 'Message contains an invalid key name.'],
    ['a control character', 'n,,^auth=Bearer \x02^^', 'Message contains an invalid value.'],
    ['bytes beyond ASCII', 'n,,^auth=Bearer \xe9^^', 'Message contains an invalid value.'],
    [
      'DEL in a value that is ignored',
      'n,,^host=\x7f^auth=a^^',
      'Message contains an invalid value.',
    ],
    [
      'more behind the end',
      'n,,^auth=Bearer a^^x',
      'Message contains additional data after the final terminator.',
    ],
    [
      'a second end',
      'n,,^auth=Bearer a^^^',
      'Message contains additional data after the final terminator.',
    ],
  ])('refuses %s', (_, text, detail) => {
    expect(failure(() => parseClientResponse(written(text)))).toMatchObject({
      code: 'unexpected_message',
      message: 'malformed OAUTHBEARER message',
      detail,
    });
  });

  test('refuses an authorization identity, as in the example of RFC 7628', () => {
    const example = 'n,a=user@example.com,^host=server.example.com^port=143^auth=Bearer vF9d==^^';

    expect(failure(() => parseClientResponse(written(example)))).toMatchObject({
      code: 'authzid_unsupported',
      message: 'client uses authorization identity, but it is not supported',
      spec: { sqlstate: '0A000' },
    });
  });

  test('takes exactly what the grammar has, and of that only what has one auth', () => {
    // RFC 7628 section 3.1, all at once, where the parser walks.
    const grammar = /^[ny],,\^(?:[A-Za-z]+=[ -\]_-~\t\r\n]*\^)*\^$/;
    const headers = ['n,,', 'y,,', 'n,', 'p=x,,', 'a=', ',', '^', '^', '^'];
    const pieces = ['=', 'auth', 'auth=', 'auth=Bearer a.b^', 'host=h^', 'x=^', 'Bearer ', 'a'];
    const part = fc.constantFrom(...headers, ...pieces, '\0', '\x7f', '\xe9', '\n');
    const parts = fc.array(part, { maxLength: 8 }).map((some) => some.join(''));
    const pairs = fc.array(fc.constantFrom('auth=Bearer a.b^', 'host=h^', 'x=^'));
    const text = fc.oneof(
      parts,
      parts.map((some) => `n,,^${some}^`),
      pairs.map((some) => `n,,^${some.join('')}^`),
    );
    let taken = 0;
    fc.assert(
      fc.property(text, (sent) => {
        const auths = [...sent.matchAll(/\^auth=([^^]*)(?=\^)/g)];
        const isLegal = grammar.test(sent) && auths.length === 1;

        if (isLegal) {
          taken++;
          expect(parseClientResponse(written(sent))).toBe(auths[0]?.[1]);
        } else {
          const { code } = failure(() => parseClientResponse(written(sent)));
          expect(['unexpected_message', 'authzid_unsupported']).toContain(code);
        }
      }),
      { numRuns: 3_000 },
    );
    expect(taken).toBeGreaterThan(50);
  });

  test('tells of a message no more than one of its characters', () => {
    fc.assert(
      fc.property(anyBytes(60), (bytes) => {
        const secret = `secret${bytes.toString('hex')}secret`;
        const sent = Buffer.concat([bytes, Buffer.from(secret)]);

        const { message, detail } = failure(() => parseClientResponse(sent));
        expect(`${message} ${detail ?? ''}`).not.toContain('secret');
      }),
    );
  });
});

describe('parseBearer', () => {
  test.each([
    ['a token', 'Bearer a.b.c', 'a.b.c'],
    ['a scheme in lower case', 'bearer a.b.c', 'a.b.c'],
    ['a scheme in upper case', 'BEARER a.b.c', 'a.b.c'],
    ['several spaces', 'Bearer    a.b.c', 'a.b.c'],
    ['every character that there may be', 'Bearer azAZ09-._~+/==', 'azAZ09-._~+/=='],
  ])('takes %s', (_, auth, token) => {
    expect(parseBearer(auth, 'alice')).toBe(token);
  });

  test.each([
    ['another scheme', 'Basic YWxpY2U6c2VjcmV0', 'token_rejected'],
    ['no scheme', 'a.b.c', 'token_rejected'],
    ['no space', 'Bearer', 'token_rejected'],
    ['a tab for a space', 'Bearer\ta.b.c', 'token_rejected'],
    ['a space before the scheme', ' Bearer a.b.c', 'token_rejected'],
    ['a scheme that begins so', 'BearerX a.b.c', 'token_rejected'],
    ['no token', 'Bearer ', 'token_missing'],
    ['spaces for a token', 'Bearer    ', 'token_missing'],
    ['a space behind the token', 'Bearer a.b.c ', 'token_rejected'],
    ['a line end behind the token', 'Bearer a.b.c\n', 'token_rejected'],
    ['two tokens', 'Bearer a.b.c a.b.c', 'token_rejected'],
    ['two tokens with a comma', 'Bearer a.b.c,a.b.c', 'token_rejected'],
    ['padding alone', 'Bearer ==', 'token_rejected'],
    ['padding inside', 'Bearer a=b', 'token_rejected'],
    ['a quoted token', 'Bearer "a.b.c"', 'token_rejected'],
    ['a percent sign', 'Bearer a%2eb', 'token_rejected'],
  ])('refuses %s', (_, auth, code) => {
    const error = failure(() => parseBearer(auth, 'alice'));

    expect(error.code).toBe(code);
    expect((error.cause as Error).message).not.toMatch(/a\.b|YWxp/);
  });

  test('hands over every token of RFC 6750, and no text that is none', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme-ascii', maxLength: 12 }), (text) => {
        const auth = `Bearer ${text}`;
        const legal = /^ *([A-Za-z0-9._~+/-]+=*)$/.exec(text)?.[1];

        if (legal === undefined) failure(() => parseBearer(auth, 'u'));
        else expect(parseBearer(auth, 'u')).toBe(legal);
      }),
      { numRuns: 1_000 },
    );
  });

  test('takes no time over many spaces', () => {
    const started = performance.now();

    failure(() => parseBearer(`Bearer ${' '.repeat(60_000)}\x01`, 'u'));
    failure(() => parseBearer(`Bearer ${'='.repeat(60_000)}\x01`, 'u'));
    failure(() => parseBearer(`Bearer ${'a'.repeat(60_000)}\x01`, 'u'));

    expect(performance.now() - started).toBeLessThan(1_000);
  });
});

describe('what follows a failure', () => {
  test('is one separator', () => {
    expect(() => assertConcession(Buffer.from([1]))).not.toThrow();
  });

  test.each([
    ['nothing', Buffer.alloc(0), 'The message is empty.'],
    ['two separators', Buffer.from([1, 1]), 'Client did not send a kvsep response.'],
    ['a token', written('n,,^auth=Bearer a^^'), 'Client did not send a kvsep response.'],
    ['a NUL', Buffer.from([0]), 'Client did not send a kvsep response.'],
  ])('is never %s', (_, bytes, detail) => {
    expect(failure(() => assertConcession(bytes))).toMatchObject({
      code: 'unexpected_message',
      detail,
    });
  });
});

test('a failure says where to get a token, as JSON whatever the text', () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (openidConfiguration, scope) => {
      expect(JSON.parse(encodeFailure({ openidConfiguration, scope }))).toEqual({
        status: 'invalid_token',
        'openid-configuration': openidConfiguration,
        scope,
      });
    }),
  );
});
