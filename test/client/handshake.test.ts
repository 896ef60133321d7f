/**
 * The handshake over real sockets: every order of requests, TLS in both ways, and what a stranger cannot make it believe.
 */
import { once } from 'node:events';
import { createSecureContext, connect as connectTls, type TLSSocket } from 'node:tls';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  handshake,
  type Cancel,
  type HandshakeOptions,
  type Startup,
} from '../../src/client/handshake.ts';
import type { Client } from '../../src/client/stream.ts';
import { ProxyError } from '../../src/errors.ts';
import { encodeInt32, encodeString } from '../../src/wire/frame.ts';
import {
  encodeCancelRequest,
  encodeSSLRequest,
  encodeStartupMessage,
} from '../../src/wire/startup.ts';
import { createAuthority } from '../support/certificate.ts';
import { makePairs, nothingLeaked, openResources, type PairMaker } from '../support/sockets.ts';
import { anyBytes, byteByByte, everySplit, inPieces, pieceSizes } from '../support/splits.ts';
import { until } from '../support/stack.ts';

const authority = createAuthority();
const secureContext = createSecureContext(authority.issue());
const PLAIN: HandshakeOptions = { tlsMode: 'allow', secureContext: undefined, allowParameters: [] };
const TLS: HandshakeOptions = { tlsMode: 'require', secureContext, allowParameters: [] };
const SSL = encodeSSLRequest();
const GSS = Buffer.concat([encodeInt32(8), encodeInt32(80_877_104)]);
const STARTUP = startup(3, 0, [['user', 'alice']]);

let pairs: PairMaker;
let before: ReturnType<typeof openResources>;
beforeEach(async () => {
  before = openResources();
  pairs = await makePairs();
});
afterEach(async () => {
  await pairs[Symbol.asyncDispose]();
  await nothingLeaked(before);
});

function startup(major: number, minor: number, parameters: [string, string][]): Buffer {
  const whole = encodeStartupMessage(parameters);
  whole.writeUInt32BE(major * 65_536 + minor, 4);
  return whole;
}

type Result = { value: Startup | Cancel; error?: never } | { error: ProxyError; value?: never };

/** A handshake with a client that the test plays. */
async function begin(options: HandshakeOptions = PLAIN) {
  const { accepted, connected } = await pairs.plain();
  const client: Client = { stream: accepted, encrypted: false };
  const abort = new AbortController();
  const heard: Buffer[] = [];
  const hear = (chunk: Buffer) => heard.push(chunk);
  connected.on('data', hear);
  const result: Promise<Result> = handshake(client, options, abort.signal).then(
    (value) => ({ value }),
    (error: unknown) => ({ error: error as ProxyError }),
  );
  return {
    client,
    socket: connected,
    result,
    abort,
    heard: () => Buffer.concat(heard),
    /** Sends and waits for as many bytes in answer. */
    exchange: async (bytes: Buffer, answer: number): Promise<string> => {
      const already = Buffer.concat(heard).length;
      connected.write(bytes);
      await until(() => Buffer.concat(heard).length >= already + answer);
      return String(Buffer.concat(heard).subarray(already));
    },
    /** Goes on in TLS over the same socket. */
    secure: async (alpn?: string): Promise<TLSSocket> => {
      connected.off('data', hear);
      const secured = connectTls({
        socket: connected,
        ca: authority.ca,
        servername: 'localhost',
        ...(alpn !== undefined && { ALPNProtocols: [alpn] }),
      });
      secured.on('error', () => {});
      await once(secured, 'secureConnect');
      return secured;
    },
  };
}

const outcome = ({ value, error }: Result) => error?.code ?? value?.kind;

