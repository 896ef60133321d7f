/**
 * Holds the table of `test/faults/README.md` against the tests that it names.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from '../support/cli.ts';

const table = readFileSync(join(ROOT, 'test/faults/README.md'), 'utf8');
// As many as there are faults to survive; fewer would mean that one was forgotten.
const FAULTS = 32;
const rows = [...table.matchAll(/^\| (?!Fault \|)([^|]+) \|[^|]+\| (.+) \|$/gm)].map(
  ([, fault, proofs]) => ({ fault: fault as string, proofs: proofs as string }),
);

test('there is a row for every fault', () => {
  expect(rows.length).toBeGreaterThanOrEqual(FAULTS);
});

test.each(rows)('$fault: the tests that prove it exist', ({ proofs }) => {
  const files = [...proofs.matchAll(/`([^`]+)`: ("[^"]+"(?:, "[^"]+")*)/g)];
  expect(files).not.toEqual([]);
  for (const [, file, titles] of files) {
    const source = readFileSync(join(ROOT, file as string), 'utf8');
    for (const [, title] of (titles as string).matchAll(/"([^"]+)"/g))
      expect(source).toContain(title);
  }
});
