/**
 * PostgreSQL's own programs as clients: pgbench and psql, with a target's credentials and a bare environment.
 */
import { join } from 'node:path';
import { DATABASE } from './postgres.mjs';
import { cpuSeconds } from './stage.mjs';

/**
 * @typedef {import('./targets.mjs').Target} Target
 * @typedef {object} Scene What a sample needs.
 * @property {import('./stage.mjs').Stage} stage
 * @property {import('./postgres.mjs').Postgres} postgres
 * @property {number} seconds Length of one pgbench run.
 * @property {number} megabytes Length of one COPY.
 * @property {string} copyFile What COPY in reads.
 * @property {number} crowd Clients of the largest measurements with real backends.
 * @property {number} silent Sessions of the measurement of memory.
 * @property {number} restSeconds How long they may take to come to rest; the lowest figure of that time counts.
 *
 * @typedef {Record<string, number>} Sample
 *
 * @typedef {object} Way
 * @property {boolean} [tls]
 * @property {string} [user] Instead of the target's.
 * @property {string} [password] Instead of the target's.
 * @property {number} [seconds] Instead of the scene's.
 * @property {(line: string) => void} [onProgress]
 */

/**
 * One run of pgbench, which must not count a single failed transaction.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {Way} [way]
 */
export async function pgbench({ stage, postgres, seconds }, target, args, way = {}) {
  const output = await stage.run(
    join(postgres.bin, 'pgbench'),
    ['-n', '-T', String(way.seconds ?? seconds), ...args, ...where(target, way), DATABASE],
    {
      env: environment(target, way),
      ...(way.onProgress && { onStderrLine: way.onProgress }),
    },
  );
  if (!/^number of failed transactions: 0 /m.test(output)) {
    throw new Error(`pgbench counted failed transactions: ${output}`);
  }
  return output;
}

/**
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {Way & { stdin?: number }} [way]
 */
export function psql({ stage, postgres }, target, args, way = {}) {
  return stage.run(join(postgres.bin, 'psql'), psqlArguments(target, args, way), {
    env: environment(target, way),
    ...(way.stdin !== undefined && { stdin: way.stdin }),
  });
}

/**
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {Way} [way]
 */
export const psqlArguments = (target, args, way = {}) => [
  '-X',
  '-v',
  'ON_ERROR_STOP=1',
  ...where(target, way),
  '-d',
  DATABASE,
  ...args,
];

/**
 * @param {Target} target
 * @param {Way} way
 */
const where = (target, { user = target.user }) => [
  '-h',
  '127.0.0.1',
  '-p',
  String(target.port),
  '-U',
  user,
];

/**
 * @param {Target} target
 * @param {Way} [way]
 */
export const environment = (target, { password = target.password, tls = false } = {}) => ({
  PGPASSWORD: password,
  PGSSLMODE: tls ? 'require' : 'disable',
  PGGSSENCMODE: 'disable',
  PGCONNECT_TIMEOUT: '15',
});

/**
 * Seconds of CPU time that the target's proxy has used; NaN where there is none.
 *
 * @param {Target} target
 */
export const cpu = (target) => (target.proxy === undefined ? NaN : cpuSeconds(target.proxy.pid));

/**
 * The value below which this share of the others lies.
 *
 * @param {Iterable<number>} values
 */
export function quantiles(values) {
  const sorted = Float64Array.from(values).toSorted();
  return (/** @type {number} */ share) => sorted[Math.floor(sorted.length * share)] ?? NaN;
}
