/**
 * What a stranger can do to the proxy before it is logged in: attacks A1 and A4 to A13 on the wire, each by its name.
 *
 * Scripted bytes only. That the answers are PostgreSQL's is the business of `parity/`; here it is that
 * nothing was believed, dialled, kept or leaked. Startup parameters are in `parameter-attacks.test.ts`.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type AttackTarget,
  expectCleanLogs,
  expectNothingLeft,
  flood,
  GOOD,
  inTurns,
  MARK,
  memoryGrowth,
  MIB,
  startTarget,
} from './attack-stack.ts';
import {
  byteByByte,
  CODES,
  cstring,
  frame,
  GSSENC_REQUEST,
  int32,
  packet,
  passwordMessage,
  query,
  SSL_REQUEST,
  session,
  startup,
  TERMINATE,
} from './parity/bytes.ts';
import { describe as inWords, probe, type Step } from './parity/probe.ts';

let clear: AttackTarget;
let tls: AttackTarget;

beforeAll(async () => {
  [clear, tls] = await Promise.all([startTarget(), startTarget({ tls: true })]);
});

afterAll(async () => {
  await clear?.[Symbol.asyncDispose]();
  await tls?.[Symbol.asyncDispose]();
});

const STARTUP = startup([
  ['user', 'authenticated'],
  ['database', 'app'],
]);

const asked = (...packets: Buffer[]) => packets.flatMap((one): Step[] => [one, 'await reply']);

describe('A1: bytes slipped in before TLS', () => {
  const whole = () => Buffer.concat(tls.messages());

  test('are not taken for an encrypted startup when they share a segment with SSLRequest', async () => {
    await tls.unheard(async () => {
      for (const behind of [whole(), STARTUP, Buffer.alloc(1), SSL_REQUEST, GSSENC_REQUEST]) {
        const said = await tls.outcome(Buffer.concat([SSL_REQUEST, behind]));

        expect(said).toBe('08P01, closes');
      }
    });
  });

  test.each([1, 5, 20, 50])('are not believed when they come %i ms behind it', async (pauseMs) => {
    await tls.unheard(async () => {
      const said = await tls.outcome(SSL_REQUEST, { pauseMs }, whole());

      expect(said).toMatch(/^(S, (tls alert, )?|08P01, )closes$/);
    });
  });

  test('are not believed behind GSSENCRequest or where there is no TLS', async () => {
    await clear.unheard(async () => {
      for (const request of [SSL_REQUEST, GSSENC_REQUEST]) {
        const said = await clear.outcome(Buffer.concat([request, ...clear.messages()]));

        expect(said).toBe('08P01, closes');
      }
    });
  });
});

describe('A4: encryption requests again and again', () => {
  test('end after one of each', async () => {
    const pingPong = Array.from({ length: 5_000 }, () => asked(SSL_REQUEST, GSSENC_REQUEST)).flat();

    expect(await clear.outcome(...pingPong)).toBe('N, N, 0A000, closes');
  });

  test('end at the first when 10,000 come in one segment', async () => {
    const pairs = Array.from({ length: 5_000 }, () => [GSSENC_REQUEST, SSL_REQUEST]);
    const many = Buffer.concat(pairs.flat());

    expect(await clear.outcome(many)).toBe('08P01, closes');
    expect(await tls.outcome(many)).toBe('08P01, closes');
  });

  test('are refused inside TLS', async () => {
    for (const request of [SSL_REQUEST, GSSENC_REQUEST]) {
      const steps: Step[] = [SSL_REQUEST, 'await reply', { startTls: {} }, request];

      expect(await tls.outcome(...steps)).toBe('S, tls, 0A000, closes');
    }
  });
});

describe('A5: direct TLS', () => {
  test('is accepted with ALPN postgresql', async () => {
    const steps: Step[] = [{ startTls: { ALPNProtocols: ['postgresql'] } }, ...tls.messages()];

    expect(await tls.outcome(...steps)).toBe(`tls postgresql, ${GOOD}`);
  });

  test.each([['http/1.1'], ['h2', 'http/1.1'], ['postgres'], ['POSTGRESQL']])(
    'is refused with ALPN %s',
    async (...ALPNProtocols) => {
      await tls.unheard(async () => {
        const said = await tls.outcome({ startTls: { ALPNProtocols } }, ...tls.messages());

        expect(said).toBe('no tls, closes');
      });
    },
  );

  test('is refused without ALPN', async () => {
    await tls.unheard(async () => {
      const said = await tls.outcome({ startTls: {} }, ...tls.messages());

      expect(said).toBe('tls, closes');
    });
  });

  test('is left without a word where there is no TLS', async () => {
    const said = await clear.outcome({ startTls: { ALPNProtocols: ['postgresql'] } });

    expect(said).toBe('no tls, closes');
  });
});

describe('A6: startup lengths', () => {
  test('outside 8 to 10,004 close the connection without a word, whatever follows', async () => {
    const illegal = fc.oneof(
      fc.integer({ min: 0, max: 7 }),
      fc.integer({ min: 10_005, max: 2 ** 32 - 1 }),
    );
    // 0x16 as the first byte is TLS, not a length.
    const length = illegal.filter((value) => value >>> 24 !== 0x16);

    await fc.assert(
      fc.asyncProperty(length, fc.uint8Array({ maxLength: 40 }), async (value, rest) => {
        const { bytes, end } = await probe(clear.stack, [int32(value), Buffer.from(rest)]);

        expect([bytes.length, end]).toEqual([0, 'closes']);
      }),
      { numRuns: 200 },
    );
  });

  // 2 GiB is more than Node can be asked to read at once, 128 MiB is not.
  test.each([0x7fff_ffff, 0x0800_0000])(
    'are not believed: %i bytes declared and 256 MiB sent leave memory as it was',
    async (declared) => {
      const hello = [int32(declared), int32(CODES.v3)];
      const grown = await memoryGrowth(() => flood(clear, hello, 256 * MIB));

      expect(grown).toBeLessThan(32 * MIB);
    },
  );
});

describe('A7: password messages', () => {
  const inPlace = (...bytes: Buffer[]) => clear.outcome(STARTUP, 'await reply', ...bytes);
  const ofSize = (size: number) => passwordMessage('a'.repeat(size));

  test.each([
    ['of length 0', frame('p', '', 0), '08P01'],
    ['of length 3', frame('p', '', 3), '08P01'],
    ['of length 4, without a body', frame('p'), '08P01'],
    ['of length 5, an empty password', frame('p', '\0'), '28P01'],
    ['of length 5, without a NUL', frame('p', 'a'), '08P01'],
    ['of 65,536 bytes declared', frame('p', '', 65_536), '08P01'],
    ['of 2 GiB declared', frame('p', '', 0x7fff_ffff), '08P01'],
    ['of -1 byte', frame('p', '', -1), '08P01'],
    ['without a NUL', frame('p', `${MARK}.${MARK}.${MARK}`), '08P01'],
    ['with a NUL inside', frame('p', `${MARK}\0${MARK}\0`), '08P01'],
    ['with bytes behind the NUL', frame('p', `${MARK}\0x`), '08P01'],
    ['that are no password', frame('Q', cstring(MARK)), '08P01'],
  ])('%s are refused', async (_, bytes, sqlstate) => {
    await clear.unheard(async () => {
      expect(await inPlace(bytes)).toBe(`asks password, ${sqlstate}, closes`);
    });
  });

  test('longer than a token may be are refused like any other wrong password', async () => {
    await clear.unheard(async () => {
      for (const size of [16_384, 16_385, 65_530]) {
        expect(await inPlace(ofSize(size))).toBe('asks password, 28P01, closes');
      }
      expect(await inPlace(ofSize(65_531))).toMatch(/^asks password, (28|08)P01, closes$/);
      expect(await inPlace(ofSize(65_532))).toBe('asks password, 08P01, closes');
    });
  });

  test('are refused for their length alone: a good token may be too long', async () => {
    const claims = (bytes: number) => clear.stack.token('alice', { padding: 'x'.repeat(bytes) });
    const [short, long] = await Promise.all([claims(8_000), claims(13_000)]);
    const login = (password: string) =>
      session({ user: 'authenticated', database: 'app', password });

    expect(short.length).toBeLessThan(16_384);
    expect(await clear.outcome(...login(short))).toBe(GOOD);
    expect(long.length).toBeGreaterThan(16_384);
    expect(await clear.outcome(...login(long))).toBe('asks password, 28P01, closes');
  });

  test.each([0x7fff_ffff, 0x0800_0000])(
    'leave memory as it was when %i bytes are declared and 256 MiB sent',
    async (declared) => {
      const grown = await memoryGrowth(() =>
        flood(clear, [STARTUP, frame('p', '', declared)], 256 * MIB),
      );

      expect(grown).toBeLessThan(32 * MIB);
    },
  );
});

describe('A8: bytes behind the password', () => {
  test('reach PostgreSQL when the token is good', async () => {
    const [hello, password, ...rest] = clear.messages();
    const steps = [hello, 'await reply' as const, Buffer.concat([password, ...rest])];

    expect(await clear.outcome(...steps)).toBe(GOOD);
  });

  test('reach PostgreSQL whole when they are a megabyte of queries', async () => {
    const queries = Array.from({ length: 1_000 }, () => query(`select ${'1'.padStart(1_000)}`));
    const [hello, password] = clear.messages();
    const { replies } = await probe(
      clear.stack,
      [Buffer.concat([hello, password, ...queries, TERMINATE])],
      { quietMs: 5_000 },
    );

    expect(replies.filter(({ kind }) => kind === 'row')).toHaveLength(1_000);
  });

  test('are never looked at when the token is refused', async () => {
    await clear.unheard(async () => {
      const steps = Buffer.concat([
        STARTUP,
        passwordMessage(`${MARK}.${MARK}.${MARK}`),
        query(MARK),
      ]);

      expect(await clear.outcome(steps)).toBe('asks password, 28P01, closes');
    });
  });

  test('are not kept in memory while the token is judged', async () => {
    const wrong = [STARTUP, passwordMessage(`${MARK}.${MARK}.${MARK}`)];
    const grown = await memoryGrowth(() => flood(clear, wrong, 256 * MIB));

    expect(grown).toBeLessThan(32 * MIB);
  });
});

describe('A9: segments cut anywhere', () => {
  const ways: [way: string, stack: () => AttackTarget, before: Step[], begins: string][] = [
    ['over TCP', () => clear, [], ''],
    ['over TLS', () => tls, [SSL_REQUEST, 'await reply', { startTls: {} }], 'S, tls, '],
    [
      'over direct TLS',
      () => tls,
      [{ startTls: { ALPNProtocols: ['postgresql'] } }],
      'tls postgresql, ',
    ],
  ];

  test.each(ways)(
    'a login split in two at every byte gets the same answer %s',
    async (_, stack, before, begins) => {
      const whole = Buffer.concat(stack().messages());
      const cuts = Array.from({ length: whole.length - 1 }, (__, at) => at + 1);

      await inTurns(8, cuts, async (at) => {
        const steps = [...before, whole.subarray(0, at), whole.subarray(at)];
        const said = inWords(await probe(stack().stack, steps, { quietMs: 10_000 }));

        expect(`cut at ${at}: ${said}`).toBe(`cut at ${at}: ${begins}${GOOD}`);
      });
    },
    120_000,
  );

  test.each(ways)(
    'a login one byte at a time gets the same answer %s',
    async (_, stack, before, begins) => {
      const whole = Buffer.concat(stack().messages());
      const said = await probe(stack().stack, [...before, ...byteByByte(whole)], {
        quietMs: 10_000,
      });

      expect(inWords(said)).toBe(begins + GOOD);
    },
  );

  test('a login cut at random gets the same answer', async () => {
    const whole = Buffer.concat(clear.messages());
    const cuts = fc.uniqueArray(fc.integer({ min: 1, max: whole.length - 1 }), { maxLength: 12 });

    await fc.assert(
      fc.asyncProperty(cuts, async (unsorted) => {
        const at = [0, ...unsorted.toSorted((a, b) => a - b), whole.length];
        const chunks = at.slice(1).map((end, index) => whole.subarray(at[index], end));

        expect(inWords(await probe(clear.stack, chunks, { quietMs: 10_000 }))).toBe(GOOD);
      }),
      { numRuns: 100 },
    );
  }, 60_000);
});

describe('A12: protocol options and versions from the future', () => {
  test('are negotiated once, and never reach PostgreSQL', async () => {
    const options = Array.from({ length: 500 }, (_, i) => [`_pq_.o${i}`, 'x'] as const);
    const [, password, ...rest] = clear.messages();
    const hello = startup([['user', 'authenticated'], ['database', 'app'], ...options]);
    const { replies } = await probe(clear.stack, [hello, password, ...rest]);

    const negotiated = replies.filter((reply) => reply.kind === 'negotiates');
    expect(negotiated).toEqual([
      { kind: 'negotiates', version: '3.0', options: options.map(([name]) => name) },
    ]);
    expect(replies.map(({ kind }) => kind)).toContain('row');
  });
});

describe('A13: messages before their time', () => {
  test.each(['S', 'H', 'Q', 'P', 'B', 'E', 'D', 'C', 'X', 'F', 'd', 'c', 'f', '!', '\0', '\u00ff'])(
    'message type %j in place of the password is refused',
    async (type) => {
      await clear.unheard(async () => {
        const said = await clear.outcome(STARTUP, 'await reply', frame(type, `${MARK}\0`));

        expect(said).toBe('asks password, 08P01, closes');
      });
    },
  );

  test('a second startup inside a session is for PostgreSQL to refuse', async () => {
    const [hello, password] = clear.messages();
    const { replies } = await probe(clear.stack, [...asked(hello, password), hello]);

    expect(replies.at(-1)).toMatchObject({
      kind: 'error',
      sqlstate: '08P01',
      message: 'invalid frontend message type 0',
    });
  });

  test('a startup packet in place of the password is refused', async () => {
    const said = await clear.outcome(STARTUP, 'await reply', packet(CODES.v3, cstring(MARK)));

    expect(said).toBe('asks password, 08P01, closes');
  });
});

test('after all this nothing is left, and no log line holds a token', async () => {
  await expectNothingLeft(clear, tls);
  expectCleanLogs(clear, tls);
});