describe('a StartupMessage', () => {
  test('is taken however it was cut', async () => {
    for (const pieces of [...everySplit(STARTUP), byteByByte(STARTUP)]) {
      const { socket, result } = await begin();
      for (const piece of pieces) {
        socket.write(piece);
        if (pieces.length === 2) await turn();
      }

      expect((await result).value).toMatchObject({
        kind: 'startup',
        user: 'alice',
        database: 'alice',
        minor: 0,
      });
      socket.destroy();
    }
  });

  test('leaves what follows in the stream', async () => {
    const { client, socket, result } = await begin();

    socket.write(Buffer.concat([STARTUP, Buffer.from('behind')]));

    await result;
    expect(client.stream.readableLength).toBe(6);
  });

  // Attack A12.
  test.each([
    ['3.0', 0, [], 0, ''],
    ['3.2', 2, [], 2, ''],
    ['3.1', 1, [], 1, ''],
    ['3.99', 99, [], 2, '760000000c0003000200000000'],
    [
      '3.0 with an unknown option',
      0,
      ['_pq_.foo'],
      0,
      '76000000150003000000000001'.concat(Buffer.from('_pq_.foo\0').toString('hex')),
    ],
  ] as const)('of protocol %s is agreed on', async (_, minor, names, agreed, answer) => {
    const { socket, result, heard } = await begin();
    const parameters: [string, string][] = [
      ['user', 'alice'],
      ...names.map((name): [string, string] => [name, 'on']),
    ];

    socket.write(startup(3, minor, parameters));

    expect((await result).value).toMatchObject({ kind: 'startup', minor: agreed });
    await until(() => heard().length === answer.length / 2);
    expect(heard().toString('hex')).toBe(answer);
  });

  test.each([
    [2, 0],
    [4, 0],
    [0, 0],
    [65_535, 65_535],
  ])('of protocol %i.%i is unsupported', async (major, minor) => {
    const { socket, result } = await begin();

    socket.write(startup(major, minor, [['user', 'alice']]));

    expect(outcome(await result)).toBe('unsupported_protocol');
  });

  test('in the clear is refused where TLS is required, after the negotiation and before any password', async () => {
    const { socket, result, heard } = await begin(TLS);

    socket.write(STARTUP);

    expect(outcome(await result)).toBe('tls_required');
    expect(heard()).toHaveLength(0);
  });
});

describe('a CancelRequest', () => {
  test.each([4, 32, 256])(
    'with a key of %i bytes is handed over, in the clear and without an answer',
    async (length) => {
      const { socket, result, heard } = await begin(TLS);
      const secretKey = Buffer.alloc(length, 3);

      socket.write(encodeCancelRequest(42, secretKey));

      expect((await result).value).toEqual({ kind: 'cancel', processId: 42, secretKey });
      expect(heard()).toHaveLength(0);
    },
  );

  test.each([0, 3, 257])('with a key of %i bytes is nothing, in silence', async (length) => {
    const { socket, result } = await begin();

    socket.write(encodeCancelRequest(42, Buffer.alloc(length)));

    expect((await result).error).toMatchObject({ code: 'malformed_startup', silent: true });
  });
});

describe('SSLRequest and GSSENCRequest', () => {
  test.each([
    ['SSL', [SSL]],
    ['GSS', [GSS]],
    ['SSL, then GSS', [SSL, GSS]],
    ['GSS, then SSL', [GSS, SSL]],
  ])('are refused with one N each where there is no TLS: %s', async (_, requests) => {
    const { socket, result, exchange } = await begin();
    for (const request of requests) expect(await exchange(request, 1)).toBe('N');

    socket.write(STARTUP);

    expect(outcome(await result)).toBe('startup');
  });

  // Attack A4 (CVE-2026-6479).
  test.each([
    ['SSL twice', [SSL, SSL]],
    ['GSS twice', [GSS, GSS]],
    ['SSL, GSS, SSL', [SSL, GSS, SSL]],
    ['GSS, SSL, GSS', [GSS, SSL, GSS]],
  ])('are answered at most once: %s', async (_, requests) => {
    const { socket, result, exchange, heard } = await begin();
    for (const request of requests.slice(0, -1)) await exchange(request, 1);

    socket.write(requests.at(-1) as Buffer);

    expect(outcome(await result)).toBe('unsupported_protocol');
    expect(String(heard())).toBe('N'.repeat(requests.length - 1));
  });

  // Attack A1 (CVE-2021-23214, CVE-2021-23222).
  test.each([
    ['SSLRequest and a StartupMessage', Buffer.concat([SSL, STARTUP]), TLS],
    ['SSLRequest and one byte', Buffer.concat([SSL, Buffer.from('x')]), TLS],
    ['SSLRequest and a StartupMessage, without TLS', Buffer.concat([SSL, STARTUP]), PLAIN],
    ['GSSENCRequest and a StartupMessage', Buffer.concat([GSS, STARTUP]), PLAIN],
  ])('with bytes behind them in the same segment end it: %s', async (_, bytes, options) => {
    const { socket, result, heard } = await begin(options);

    socket.write(bytes);

    expect(outcome(await result)).toBe('bytes_before_tls');
    expect(heard()).toHaveLength(0);
  });

  test('clear bytes after S are TLS or nothing', async () => {
    const { socket, result, exchange } = await begin(TLS);
    expect(await exchange(SSL, 1)).toBe('S');

    socket.write(STARTUP);

    expect((await result).error).toMatchObject({ code: 'malformed_startup', silent: true });
  });

  test('lead to TLS, and the StartupMessage comes inside it', async () => {
    const { client, result, exchange, secure } = await begin(TLS);
    expect(await exchange(GSS, 1)).toBe('N');
    expect(await exchange(SSL, 1)).toBe('S');
    const secured = await secure();

    secured.write(STARTUP);

    expect((await result).value).toMatchObject({ kind: 'startup', user: 'alice' });
    expect(client.encrypted).toBe(true);
    secured.destroy();
  });

  test.each([
    ['SSLRequest', SSL],
    ['GSSENCRequest', GSS],
  ])('have no place inside TLS: %s', async (_, request) => {
    const { result, exchange, secure } = await begin(TLS);
    await exchange(SSL, 1);
    const secured = await secure();

    secured.write(request);

    expect(outcome(await result)).toBe('unsupported_protocol');
    secured.destroy();
  });
});

