/**
 * The ratios as a picture: one line for each plotted row, one mark for each other column, its spread as a bar through it.
 *
 * Plain SVG, readable on light and on dark pages. To the right is always better for pgjot: costs are turned over. The axis
 * is logarithmic, so that twice as good is as far from the middle as half as good.
 */
import { COLUMNS } from './report.mjs';

const WIDTH = 960;
const PLOT = { left: 420, right: 930 };
const TOP = 92;
const LINE = 34;
const FOOT = 46;
/** How far apart the marks of one line are, from top to bottom. */
const STEP = 7;

/** Colours that people with any eyesight can tell apart, for light and for dark pages, and shapes for those who print. */
const MARKS = /** @type {const} */ ({
  direct: { light: '#0072b2', dark: '#56b4e9', shape: 'circle' },
  pgbouncer: { light: '#d55e00', dark: '#ff8c42', shape: 'square' },
  haproxy: { light: '#007f5f', dark: '#2fc39a', shape: 'diamond' },
  pipe: { light: '#a5427f', dark: '#e59ac6', shape: 'triangle' },
});
const marked = /** @type {(keyof typeof MARKS)[]} */ (Object.keys(MARKS));

/**
 * @typedef {import('./report.mjs').Summary} Summary
 * @typedef {import('./report.mjs').Spread} Spread
 */

/**
 * @param {readonly Summary[]} rows
 * @param {string} caption The machine and the versions.
 */
export function plot(rows, caption) {
  const lines = rows
    .filter(({ plotted, pgjotRatios }) => plotted && marked.some((one) => pgjotRatios[one]))
    .map((row) => ({ ...row, ratios: towardsBetter(row), bounds: boundsOf(row) }));
  const x = scaleOf(
    lines.flatMap(({ ratios, bounds }) => [
      ...Object.values(ratios).flatMap(({ min, max }) => [min, max]),
      ...bounds.map(({ at }) => at),
    ]),
  );
  const height = TOP + lines.length * LINE + FOOT;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-label="pgjot compared">`,
    `<style>${style()}</style>`,
    `<rect class="page" width="${WIDTH}" height="${height}" rx="8" fill="#ffffff"/>`,
    text(20, 30, 'pgjot beside the others: to the right, pgjot is better', 'title'),
    ...legend(),
    ...axis(x, height),
    ...lines.flatMap((line, index) => drawLine(line, TOP + (index + 0.5) * LINE, x, index)),
    ...wrapped(caption, height - 22, 160, 'small'),
    '</svg>',
    '',
  ].join('\n');
}

function style() {
  const colours = (/** @type {'light' | 'dark'} */ theme) =>
    marked.map((one) => `.${one}{fill:${MARKS[one][theme]};stroke:${MARKS[one][theme]}}`).join('');
  return (
    'text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:17px;font-weight:600}.small{font-size:11px;fill:#59636e}' +
    '.page{fill:#ffffff}.band{fill:#f6f8fa}.grid{stroke:#d1d9e0}.one{stroke:#1f2328}.bound{fill:none}.legend{stroke:none}' +
    colours('light') +
    '@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.page{fill:#0d1117}.band{fill:#151b23}.grid{stroke:#3d444d}' +
    `.one{stroke:#f0f6fc}${colours('dark')}}`
  );
}

/**
 * The ratios of a row as factors by which pgjot is better.
 *
 * @param {Summary} row
 */
function towardsBetter({ better, pgjotRatios }) {
  /** @type {Partial<Record<keyof typeof MARKS, Spread>>} */
  const ratios = {};
  for (const column of marked) {
    const ratio = pgjotRatios[column];
    if (ratio === undefined || ratio.min <= 0) continue;
    ratios[column] =
      better === 'more'
        ? ratio
        : { median: 1 / ratio.median, min: 1 / ratio.max, max: 1 / ratio.min };
  }
  return ratios;
}

/**
 * The targets among a row's goals that are ratios.
 *
 * @param {Summary} row
 */
function boundsOf({ better, goals }) {
  return goals.flatMap(({ against, bound }) =>
    against === undefined || against === 'pgjot'
      ? []
      : [{ against, at: better === 'more' ? bound : 1 / bound }],
  );
}

/** @param {readonly number[]} values */
function scaleOf(values) {
  const low = Math.log10(Math.min(0.5, ...values)) - 0.05;
  const high = Math.log10(Math.max(2, ...values)) + 0.05;
  const scale = (/** @type {number} */ value) =>
    PLOT.left + ((Math.log10(value) - low) / (high - low)) * (PLOT.right - PLOT.left);
  return Object.assign(scale, { low: 10 ** low, high: 10 ** high });
}

