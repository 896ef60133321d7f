/**
 * The house keeps its shape: who may import whom, that every file says what it is for, and that ARCHITECTURE.md says the same.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SRC = join(ROOT, 'src');

/** Every file under src, as a path from there; declarations of others' packages are no part of the house. */
const FILES = readdirSync(SRC, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts') && !file.endsWith('.d.ts'))
  .toSorted();

/** From the ground up: a file imports from layers below its own, and from its own folder. */
const LAYERS: readonly (readonly RegExp[])[] = [
  [/^errors\.ts$/],
  [
    /^(body|config(-\w+)?|crash|deadline|descriptors|exposure|log|metrics(-\w+)?|presets|tls-files|watch)\.ts$/,
  ],
  [/^(wire|identity|limits|session-sql)\//],
  [/^(client|upstream|splice)\//],
  [/^renewal\.ts$/],
  [/^live-session\.ts$/],
  [/^connection\.ts$/],
  [/^connection-record\.ts$/],
  [/^(connection-(log|metrics)|inspection|proxy-metrics|readiness|roster)\.ts$/],
  [/^generation\.ts$/],
  [/^(accept|admin)\//, /^overview\.ts$/],
  [/^newcomer\.ts$/],
  [/^proxy\.ts$/],
  [/^workers\//],
  [/^cli\//],
];

/** What may be imported that is not ours, by those who have a reason. */
const PACKAGES: Record<string, RegExp> = {
  commander: /^cli\//,
  ioredis: /^limits\//,
  jose: /^(identity|cli)\//,
  'node-cache': /^(identity|upstream)\//,
  pg: /^(upstream|session-sql|cli)\//,
  'pg-protocol': /^wire\//,
  pino: /^(log\.ts$|cli\/)/,
  'prom-client': /^metrics(-sample)?\.ts$/,
  'rate-limiter-flexible': /^limits\//,
  zod: /^(config(-\w+)?\.ts$|admin\/|identity\/)/,
};

interface Import {
  readonly from: string;
  readonly target: string;
  readonly typeOnly: boolean;
}

const layerOf = (file: string) => LAYERS.findIndex((layer) => layer.some((one) => one.test(file)));
const folderOf = (file: string) => (file.includes('/') ? file.slice(0, file.indexOf('/')) : file);
const textOf = (file: string) => readFileSync(join(SRC, file), 'utf8');

/** Every import, re-export and dynamic import of a file; a target of ours as a path from src. */
function importsOf(file: string): Import[] {
  const text = textOf(file);
  const statements = [
    ...text.matchAll(/^(?:import|export)\s+(type\s)?(?:[^'";]*?\sfrom\s+)?'([^']+)'/gm),
    ...text.matchAll(/\bimport\((\s*)'([^']+)'\)/g),
  ];
  return statements.map(([, typeOnly, specifier]) => ({
    from: file,
    target: (specifier as string).startsWith('.')
      ? relative(SRC, join(SRC, dirname(file), specifier as string))
      : (specifier as string),
    typeOnly: typeOnly?.trim() === 'type',
  }));
}

const IMPORTS = FILES.flatMap(importsOf);
const isOurs = ({ target }: Import) => target.endsWith('.ts');

// A program opens with its interpreter.
const SHEBANG = /^#!.*\n/;

/** The first sentence of the header: what the file is for. */
function purposeOf(file: string): string | undefined {
  const header = /^\/\*\*\n((?: \*.*\n)+?) \*\/\n/.exec(textOf(file).replace(SHEBANG, ''))?.[1];
  const prose = header
    ?.replaceAll(/^ \* ?/gm, '')
    .split('\n\n')[0]
    ?.replaceAll('\n', ' ')
    .trim();
  // A sentence ends in a period before a space and a capital, or at the end of its paragraph.
  return prose === undefined ? undefined : (/^.*?\.(?=\s+[A-Z]|$)/.exec(prose)?.[0] ?? prose);
}

describe('the layers', () => {
  test('have a place for every file', () => {
    expect(FILES.filter((file) => layerOf(file) === -1)).toEqual([]);
  });

  test('are read from real imports', () => {
    expect(FILES.length).toBeGreaterThan(20);
    expect(IMPORTS.filter(isOurs).length).toBeGreaterThan(FILES.length);
    const dangling = IMPORTS.filter((one) => isOurs(one) && !existsSync(join(SRC, one.target)));
    expect(dangling).toEqual([]);
  });

  test('are never imported from below, not even for a type', () => {
    const upward = IMPORTS.filter(isOurs).filter(
      ({ from, target }) => layerOf(target) > layerOf(from),
    );

    expect(upward.map(({ from, target }) => `${from} imports ${target}`)).toEqual([]);
  });

  test('keep their rooms apart: of one layer, only a folder imports from itself', () => {
    const sideways = IMPORTS.filter(isOurs).filter(
      ({ from, target }) =>
        layerOf(from) === layerOf(target) && folderOf(from) !== folderOf(target),
    );
    // The slots' passwords and the keys' policy are leaves that session-sql and identity keep for others.
    const allowed = sideways.filter(({ from }) => layerOf(from) !== 2 && layerOf(from) !== 1);

    expect(allowed.map(({ from, target }) => `${from} imports ${target}`)).toEqual([]);
  });

  test('let only connection.ts introduce client, upstream and splice to one another', () => {
    const rooms = ['client', 'upstream', 'splice'];
    const introducers = FILES.filter((file) => {
      const met = new Set(
        importsOf(file)
          .filter(isOurs)
          .map(({ target }) => folderOf(target)),
      );
      return rooms.filter((room) => met.has(room) && room !== folderOf(file)).length > 1;
    });

    expect(introducers.filter((file) => !file.startsWith('cli/'))).toEqual(['connection.ts']);
  });
});

describe('packages', () => {
  test('are imported by those who have a reason', () => {
    const strangers = IMPORTS.filter(
      (one) => !isOurs(one) && !one.target.startsWith('node:'),
    ).filter(({ from, target }) => {
      const [scope, name] = target.split('/');
      const reason = PACKAGES[target.startsWith('@') ? `${scope}/${name}` : (scope as string)];
      return reason === undefined || !reason.test(from);
    });

    expect(strangers.map(({ from, target }) => `${from} imports ${target}`)).toEqual([]);
  });
});

describe.each(FILES)('%s', (file) => {
  const text = textOf(file);

  test('opens by saying what it is for', () => {
    expect(text.replace(SHEBANG, '').startsWith('/**\n')).toBe(true);
    expect(purposeOf(file)?.length).toBeGreaterThan(20);
  });

  test('has no default export and is of a readable length', () => {
    expect(text).not.toMatch(/^export default/m);
    expect(text.split('\n').length).toBeLessThanOrEqual(400);
  });
});

describe('ARCHITECTURE.md', () => {
  const lines = readFileSync(join(ROOT, 'ARCHITECTURE.md'), 'utf8').split('\n');
  const listed = lines.flatMap((line) => /^- `([^`]+\.ts)`:/.exec(line)?.[1] ?? []);

  test.each(FILES)('lists %s once, with the sentence that opens it', (file) => {
    const wanted = `- \`${file}\`: ${purposeOf(file)}`;

    const found = lines.filter((line) => line.startsWith(`- \`${file}\`:`));

    expect(found, 'ARCHITECTURE.md and the header of the file must say the same').toEqual([wanted]);
  });

  test('lists no file that is not there', () => {
    expect(listed.filter((file) => !FILES.includes(file))).toEqual([]);
  });

  test('is short enough to be read', () => {
    // One line for each file is what it is for; the rest must fit on a page.
    expect(lines.filter((line) => !line.startsWith('- `')).length).toBeLessThanOrEqual(40);
  });
});
