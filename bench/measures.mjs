/**
 * The rows of the table: what is measured, and how one sample of it is taken.
 *
 * A sample is a few named numbers; what they mean together is `report.mjs`'s business. Every client is
 * PostgreSQL's own program (pgbench, psql), so no client of ours flatters any proxy.
 */
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DATABASE, ROW_BYTES } from './postgres.mjs';
import { cpuSeconds } from './stage.mjs';
import { CLIENTS } from './targets.mjs';

/**
 * @typedef {import('./targets.mjs').Target} Target
 * @typedef {object} Scene What a sample needs.
 * @property {import('./stage.mjs').Stage} stage
 * @property {string} bin Folder of pgbench and psql.
 * @property {number} seconds Length of one pgbench run.
 * @property {number} megabytes Length of one COPY.
 * @property {string} copyFile What COPY in reads.
 *
 * @typedef {Record<string, number>} Sample
 * @typedef {object} Measure
 * @property {string} id
 * @property {(target: Target) => boolean} applies
 * @property {(scene: Scene, target: Target) => Promise<Sample>} sample
 */

// Once logged in, all targets of one column are the same, so one of them stands for it. PgBouncer's is the
// one without authentication: its pool then needs no client's keys to log in upstream.
const loggedIn = (/** @type {Target} */ target) =>
  target.authenticates !== (target.column === 'pgbouncer');

/** @type {readonly Measure[]} */
export const MEASURES = [
  ...['simple', 'extended', 'prepared'].map((mode) => ({
    id: mode,
    applies: loggedIn,
    sample: (/** @type {Scene} */ scene, /** @type {Target} */ target) =>
      steady(scene, target, mode),
  })),
  { id: 'latency', applies: loggedIn, sample: latency },
  { id: 'logins', applies: (target) => target.authenticates, sample: logins },
  { id: 'open-logins', applies: (target) => !target.authenticates, sample: logins },
  {
    id: 'copy-out',
    applies: loggedIn,
    sample: (scene, target) => copyOut(scene, target, ROW_BYTES.wide),
  },
  {
    id: 'copy-out-narrow',
    applies: loggedIn,
    sample: (scene, target) => copyOut(scene, target, ROW_BYTES.narrow),
  },
  { id: 'copy-in', applies: loggedIn, sample: copyIn },
];

/**
 * One query that must come back before anything is measured: a target that does not work says so here.
 *
 * @param {Scene} scene
 * @param {Target} target
 */
export async function rehearse(scene, target) {
  try {
    await psql(scene, target, ['-c', 'select count(*) from pgbench_branches']);
  } catch (error) {
    const log = target.proxy?.output() ?? '';
    throw new Error(`${target.column} does not work: ${String(error)}\n${log}`, { cause: error });
  }
}

/**
 * Statements a second and the proxy's CPU time for each, between pgbench's first report and its last: so
 * the logins before it count for nobody.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {string} mode
 * @returns {Promise<Sample>}
 */
async function steady(scene, target, mode) {
  /** @type {{ seconds: number, perSecond: number, cpu: number }[]} */
  const reports = [];
  const args = ['-S', '-M', mode, '-c', String(CLIENTS), '-P', '1'];
  await pgbench(scene, target, args, (line) => {
    const found = /^progress: ([\d.]+) s, ([\d.]+) tps/.exec(line);
    if (found === null) return;
    reports.push({ seconds: Number(found[1]), perSecond: Number(found[2]), cpu: cpu(target) });
  });
  const [first, ...others] = reports;
  const last = others.at(-1);
  if (first === undefined || last === undefined) throw new Error('pgbench reported no progress');
  let before = first.seconds;
  let transactions = 0;
  for (const { seconds, perSecond } of others) {
    transactions += perSecond * (seconds - before);
    before = seconds;
  }
  const elapsed = last.seconds - first.seconds;
  return {
    perSecond: transactions / elapsed,
    cpuUs: ((last.cpu - first.cpu) * 1e6) / transactions,
  };
}

/**
 * Microseconds of a statement as one lone client sees it, from pgbench's log of each: the median, and the 10th
 * percentile, which says what the way costs while nothing else on the machine wants the cores.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @returns {Promise<Sample>}
 */