/** @typedef {ReturnType<typeof scaleOf>} Scale */

function legend() {
  let at = 20;
  const entries = marked.flatMap((one) => {
    const name = `beside ${COLUMNS[one].replaceAll('`', '')}`;
    const entry = [mark(one, at + 6, 55), text(at + 18, 59, name, '')];
    at += 40 + name.length * 7;
    return entry;
  });
  return [
    ...entries,
    `<path d="M${at + 4} 47v16" class="grid" stroke-width="3"/>`,
    text(at + 14, 59, 'target', ''),
  ];
}

/**
 * @param {Scale} x
 * @param {number} height
 */
function axis(x, height) {
  const ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100].filter(
    (tick) => tick >= x.low && tick <= x.high,
  );
  return ticks.flatMap((tick) => [
    `<path d="M${at(x(tick))} ${TOP - 4}V${height - FOOT + 4}" class="${tick === 1 ? 'one' : 'grid'}" stroke="${tick === 1 ? '#1f2328' : '#d1d9e0'}" stroke-width="${tick === 1 ? 1.5 : 1}"/>`,
    text(x(tick), TOP - 10, tick === 1 ? 'equal' : `${tick}×`, 'small', 'middle'),
  ]);
}

/**
 * @param {Summary & { ratios: ReturnType<typeof towardsBetter>, bounds: ReturnType<typeof boundsOf> }} line
 * @param {number} y
 * @param {Scale} x
 * @param {number} index
 */
function drawLine({ title, better, ratios, bounds }, y, x, index) {
  const shown = marked.filter((one) => ratios[one]);
  const name = `${title}${better === 'less' ? ' (less)' : ''}`.replaceAll('`', '');
  const parts =
    index % 2 === 1
      ? []
      : [
          `<rect class="band" x="10" y="${at(y - LINE / 2)}" width="${PLOT.left - 20}" height="${LINE}" fill="#f6f8fa"/>`,
        ];
  parts.push(...wrapped(name, y));
  for (const [place, column] of shown.entries()) {
    const ratio = ratios[column];
    if (ratio === undefined) continue;
    const own = y + (place - (shown.length - 1) / 2) * STEP;
    const colour = MARKS[column].light;
    for (const bound of bounds.filter(({ against }) => against === column)) {
      parts.push(
        `<path d="M${at(x(bound.at))} ${at(own - 6)}v12" class="${column}" stroke="${colour}" stroke-width="3" opacity="0.55"/>`,
      );
    }
    parts.push(
      `<path d="M${at(x(ratio.min))} ${at(own)}H${at(x(ratio.max))}" class="${column}" stroke="${colour}" stroke-width="1.5"/>`,
      mark(column, x(ratio.median), own),
    );
  }
  return parts;
}

/**
 * @param {keyof typeof MARKS} column
 * @param {number} x
 * @param {number} y
 */
function mark(column, x, y) {
  const { shape, light } = MARKS[column];
  const shared = `class="${column}" fill="${light}"`;
  if (shape === 'circle') return `<circle cx="${at(x)}" cy="${at(y)}" r="4" ${shared}/>`;
  const outline = {
    square: `M${at(x - 3.5)} ${at(y - 3.5)}h7v7h-7z`,
    diamond: `M${at(x)} ${at(y - 5)}l5 5l-5 5l-5-5z`,
    triangle: `M${at(x)} ${at(y - 4.5)}l4.5 8h-9z`,
  }[shape];
  return `<path d="${outline}" ${shared}/>`;
}

/**
 * A text in at most two lines.
 *
 * @param {string} words
 * @param {number} y
 * @param {number} width In letters.
 * @param {string} kind
 */
function wrapped(words, y, width = 58, kind = '') {
  const rest = words.split(' ');
  let first = '';
  while (rest.length > 0 && `${first} ${rest[0]}`.length <= width) first += ` ${rest.shift()}`;
  return rest.length === 0
    ? [text(20, y + 4, first.trim(), kind)]
    : [text(20, y - 3, first.trim(), kind), text(20, y + 12, rest.join(' '), kind)];
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} words
 * @param {string} kind
 * @param {'start' | 'middle'} [anchor]
 */
function text(x, y, words, kind, anchor = 'start') {
  const safe = words.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return `<text x="${at(x)}" y="${at(y)}" class="${kind}" text-anchor="${anchor}">${safe}</text>`;
}

/** @param {number} value */
const at = (value) => String(Math.round(value * 10) / 10);
