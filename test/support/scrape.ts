/** A scrape as a test looks at it: each series by its name and labels, as Prometheus writes them, with its value. */

/** What was scraped. */
export interface Scrape {
  /** Every series, `name{label="value"}`, in the order of the text. */
  readonly series: ReadonlyMap<string, number>;
  /** The metrics that have a HELP line, with their type. */
  readonly types: ReadonlyMap<string, string>;
  readonly text: string;
  /** The sum of all series of this name whose labels have all of these values; 0 where there are none. */
  sum(name: string, labels?: Readonly<Record<string, string>>): number;
}

/** Reads the text of a scrape. */
export function readScrape(text: string): Scrape {
  const lines = text.split('\n');
  const types = new Map(
    lines.flatMap((line) => {
      const [, name, type] = /^# TYPE (\S+) (\S+)$/.exec(line) ?? [];
      return name === undefined || type === undefined ? [] : [[name, type]];
    }),
  );
  const samples = lines.filter((line) => line !== '' && !line.startsWith('#'));
  const series = new Map(
    samples.map((line) => {
      const space = line.lastIndexOf(' ');
      return [line.slice(0, space), Number(line.slice(space + 1))];
    }),
  );
  return {
    series,
    types,
    text,
    sum(name, labels = {}) {
      const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
      return [...series]
        .filter(([one]) => one === name || one.startsWith(`${name}{`))
        .filter(([one]) => wanted.every((pair) => hasLabel(one, pair)))
        .reduce((sum, [, value]) => sum + value, 0);
    },
  };
}

function hasLabel(series: string, pair: string): boolean {
  return ['{', ','].some((open) => ['}', ','].some((end) => series.includes(open + pair + end)));
}
