/**
 * Putting an identity on a session: the backend itself must say that it is the one, and whose it is now.
 */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { connect, type UpstreamConnection } from '../../src/upstream/connect.ts';
import type { ProxyError } from '../../src/errors.ts';
import type { Control } from '../../src/upstream/control.ts';
import { hello, install } from '../../src/upstream/session.ts';
import { encodeFrame, encodeInt32 } from '../../src/wire/frame.ts';
import * as fake from '../support/fake-postgres.ts';
import { nothingLeaked, openResources } from '../support/sockets.ts';

const never = new AbortController().signal;
const CREDENTIALS = { user: 'u', password: 'p', role: 'r', parameters: new Map<string, string>() };
const BACKEND = { pid: 4_711, start: '1700000000000000' };

let before: ReturnType<typeof openResources>;
beforeEach(() => {
  before = openResources();
});
afterEach(() => nothingLeaked(before));

/** A DataRow of texts. */
function row(...columns: readonly (string | null)[]): Buffer {
  const count = Buffer.alloc(2);
  count.writeInt16BE(columns.length);
  return encodeFrame(
    'D',
    count,
    ...columns.map((text) =>
      text === null
        ? encodeInt32(-1)
        : Buffer.concat([encodeInt32(Buffer.byteLength(text)), Buffer.from(text)]),
    ),
  );
}

/** Logs in to a server whose pid is 4711 and which answers the next query with these frames. */
async function against(
  answer: readonly fake.Step[],
  run: (connection: UpstreamConnection) => Promise<unknown>,
): Promise<unknown> {
  await using server = await fake.startFakePostgres([
    ...fake.login('p'),
    fake.expectFrame('Q'),
    ...answer,
  ]);
  const connection = await connect(fake.upstreamAt(server.port), CREDENTIALS, never);
  try {
    return await run(connection);
  } catch (error) {
    return error;
  } finally {
    connection.stream.destroy();
  }
}

const answerOf = (...frames: readonly Buffer[]) => [fake.send(...frames, fake.ready)];

describe('hello', () => {
  test('is who logged in, since when, and whether its last user left it changed', async () => {
    const clean = await against(answerOf(row('4711', '1700000000000000', 'f')), (one) =>
      hello(one, never),
    );
    const dirty = await against(answerOf(row('4711', '1700000000000000', 't')), (one) =>
      hello(one, never),
    );

    expect(clean).toEqual({ ...BACKEND, dirty: false });
    expect(dirty).toEqual({ ...BACKEND, dirty: true });
  });

  test.each<[string, readonly fake.Step[], string]>([
    [
      'another backend answers, as behind a transaction pooler',
      answerOf(row('4712', '1', 'f')),
      'upstream_protocol',
    ],
    ['it does not know since when', answerOf(row('4711', null, 'f')), 'upstream_protocol'],
    ['it does not know who it is', answerOf(row(null, '1', 'f')), 'upstream_protocol'],
    ['a row is too short', answerOf(row('4711')), 'upstream_protocol'],
    ['no row comes', answerOf(), 'upstream_protocol'],
    [
      'a row does not fit its frame',
      answerOf(encodeFrame('D', Buffer.from([0, 3]))),
      'upstream_protocol',
    ],
    [
      'the question fails',
      answerOf(fake.failure('42883', 'function pgjot.hello() does not exist', 'ERROR')),
      'upstream_protocol',
    ],
    ['the server hangs up', [fake.hangUp], 'upstream_lost'],
    ['it wants a file', answerOf(encodeFrame('G', Buffer.alloc(3))), 'upstream_protocol'],
    ['it authenticates again', answerOf(fake.ok), 'upstream_protocol'],
    ['notices never end', [fake.flood(encodeFrame('N', Buffer.alloc(99)))], 'upstream_protocol'],
    [
      'a frame is too long',
      [fake.send(Buffer.concat([Buffer.from('D'), encodeInt32(2 ** 30)]))],
      'upstream_protocol',
    ],
  ])('is refused when %s', async (_, answer, code) => {
    expect(await against(answer, (one) => hello(one, never))).toMatchObject({ code });
  });

  test.each([
    ['57014', 'canceling statement due to statement timeout', 'ERROR'],
    ['25P04', 'terminating connection due to transaction timeout', 'FATAL'],
  ])("passes %s on: it is the client's own setting that was too short for us", async (...told) => {
    const [sqlstate, message, severity] = told;
    const failure = fake.failure(sqlstate, message, severity);
    const answer = severity === 'FATAL' ? [fake.send(failure), fake.hangUp] : answerOf(failure);

    const result = await against(answer, (one) => hello(one, never));

    expect(result).toMatchObject({ code: 'upstream_rejected', cause: { sqlstate } });
    expect((result as ProxyError).frame).toEqual(failure);
  });

  test('keeps what the server reports meanwhile for the client, in order', async () => {
    const status = fake.parameterStatus('TimeZone', 'Mars');
    const notice = encodeFrame('N', Buffer.from('SNOTICE\0Mhello\0\0'));
    const notification = encodeFrame('A', encodeInt32(1), Buffer.from('a\0b\0'));
    const answer = answerOf(status, notification, row('4711', '1', 'f'), notice);

    const greeting = await against(answer, async (one) => {
      await hello(one, never);
      return one.greeting;
    });

    expect(greeting).toEqual([fake.parameterStatus('TimeZone', 'UTC'), status, notice]);
  });

  test('counts a session of which it cannot say whether it is clean as dirty', async () => {
    const unknown = await against(answerOf(row('4711', '1', null)), (one) => hello(one, never));

    expect(unknown).toMatchObject({ dirty: true });
  });
});

