/**
 * The token in SET pgjot.token goes to the proxy and never upstream, however the bytes arrive; all else passes untouched.
 */
import fc from 'fast-check';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { REFUSALS, Screen, type Refusal, type TokenJudge } from '../../src/splice/screen.ts';
import { encodeFrame, encodeInt32, encodeString } from '../../src/wire/frame.ts';

const TOKEN = 'eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_';
const ACCEPTED = "SET pgjot.token = ''";

const query = (sql: string) => encodeFrame('Q', encodeString(sql));
const parse = (name: string, sql: string, types: readonly number[] = []) => {
  const count = Buffer.alloc(2);
  count.writeInt16BE(types.length);
  return encodeFrame('P', encodeString(name), encodeString(sql), count, ...types.map(encodeInt32));
};
const SYNC = encodeFrame('S');
const EXECUTION = Buffer.concat([
  encodeFrame('B', Buffer.from('\0\0\0\0\0\0\0\0')),
  encodeFrame('E', Buffer.from('\0\0\0\0\0')),
  SYNC,
]);

/** A screen before a sink that keeps what it gets. */
class Rig {
  readonly tokens: string[] = [];
  readonly passed: Buffer[] = [];
  #onResume: () => void = () => {};
  readonly screen: Screen;
  roomy = true;