async function latency(scene, target) {
  const folder = mkdtempSync(join(scene.stage.folder, 'latency-'));
  try {
    const args = ['-S', '-M', 'prepared', '-c', '1', '-l', '--log-prefix', join(folder, 'log')];
    await pgbench(scene, target, args);
    const lines = readdirSync(folder).flatMap((name) =>
      readFileSync(join(folder, name), 'latin1').trimEnd().split('\n'),
    );
    const sorted = Float64Array.from(lines, (line) => Number(line.split(' ')[2])).toSorted();
    const at = (/** @type {number} */ share) => sorted[Math.floor(sorted.length * share)] ?? NaN;
    return { quietUs: at(0.1), medianUs: at(0.5) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * Logins a second: connect, one query, disconnect, over and over.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @returns {Promise<Sample>}
 */
async function logins(scene, target) {
  const cpuBefore = cpu(target);
  const output = await pgbench(scene, target, ['-S', '-C', '-c', String(CLIENTS)]);
  const perSecond = Number(/^tps = ([\d.]+)/m.exec(output)?.[1]);
  const count = Number(/actually processed: (\d+)/.exec(output)?.[1]);
  return { perSecond, cpuUs: ((cpu(target) - cpuBefore) * 1e6) / count };
}

/**
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {(line: string) => void} [onProgress]
 */
async function pgbench(scene, target, args, onProgress) {
  const output = await scene.stage.run(
    join(scene.bin, 'pgbench'),
    ['-n', '-T', String(scene.seconds), ...args, ...where(target), DATABASE],
    { env: credentials(target), ...(onProgress && { onStderrLine: onProgress }) },
  );
  if (!/^number of failed transactions: 0 /m.test(output)) {
    throw new Error(`pgbench counted failed transactions: ${output}`);
  }
  return output;
}

/**
 * @param {Scene} scene
 * @param {Target} target
 * @param {number} rowBytes
 * @returns {Promise<Sample>}
 */
function copyOut(scene, target, rowBytes) {
  const rows = (scene.megabytes * 1e6) / rowBytes;
  const query = `select repeat('x', ${rowBytes - 1}) from generate_series(1, ${rows})`;
  return timeCopy(scene, target, ['-o', '/dev/null', '-c', `copy (${query}) to stdout`]);
}

/**
 * The rows are parsed and thrown away (`where false`): storing them would measure the disk.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @returns {Promise<Sample>}
 */
async function copyIn(scene, target) {
  const stdin = openSync(scene.copyFile, 'r');
  try {
    return await timeCopy(scene, target, ['-c', 'copy copied from stdin where false'], stdin);
  } finally {
    closeSync(stdin);
  }
}

/**
 * Megabytes a second of the COPY alone, as psql's `\timing` has it, and the proxy's CPU time for each.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {number} [stdin]
 * @returns {Promise<Sample>}
 */
async function timeCopy(scene, target, args, stdin) {
  const cpuBefore = cpu(target);
  const output = await psql(scene, target, ['-c', '\\timing on', ...args], stdin);
  const milliseconds = Number(/^Time: ([\d.]+) ms/m.exec(output)?.[1]);
  return {
    perSecond: scene.megabytes / (milliseconds / 1_000),
    cpuUs: ((cpu(target) - cpuBefore) * 1e6) / scene.megabytes,
  };
}

/**
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {number} [stdin]
 */
function psql(scene, target, args, stdin) {
  return scene.stage.run(
    join(scene.bin, 'psql'),
    ['-X', '-v', 'ON_ERROR_STOP=1', ...where(target), '-d', DATABASE, ...args],
    { env: credentials(target), ...(stdin !== undefined && { stdin }) },
  );
}

/** @param {Target} target */
const where = (target) => ['-h', '127.0.0.1', '-p', String(target.port), '-U', target.user];

/** @param {Target} target */
const credentials = (target) => ({
  PGPASSWORD: target.password,
  PGSSLMODE: 'disable',
  PGGSSENCMODE: 'disable',
  PGCONNECT_TIMEOUT: '15',
});

/** @param {Target} target */
const cpu = (target) => (target.proxy === undefined ? NaN : cpuSeconds(target.proxy.pid));