describe('install', () => {
  const identity = { subject: 'Zoë', claims: { sub: 'Zoë' }, expiresAt: 1_800_000_000_000 };
  const hex = Buffer.from('Zoë').toString('hex');

  /** A control connection that notes what it is asked. */
  function control(): { bound: unknown[]; control: Control } {
    const bound: unknown[] = [];
    const unused = () => Promise.reject(new Error('not asked for'));
    return {
      bound,
      control: {
        bind: async (...given) => void bound.push(given),
        lease: unused,
        giveBack: unused,
        unbind: unused,
        terminate: unused,
        hasSettings: unused,
        sweep: unused,
        close: unused,
      },
    };
  }

  test('binds the claims, then believes only what SQL on that backend sees', async () => {
    const { bound, control: by } = control();

    const result = await against(answerOf(row(hex)), (one) =>
      install(one, BACKEND, identity, 'authenticated', by, never),
    );

    expect(result).toBeUndefined();
    expect(bound).toEqual([[BACKEND, identity.claims, identity.expiresAt]]);
  });

  test.each([
    ['somebody else', Buffer.from('Bob').toString('hex')],
    ['the same letters composed in another way', Buffer.from('Zoe\u0308').toString('hex')],
    ['more than the subject', `${hex}00`],
    ['nobody', null],
    ['an empty subject', ''],
  ])('refuses a backend that sees %s', async (_, seen) => {
    const { control: by } = control();

    const result = await against(answerOf(row(seen)), (one) =>
      install(one, BACKEND, identity, 'authenticated', by, never),
    );

    expect(result).toMatchObject({ code: 'session_setup_failed' });
  });

  test('asks the backend nothing when the claims could not be bound', async () => {
    const failure = new Error('control is gone');
    const by = { ...control().control, bind: () => Promise.reject(failure) };
    await using server = await fake.startFakePostgres(fake.login('p'));
    const connection = await connect(fake.upstreamAt(server.port), CREDENTIALS, never);

    await expect(install(connection, BACKEND, identity, 'authenticated', by, never)).rejects.toBe(
      failure,
    );

    expect(connection.stream.writableLength).toBe(0);
    connection.stream.destroy();
  });
});
