/** What npm would publish: the program, its types and its SQL, and nothing else. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { ROOT } from './support/cli.ts';
import { pack, type Packed } from './support/package.ts';

const KIB = 1024;

describe('the package', () => {
  let packed: Packed;
  beforeAll(() => {
    packed = pack();
  });

  it('holds each source compiled, with its types, SQL and the status page as they are, and what npm wants, and nothing else', () => {
    const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
    const built = sources.flatMap((file) => {
      if (file.endsWith('.ts')) return [file.replace(/ts$/, 'js'), file.replace(/ts$/, 'd.ts')];
      return /\.(sql|html)$/.test(file) ? [file] : [];
    });
    const expected = [
      ...built.map((file) => `dist/${file}`),
      'LICENSE',
      'README.md',
      'package.json',
      'proxy.config.schema.json',
    ];

    const packedFiles = packed.files.map(({ path }) => path);

    // A build leaves behind what sources that are gone were compiled to.
    const left = packedFiles.filter((path) => !expected.includes(path));
    expect(left.filter((path) => !/^dist\/.*\.(js|d\.ts)$/.test(path))).toEqual([]);
    expect(expected.filter((path) => !packedFiles.includes(path))).toEqual([]);
  });

  it('is small', () => {
    expect(packed.size).toBeLessThan(420 * KIB);
    expect(packed.unpackedSize).toBeLessThan(1_500 * KIB);
  });
});
