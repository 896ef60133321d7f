/**
 * The table of errors: every message whole, every ErrorResponse fit for every client, every name harmless.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  ERRORS,
  ProxyError,
  printable,
  type ErrorCode,
  type ProxyErrorOptions,
} from '../src/errors.ts';
import { decodeErrorFields, encodeErrorResponse } from '../src/wire/backend.ts';
import { encodeFrame } from '../src/wire/frame.ts';

const CODES = Object.keys(ERRORS) as ErrorCode[];

/** An error of any code, its placeholders filled with the same text. */
function makeError(code: ErrorCode, text: string, options: ProxyErrorOptions = {}): ProxyError {
  const names = [...ERRORS[code].message.matchAll(/\{(\w+)\}/g)].map(([, name]) => name as string);
  const values = Object.fromEntries(names.map((name) => [name, text]));
  const make = ProxyError as unknown as new (...given: unknown[]) => ProxyError;
  return names.length > 0 ? new make(code, values, options) : new make(code, options);
}

describe.each(CODES)('%s', (code) => {
  const spec = ERRORS[code];

  test('has a message whose placeholders are all filled', () => {
    const { message } = makeError(code, 'VALUE');

    expect(message).not.toMatch(/[{}]|undefined/);
    expect(message.includes('VALUE')).toBe(spec.message.includes('{'));
  });

  test('has an SQLSTATE exactly where there is something of ours to send', () => {
    if (spec.sent === 'nothing' || spec.sent === 'upstream') expect(spec.sqlstate).toBeUndefined();
    else expect(spec.sqlstate).toMatch(/^[0-9A-Z]{5}$/);
  });

  test('is an ErrorResponse with S, V, C and M, or nothing', () => {
    const frame = encodeErrorResponse(
      makeError(code, 'value', { detail: 'a detail', hint: 'a hint' }),
    );

    if (spec.sent === 'nothing') {
      expect(frame).toBeUndefined();
      return;
    }
    expect(frame?.[0]).toBe('E'.charCodeAt(0));
    expect(frame?.readInt32BE(1)).toBe((frame?.length ?? 0) - 1);
    expect(frame?.at(-1)).toBe(0);
    const fields = decodeErrorFields((frame as Buffer).subarray(5));
    expect([...fields.keys()]).toEqual(['S', 'V', 'C', 'M', 'D', 'H']);
    expect(fields.get('S')).toBe(spec.sent === 'ERROR' ? 'ERROR' : 'FATAL');
    expect(fields.get('V')).toBe(fields.get('S'));
    expect(fields.get('C')).toMatch(/^[0-9A-Z]{5}$/);
    expect(fields.get('M')).not.toBe('');
  });

  test('speaks as PostgreSQL does: lower case first, no period last', () => {
    expect(spec.message).toMatch(/^(OAuth|[a-z{"])/);
    expect(spec.message).not.toMatch(/[.!]$/);
  });

  test('can be silenced', () => {
    expect(encodeErrorResponse(makeError(code, 'x', { silent: true }))).toBeUndefined();
  });
});

describe('before the signature has verified', () => {
  test('a missing, rejected, expired and misdirected token read the same', () => {
    const codes = ['token_missing', 'token_rejected', 'token_expired', 'claims_rejected'] as const;

    const frames = codes.map((code) =>
      encodeErrorResponse(new ProxyError(code, { user: 'alice' })),
    );

    for (const frame of frames) expect(frame).toEqual(frames[0]);
    expect(decodeErrorFields((frames[0] as Buffer).subarray(5)).get('M')).toBe(
      'password authentication failed for user "alice"',
    );
  });
});

describe('to a client that signs in by OAUTHBEARER', () => {
  const overOAuth = (code: ErrorCode) => {
    const make = ProxyError as unknown as new (...given: unknown[]) => ProxyError;
    return new make(code, { user: 'alice' }, { method: 'oauth', hint: 'a hint' });
  };

  test('a refusal of its token is no matter of a password', () => {
    for (const code of [
      'token_missing',
      'token_rejected',
      'token_expired',
      'claims_rejected',
    ] as const) {
      const error = overOAuth(code);

      expect(error.code).toBe(code);
      expect(error.spec).toMatchObject({ sqlstate: '28000', sent: 'FATAL', log: 'info' });
      const fields = decodeErrorFields((encodeErrorResponse(error) as Buffer).subarray(5));
      expect(Object.fromEntries(fields)).toEqual({
        S: 'FATAL',
        V: 'FATAL',
        C: '28000',
        M: 'OAuth bearer authentication failed for user "alice"',
        H: 'a hint',
      });
    }
  });

  test('any other error reads the same', () => {
    const [oauth, password] = [
      new ProxyError('role_forbidden', { role: 'r' }, { method: 'oauth' }),
      new ProxyError('role_forbidden', { role: 'r' }),
    ];

    expect(encodeErrorResponse(oauth)).toEqual(encodeErrorResponse(password));
    expect(oauth.spec).toBe(password.spec);
  });
});

describe('ProxyError', () => {
  test('is known by its code', () => {
    const error: unknown = new ProxyError('client_lost');

    expect(ProxyError.is(error, 'client_lost')).toBe(true);
    expect(ProxyError.is(error, 'probe')).toBe(false);
    expect(ProxyError.is(new Error('client_lost'), 'client_lost')).toBe(false);
    expect(ProxyError.is(undefined, 'client_lost')).toBe(false);
  });

  test('comes from any thrown value, whose text stays in the cause', () => {
    const known = new ProxyError('draining');
    const bug = new TypeError('secret');

    expect(ProxyError.from(known)).toBe(known);
    expect(ProxyError.from(bug)).toMatchObject({
      code: 'internal',
      message: 'internal error',
      cause: bug,
    });
    expect(ProxyError.from(undefined)).toMatchObject({ code: 'internal', cause: undefined });
  });

  test("of the upstream holds PostgreSQL's own bytes", () => {
    const frame = encodeFrame('E', Buffer.from('SFATAL\0C57P03\0Mstarting\0\0'));

    expect(new ProxyError('upstream_rejected', { frame }).frame).toBe(frame);
  });

  test('does not fill a placeholder that a value brings along', () => {
    const { message } = new ProxyError('role_forbidden', { role: '{user}' });

    expect(message).toBe('role "{user}" is not permitted to log in');
  });
});

describe('printable', () => {
  // Attacks B9 and C21.
  test.each([
    ['a plain name', 'alice', 'alice'],
    ['a line break that forges a log line', 'a\r\nFATAL: forged', 'a??FATAL: forged'],
    ['a terminal escape', 'a\x1b[31mred', 'a?[31mred'],
    ['text that runs backwards', 'a\u202eb', 'a?b'],
    ['a line separator', 'a\u2028b', 'a?b'],
    ['the token in place of the name', 'eyJhbGciOi.eyJzdWIi.c2ln', '[token]'],
    ['a token somewhere in the name', 'user eyJhbGciOi', '[token]'],
    ['letters beyond ASCII', 'Zoë', 'Zoë'],
  ])('shows %s safely', (_, name, shown) => {
    expect(printable(name)).toBe(shown);
  });

  test('shows at most 63 characters, of whatever', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 300 }), (name) => {
        const shown = printable(name);

        expect(shown.length).toBeLessThanOrEqual(64);
        // eslint-disable-next-line no-control-regex
        expect(shown).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/);
      }),
    );
  });
});
