/**
 * The same bytes to a real PostgreSQL and to pgjot, and the same answer: error, silence or wait.
 *
 * What each side answers is asked anew on every run; nothing is recorded. `deliberate.ts` has the
 * places where the answers may differ.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Stack, startStack } from '../../support/stack.ts';
import { CLEAR_CORPUS, type Login, TLS_CORPUS, type WireCase } from './corpus.ts';
import { DELIBERATE, type Difference, OTHER_WORDS } from './deliberate.ts';
import { startOracle } from './oracle.ts';
import { describe as inWords, type Observation, probe, type Target } from './probe.ts';

const CONCURRENCY = 16;
// A second look at a case where one side seemed to wait: on a busy machine "waits" may be "is slow".
const PATIENT_MS = 3_000;
const INSIDE_TLS = ', inside TLS';
const TLS_BEGINS = 'S, tls, ';

interface Side {
  readonly target: Target;
  readonly login: Login;
}

interface Answers {
  readonly postgres: Observation;
  readonly pgjot: Observation;
}

describe.each([
  { title: 'without TLS', corpus: CLEAR_CORPUS, tls: false },
  { title: 'with TLS', corpus: TLS_CORPUS, tls: true },
])('$title', ({ corpus, tls }) => {
  let oracle: Awaited<ReturnType<typeof startOracle>>;
  let stack: Stack;
  let answers: ReadonlyMap<string, Answers>;

  beforeAll(async () => {
    [oracle, stack] = await Promise.all([startOracle({ tls }), startStack({ tls, slots: 40 })]);
    const pgjot = {
      target: { host: stack.host, port: stack.port },
      login: { ...oracle.login, password: await stack.token('parity') },
    };
    answers = await askAll(corpus, oracle, pgjot);
  });

  afterAll(async () => {
    await stack?.close();
    await oracle?.[Symbol.asyncDispose]();
  });

  // Plain loops: test.each would cut the names short.
  for (const { name, shows } of corpus) {
    test(`${name}: ${shows}`, () => {
      const { postgres, pgjot } = answersTo(name);

      expect(inWords(pgjot)).toBe(expected(name, inWords(postgres)));
    });
  }

  for (const { name } of corpus.filter((one) => speaksAlike(one.name))) {
    test(`${name}: in the words of PostgreSQL`, () => {
      const { postgres, pgjot } = answersTo(name);

      expect(messages(pgjot)).toEqual(messages(postgres));
    });
  }

  test('refuses with one whole ErrorResponse, and says nothing after it', () => {
    for (const [name, { pgjot }] of answers) {
      const fatal = pgjot.replies.findIndex(isFatal);
      if (fatal === -1) continue;
      const reply = pgjot.replies[fatal];
      const fields = reply?.kind === 'error' ? [...reply.fields.keys()].join('') : '';

      expect([name, fields]).toEqual([name, expect.stringMatching(/^SVCM/)]);
      expect([name, pgjot.replies.length, pgjot.end]).toEqual([name, fatal + 1, 'closes']);
    }
  });

  test('has no deliberate difference that is none', () => {
    const stale = DELIBERATE.filter((difference) => {
      const rows = corpus.filter(({ name }) => differenceFor(name) === difference);
      return rows.some(({ name }) => {
        const { postgres } = answersTo(name);
        return inWords(postgres) === expected(name, inWords(postgres));
      });
    });

    expect(stale).toEqual([]);
  });

  function answersTo(name: string): Answers {
    const found = answers.get(name);
    if (found === undefined) throw new Error(`"${name}" was never asked`);
    return found;
  }
});

test('every deliberate difference is about some case', () => {
  const names = [...CLEAR_CORPUS, ...TLS_CORPUS].map(({ name }) => name);

  const unused = DELIBERATE.filter((one) => !names.some((name) => differenceFor(name) === one));

  expect(unused).toEqual([]);
});

test('every case has a name of its own, and there are at least 400', () => {
  for (const corpus of [CLEAR_CORPUS, TLS_CORPUS]) {
    const names = corpus.map(({ name }) => name);

    expect(names.filter((name, index) => names.indexOf(name) !== index)).toEqual([]);
    expect(names.length).toBeGreaterThanOrEqual(400);
  }
});

async function askAll(
  corpus: readonly WireCase[],
  postgres: Side,
  pgjot: Side,
): Promise<ReadonlyMap<string, Answers>> {
  const answers = new Map<string, Answers>();
  const waiting = [...corpus];
  const askInTurn = async () => {
    for (let one = waiting.shift(); one !== undefined; one = waiting.shift()) {
      answers.set(one.name, await askBoth(one, postgres, pgjot));
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, askInTurn));
  return answers;
}

async function askBoth({ name, steps }: WireCase, postgres: Side, pgjot: Side): Promise<Answers> {
  const ask = async (quietMs?: number): Promise<Answers> => {
    const patience = quietMs === undefined ? {} : { quietMs };
    const [a, b] = await Promise.all(
      [postgres, pgjot].map(({ target, login }) => probe(target, steps(login), patience)),
    );
    return { postgres: a as Observation, pgjot: b as Observation };
  };
  const quick = await ask();
  const agree = inWords(quick.pgjot) === expected(name, inWords(quick.postgres));
  const waits = quick.pgjot.end === 'waits' || quick.postgres.end === 'waits';
  return agree || !waits ? quick : ask(PATIENT_MS);
}

/** What pgjot shall answer, given PostgreSQL's answer. */
function expected(name: string, postgres: string): string {
  const difference = differenceFor(name);
  if (difference === undefined) return postgres;
  return name.endsWith(INSIDE_TLS) ? TLS_BEGINS + difference.pgjot : difference.pgjot;
}

function differenceFor(name: string): Difference | undefined {
  const bare = name.endsWith(INSIDE_TLS) ? name.slice(0, -INSIDE_TLS.length) : name;
  // Inside TLS an encryption request is a packet like any other, early bytes and all.
  if (bare !== name && /^(SSL|GSSENC)Request/.test(bare)) return undefined;
  return DELIBERATE.find(({ cases }) => cases.test(bare));
}

function speaksAlike(name: string): boolean {
  const { sameWords } = differenceFor(name) ?? { sameWords: true };
  return sameWords === true && !OTHER_WORDS.some(({ cases }) => cases.test(name));
}

function messages({ replies }: Observation): string[] {
  return replies.flatMap((reply) => (reply.kind === 'error' ? [reply.message] : []));
}

function isFatal(reply: Observation['replies'][number]): boolean {
  return reply.kind === 'error' && reply.severity === 'FATAL';
}
