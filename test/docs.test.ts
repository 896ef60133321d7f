/**
 * Holds the documents to the code: README's error table, its settings, its startup parameters and its log events.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { judgeStartup } from '../src/client/startup.ts';
import { configJsonSchema, parseConfig } from '../src/config.ts';
import { ERRORS, type ErrorCode, type ErrorSpec } from '../src/errors.ts';

const read = (file: string) => readFileSync(new URL(`../${file}`, import.meta.url), 'utf8');
const readme = read('README.md');

/** The part of README under a heading, up to the next one of its level. */
function section(heading: string): string {
  return readme.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
}

/** The cells of a section's table rows, without the heading. */
function tableRows(heading: string): string[][] {
  const rows = section(heading)
    .split('\n')
    .filter((line) => line.startsWith('| '));
  return rows.slice(1).map((line) =>
    line
      .split(/(?<!\\)\|/)
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

describe('the error table in README', () => {
  const documented = new Map(
    tableRows('Errors').map(([code = '', ...rest]) => [code.replaceAll('`', ''), rest]),
  );

  it('has a row for every code, and no other', () => {
    expect([...documented.keys()]).toEqual(Object.keys(ERRORS));
  });

  it.each(Object.entries<ErrorSpec>(ERRORS))('says of %s what the code does', (code, spec) => {
    const silent = spec.sent === 'nothing' || spec.sent === 'upstream';

    expect(documented.get(code as ErrorCode)).toEqual([
      spec.sqlstate ?? '–',
      spec.sent,
      silent ? '–' : `\`${spec.message}\``,
      spec.http === undefined ? '–' : String(spec.http),
      spec.log,
    ]);
  });
});

describe('the configuration in README', () => {
  it('is one that the proxy accepts', () => {
    const [, json = ''] = /```json\n([\s\S]*?)```/.exec(section('Configuration')) ?? [];

    expect(() => parseConfig(JSON.parse(json))).not.toThrow();
  });

  it('names every setting, and no other', () => {
    const names = tableRows('Configuration').flatMap(([cell = '']) =>
      [...cell.matchAll(/`([^`]+)`/g)].map((match) => match[1]),
    );

    const settings = settingsOf(configJsonSchema() as Schema).filter((name) => name !== '$schema');

    expect(new Set(names)).toEqual(new Set(settings));
    expect(names).toHaveLength(settings.length);
  });

  it('lists exactly the startup parameters that pass', () => {
    const [, list = ''] =
      /pass by themselves: ([^.]*), sent as/.exec(section('Configuration')) ?? [];
    const names = [...list.matchAll(/`([^`]+)`/g)].map((match) => match[1] as string);

    expect(names.length).toBeGreaterThan(15);
    for (const name of names) {
      expect(() =>
        judgeStartup(
          [
            ['user', 'u'],
            [name, 'x'],
          ],
          [],
        ),
      ).not.toThrow();
    }
    expect(names).toEqual(allowedIn(read('src/client/startup.ts')));
  });
});

describe('docs/logs.md', () => {
  it('has a section for every event that is logged, and no other', () => {
    const src = new URL('../src', import.meta.url);
    const logged = readdirSync(src, { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .flatMap((file) => [...read(`src/${file}`).matchAll(/\bevent: '(\w+)'(?=,| })/g)])
      .map((match) => match[1]);
    const titles = read('docs/logs.md').matchAll(/^### (`\w+`(?:, `\w+`)*)$/gm);
    const named = [...titles].flatMap(([, names = '']) =>
      [...names.matchAll(/`(\w+)`/g)].map((match) => match[1]),
    );

    expect(logged.length).toBeGreaterThan(5);
    expect(new Set(named)).toEqual(new Set(logged));
  });
});

interface Schema {
  readonly type?: string;
  readonly properties?: Record<string, Schema>;
  readonly additionalProperties?: Schema | boolean;
}

/** Every setting's path; `*` for a name that the operator chooses. Arrays and choices are one setting. */
function settingsOf({ type, properties, additionalProperties }: Schema, path = ''): string[] {
  if (type !== 'object') return [path];
  const inner = Object.entries(properties ?? {}).flatMap(([key, value]) =>
    settingsOf(value, path === '' ? key : `${path}.${key}`),
  );
  return typeof additionalProperties === 'object'
    ? [...inner, ...settingsOf(additionalProperties, `${path}.*`)]
    : inner;
}

function allowedIn(source: string): string[] {
  const [, list = ''] = /const ALLOWED[^[]*\[([^\]]*)\]/.exec(source) ?? [];
  return [...list.matchAll(/'([^']+)'/g)].map((match) => match[1] as string);
}
