/**
 * Logging in to servers that do not behave: each lie, silence and flood ends in the documented error, and nothing is left open.
 */
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { writeFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { UpstreamConfig } from '../../src/config.ts';
import { ProxyError } from '../../src/errors.ts';
import { UpstreamError, connect, type UpstreamConnection } from '../../src/upstream/connect.ts';
import { KeyRing } from '../../src/upstream/scram.ts';
import { encodeFrame, encodeInt32, encodeString } from '../../src/wire/frame.ts';
import { createAuthority } from '../support/certificate.ts';
import * as fake from '../support/fake-postgres.ts';
import { nothingLeaked, openResources } from '../support/sockets.ts';
import { anyBytes } from '../support/splits.ts';

const PASSWORD = 'derived-password';
const authority = createAuthority();

let before: ReturnType<typeof openResources>;
let caFile: string;
let folder: string;
beforeEach(async () => {
  before = openResources();
  folder = await mkdtemp(join(tmpdir(), 'pgjot-connect-'));
  caFile = join(folder, 'ca.crt');
  await writeFile(caFile, authority.ca);
});
afterEach(async () => {
  vi.restoreAllMocks();
  await rm(folder, { recursive: true });
  await nothingLeaked(before);
});

type Attempt =
  | { connection: UpstreamConnection; error?: never }
  | { error: ProxyError; connection?: never };

/** One attempt to log in to a server with this script. What it opened is closed again. */
async function attempt(
  script: readonly fake.Step[],
  {
    overrides = {},
    signal = new AbortController().signal,
    parameters = new Map<string, string>(),
    question,
  }: {
    overrides?: Partial<UpstreamConfig>;
    signal?: AbortSignal;
    parameters?: ReadonlyMap<string, string>;
    question?: Buffer;
  } = {},
): Promise<Attempt & { server: fake.FakePostgres }> {
  await using server = await fake.startFakePostgres([...script]);
  const credentials = {
    user: 'pgjot_authenticated_1',
    password: PASSWORD,
    role: 'authenticated',
    parameters,
    question,
    identity: async () => [],
  };
  try {
    const connection = await connect(fake.upstreamAt(server.port, overrides), credentials, signal);
    await server.verify();
    connection.stream.destroy();
    return { connection, server };
  } catch (error) {
    return { error: error as ProxyError, server };
  }
}

const { startupMessage, send, scram, ok, keyData, ready, failure, authentication } = fake;
const causeOf = (error: ProxyError | undefined) =>
  String((error?.cause as Error | undefined)?.message);

describe('a good server', () => {
  test('is logged in to with SCRAM, and what it reported is kept byte for byte', async () => {
    const notice = encodeFrame('N', Buffer.from('SNOTICE\0Mhello\0\0'));
    const status = fake.parameterStatus('TimeZone', 'UTC');

    const { connection } = await attempt([
      startupMessage,
      scram(PASSWORD),
      send(ok, status, notice, keyData, ready),
    ]);

    expect(connection).toMatchObject({
      processId: 4_711,
      secretKey: Buffer.from('c0ffee00', 'hex'),
    });
    expect(Buffer.concat(connection?.greeting ?? [])).toEqual(Buffer.concat([status, notice]));
  });

  test('is asked for its salt at every login, and the keys for one salt are derived once', async () => {
    const derived = vi.spyOn(KeyRing.prototype, 'keysOf');
    const salt = Buffer.from('the salt of this');
    const script = [startupMessage, scram(PASSWORD, { salt }), send(ok, keyData, ready)];
    await using server = await fake.startFakePostgres([...script]);
    const upstream = fake.upstreamAt(server.port);
    const credentials = {
      user: 'pgjot_authenticated_1',
      password: PASSWORD,
      role: 'authenticated',
      parameters: new Map<string, string>(),
      identity: async () => [],
    };

    for (let login = 0; login < 2; login++) {
      const { stream } = await connect(upstream, credentials, new AbortController().signal);
      stream.destroy();
    }
    // Another configuration, such as one with another secret, shares nothing with it.
    const { stream } = await connect({ ...upstream }, credentials, new AbortController().signal);
    stream.destroy();
    await server.verify();

    const [first, second, third] = derived.mock.results.map(({ value }) => value as unknown);
    expect(second).toBe(first);
    expect(third).not.toBe(first);
  });

  test("gets the slot, the database, the client's settings, and the role last", async () => {
    const parameters = new Map([
      ['search_path', 'app'],
      ['timezone', 'UTC'],
    ]);

    const { server } = await attempt(fake.login(PASSWORD), { parameters });

    expect([...(server.backends[0]?.parameters ?? [])]).toEqual([
      ['user', 'pgjot_authenticated_1'],
      ['database', 'app'],
      ['tcp_keepalives_idle', '30'],
      ['tcp_keepalives_interval', '10'],
      ['tcp_keepalives_count', '3'],
      ['search_path', 'app'],
      ['timezone', 'UTC'],
      ['role', 'authenticated'],
    ]);
  });

  test('is asked with the last word of the login, so that it waits for nothing', async () => {
    const question = encodeFrame('Q', encodeString('select 1'));
    const asked = fake.expectFrame('Q', question.subarray(5));

    const byScram = await attempt(
      [startupMessage, scram(PASSWORD, { final: [] }), asked, fake.hangUp],
      { question },
    );
    const byTrust = await attempt([startupMessage, send(ok), asked, send(keyData, ready)], {
      question,
    });

    await expect(byScram.server.verify()).resolves.toBeUndefined();
    expect(byScram.error?.code).toBe('upstream_lost');
    expect(byTrust.connection?.processId).toBe(4_711);
  });

  test('is trusted when it trusts us: no password is asked for', async () => {
    const { connection } = await attempt([startupMessage, send(ok, keyData, ready)]);

    expect(connection?.processId).toBe(4_711);
  });

  test.each<[string, Partial<UpstreamConfig>]>([
    ['in the clear', { tls: { mode: 'disable' } }],
    ['over TLS that anybody could have answered', { tls: { mode: 'require' } }],
  ])('has to prove itself where others could be in between: %s', async (_, overrides) => {
    const tls = [fake.sslRequest('S'), fake.startTls(createAuthority().issue())];
    const script = [startupMessage, send(ok, keyData, ready)];

    const { error } = await attempt(
      overrides.tls?.mode === 'require' ? [...tls, ...script] : script,
      // The address of this machine that does not look like it.
      { overrides: { ...overrides, host: '0.0.0.0' } },
    );

    expect(error?.code).toBe('upstream_login_rejected');
    expect(causeOf(error)).toMatch(/proof/);
  });

  test.each<[string, UpstreamConfig['tls']]>([
    ['the TLS is verified', { mode: 'verify-ca' }],
    ['we have a certificate of our own', { mode: 'require' }],
  ])('need not prove itself with a password where %s', async (_, tls) => {
    const { cert, key } = authority.issue();
    const [certFile, keyFile] = [join(folder, 'client.crt'), join(folder, 'client.key')];
    await writeFile(certFile, cert);
    await writeFile(keyFile, key);
    const ours = tls.mode === 'require' ? { certFile, keyFile } : { caFile };

    const { connection } = await attempt(
      [
        fake.sslRequest('S'),
        fake.startTls(authority.issue()),
        startupMessage,
        send(ok, keyData, ready),
      ],
      { overrides: { host: '0.0.0.0', tls: { ...tls, ...ours } } },
    );

    expect(connection?.processId).toBe(4_711);
  });

  test.each(['require', 'verify-ca', 'verify-full'] as const)(
    'is reached by TLS in mode %s',
    async (mode) => {
      const { connection } = await attempt(
        [fake.sslRequest('S'), fake.startTls(authority.issue()), ...fake.login(PASSWORD)],
        { overrides: { tls: { mode, caFile } } },
      );

      expect(connection?.processId).toBe(4_711);
    },
  );
});

describe('TLS that is not', () => {
  const tls = { overrides: { tls: { mode: 'verify-full' as const } } };
  const withCa = () => ({ overrides: { tls: { mode: 'verify-full' as const, caFile } } });

  test('attack A2: bytes behind the S were not sent by the server that TLS will vouch for', async () => {
    const { error, server } = await attempt(
      [fake.sslRequest(Buffer.concat([Buffer.from('S'), ok, ready])), fake.expectEnd],
      tls,
    );

    expect(error?.code).toBe('upstream_unreachable');
    expect(causeOf(error)).toMatch(/unencrypted bytes/);
    expect(server.backends).toHaveLength(1);
  });

  test.each([
    ['N, a downgrade', 'N', /does not offer TLS/],
    ['E and an error text that nobody vouches for', 'E<script>\0', /refused the SSLRequest/],
    ['something else', 'x', /refused the SSLRequest/],
  ])('attack A3: the answer is %s', async (_, answer, why) => {
    for (const mode of ['require', 'verify-full'] as const) {
      const { error } = await attempt([fake.sslRequest(answer)], { overrides: { tls: { mode } } });

      expect(error?.code).toBe('upstream_unreachable');
      expect(causeOf(error)).toMatch(why);
      expect(error?.message).not.toContain('script');
    }
  });

  test('a certificate of another authority is refused by verify-ca and verify-full', async () => {
    const stranger = createAuthority().issue();

    for (const mode of ['verify-ca', 'verify-full'] as const) {
      const { error } = await attempt([fake.sslRequest('S'), fake.startTls(stranger)], {
        overrides: { tls: { mode, caFile } },
      });
      expect(error?.code).toBe('upstream_unreachable');
    }
  });

  test('a certificate for another name is refused by verify-full', async () => {
    const { error } = await attempt(
      [fake.sslRequest('S'), fake.startTls(authority.issue(['other.example']))],
      withCa(),
    );

    expect(error?.code).toBe('upstream_unreachable');
  });

  test('a server that closes instead of answering is unreachable', async () => {
    const { error } = await attempt([fake.sslRequest(''), fake.hangUp], tls);

    expect(error?.code).toBe('upstream_unreachable');
  });
});

describe('a server that nobody should believe', () => {
  test.each<[string, readonly fake.Step[], string]>([
    ['says Ok before SCRAM has ended', [scram(PASSWORD, { final: [ok] })], 'upstream_protocol'],
    [
      'says Ok right after it asked for SCRAM',
      [send(authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0])), ok)],
      'upstream_protocol',
    ],
    ['does not know the password', [scram(PASSWORD, { password: 'another' })], 'upstream_protocol'],
    [
      'sends a proof that is no base64',
      [scram(PASSWORD, { final: [authentication(12, Buffer.from('v=!'))] })],
      'upstream_protocol',
    ],
    [
      'sends an empty proof',
      [scram(PASSWORD, { final: [authentication(12)] })],
      'upstream_protocol',
    ],
    ['sends a nonce of its own', [scram(PASSWORD, { foreignNonce: true })], 'upstream_protocol'],
    ['wants 2^31 iterations', [scram(PASSWORD, { iterations: 2 ** 31 })], 'upstream_protocol'],
    ['wants 1e9 iterations', [scram(PASSWORD, { iterations: '1e9' })], 'upstream_protocol'],
    ['wants 0 iterations', [scram(PASSWORD, { iterations: 0 })], 'upstream_protocol'],
    [
      'wants fewer iterations than anybody has',
      [scram(PASSWORD, { iterations: 4_095 })],
      'upstream_protocol',
    ],
    [
      'asks for SCRAM twice',
      [send(authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0]))), scram(PASSWORD)],
      'upstream_protocol',
    ],
    [
      'asks for a clear password after SCRAM began',
      [
        send(authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0]))),
        send(authentication(3)),
      ],
      'upstream_protocol',
    ],
    ['says Ok twice', [send(ok, ok)], 'upstream_protocol'],
    [
      'goes on with SCRAM that never began',
      [send(authentication(11, Buffer.from('r=x,s=eA==,i=1')))],
      'upstream_protocol',
    ],
    [
      'ends SCRAM that never began',
      [send(authentication(12, Buffer.from('v=eA==')))],
      'upstream_protocol',
    ],
    [
      'offers only a mechanism that we do not know',
      [send(authentication(10, encodeString('OAUTHBEARER'), Buffer.from([0])))],
      'upstream_login_rejected',
    ],
    [
      'offers no mechanism',
      [send(authentication(10, Buffer.from([0])))],
      'upstream_login_rejected',
    ],
    ['asks for MD5', [send(authentication(5, Buffer.from('salt')))], 'upstream_login_rejected'],
    ['asks for Kerberos', [send(authentication(7))], 'upstream_login_rejected'],
    [
      'sends an Authentication of three bytes',
      [send(encodeFrame('R', Buffer.from([0, 0, 0])))],
      'upstream_protocol',
    ],
    ['is ready before anybody has authenticated', [send(keyData, ready)], 'upstream_protocol'],
    ['is ready without a cancel key', [send(ok, ready)], 'upstream_protocol'],
    [
      'gives a cancel key of three bytes',
      [send(ok, encodeFrame('K', encodeInt32(1), Buffer.alloc(3)), ready)],
      'upstream_protocol',
    ],
    ['sends a row', [send(ok, encodeFrame('D', Buffer.alloc(2)))], 'upstream_protocol'],
    ['sends a type that there is none of', [send(encodeFrame('\0'))], 'upstream_protocol'],
    ['speaks HTTP', [send(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'))], 'upstream_protocol'],
    [
      'sends a frame of 2 GiB',
      [send(Buffer.concat([Buffer.from('S'), encodeInt32(2 ** 31 - 1)]))],
      'upstream_protocol',
    ],
    [
      'sends a frame of a negative length',
      [send(Buffer.concat([Buffer.from('S'), encodeInt32(-1)]))],
      'upstream_protocol',
    ],
    [
      'sends notices without end',
      [fake.flood(encodeFrame('N', Buffer.alloc(1_000)))],
      'upstream_protocol',
    ],
    ['hangs up at once', [fake.hangUp], 'upstream_lost'],
    ['hangs up after Ok', [send(ok), fake.hangUp], 'upstream_lost'],
    ['hangs up in the middle of a frame', [send(ok.subarray(0, 6)), fake.hangUp], 'upstream_lost'],
    ['resets', [fake.reset], 'upstream_lost'],
  ])('%s', async (_, steps, code) => {
    const { error } = await attempt([startupMessage, ...steps]);

    expect(error?.code).toBe(code);
    expect(error?.message).not.toContain(PASSWORD);
    expect(String(error?.cause)).not.toContain(PASSWORD);
  });

  test('asks for a clear password over TLS that nobody has verified, and does not get it', async () => {
    const script = [
      fake.sslRequest('S'),
      fake.startTls(createAuthority().issue()),
      startupMessage,
      send(authentication(3)),
      fake.expectEnd,
    ];

    const { error } = await attempt(script, { overrides: { tls: { mode: 'require' } } });

    expect(error?.code).toBe('upstream_login_rejected');
    expect(causeOf(error)).toMatch(/clear password/);
  });

  test('gets a clear password over TLS that is verified', async () => {
    const { connection } = await attempt(
      [
        fake.sslRequest('S'),
        fake.startTls(authority.issue()),
        startupMessage,
        send(authentication(3)),
        fake.expectFrame('p', encodeString(PASSWORD)),
        send(ok, keyData, ready),
      ],
      { overrides: { tls: { mode: 'verify-full', caFile } } },
    );

    expect(connection?.processId).toBe(4_711);
  });

  test('throws nothing but its own errors on random bytes', async () => {
    const said = fc.oneof(
      anyBytes(80),
      fc
        .array(fc.tuple(fc.constantFrom('R', 'S', 'K', 'E', 'N', 'Z'), anyBytes(20)), {
          maxLength: 6,
        })
        .map((frames) => Buffer.concat(frames.map(([type, body]) => encodeFrame(type, body)))),
      anyBytes(40).map((body) =>
        authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0]), body),
      ),
    );
    await fc.assert(
      fc.asyncProperty(said, async (bytes) => {
        const { error } = await attempt([startupMessage, send(bytes), fake.hangUp]);

        if (error === undefined) return;
        expect(error).toBeInstanceOf(ProxyError);
        expect(error.code).not.toBe('internal');
      }),
      { numRuns: 100 },
    );
  });
});

