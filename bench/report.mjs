/**
 * From samples to what is printed: medians with their spread, ratios round by round, targets met or missed.
 *
 * A ratio is taken within each round and then its median, never from two medians: the machine's mood
 * changes between rounds. Prints nothing itself and hides nothing: a row that is behind says so.
 */

import { ROWS } from './rows.mjs';

/**
 * @typedef {import('./rows.mjs').Column} Column
 * @typedef {import('./rows.mjs').Goal} Goal
 * @typedef {import('./rows.mjs').Round} Round
 * @typedef {import('./rows.mjs').Row} Row
 *
 * @typedef {{ median: number, min: number, max: number }} Spread
 * @typedef {Partial<Record<Column, { now: number, peak: number }>>} Memory In MiB.
 */

/** @type {Record<Column, string>} */
export const COLUMNS = {
  direct: 'direct',
  pgjot: 'pgjot',
  pgbouncer: 'PgBouncer',
  haproxy: 'HAProxy',
  pipe: 'Node `pipe()`',
  bare: 'Node, a bare pool',
};
const columns = /** @type {Column[]} */ (Object.keys(COLUMNS));

/**
 * Everything computed from the rounds, for the JSON file, the tables and the plot.
 *
 * @param {readonly Round[]} rounds
 */
export function summarize(rounds) {
  return ROWS.filter(({ measure }) => rounds.some((round) => measure in round)).map((row) => {
    const byRound = rounds.map((round) => figures(row, round));
    const spreads = byColumn((column) => spread(byRound.map((one) => one[column])));
    // Without latency above zero (a direct connection, a lucky round) there is nothing to divide by.
    const ratios = byColumn((column) =>
      column === 'pgjot'
        ? undefined
        : spread(byRound.map((one) => (one[column] > 0 ? one.pgjot / one[column] : NaN))),
    );
    const { title, better, plotted = false } = row;
    const goals = (row.goals ?? []).map((goal) =>
      judge(goal, goal.against === undefined ? spreads.pgjot : ratios[goal.against]),
    );
    return { title, better, plotted, figures: spreads, pgjotRatios: ratios, goals };
  });
}

/** @typedef {ReturnType<typeof summarize>[number]} Summary */

/**
 * The targets, each with what was measured and whether that is enough.
 *
 * @param {readonly Summary[]} rows
 */
export function targetTable(rows) {
  return table(
    ['target', 'measured', ''],
    rows.flatMap(({ goals }) =>
      goals.map(({ wanted, against, measured, met }) => [
        wanted,
        range(measured, (value) =>
          against === undefined ? precise(value) : `${value.toFixed(2)}×`,
        ),
        verdict(met),
      ]),
    ),
  ).join('\n');
}

/**
 * pgjot's ratios to every other column.
 *
 * @param {readonly Summary[]} rows
 */
export function ratioTable(rows) {
  const compared = rows.filter(({ pgjotRatios }) => Object.values(pgjotRatios).some(Boolean));
  const others = columns.filter((column) => compared.some((row) => row.pgjotRatios[column]));
  return table(
    ['', ...others.map((column) => `÷ ${COLUMNS[column]}`), 'better is'],
    compared.map(({ title, pgjotRatios, better }) => [
      title,
      ...others.map((column) => range(pgjotRatios[column], (value) => value.toFixed(2))),
      better,
    ]),
  ).join('\n');
}

/**
 * The figures themselves.
 *
 * @param {readonly Summary[]} rows
 * @param {{ rest: Memory, peak: Memory }} memory Before the first client, and at the end of the run.
 */
export function figureTable(rows, memory) {
  const shown = columns.filter((column) => rows.some(({ figures: one }) => one[column]));
  return table(
    ['', ...shown.map((column) => COLUMNS[column])],
    [
      ...rows.map(({ title, figures: one }) => [
        title,
        ...shown.map((column) => range(one[column], precise)),
      ]),
      ['memory before the first client, MiB', ...shown.map((one) => number(memory.rest[one]?.now))],
      ['memory at its highest, MiB', ...shown.map((one) => number(memory.peak[one]?.peak))],
    ],
  ).join('\n');
}

/**
 * @param {Row} row
 * @param {Round} round
 */
function figures({ measure, figure }, round) {
  // pgjot has no way in without a token: where the others log in without authentication, it is
  // compared by its ordinary logins.
  const own = measure.startsWith('open-') ? round[measure.slice('open-'.length)]?.pgjot : undefined;
  const cells = { ...round[measure], ...(own && { pgjot: own }) };
  return byColumn((column) => {
    const sample = cells[column];
    return sample === undefined ? NaN : figure(sample, column, round);
  });
}

/**
 * @param {Goal} goal
 * @param {Spread | undefined} measured
 */
function judge({ wanted, against, atLeast = -Infinity, atMost = Infinity }, measured) {
  const met = measured && measured.median >= atLeast && measured.median <= atMost;
  const bound = Number.isFinite(atLeast) ? atLeast : atMost;
  return { wanted, against, bound, measured, met };
}

/** @param {boolean | undefined} met */
function verdict(met) {
  if (met === undefined) return 'not measured';
  return met ? 'met' : '**behind**';
}

/**
 * Median, lowest and highest of those that are numbers.
 *
 * @param {readonly number[]} values
 * @returns {Spread | undefined}
 */
export function spread(values) {
  const sorted = values.filter(Number.isFinite).toSorted((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  const [min, max] = [sorted[0], sorted.at(-1)];
  if (low === undefined || high === undefined || min === undefined || max === undefined)
    return undefined;
  return { median: (low + high) / 2, min, max };
}

/**
 * @template Value
 * @param {(column: Column) => Value} of
 */
function byColumn(of) {
  return /** @type {Record<Column, Value>} */ (
    Object.fromEntries(columns.map((column) => [column, of(column)]))
  );
}

/**
 * A spread for a table's cell.
 *
 * @param {Spread | undefined} of
 * @param {(value: number) => string} show
 */
export function range(of, show) {
  if (of === undefined) return '–';
  const median = show(of.median);
  return of.min === of.max ? median : `${median} (${show(of.min)}–${show(of.max)})`;
}

/**
 * A figure for a table's cell.
 *
 * @param {number | undefined} value
 */
export function number(value) {
  if (value === undefined || Number.isNaN(value)) return '–';
  const digits = Math.abs(value) < 100 ? 1 : 0;
  return value.toLocaleString('en', {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/**
 * The same, with more digits where a figure is small.
 *
 * @param {number} value
 */
const precise = (value) => (Math.abs(value) < 10 ? value.toFixed(2) : number(value));

/**
 * The lines of a Markdown table, figures to the right.
 *
 * @param {readonly string[]} head
 * @param {readonly (readonly string[])[]} body
 */
export function table(head, body) {
  const line = (/** @type {readonly string[]} */ cells) => `| ${cells.join(' | ')} |`;
  return [line(head), `|---${'|--:'.repeat(head.length - 1)}|`, ...body.map(line)];
}
