/**
 * Statements over sessions that are there already: how many a second, what each costs the proxy, what each takes longer.
 *
 * All by pgbench: one lone client for latency, few and many for throughput, a crowd at a fixed pace for growth.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cpu, pgbench, quantiles } from './clients.mjs';
import { OFFERED_PER_SECOND } from './sizes.mjs';

/**
 * @typedef {import('./clients.mjs').Scene} Scene
 * @typedef {import('./clients.mjs').Sample} Sample
 * @typedef {import('./targets.mjs').Target} Target
 */

/** What every column manages at least while a crowd comes in; pgbench's clock runs already. */
const LOGINS_PER_SECOND = 100;
/** How long before its end a run is one of clients that are leaving. */
const LEAVING_SECONDS = 3;

/**
 * Statements a second and the proxy's CPU time for each, between pgbench's first report and its last: so
 * the logins before it count for nobody.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {string} mode
 * @param {number} clients
 * @param {import('./clients.mjs').Way & { args?: readonly string[] }} [way]
 * @returns {Promise<Sample>}
 */
export async function steady(scene, target, mode, clients, way = {}) {
  /** @type {{ seconds: number, perSecond: number, cpu: number }[]} */
  const reports = [];
  const duration = scene.seconds + enteringSeconds(clients);
  const args = ['-S', '-M', mode, '-P', '1', ...clientArguments(clients), ...(way.args ?? [])];
  const onProgress = (/** @type {string} */ line) => {
    const found = /^progress: ([\d.]+) s, ([\d.]+) tps/.exec(line);
    if (found === null) return;
    reports.push({ seconds: Number(found[1]), perSecond: Number(found[2]), cpu: cpu(target) });
  };
  await pgbench(scene, target, args, { ...way, seconds: duration, onProgress });
  const [first, ...others] = reports.slice(-scene.seconds);
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
 * The same for one lone client, and microseconds of a statement as it sees them, from pgbench's log of each: the median,
 * and the 10th percentile, which says what the way costs while nothing else on the machine wants the cores.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {string} mode
 * @returns {Promise<Sample>}
 */
export function alone(scene, target, mode) {
  return withLog(scene, async (args, lines) => {
    const sample = await steady(scene, target, mode, 1, { args });
    const at = quantiles(lines().map(([, , us]) => us ?? NaN));
    return { ...sample, quietUs: at(0.1), medianUs: at(0.5) };
  });
}

/**
 * As many statements a second for few clients as for many. Only the middle of the run counts: before it sessions open, and
 * every backend meets its statement for the first time, a thousand of them more often than ten; after it a client leaves as
 * soon as its next statement would be too late, which is a thousand backends that end within two seconds.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {number} clients
 * @returns {Promise<Sample>}
 */
export function paced(scene, target, clients) {
  const seconds = scene.seconds * 2 + enteringSeconds(clients) + LEAVING_SECONDS;
  const args = ['-S', '-M', 'prepared', ...clientArguments(clients)];
  return withLog(scene, async (log, lines) => {
    const offered = ['-R', String(OFFERED_PER_SECOND)];
    await pgbench(scene, target, [...args, ...offered, ...log], { ...crowdOf(target), seconds });
    const all = lines().map(([, , us = NaN, , epoch = NaN, fraction = NaN]) => ({
      us,
      at: epoch + fraction / 1e6,
    }));
    const end = all.reduce((latest, { at }) => Math.max(latest, at), 0) - LEAVING_SECONDS;
    const counted = all.filter(({ at }) => at > end - scene.seconds && at <= end);
    const at = quantiles(counted.map(({ us }) => us));
    return { perSecond: counted.length / scene.seconds, medianUs: at(0.5), p99Us: at(0.99) };
  });
}

/**
 * Whom a crowd signs in as.
 *
 * @param {Target} target
 */
export const crowdOf = ({ crowdUser }) => (crowdUser === undefined ? {} : { user: crowdUser });

/** @param {number} clients */
const enteringSeconds = (clients) => (clients < 100 ? 0 : Math.ceil(clients / LOGINS_PER_SECOND));

/**
 * A crowd comes in by four doors at once.
 *
 * @param {number} clients
 */
const clientArguments = (clients) => ['-c', String(clients), ...(clients < 100 ? [] : ['-j', '4'])];

/**
 * Lets `work` have pgbench log each transaction; `lines` are the fields of each: client, transaction, µs, script, and
 * when it ended in seconds and µs.
 *
 * @param {Scene} scene
 * @param {(args: readonly string[], lines: () => number[][]) => Promise<Sample>} work
 */
async function withLog({ stage }, work) {
  const folder = mkdtempSync(join(stage.folder, 'latency-'));
  const lines = () =>
    readdirSync(folder).flatMap((name) =>
      readFileSync(join(folder, name), 'latin1')
        .trimEnd()
        .split('\n')
        .map((line) => line.split(' ').map(Number)),
    );
  try {
    return await work(['-l', '--log-prefix', join(folder, 'log')], lines);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