describe('an ErrorResponse', () => {
  test.each([
    ['28P01', 'password authentication failed', 'upstream_login_rejected'],
    ['28000', 'no pg_hba.conf entry', 'upstream_login_rejected'],
    ['42501', 'permission denied to set role "authenticated"', 'session_setup_failed'],
    ['22023', 'role "authenticated" does not exist', 'session_setup_failed'],
    ['42501', 'permission denied to set parameter "session_replication_role"', 'upstream_rejected'],
    ['22023', 'role "somebody" does not exist', 'upstream_rejected'],
    ['22023', 'invalid value for parameter "TimeZone": "Mars"', 'upstream_rejected'],
    ['53300', 'sorry, too many clients already', 'upstream_rejected'],
    [
      '53300',
      'remaining connection slots are reserved for roles with the SUPERUSER attribute',
      'upstream_rejected',
    ],
    ['53300', 'too many connections for role "pgjot_authenticated_1"', 'upstream_rejected'],
    ['57P03', 'the database system is starting up', 'upstream_rejected'],
    ['3D000', 'database "app" does not exist', 'upstream_rejected'],
  ])('%s "%s" is %s', async (sqlstate, message, code) => {
    const sent = failure(sqlstate, message);

    const { error } = await attempt([startupMessage, send(sent), fake.hangUp]);

    expect(error?.code).toBe(code);
    expect(error?.cause).toBeInstanceOf(UpstreamError);
    expect(error?.cause).toMatchObject({ sqlstate });
    // Forwarded byte for byte, or not at all.
    expect(error?.frame).toEqual(code === 'upstream_rejected' ? sent : undefined);
  });

  test.each([
    ['without an SQLSTATE', encodeFrame('E', Buffer.from('SFATAL\0Mno code\0\0'))],
    ['without a field', encodeFrame('E', Buffer.from([0]))],
    ['without a byte', encodeFrame('E')],
    ['cut off in a field', encodeFrame('E', Buffer.from('SFATAL\0Mno end'))],
  ])('%s is survived', async (_, sent) => {
    const { error } = await attempt([startupMessage, send(sent), fake.hangUp]);

    expect(error?.code).toBe('upstream_rejected');
    expect(error?.cause).toMatchObject({ sqlstate: '' });
  });

  test('keeps the routine, by which errors of one SQLSTATE are told apart in any language', async () => {
    const sent = encodeFrame(
      'E',
      Buffer.from('SFATAL\0C53300\0Mzu viele\0RInitializeSessionUserId\0\0'),
    );

    const { error } = await attempt([startupMessage, send(sent), fake.hangUp]);

    expect(error?.cause).toMatchObject({ routine: 'InitializeSessionUserId' });
  });
});

