/**
 * All metrics of one process at one time, as they travel between processes: how several become one, and how one becomes text.
 *
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 */
import { AggregatorRegistry, type MetricObjectWithValues, type MetricValue } from 'prom-client';

/** Plain objects; each metric says how it is to be added up. */
export type Sample = readonly MetricObjectWithValues<MetricValue<string>>[];

/** What a scrape is answered with. */
export interface MetricsText {
  readonly contentType: string;
  readonly text: string;
}

// About a microsecond. Multiples of a power of two add up without rounding, up to some hundred years.
const GRAIN = 2 ** -20;

/**
 * One sample out of several; where only one of them counts that is the first.
 *
 * Totals are the same in whatever order they are added: to Prometheus, one that shrank by its last bit would have begun anew.
 */
export async function addUp(samples: readonly Sample[]): Promise<Sample> {
  return AggregatorRegistry.aggregate(samples.map(coarsened)).getMetricsAsJSON();
}

/** What only ever grows: of a process that is gone, this must still be counted. */
export function cumulative(sample: Sample): Sample {
  return sample.filter(isCumulative);
}

function coarsened(sample: Sample): Sample[number][] {
  return sample.map((metric) =>
    isCumulative(metric)
      ? {
          ...metric,
          values: metric.values.map((one) => ({
            ...one,
            value: Math.round(one.value / GRAIN) * GRAIN,
          })),
        }
      : metric,
  );
}

function isCumulative({ type }: Sample[number]): boolean {
  // prom-client says the type as a number in its declarations, and as a word.
  return ['counter', 'histogram'].includes(String(type));
}

/** The text of a sample, in OpenMetrics where the header Accept prefers that, as Prometheus's does. */
export async function render(sample: Sample, accept = ''): Promise<MetricsText> {
  const { OPENMETRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE } = AggregatorRegistry;
  const isOpen = /^\s*application\/openmetrics-text\b/.test(accept);
  const contentType = isOpen ? OPENMETRICS_CONTENT_TYPE : PROMETHEUS_CONTENT_TYPE;
  const registry = AggregatorRegistry.aggregate([isOpen ? withoutTotal(sample) : [...sample]]);
  registry.setContentType(contentType);
  return { contentType, text: await registry.metrics() };
}

/** As OpenMetrics has it: a counter's name is that of its samples without `_total`, which prom-client adds to these. */
function withoutTotal(sample: Sample): Sample[number][] {
  return sample.map((metric) =>
    String(metric.type) === 'counter'
      ? { ...metric, name: metric.name.replace(/_total$/, '') }
      : metric,
  );
}
