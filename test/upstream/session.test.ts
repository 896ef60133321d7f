/**
 * Putting an identity on a session: the backend itself must say that it is the one, and whose it is now.
 */
import { compactVerify, decodeJwt, importJWK, type JWK } from 'jose';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { connect, type Credentials, type UpstreamConnection } from '../../src/upstream/connect.ts';
import type { ProxyError } from '../../src/errors.ts';
import type { Control } from '../../src/upstream/control.ts';
import { createExtensionMode } from '../../src/upstream/pg-session-jwt.ts';
import { createPortableMode } from '../../src/upstream/portable.ts';
import { createReplicaMode } from '../../src/upstream/replica.ts';
import { hello } from '../../src/upstream/hello.ts';
import type { SessionIdentity, SessionMode } from '../../src/upstream/session.ts';
import { Secrets } from '../../src/upstream/secrets.ts';
import { encodeFrame, encodeInt32 } from '../../src/wire/frame.ts';
import * as fake from '../support/fake-postgres.ts';
import { nothingLeaked, openResources } from '../support/sockets.ts';

const SECRET = 'a-secret-for-tests-of-at-least-32-characters';
const SECRETS = new Secrets({ current: SECRET });
const never = new AbortController().signal;
const CREDENTIALS = {
  user: 'u',
  password: 'p',
  role: 'r',
  parameters: new Map<string, string>(),
  identity: async () => [],
};
const BACKEND = {
  pid: 4_711,
  start: '1700000000000000',
  inRecovery: false,
  preparedFor: 'portable',
};

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
  given: Partial<Credentials> = {},
): Promise<unknown> {
  await using server = await fake.startFakePostgres([
    ...fake.login('p'),
    fake.expectFrame('Q'),
    ...answer,
  ]);
  const connection = await connect(
    fake.upstreamAt(server.port),
    { ...CREDENTIALS, ...given },
    never,
  );
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
  test('is who logged in, since when, whether its last user left it changed, and whether it is a standby', async () => {
    const clean = await against(
      answerOf(row('4711', '1700000000000000', 'f', 'f', 'portable')),
      (one) => hello(one, never),
    );
    const dirty = await against(
      answerOf(row('4711', '1700000000000000', 't', 't', 'portable')),
      (one) => hello(one, never),
    );

    expect(clean).toEqual({ ...BACKEND, dirty: false });
    expect(dirty).toEqual({ ...BACKEND, dirty: true, inRecovery: true });
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

const hexOf = (text: string) => Buffer.from(text).toString('hex');
const HEX = hexOf('Zoë');
const PID = '4711';
const IDENTITY: SessionIdentity = {
  role: 'authenticated',
  issuer: 'https://issuer.example',
  subject: 'Zoë',
  claims: { claims: { sub: 'Zoë' }, lookup: undefined },
  expiresAt: 1_800_000_000_000,
};
const NOBODY: SessionIdentity = {
  ...IDENTITY,
  subject: undefined,
  claims: { claims: {}, lookup: undefined },
};
const STANDBY = { ...BACKEND, dirty: false, inRecovery: true };
const PRIMARY = { ...BACKEND, dirty: false };
const IMPOSTORS: readonly [string, string | null][] = [
  ['somebody else', hexOf('Bob')],
  ['the same letters composed in another way', hexOf('Zoe\u0308')],
  ['more than the subject', `${HEX}00`],
  ['nobody', null],
  ['an empty subject', ''],
];
const FAILED = { code: 'session_setup_failed' };

/** A control connection that notes what it is asked. */
function control(): { bound: unknown[]; control: Control } {
  const bound: unknown[] = [];
  const unused = () => Promise.reject(new Error('not asked for'));
  return {
    bound,
    control: {
      bind: async (...given) => void bound.push(given),
      ping: () => Promise.resolve(),
      lease: unused,
      greet: unused,
      giveBack: unused,
      rename: unused,
      neighbours: unused,
      leaveUnlessAt: unused,
      unbind: unused,
      terminate: unused,
      isSpoilt: unused,
      sweep: unused,
      close: unused,
    },
  };
}

/** Installs on a backend whose StartupMessage said what the mode wants, and that answers with these frames. */
function installOn(
  backend: typeof STANDBY,
  mode: SessionMode,
  identity: SessionIdentity,
  answer: readonly fake.Step[],
): Promise<unknown> {
  return against(answer, (one) => mode.install(one, backend, identity, never), {
    identity: (port) => mode.startupParameters(identity, 'pgjot_authenticated_1', port, SECRET),
  });
}

describe('mode portable', () => {
  test('binds the claims, then believes only what SQL on that backend sees', async () => {
    const { bound, control: by } = control();

    const result = await installOn(
      PRIMARY,
      createPortableMode(by),
      IDENTITY,
      answerOf(row(HEX, PID)),
    );

    expect(result).toBeUndefined();
    expect(bound).toEqual([[PRIMARY, '{"sub":"Zoë"}', IDENTITY.expiresAt]]);
  });

  test.each(IMPOSTORS)('refuses a backend that sees %s', async (_, seen) => {
    const mode = createPortableMode(control().control);

    expect(await installOn(PRIMARY, mode, IDENTITY, answerOf(row(seen, PID)))).toMatchObject(
      FAILED,
    );
  });

  test('greets a backend by way of the control connection, and takes its word that there is one', async () => {
    const asked: unknown[] = [];
    const said = { ...PRIMARY, dirty: true };
    const by = {
      ...control().control,
      greet: async (...given: unknown[]) => {
        asked.push(given);
        return asked.length === 1 ? said : undefined;
      },
    };
    const mode = createPortableMode(by);
    const backend = { processId: 4_711, slot: 'pgjot_authenticated_1' } as UpstreamConnection;

    expect(await mode.greet(backend, never)).toBe(said);
    await expect(mode.greet(backend, never)).rejects.toMatchObject({ code: 'upstream_lost' });
    expect(asked[0]).toEqual([4_711, 'pgjot_authenticated_1']);
  });

  test('refuses an answer of another backend, as behind a transaction pooler', async () => {
    const mode = createPortableMode(control().control);
    const install = (answer: Buffer) => installOn(PRIMARY, mode, IDENTITY, answerOf(answer));

    expect(await install(row(HEX, '4712'))).toMatchObject({ code: 'upstream_protocol' });
    expect(await install(row(HEX))).toMatchObject({ code: 'upstream_protocol' });
  });

  test('rehearses only on a backend that is nobody’s', async () => {
    const mode = createPortableMode(control().control);
    const rehearse = (answer: Buffer) =>
      against(answerOf(answer), async (one) => mode.rehearsal?.check(one, PRIMARY, never), {
        question: mode.rehearsal?.question,
      });

    expect(await rehearse(row(null, PID))).toBeUndefined();
    expect(await rehearse(row(HEX, PID))).toMatchObject({ code: 'upstream_protocol' });
    expect(await rehearse(row(null, '4712'))).toMatchObject({ code: 'upstream_protocol' });
  });

  test('binds nothing for nobody, and refuses a backend on which nobody is somebody', async () => {
    const { bound, control: by } = control();
    const mode = createPortableMode(by);

    expect(await installOn(PRIMARY, mode, NOBODY, answerOf(row(null, PID)))).toBeUndefined();
    expect(await installOn(PRIMARY, mode, NOBODY, answerOf(row(HEX, PID)))).toMatchObject(FAILED);
    expect(bound).toEqual([]);
  });

  test('asks the backend nothing when the claims could not be bound', async () => {
    const failure = new Error('control is gone');
    const by = { ...control().control, bind: () => Promise.reject(failure) };
    await using server = await fake.startFakePostgres(fake.login('p'));
    const connection = await connect(fake.upstreamAt(server.port), CREDENTIALS, never);

    await expect(createPortableMode(by).install(connection, PRIMARY, IDENTITY, never)).rejects.toBe(
      failure,
    );

    expect(connection.stream.writableLength).toBe(0);
    connection.stream.destroy();
  });
});

describe('mode pg_session_jwt', () => {
  const mode = createExtensionMode();

  /** Installs on a backend that has this key, or the one that it was sent, and says that these are its users. */
  async function installed(
    identity: SessionIdentity,
    users: readonly (string | null)[],
    key?: string,
    preparedFor = 'pg_session_jwt',
  ): Promise<unknown> {
    const sent = await mode.startupParameters(identity, 'pgjot_authenticated_1', 1, SECRET);
    return against(
      answerOf(row('', key ?? sent[0]?.[1] ?? null, ...users)),
      (one) => mode.install(one, { ...PRIMARY, preparedFor }, identity, never),
      { identity: async () => sent },
    );
  }

  test('has both the extension and pgjot say who the user is', async () => {
    expect(await installed(IDENTITY, [HEX, HEX])).toBeUndefined();
    expect(await installed(NOBODY, [null, null])).toBeUndefined();
  });

  test.each(IMPOSTORS)('refuses a backend on which either sees %s', async (_, seen) => {
    expect(await installed(IDENTITY, [HEX, seen])).toMatchObject(FAILED);
    expect(await installed(IDENTITY, [seen, HEX])).toMatchObject(FAILED);
  });

  test("refuses a backend that has a key of somebody else's, or none", async () => {
    const [[, other] = []] = await mode.startupParameters(
      NOBODY,
      'pgjot_authenticated_1',
      1,
      SECRET,
    );

    expect(await installed(IDENTITY, [HEX, HEX], other)).toMatchObject(FAILED);
    expect(await installed(IDENTITY, [HEX, HEX], '')).toMatchObject(FAILED);
    expect(await installed(IDENTITY, [HEX, HEX], undefined, 'portable')).toMatchObject(FAILED);
  });

  test('sends a key that it has never sent before, and a token with claims of our choosing', async () => {
    const claims = { sub: 'Zoë', jti: 'theirs', nbf: 1.5, exp: 3, n: 1 };
    const identity = { ...IDENTITY, claims: { claims, lookup: '{"tenant": 9007199254740993}' } };

    const [[, jwk] = [], [, jwt] = []] = await mode.startupParameters(identity, 's', 1, SECRET);
    const [[, otherJwk] = [], [, otherJwt] = []] = await mode.startupParameters(
      identity,
      's',
      1,
      SECRET,
    );

    const key = await importJWK(JSON.parse(jwk ?? '') as JWK, 'EdDSA');
    const { payload } = await compactVerify(jwt ?? '', key);
    expect(Buffer.from(payload).toString()).toBe(
      `{"sub":"Zoë","jti":${String(decodeJwt(jwt ?? '').jti)},"exp":1800000000,"n":1,"lookup":{"tenant": 9007199254740993}}`,
    );
    expect(JSON.parse(jwk ?? '')).toEqual({ crv: 'Ed25519', x: expect.any(String), kty: 'OKP' });
    expect(otherJwk).not.toBe(jwk);
    expect(Number(decodeJwt(otherJwt ?? '').jti)).toBeGreaterThan(Number(decodeJwt(jwt ?? '').jti));
  });
});

test('no mode trusts a database that was prepared for another: policies there believe something else', async () => {
  const forExtension = { ...PRIMARY, preparedFor: 'pg_session_jwt' };
  const portable = createPortableMode(control().control);
  const replica = createReplicaMode(SECRETS, 'app');

  for (const identity of [IDENTITY, NOBODY]) {
    expect(await installOn(forExtension, portable, identity, [])).toMatchObject(FAILED);
    expect(await installOn({ ...STANDBY, preparedFor: '' }, replica, identity, [])).toMatchObject(
      FAILED,
    );
  }
});

test.each([
  ['{"a": 9223372036854775807, "b": -9223372036854775808, "c": 18446744073709551615}', true],
  ['{"a": 0.5, "b": [1e10, -2.25E-3], "c": "123456789012345678901234567890"}', true],
  ['{"\\"123456789012345678901234567890": 1}', true],
  ['null', true],
  ['{"a": 18446744073709551616}', false],
  ['{"a": [{"b": -9223372036854775809}]}', false],
  ['{"a": 0.1234567890123456}', false],
  ['{"a\\\\": 123456789012345678901234567890}', false],
])('the extension is given %s: %s', async (lookup, given) => {
  const identity = { ...IDENTITY, claims: { claims: { sub: 'Zoë' }, lookup } };

  const parameters = createExtensionMode().startupParameters(identity, 's', 1, SECRET);

  if (given) expect(await parameters).toHaveLength(2);
  else await expect(parameters).rejects.toMatchObject(FAILED);
});

describe('mode replica', () => {
  const mode = createReplicaMode(SECRETS, 'app');

  test('believes only what SQL on that standby sees', async () => {
    expect(await installOn(STANDBY, mode, IDENTITY, answerOf(row(HEX)))).toBeUndefined();
    expect(await installOn(STANDBY, mode, NOBODY, answerOf(row(null)))).toBeUndefined();
  });

  test('signs for the backend itself where the port that it signed for is not the one that is seen', async () => {
    const second = (answer: readonly fake.Step[]) => [
      ...answerOf(row(null)),
      fake.expectFrame('P'),
      fake.expectFrame('B'),
      fake.expectFrame('E'),
      fake.expectFrame('S'),
      ...answerOf(encodeFrame('1'), encodeFrame('2'), row('…')),
      fake.expectFrame('Q'),
      ...answer,
    ];

    expect(await installOn(STANDBY, mode, IDENTITY, second(answerOf(row(HEX))))).toBeUndefined();
    expect(await installOn(STANDBY, mode, IDENTITY, second(answerOf(row(null))))).toMatchObject(
      FAILED,
    );
  });

  test.each(IMPOSTORS.filter(([, seen]) => seen !== null))(
    'refuses a backend that sees %s',
    async (_, seen) => {
      expect(await installOn(STANDBY, mode, IDENTITY, answerOf(row(seen)))).toMatchObject(FAILED);
    },
  );

  test('refuses a server that is no standby, and portable waits while one is', async () => {
    const result = await installOn(PRIMARY, mode, IDENTITY, answerOf(row(HEX)));
    const portable = createPortableMode(control().control);

    expect(result).toMatchObject(FAILED);
    expect(await installOn(STANDBY, portable, IDENTITY, [])).toMatchObject({
      code: 'upstream_rejected',
      cause: { sqlstate: '57P03' },
    });
  });

  test('signs for one login role, one port and one moment', async () => {
    const [[name, value] = []] = await mode.startupParameters(
      IDENTITY,
      'pgjot_authenticated_1',
      5,
      SECRET,
    );
    const [signed = '', signature] = (value ?? '').split('.');

    expect(name).toBe('pgjot.identity');
    expect(JSON.parse(Buffer.from(signed, 'base64').toString())).toEqual({
      db: 'app',
      slot: 'pgjot_authenticated_1',
      port: 5,
      iat: expect.closeTo(Date.now(), -4),
      exp: IDENTITY.expiresAt,
      claims: { sub: 'Zoë' },
    });
    expect(Buffer.from(signature ?? '', 'base64')).toHaveLength(32);
    expect(await mode.startupParameters(NOBODY, 'pgjot_authenticated_1', 5, SECRET)).toEqual([]);
  });
});

test.each([
  ['pg_session_jwt', createExtensionMode()],
  ['replica', createReplicaMode(SECRETS, 'app')],
])('claims that do not fit into a startup packet are refused in mode %s', async (_, mode) => {
  const claims = { claims: { sub: 'Zoë', groups: 'x'.repeat(9_900) }, lookup: undefined };

  const connecting = installOn(STANDBY, mode, { ...IDENTITY, claims }, []);

  await expect(connecting).rejects.toMatchObject({ code: 'claims_too_large' });
});
