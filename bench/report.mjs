/**
 * From samples to what is printed: medians with their spread, ratios round by round, targets met or missed.
 *
 * A ratio is taken within each round and then its median, never from two medians: the machine's mood
 * changes between rounds. Prints nothing itself and hides nothing: a row that is behind says so.
 */

/**
 * @typedef {import('./measures.mjs').Sample} Sample
 * @typedef {import('./targets.mjs').Target['column']} Column
 * @typedef {Partial<Record<Column, Sample>>} Cells The samples of one measure in one round.
 * @typedef {Record<string, Cells>} Round By measure.
 * @typedef {{ against: Column, atLeast?: number, atMost?: number }} Goal
 *
 * @typedef {object} Row
 * @property {string} title
 * @property {string} measure
 * @property {(sample: Sample, cells: Cells) => number} figure NaN where a column has no such figure.
 * @property {Goal[]} [goals]
 *
 * @typedef {{ median: number, min: number, max: number }} Spread
 * @typedef {Partial<Record<Column, { now: number, peak: number }>>} Memory In MiB.
 */

/** @type {Record<Column, string>} */
const COLUMNS = {
  direct: 'direct',
  pgjot: 'pgjot',
  pgbouncer: 'PgBouncer',
  haproxy: 'HAProxy',
  pipe: 'Node `pipe()`',
};
const columns = /** @type {Column[]} */ (Object.keys(COLUMNS));

const perSecond = (/** @type {Sample} */ sample) => sample['perSecond'] ?? NaN;
const cpuUs = (/** @type {Sample} */ sample) => sample['cpuUs'] ?? NaN;
const added = (/** @type {'quietUs' | 'medianUs'} */ name) => {
  return (/** @type {Sample} */ sample, /** @type {Cells} */ { direct }) =>
    sample === direct ? NaN : (sample[name] ?? NaN) - (direct?.[name] ?? NaN);
};

/** @type {readonly Row[]} */
const ROWS = [
  ...['simple', 'extended', 'prepared'].map((mode) => ({
    title: `statements/s, ${mode}`,
    measure: mode,
    figure: perSecond,
  })),
  { title: 'proxy CPU, µs per statement, simple', measure: 'simple', figure: cpuUs },
  { title: 'proxy CPU, µs per statement, extended', measure: 'extended', figure: cpuUs },
  {
    title: 'proxy CPU, µs per statement, prepared',
    measure: 'prepared',
    figure: cpuUs,
    goals: [{ against: 'pgbouncer', atMost: 1.25 }],
  },
  {
    title: 'latency added, µs, 1 client, 10th percentile',
    measure: 'latency',
    figure: added('quietUs'),
    goals: [{ against: 'pgbouncer', atMost: 1.25 }],
  },
  { title: 'latency added, µs, 1 client, median', measure: 'latency', figure: added('medianUs') },
  {
    title: 'logins/s: JWT through pgjot, SCRAM elsewhere',
    measure: 'logins',
    figure: perSecond,
    goals: [
      { against: 'pgbouncer', atLeast: 10 },
      { against: 'direct', atLeast: 4 },
    ],
  },
  {
    title: 'logins/s: JWT through pgjot, no authentication elsewhere',
    measure: 'open-logins',
    figure: perSecond,
    goals: [{ against: 'pgbouncer', atLeast: 0.7 }],
  },
  { title: 'proxy CPU, µs per login', measure: 'logins', figure: cpuUs },
  {
    title: 'COPY out, MB/s, 1,000-byte rows',
    measure: 'copy-out',
    figure: perSecond,
    goals: [{ against: 'pgbouncer', atLeast: 1.3 }],
  },
  { title: 'COPY out, MB/s, 100-byte rows', measure: 'copy-out-narrow', figure: perSecond },
  {
    title: 'COPY in, MB/s, 1,000-byte rows',
    measure: 'copy-in',
    figure: perSecond,
    goals: [{ against: 'pgbouncer', atLeast: 1.3 }],
  },
  { title: 'proxy CPU, µs per MB out, 1,000-byte rows', measure: 'copy-out', figure: cpuUs },
  { title: 'proxy CPU, µs per MB out, 100-byte rows', measure: 'copy-out-narrow', figure: cpuUs },
  { title: 'proxy CPU, µs per MB in', measure: 'copy-in', figure: cpuUs },
];

