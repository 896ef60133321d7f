/** A file that is watched: no change is missed, and none is told while another is being looked at. */
import { rename, rm, writeFile } from 'node:fs/promises';
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { type Watch, watchFile } from '../src/watch.ts';
import { until } from './support/stack.ts';

const INTERVAL_MS = 10;

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-watch-'));
  file = join(folder, 'watched');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const watch = (onChange: Parameters<typeof watchFile>[2]): Watch => {
  const one = watchFile(file, INTERVAL_MS, onChange);
  onTestFinished(() => one.close());
  return one;
};
/** Past the time in which one more change would look the same. */
const settle = () => delay(50);

describe('a change of a file', () => {
  it.each<[string, () => Promise<unknown>]>([
    ['its bytes', () => writeFile(file, 'other')],
    ['as many bytes', () => writeFile(file, 'TEXT')],
    [
      'another file in its place, with its times',
      async () => {
        await writeFile(`${file}.new`, 'TEXT');
        utimesSync(`${file}.new`, 1, 1);
        await rename(`${file}.new`, file);
      },
    ],
    ['that it is gone', () => rm(file)],
  ])('is told: %s', async (_, change) => {
    writeFileSync(file, 'text');
    utimesSync(file, 1, 1);
    await settle();
    let told = 0;
    watch(() => void told++);
    await settle();
    expect(told).toBe(0);

    await change();

    await until(() => told > 0);
  });

  it('is told that comes in the same turn in which the watch begins', async () => {
    writeFileSync(file, 'text');
    let told = 0;
    watch(() => void told++);
    writeFileSync(file, 'TEXT');

    await until(() => told > 0);
  });

  it('is told of a file that was not there', async () => {
    let told = 0;
    watch(() => void told++);
    await settle();
    expect(told).toBe(0);

    writeFileSync(file, 'text');

    await until(() => told > 0);
  });

  it('waits while the last one is looked at, and is told then', async () => {
    let atOnce = 0;
    let most = 0;
    let told = 0;
    const gates: (() => void)[] = [];
    watch(async () => {
      told++;
      most = Math.max(most, ++atOnce);
      await new Promise<void>((resolve) => gates.push(resolve));
      atOnce--;
    });
    writeFileSync(file, 'one');
    await until(() => told === 1);
    await settle();
    writeFileSync(file, 'second');
    await settle();
    expect(told).toBe(1);

    gates[0]?.();

    await until(() => told === 2);
    expect(most).toBe(1);
    gates.forEach((open) => open());
  });

  it('is told again that could not be looked at', async () => {
    let told = 0;
    watch(async () => (++told < 3 ? 'again' : undefined));
    writeFileSync(file, 'text');

    await until(() => told >= 3);
  });

  it('is told to nobody after the end', async () => {
    let told = 0;
    const one = watch(() => void told++);
    const before = process.getActiveResourcesInfo().length;
    one.close();

    writeFileSync(file, 'text');
    await settle();

    expect(told).toBe(0);
    expect(process.getActiveResourcesInfo().length).toBeLessThanOrEqual(before);
  });
});