describe('a server that never answers', () => {
  test.each<[string, readonly fake.Step[], Partial<UpstreamConfig>]>([
    ['to the SSLRequest', [fake.sslRequest('')], { tls: { mode: 'require' } }],
    ['to the TLS handshake', [fake.sslRequest('S')], { tls: { mode: 'require' } }],
    ['to the StartupMessage', [startupMessage], {}],
    [
      'to the password',
      [startupMessage, send(authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0])))],
      {},
    ],
    ['with ReadyForQuery', [startupMessage, send(ok, keyData)], {}],
    ['with the rest of a frame', [startupMessage, send(ok.subarray(0, 7))], {}],
  ])('%s is unreachable after connectTimeoutMs', async (_, script, overrides) => {
    const { error } = await attempt(script, { overrides: { ...overrides, connectTimeoutMs: 100 } });

    expect(error?.code).toBe('upstream_unreachable');
    expect(causeOf(error)).toMatch(/no answer within 100 ms/);
  });

  test("ends with the signal's reason when that comes first", async () => {
    const abort = new AbortController();
    const reason = new ProxyError('login_timeout');
    const attempting = attempt([startupMessage, () => abort.abort(reason)], {
      signal: abort.signal,
    });

    expect((await attempting).error).toBe(reason);
  });

  test('is not dialled at all when the signal had aborted before', async () => {
    const reason = new ProxyError('client_lost');

    const { error, server } = await attempt([], { signal: AbortSignal.abort(reason) });
    await turn();

    expect(error).toBe(reason);
    expect(server.backends).toHaveLength(0);
  });
});

test('nobody listens there: upstream_unreachable, and the message names no host', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');

  const credentials = {
    user: 'u',
    password: 'p',
    role: 'r',
    parameters: new Map<string, string>(),
    identity: async () => [],
  };
  const connecting = connect(fake.upstreamAt(port), credentials, new AbortController().signal);

  await expect(connecting).rejects.toMatchObject({
    code: 'upstream_unreachable',
    message: 'could not connect to the server',
    cause: { code: 'ECONNREFUSED' },
  });
});