describe('direct TLS (attack A5)', () => {
  test('with ALPN postgresql is as good as SSLRequest', async () => {
    const { client, result, secure } = await begin(TLS);
    const secured = await secure('postgresql');

    secured.write(STARTUP);

    expect(outcome(await result)).toBe('startup');
    expect(client.encrypted).toBe(true);
    secured.destroy();
  });

  test('without ALPN ends in silence', async () => {
    const { result, secure } = await begin(TLS);
    const secured = await secure();

    expect((await result).error).toMatchObject({ code: 'malformed_startup', silent: true });
    secured.destroy();
  });

  test('for another protocol ends in an alert', async () => {
    const { result, secure } = await begin(TLS);

    await expect(secure('http/1.1')).rejects.toThrow(/no application protocol/i);

    expect((await result).error).toMatchObject({ code: 'malformed_startup', silent: true });
  });

  test('where there is no certificate ends in silence', async () => {
    const { socket, result, heard } = await begin(PLAIN);

    socket.write(Buffer.from([0x16, 3, 1, 0, 5]));

    expect((await result).error).toMatchObject({ code: 'malformed_startup', silent: true });
    expect(heard()).toHaveLength(0);
  });
});

describe('a client that goes away', () => {
  test.each([
    ['at once', 'a probe', Buffer.alloc(0), 'probe'],
    ['in the length', 'malformed', STARTUP.subarray(0, 2), 'malformed_startup'],
    ['in the packet', 'malformed', STARTUP.subarray(0, 12), 'malformed_startup'],
    ['behind the length', 'malformed', STARTUP.subarray(0, 4), 'malformed_startup'],
  ])('%s is %s, and nothing is said', async (_, __, bytes, code) => {
    const { socket, result } = await begin();

    socket.end(bytes);

    expect((await result).error).toMatchObject({ code, silent: true });
  });

  test('in the middle of TLS is a probe or a broken handshake, in silence', async () => {
    const { socket, result, exchange } = await begin(TLS);
    await exchange(SSL, 1);

    socket.destroy();

    expect((await result).error).toMatchObject({ silent: true });
  });
});

test.each([
  ['before a byte', PLAIN, Buffer.alloc(0)],
  ['in a packet', PLAIN, STARTUP.subarray(0, 6)],
  ['in TLS', TLS, SSL],
] as const)('ends with the reason of its signal %s', async (_, options, bytes) => {
  const { socket, result, abort, heard } = await begin(options);
  socket.write(bytes);
  if (bytes === SSL) await until(() => heard().length === 1);
  const reason = new ProxyError('login_timeout');

  abort.abort(reason);

  expect((await result).error).toBe(reason);
});

test('throws nothing but its own errors on random bytes', async () => {
  const packets = fc.oneof(
    anyBytes(60),
    anyBytes(60).map((body) =>
      Buffer.concat([encodeInt32(body.length + 8), encodeInt32(3 * 65_536), body]),
    ),
    fc
      .array(fc.tuple(fc.string(), fc.string()), { maxLength: 4 })
      .map((fields) => fields.flat().map((text) => encodeString(text.replaceAll('\0', ''))))
      .map((fields) => Buffer.concat([...fields, Buffer.from([0])]))
      .map((body) => Buffer.concat([encodeInt32(body.length + 8), encodeInt32(3 * 65_536), body])),
  );
  await fc.assert(
    fc.asyncProperty(packets, pieceSizes, fc.boolean(), async (bytes, sizes, tls) => {
      const { socket, result } = await begin(tls ? TLS : PLAIN);
      for (const piece of inPieces(bytes, sizes)) socket.write(piece);
      socket.end();

      const { error } = await result;

      if (error !== undefined) expect(error).toBeInstanceOf(ProxyError);
      if (error !== undefined) expect(error.code).not.toBe('internal');
      socket.destroy();
    }),
    { numRuns: 150 },
  );
});
