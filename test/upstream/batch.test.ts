/**
 * Questions of one tick as one, and one bad row's error for nobody but who asked about it.
 */
import { describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { inBatches } from '../../src/upstream/batch.ts';
import { isAnswer } from '../../src/upstream/control.ts';

const rejected = new ProxyError('upstream_login_rejected');
const unreachable = new ProxyError('upstream_unreachable');

/** Answers each row with its double, fails for a row of 13, and keeps what it was asked. */
function doubling(failure: ProxyError = rejected) {
  const asked: unknown[][] = [];
  let release = () => {};
  const gate = () => new Promise<void>((resolve) => (release = resolve));
  let held: Promise<void> | undefined;
  const ask = inBatches(async ([numbers = []]) => {
    asked.push(numbers);
    await held;
    if (numbers.includes(13)) throw failure;
    return { rows: numbers.map((number) => ({ double: Number(number) * 2 })) };
  }, isAnswer);
  return {
    ask: (number: number) => ask([number]).then(({ double }) => double as number),
    asked,
    hold: () => {
      held = gate();
      return () => {
        held = undefined;
        release();
      };
    },
  };
}

describe('questions', () => {
  test('of one tick are one question', async () => {
    const { ask, asked } = doubling();

    expect(await Promise.all([1, 2, 3].map(ask))).toEqual([2, 4, 6]);

    expect(asked).toEqual([[1, 2, 3]]);
  });

  test('that come while one is under way are the next one together, each with its own answer', async () => {
    const { ask, asked, hold } = doubling();
    const letGo = hold();
    const first = ask(1);
    await Promise.resolve();
    const others = [2, 3].map(ask);

    letGo();

    expect(await Promise.all([first, ...others])).toEqual([2, 4, 6]);
    expect(asked).toEqual([[1], [2, 3]]);
  });

  test('of which one is refused are asked again one by one, so that only that one fails', async () => {
    const { ask } = doubling();

    const answers = await Promise.allSettled([1, 13, 3].map(ask));

    expect(answers.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  });

  test('that cannot be asked at all fail together, and are not asked again', async () => {
    const { ask, asked } = doubling(unreachable);

    const answers = await Promise.allSettled([1, 13, 3].map(ask));

    expect(answers.every(({ status }) => status === 'rejected')).toBe(true);
    expect(asked).toHaveLength(1);
  });

  test('of a hundred and one are two questions', async () => {
    const { ask, asked } = doubling();

    await Promise.all(Array.from({ length: 101 }, (_, index) => ask(index + 100)));

    expect(asked.map(({ length }) => length)).toEqual([100, 1]);
  });
});

test('an answer with another number of rows is none', async () => {
  const ask = inBatches(async () => ({ rows: [] }), isAnswer);

  await expect(ask([1])).rejects.toThrow(TypeError);
});
