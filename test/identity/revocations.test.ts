/** The file of revocations as it changes: nothing that is written is missed, and nothing that cannot be read is taken for none. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it, onTestFinished } from 'vitest';
import { Revocations } from '../../src/identity/revocations.ts';
import { until } from '../support/stack.ts';

let folder: string;
let file: string;
const problems: string[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-revocations-'));
  file = join(folder, 'revoked.json');
  problems.length = 0;
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const write = (...subjects: string[]) =>
  writeFileSync(file, JSON.stringify(subjects.map((sub) => ({ sub }))));
const open = (onChange: () => void = () => {}): Revocations => {
  const one = new Revocations(file, [], {
    onChange,
    onProblem: (problem) => problems.push(problem),
  });
  onTestFinished(() => one.close());
  return one;
};
const covers = (one: Revocations, subject: string) =>
  one.covers({ issuer: 'https://id.example.com', subject, claims: {} });

it('a change in the very turn in which the file was first read holds', async () => {
  write('alice');
  const one = open();
  write('carol');

  await until(() => covers(one, 'carol'));
  expect(covers(one, 'alice')).toBe(false);
});

it('a file that is gone, or is none, revokes what it did, and is read when it is back', async () => {
  write('alice');
  const one = open();
  rmSync(file);
  await until(() => problems.includes('cannot be read (ENOENT)'));
  expect(covers(one, 'alice')).toBe(true);
  await delay(1_000);
  expect(problems).toEqual(['cannot be read (ENOENT)']);

  write('bob');

  await until(() => covers(one, 'bob'));
  expect(covers(one, 'alice')).toBe(false);
});

it.each([
  ['is a folder', () => folder, 'revocations.file: is not a file'],
  ['is a device', () => '/dev/zero', 'revocations.file: is not a file'],
])('one that %s is not read', (_, path, message) => {
  expect(() => new Revocations(path(), [], { onChange() {}, onProblem() {} })).toThrow(message);
});

it('nothing is told after the end', async () => {
  write('alice');
  let told = 0;
  const one = open(() => void told++);
  one.close();
  write('bob', 'carol');
  await delay(900);

  expect([told, covers(one, 'alice'), covers(one, 'bob')]).toEqual([0, true, false]);
});
