/**
 * What metrics are counted with: counters, gauges and histograms, for which whatever happens costs one look-up.
 *
 * prom-client, which renders them, checks and hashes the labels each time, a dozen times at every login. Here the labels'
 * values themselves are the key, and all else waits until somebody scrapes.
 */
import type { MetricObjectWithValues, MetricValue, MetricValueWithName } from 'prom-client';

/** How the numbers of several workers become one, where that is not their sum: the primary's own, the largest, the smallest. */
export type Aggregator = 'first' | 'max' | 'min';

/** One metric's numbers at one time, as prom-client has them. */
export type MetricSample = MetricObjectWithValues<MetricValue<string>>;

/** What a metric is. */
export interface Description<Label extends string> {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly Label[];
  /** Default: their sum. */
  readonly aggregator?: Aggregator | undefined;
}

type Labels<Label extends string> = Readonly<Record<Label, string>>;
type Value = MetricValue<string>;

/** One metric: a cell for each combination of its labels' values. */
abstract class Instrument<Label extends string, Cell> {
  protected readonly description: Description<Label>;
  readonly #type: 'counter' | 'gauge' | 'histogram';
  readonly #cells = new Map<string, Cell>();

  constructor(type: 'counter' | 'gauge' | 'histogram', description: Description<Label>) {
    this.#type = type;
    this.description = description;
  }

  /** Forgets all numbers. */
  reset(): void {
    this.#cells.clear();
  }

  /** All numbers as they are now. */
  sample(): MetricSample {
    const { name, help, labelNames, aggregator = 'sum' } = this.description;
    // What has no labels is there from the start.
    if (labelNames.length === 0) this.at(undefined);
    const values = [...this.#cells.values()].flatMap((cell) => this.valuesOf(cell));
    // prom-client says the type as a number in its declarations, and as a word.
    return { name, help, type: this.#type, values, aggregator } as unknown as MetricSample;
  }

  /** The cell of these labels, which is new at first. */
  protected at(labels: Labels<Label> | undefined): Cell {
    let key = '';
    // No value has a NUL in it: they are names of the configuration's, and words of ours.
    if (labels !== undefined)
      for (const name of this.description.labelNames) key += `${labels[name]}\0`;
    let cell = this.#cells.get(key);
    if (cell === undefined) {
      cell = this.newCell({ ...labels } as Labels<Label>);
      this.#cells.set(key, cell);
    }
    return cell;
  }

  protected abstract newCell(labels: Labels<Label>): Cell;
  protected abstract valuesOf(cell: Cell): Value[];
}

interface NumberCell {
  readonly labels: Value['labels'];
  value: number;
}

/** What has one number for each combination of labels. */
abstract class NumberInstrument<Label extends string> extends Instrument<Label, NumberCell> {
  /** Counts `by` more, or one; 0 begins to count. */
  inc(labels?: Labels<Label> | number, by = 1): void {
    if (typeof labels === 'number') this.at(undefined).value += labels;
    else this.at(labels).value += by;
  }

  protected newCell(labels: Labels<Label>): NumberCell {
    return { labels, value: 0 };
  }

  protected valuesOf({ labels, value }: NumberCell): Value[] {
    return [{ labels, value }];
  }
}

/** What only grows. */
export class Counter<Label extends string> extends NumberInstrument<Label> {
  constructor(description: Description<Label>) {
    super('counter', description);
  }
}

/** What grows and shrinks. */
export class Gauge<Label extends string> extends NumberInstrument<Label> {
  constructor(description: Description<Label>) {
    super('gauge', description);
  }

  dec(labels: Labels<Label>): void {
    this.at(labels).value -= 1;
  }

  set(labels: Labels<Label> | number, value = 0): void {
    if (typeof labels === 'number') this.at(undefined).value = labels;
    else this.at(labels).value = value;
  }
}

interface HistogramCell {
  readonly labels: Value['labels'];
  /** How many are in each bucket and no smaller one; the last bucket is for what is larger than all bounds. */
  readonly counts: number[];
  sum: number;
}

/** How values are distributed over buckets, each of which has an upper bound. */
export class Histogram<Label extends string> extends Instrument<Label, HistogramCell> {
  readonly #bounds: readonly number[];

  constructor(description: Description<Label>, bounds: readonly number[]) {
    super('histogram', description);
    this.#bounds = bounds;
  }

  observe(labels: Labels<Label> | number, value = 0): void {
    if (typeof labels === 'number') this.#add(this.at(undefined), labels);
    else this.#add(this.at(labels), value);
  }

  /** Begins to count. */
  zero(labels: Labels<Label>): void {
    this.at(labels);
  }

  #add(cell: HistogramCell, value: number): void {
    const bounds = this.#bounds;
    let bucket = 0;
    while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++;
    cell.counts[bucket] = (cell.counts[bucket] as number) + 1;
    cell.sum += value;
  }

  protected newCell(labels: Labels<Label>): HistogramCell {
    return { labels, counts: Array.from({ length: this.#bounds.length + 1 }, () => 0), sum: 0 };
  }

  protected valuesOf({ labels, counts, sum }: HistogramCell): MetricValueWithName<string>[] {
    const { name } = this.description;
    let total = 0;
    const buckets = counts.map((count, bucket) => {
      total += count;
      const le = this.#bounds[bucket] ?? '+Inf';
      return { labels: { ...labels, le }, value: total, metricName: `${name}_bucket` };
    });
    return [
      ...buckets,
      { labels, value: sum, metricName: `${name}_sum` },
      { labels, value: total, metricName: `${name}_count` },
    ];
  }
}
