/**
 * No token, password or key in anything that leaves the process: not in what a client hears, not in what the log says.
 *
 * A marked token goes into every place of every error, as the careless thrower of tomorrow might put it.
 */
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { ConnectionRecord } from '../src/connection-record.ts';
import {
  ConfigError,
  ERRORS,
  ProxyError,
  type ErrorCode,
  type ProxyErrorOptions,
} from '../src/errors.ts';
import { explain } from '../src/log.ts';
import { encodeErrorResponse } from '../src/wire/backend.ts';

const HEADER = Buffer.from('{"alg":"RS256","kid":"k"}').toString('base64url');
const PAYLOAD = Buffer.from('{"sub":"bWFya2Vk-mark"}').toString('base64url');
const SIGNATURE = 'MARKEDsignature-MARKED_signature';
const TOKEN = `${HEADER}.${PAYLOAD}.${SIGNATURE}`;
/** Any of these in an output is a leak. */
const MARKS = [HEADER, PAYLOAD, SIGNATURE];

const CODES = Object.keys(ERRORS) as ErrorCode[];

function makeError(code: ErrorCode, text: string, options: ProxyErrorOptions): ProxyError {
  const names = [...ERRORS[code].message.matchAll(/\{(\w+)\}/g)].map(([, name]) => name as string);
  const values = Object.fromEntries(names.map((name) => [name, text]));
  const make = ProxyError as unknown as new (...given: unknown[]) => ProxyError;
  return names.length > 0 ? new make(code, values, options) : new make(code, options);
}

/** The line that the log would write. */
function logged(line: object): string {
  let text = '';
  const sink = new Writable({
    write(chunk: Buffer, _, next) {
      text += chunk.toString();
      next();
    },
  });
  pino({ level: 'debug', base: null }, sink).info(line);
  return text;
}

function expectNoMark(output: string): void {
  for (const mark of MARKS) expect(output).not.toContain(mark);
}

/** The ways in which a cause may hold the token. */
const CAUSES: Record<string, unknown> = {
  'an error whose message is the token': new Error(TOKEN),
  'an error whose message quotes it': new Error(`cannot read "${TOKEN}" as a token`),
  'a text': `token=${TOKEN}`,
  'a cause of a cause': new Error('outer', {
    cause: new Error('inner', { cause: new Error(TOKEN) }),
  }),
  'several errors at once': new AggregateError(
    [new Error('first'), new Error(TOKEN)],
    'all failed',
  ),
  'a list of config problems': new ConfigError([{ path: 'x', message: `is ${TOKEN}` }]),
  'a header alone': new Error(`bad header ${HEADER}`),
  'a header and a payload': new Error(`unsigned ${HEADER}.${PAYLOAD}`),
};

describe.each(CODES)('%s', (code) => {
  test.each(Object.entries(CAUSES))('neither tells nor logs %s', (_, cause) => {
    const error = makeError(code, TOKEN, { cause });

    expectNoMark(encodeErrorResponse(error)?.toString('latin1') ?? '');
    expectNoMark(error.message);
    expectNoMark(logged({ event: 'login', ...explain(error) }));
  });
});

test('a token that is sent as the user or the database is not logged (attack C21)', () => {
  const record = new ConnectionRecord('192.0.2.1', []);
  record.onStartup({ user: TOKEN, database: `x${TOKEN}`, parameters: new Map() } as never);
  const { user, database } = record;

  expect(user).not.toBeUndefined();
  expectNoMark(logged({ user, database }));
});

test('the log still says why', () => {
  const cause = new Error('the key set could not be fetched', { cause: new Error('ECONNREFUSED') });

  const { reason, cause: text } = explain(new ProxyError('keys_unavailable', { cause }));

  expect(reason).toBe('keys_unavailable');
  expect(text).toBe('the key set could not be fetched: ECONNREFUSED');
});

test('causes that go round in a circle are cut off', () => {
  const one = new Error('one');
  one.cause = new Error('two', { cause: one });

  expect(explain(new ProxyError('internal', { cause: one })).cause).toBe('one: two: one: two');
});