  constructor(judge: TokenJudge = async () => undefined, onResume = () => {}) {
    this.#onResume = onResume;
    this.screen = new Screen(
      {
        take: (chunk) => {
          // The buffer is used again as soon as this returns.
          this.passed.push(Buffer.from(chunk));
          return this.roomy;
        },
        holdsBytes: () => false,
        expectsMore: () => false,
      },
      {
        judge: (token) => {
          this.tokens.push(token);
          return judge(token);
        },
      },
      { stream: { resume: () => this.#onResume() } },
    );
  }

  /** Sends these chunks as a socket would: the next one only when it may, its bytes overwritten afterwards. */
  async send(...chunks: readonly Buffer[]): Promise<Buffer> {
    for (const chunk of chunks) {
      const bytes = Buffer.from(chunk);
      const resumed = new Promise<void>((resolve) => {
        this.#onResume = resolve;
      });
      const goesOn = this.screen.take(bytes);
      bytes.fill(0x58);
      if (!goesOn && this.roomy) await resumed;
    }
    return Buffer.concat(this.passed);
  }
}

const textOf = (bytes: Buffer) => bytes.toString('latin1');

afterEach(() => vi.useRealTimers());

describe('a statement that sets the token', () => {
  test.each([
    `SET pgjot.token = '${TOKEN}'`,
    `set pgjot.token to '${TOKEN}';`,
    `SET SESSION "pgjot"."token"='${TOKEN}' ; `,
    `-- x\rset pgjot.token = '${TOKEN}'`,
    `\n\t /* by app:x */ -- why\nSeT/**/PgJot . Token\r\n=\n'${TOKEN}' -- done\n`,
  ])('is replaced, and the token judged: %j', async (sql) => {
    const rig = new Rig();

    expect(await rig.send(query(sql))).toEqual(query(ACCEPTED));
    expect(rig.tokens).toEqual([TOKEN]);
    expect(rig.screen.holding).toBe(false);
  });

  test('is replaced under its name in the extended protocol, between messages that stay as they are', async () => {
    const name = 'ünïque_1';
    const before = [parse('', 'select 1'), EXECUTION];
    const rig = new Rig();

    const passed = await rig.send(
      Buffer.concat([...before, parse(name, `SET pgjot.token = '${TOKEN}'`), EXECUTION]),
    );

    expect(passed).toEqual(Buffer.concat([...before, parse(name, ACCEPTED), EXECUTION]));
    expect(rig.tokens).toEqual([TOKEN]);
  });

  test('goes through in whatever pieces it arrives', async () => {
    const bytes = Buffer.concat([
      query('select 1'),
      query(`SET pgjot.token = '${TOKEN}'`),
      parse('s1', `set pgjot.token to '${TOKEN}'`),
      EXECUTION,
      query("set search_path = 'pgjot.token'"),
      encodeFrame('d', Buffer.alloc(300, 'SET pgjot.token')),
      encodeFrame('X'),
    ]);
    const expected = Buffer.concat([
      query('select 1'),
      query(ACCEPTED),
      parse('s1', ACCEPTED),
      EXECUTION,
      query("set search_path = 'pgjot.token'"),
      encodeFrame('d', Buffer.alloc(300, 'SET pgjot.token')),
      encodeFrame('X'),
    ]);
    const cuts = fc.array(fc.integer({ min: 1, max: bytes.length - 1 }), { maxLength: 12 });

    await fc.assert(
      fc.asyncProperty(cuts, async (given) => {
        const at = [...new Set([0, ...given, bytes.length])].toSorted((a, b) => a - b);
        const rig = new Rig();
        const chunks = at.slice(1).map((end, i) => bytes.subarray(at[i], end));

        const passed = await rig.send(...chunks);
        rig.screen.end(() => {});

        expect(textOf(passed)).toBe(textOf(expected));
        expect(rig.tokens).toEqual([TOKEN, TOKEN]);
      }),
      { numRuns: 300 },
    );
  });

  test('arrives byte by byte', async () => {
    const rig = new Rig();
    const bytes = Buffer.concat([query(`SET pgjot.token = '${TOKEN}'`), SYNC]);

    const passed = await rig.send(...Array.from(bytes, (byte) => Buffer.from([byte])));

    expect(passed).toEqual(Buffer.concat([query(ACCEPTED), SYNC]));
  });

  test.each([
    ["SET pgjot.token = ''", ''],
    ["SET pgjot.token = 'not a token'", undefined],
    [`SET LOCAL pgjot.token = '${TOKEN}'`, undefined],
    [`SET pgjot.token = ${TOKEN}`, undefined],
    [`SET pgjot.token = E'${TOKEN}'`, undefined],
    [`SET pgjot.token = '${TOKEN}'; select 1`, undefined],
    [`SET pgjot.token = '${TOKEN}', '${TOKEN}'`, undefined],
    [`SET pgjot.token/**/= $1`, undefined],
    ['SET pgjot.token TO DEFAULT', undefined],
    ['set pgjot.token', undefined],
    [`;set pgjot.token = '${TOKEN}'`, undefined],
    [`/* /* */ */ set pgjot.token = '${TOKEN}'`, undefined],
    [`set pgjot.token = '${TOKEN}'${' '.repeat(64_000)}x`, undefined],
    [`set pgjot.token = '${TOKEN}'${'/**/'.repeat(16_000)}x`, undefined],
    [`set pgjot.token${' '.repeat(64_000)}x`, undefined],
  ])('is refused at once where it is not like this: %.60s', async (sql, judged) => {
    const rig = new Rig(async () => 'it has expired');
    const startedAt = performance.now();

    const passed = textOf(await rig.send(query(sql)));

    expect(rig.tokens).toEqual(judged === undefined ? [] : [judged]);
    expect(passed).toContain(judged === undefined ? 'must be SET pgjot.token =' : 'it has expired');
    expect(passed).not.toContain('eyJ');
    // One frame must not hold everybody up: each byte of it can be read in one way only.
    expect(performance.now() - startedAt).toBeLessThan(500);
  });

  test.each(REFUSALS)('fails upstream with the reason when it was refused: %s', async (refusal) => {
    const rig = new Rig(async () => refusal);

    const passed = await rig.send(parse('n', `SET pgjot.token = '${TOKEN}'`), EXECUTION);

    expect(passed.subarray(0, 8)).toEqual(
      Buffer.concat([Buffer.from('P'), encodeInt32(passed.readInt32BE(1)), Buffer.from('n\0D')]),
    );
    expect(textOf(passed)).toContain(`the token was not accepted: ${refusal}'`);
    expect(passed.subarray(-EXECUTION.length)).toEqual(EXECUTION);
  });

  test('of a gigabyte is never held, and what follows it is heard', async () => {
    const rig = new Rig();
    const text = `SET pgjot.token = '${'x'.repeat(1_000_000)}'`;

    const passed = await rig.send(
      ...(
        query(text)
          .toString('latin1')
          .match(/[^]{1,60000}/g) ?? []
      ).map((piece) => Buffer.from(piece, 'latin1')),
      SYNC,
    );

    expect(rig.tokens).toEqual([]);
    expect(passed.length).toBeLessThan(300);
    expect(passed.subarray(-SYNC.length)).toEqual(SYNC);
  });
});

describe('everything else', () => {
  test.each([
    "select 'SET pgjot.token = x'",
    'set pgjot.tokens = 1',
    'set pgjot.token2 to 1',
    'set pgjot.token$ to 1',
    'set my.pgjot.token = 1',
    'settle pgjot.token',
    'set session authorization default',
    'reset pgjot.token',
    'show pgjot.token',
    "--a\rinsert into t values (1);\nset pgjot.token = ''",
    's',
    'se',
    'set',
    '',
    '/* unfinished SET pgjot.token',
    `/*${' '.repeat(600)}*/ select 1`,
    `${'/**/'.repeat(5_000)}x`,
    '/*'.repeat(5_000),
    '--\n'.repeat(5_000),
    ' '.repeat(100_000),
  ])('passes as it is, at once: %.40j', async (sql) => {
    const rig = new Rig();
    const startedAt = performance.now();

    expect(await rig.send(query(sql))).toEqual(query(sql));

    expect(rig.tokens).toEqual([]);
    expect(rig.screen.holding).toBe(false);
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });

  test('passes as it is in whatever frames and pieces, be they frames or not', async () => {
    const frames = fc.oneof(
      fc.string({ maxLength: 40 }).map((sql) => query(sql.replaceAll('\0', ''))),
      fc
        .tuple(fc.string({ maxLength: 300 }), fc.string({ maxLength: 30 }))
        .map(([name, sql]) => parse(name.replaceAll('\0', ''), sql.replaceAll('\0', ''))),
      fc.uint8Array({ maxLength: 50 }).map((body) => encodeFrame('d', Buffer.from(body))),
      fc.uint8Array({ maxLength: 50 }).map((body) => Buffer.from(body)),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(frames, { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 400 }), { maxLength: 8 }),
        async (given, sizes) => {
          const bytes = Buffer.concat(given);
          const chunks: Buffer[] = [];
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const size = sizes[i % Math.max(sizes.length, 1)] ?? bytes.length;
            chunks.push(bytes.subarray(at, at + size));
            at += size;
          }
          const rig = new Rig();

          await rig.send(...chunks);
          rig.screen.end(() => {});

          expect(Buffer.concat(rig.passed)).toEqual(bytes);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe('while a token is judged', () => {
  test('nothing passes, and afterwards all of it does, in order; then the end', async () => {
    let decide: (refusal: Refusal | undefined) => void = () => {};
    const rig = new Rig(() => new Promise((resolve) => (decide = resolve)));
    const order: string[] = [];

    expect(rig.screen.take(Buffer.concat([SYNC, query(`SET pgjot.token = '${TOKEN}'`)]))).toBe(
      false,
    );
    expect(rig.screen.take(query('select 1'))).toBe(false);
    rig.screen.end(() => order.push(`end after ${rig.passed.length}`));
    expect(Buffer.concat(rig.passed)).toEqual(SYNC);
    expect(rig.screen.holding).toBe(true);
    decide(undefined);

    await vi.waitFor(() => expect(order).toEqual(['end after 3']));
    expect(Buffer.concat(rig.passed)).toEqual(
      Buffer.concat([SYNC, query(ACCEPTED), query('select 1')]),
    );
  });

  test('a sink that is full is not forgotten: its own drain makes the source go on', async () => {
    const onResume = vi.fn<() => void>();
    const rig = new Rig(async () => undefined, onResume);
    rig.roomy = false;

    expect(rig.screen.take(query(`SET pgjot.token = '${TOKEN}'`))).toBe(false);

    await vi.waitFor(() => expect(rig.passed).toHaveLength(1));
    expect(onResume).not.toHaveBeenCalled();
  });
});