/**
 * Everything computed from the rounds, for the JSON file and the tables.
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
    const goals = (row.goals ?? []).map((goal) => judge(goal, ratios[goal.against]));
    return { title: row.title, figures: spreads, pgjotRatios: ratios, goals };
  });
}

/** @typedef {ReturnType<typeof summarize>[number]} Summary */

/**
 * The two tables: figures, then pgjot's ratios with the targets.
 *
 * @param {readonly Summary[]} rows
 * @param {{ rest: Memory, peak: Memory }} memory Before the first client, and at the end of the run.
 */
export function markdown(rows, memory) {
  const shown = columns.filter((column) => rows.some(({ figures: one }) => one[column]));
  const others = shown.filter((column) => column !== 'pgjot');
  return [
    '**Figures**: median (lowest–highest) of all rounds.',
    '',
    ...table(
      ['', ...shown.map((column) => COLUMNS[column])],
      [
        ...rows.map(({ title, figures: one }) => [
          title,
          ...shown.map((column) => range(one[column], number)),
        ]),
        [
          'memory before the first client, MiB',
          ...shown.map((one) => number(memory.rest[one]?.now)),
        ],
        ['memory at its highest, MiB', ...shown.map((one) => number(memory.peak[one]?.peak))],
      ],
    ),
    '',
    '**pgjot divided by each other column**: median (lowest–highest) of the ratios within a round.',
    '',
    ...table(
      ['', ...others.map((column) => `÷ ${COLUMNS[column]}`), 'target'],
      rows.map(({ title, pgjotRatios, goals }) => [
        title,
        ...others.map((column) => range(pgjotRatios[column], (value) => value.toFixed(2))),
        goals.map(({ text }) => text).join('; '),
      ]),
    ),
  ].join('\n');
}

/**
 * @param {Row} row
 * @param {Round} round
 */
function figures({ measure, figure }, round) {
  // pgjot has no way in without a token: where the others log in without authentication, it is
  // compared by its ordinary logins.
  const cells = { ...round[measure] };
  const pgjot = measure === 'open-logins' ? round['logins']?.pgjot : undefined;
  if (pgjot !== undefined) cells.pgjot = pgjot;
  return byColumn((column) => {
    const sample = cells[column];
    return sample === undefined ? NaN : figure(sample, cells);
  });
}

/**
 * @param {Goal} goal
 * @param {Spread | undefined} ratio
 */
function judge({ against, atLeast, atMost }, ratio) {
  const wanted =
    atLeast === undefined
      ? `≤ ${atMost}× ${COLUMNS[against]}`
      : `≥ ${atLeast}× ${COLUMNS[against]}`;
  if (ratio === undefined) return { text: `${wanted}: not measured`, met: undefined };
  const met = ratio.median >= (atLeast ?? -Infinity) && ratio.median <= (atMost ?? Infinity);
  return { text: `${wanted}: ${met ? 'met' : '**behind**'}`, met };
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
  return of === undefined ? '–' : `${show(of.median)} (${show(of.min)}–${show(of.max)})`;
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
 * The lines of a Markdown table, figures to the right.
 *
 * @param {readonly string[]} head
 * @param {readonly (readonly string[])[]} body
 */
export function table(head, body) {
  const line = (/** @type {readonly string[]} */ cells) => `| ${cells.join(' | ')} |`;
  return [line(head), `|---${'|--:'.repeat(head.length - 1)}|`, ...body.map(line)];
}
