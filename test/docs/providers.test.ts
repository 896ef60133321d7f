/** docs/providers.md is held to the code: its table, each configuration, and each command that writes it. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { providerCommand } from '../../src/cli/provider.ts';
import { type ConfigInput, parseConfig, type ProviderConfig } from '../../src/config.ts';
import { perIssuer } from '../../src/config-provider.ts';
import { type Preset, PRESET_NAMES, PRESETS } from '../../src/presets.ts';

const document = readFileSync(new URL('../../docs/providers.md', import.meta.url), 'utf8');

/** The sections with a configuration, by heading. */
const sections = document
  .split(/^#{2,3} /m)
  .filter((text) => text.includes('```json'))
  .map((text) => ({
    heading: text.slice(0, text.indexOf('\n')),
    json: /```json\n([^]*?)```/.exec(text)?.[1] ?? '',
    command: /```sh\n([^]*?)```/.exec(text)?.[1],
  }));

const settingsOf = (json: string) =>
  Object.entries((JSON.parse(json) as { providers: ConfigInput['providers'] }).providers);

/** A configuration with upstreams for the roles that the document uses. */
function withUpstream(providers: ConfigInput['providers']): ConfigInput {
  const roles = { authenticated: { slots: 1 }, analyst: { slots: 1 } };
  const main = { host: '127.0.0.1', database: 'app', secret: { env: 'SECRET' }, roles };
  return { providers, upstreams: { main } };
}

/** The rows of the table: each preset with its settings, and its issuers with the place of their keys. */
function tableOf(text: string) {
  const table = new Map<string, { needs: string[]; issuers: [string, string][] }>();
  let current = '';
  for (const line of text.split('\n').filter((one) => /^\| (`|\|)/.test(one))) {
    const [preset = '', needs = '', issuer = '', keys = ''] = line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim().replaceAll('`', ''));
    if (preset !== '') {
      current = preset;
      table.set(preset, { needs: needs.split(', '), issuers: [] });
    }
    table.get(current)?.issuers.push([issuer, keys]);
  }
  return table;
}

const table = tableOf(document);

describe('the table', () => {
  it('has a row for every preset, and no other', () => {
    expect([...table.keys()]).toEqual(PRESET_NAMES);
  });

  it.each(PRESET_NAMES)('names what %s needs', (name) => {
    const { needs }: Preset = PRESETS[name];
    // Firebase's project may be said as its audience, so it is not strictly needed.
    expect(table.get(name)?.needs).toEqual(name === 'firebase' ? ['project'] : needs);
  });
});

describe.each(sections)('$heading', ({ json }) => {
  const [[id, settings] = ['', {} as never]] = settingsOf(json);
  const parsed = () =>
    parseConfig(withUpstream({ [id]: settings })).providers[id] as ProviderConfig;

  it('is a configuration that the proxy accepts', () => {
    expect(parsed).not.toThrow();
    expect(settingsOf(json)).toHaveLength(1);
  });

  it('means the issuers and keys of the table', () => {
    const row = table.get(settings.preset ?? '');
    const filled = (text: string) =>
      text.replaceAll(/\{(\w+)\}/g, (_, name: string) =>
        String((settings as unknown as Record<string, unknown>)[name]),
      );
    const documented =
      row === undefined
        ? [[settings.issuer, settings.jwksUri]]
        : row.issuers.map((pair) => pair.map(filled));

    expect(perIssuer(parsed()).map(({ issuer, jwksUri }) => [issuer, jwksUri])).toEqual(documented);
  });
});

/** The commands that write one of the configurations. */
const commands = sections.flatMap(({ heading, json, command }) =>
  command === undefined
    ? []
    : [{ heading, json, words: command.replaceAll('\\\n', ' ').trim().split(/\s+/).slice(2) }],
);

it.each(commands)('the command under "$heading" writes what is shown', async ({ json, words }) => {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-docs-'));
  const file = join(folder, 'proxy.config.json');
  const quiet = vi.spyOn(console, 'log').mockImplementation(() => {});
  try {
    await writeFile(file, JSON.stringify(withUpstream({})));

    await providerCommand().parseAsync([...words, '--config', file, '--offline'], { from: 'user' });

    const written = JSON.parse(await readFile(file, 'utf8')) as ConfigInput;
    expect(written.providers).toEqual(Object.fromEntries(settingsOf(json)));
  } finally {
    quiet.mockRestore();
    await rm(folder, { recursive: true });
  }
});

it('every preset has a configuration and a command', () => {
  const shown = commands.flatMap(({ json }) => settingsOf(json).map(([, { preset }]) => preset));

  expect(shown).toEqual(PRESET_NAMES);
});
