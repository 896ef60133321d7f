/** docs/metrics.md, the dashboard and the alert rules: of each metric that there is, and of no other. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createMetrics } from '../../src/metrics.ts';

const read = (file: string) => readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');

/** What prom-client has of a metric, some of it undeclared. */
interface Instrument {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly string[];
  readonly constructor: { readonly name: string };
}

const METRICS = Object.values(createMetrics()).filter(
  (one) => typeof one === 'object',
) as unknown as Instrument[];
const NAMES = METRICS.map(({ name }) => name).toSorted();
const HISTOGRAMS = new Set(
  METRICS.filter(({ constructor }) => constructor.name === 'Histogram').map(({ name }) => name),
);

/** Every metric that a text names; the series of a histogram by the histogram's own name. */
function namesIn(text: string): Set<string> {
  const words = text.match(/\b(?:pgjot|process|nodejs)_[a-z_]+/g) ?? [];
  return new Set(
    words.map((word) => {
      const name = word.replace(/_(bucket|sum|count)$/, '');
      return HISTOGRAMS.has(name) ? name : word;
    }),
  );
}

/** The cells of all table rows that begin with this in backquotes. */
function rows(document: string, first: RegExp): string[][] {
  return document
    .split('\n')
    .filter((line) => first.test(line))
    .map((line) => line.split(' | ').map((cell) => cell.replace(/^\| |\s\|$/g, '')));
}

describe('docs/metrics.md', () => {
  const document = read('docs/metrics.md');

  it('says of every metric what the registry does', () => {
    const documented = rows(document, /^\| `(pgjot|process|nodejs)_/);

    expect(documented).toHaveLength(METRICS.length);
    expect(documented).toEqual(
      expect.arrayContaining(
        METRICS.map(({ name, help, labelNames, constructor }) => [
          `\`${name}\``,
          constructor.name.toLowerCase(),
          labelNames.map((label) => `\`${label}\``).join(', ') || '–',
          help.replace(/\.$/, ''),
        ]),
      ),
    );
  });

  it('says of every alert what it means', () => {
    const documented = rows(document, /^\| `Pgjot/).map(([name, page]) => [name, page]);

    const rules = [...read('ops/alerts.yml').matchAll(/alert: (\w+)[\s\S]*?severity: (\w+)/g)];
    expect(documented).toEqual(
      rules.map(([, name, severity]) => [`\`${name}\``, severity === 'page' ? 'yes' : 'no']),
    );
  });
});

describe('ops', () => {
  const shown = namesIn(read('ops/grafana-dashboard.json'));
  const watched = namesIn(read('ops/alerts.yml'));

  it('has every metric on the dashboard, and no other', () => {
    expect([...shown].toSorted()).toEqual(NAMES);
  });

  it('alerts on metrics that there are', () => {
    expect(watched.size).toBeGreaterThan(10);
    expect([...watched].filter((name) => !NAMES.includes(name))).toEqual([]);
  });

  it('tests every alert, firing and not', () => {
    const alerts = [...read('ops/alerts.yml').matchAll(/alert: (\w+)/g)].map(([, name]) => name);
    const tests = read('ops/alerts.test.yml');

    const tested = [...tests.matchAll(/^ +alertname: (\w+)/gm)].map(([, name]) => name);
    const quiet = [...tests.matchAll(/alertname: (\w+), exp_alerts: \[\]/g)].map(
      ([, name]) => name,
    );
    expect(tested).toEqual(alerts);
    expect(quiet).toEqual(alerts);
  });
});
