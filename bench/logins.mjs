/**
 * Logins: connect, one statement, disconnect, over and over; by users who come back, and by users who were never here.
 *
 * Returning users are one pgbench each. For newcomers, of whom pgbench knows nothing, the client is `wire.mjs`, in all
 * columns of those rows; their tokens are made before the clock runs.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { cpu, pgbench, quantiles } from './clients.mjs';
import { DATABASE } from './postgres.mjs';
import { CLIENTS } from './sizes.mjs';
import { WireClient } from './wire.mjs';

/**
 * @typedef {import('./clients.mjs').Scene} Scene
 * @typedef {import('./clients.mjs').Sample} Sample
 * @typedef {import('./targets.mjs').Target} Target
 */

/** More than any column manages in a second on the machines we know; a run that uses them up ends early. */
const MOST_PER_SECOND = 3_000;
/** Logins of the measurement of one at a time, and how long a pool gets between two to have a spare ready. */
const LONE_LOGINS = 60;
const LONE_PAUSE_MS = 30;

const STATEMENT = 'select abalance from pgbench_accounts where aid = 1';

/**
 * Logins a second of as many users as there are clients, each of whom comes back all the time.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {{ tls?: boolean }} [way]
 * @returns {Promise<Sample>}
 */
export async function returning(scene, target, way = {}) {
  const passwords = target.passwords ?? Array.from({ length: CLIENTS }, () => target.password);
  const before = cpu(target);
  const outputs = await Promise.all(
    passwords.map((password) =>
      pgbench(scene, target, ['-S', '-C', '-c', '1'], { ...way, password }),
    ),
  );
  const sum = (/** @type {RegExp} */ pattern) =>
    outputs.reduce((total, output) => total + Number(pattern.exec(output)?.[1]), 0);
  return {
    perSecond: sum(/^tps = ([\d.]+)/m),
    cpuUs: ((cpu(target) - before) * 1e6) / sum(/actually processed: (\d+)/),
  };
}

/**
 * Logins a second where each is somebody new.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {{ tls?: boolean }} [way]
 * @returns {Promise<Sample>}
 */
export async function newcomers(scene, target, { tls = false } = {}) {
  const passwords = await target.newcomers?.(scene.seconds * MOST_PER_SECOND);
  /** @type {number[]} */
  const times = [];
  const start = performance.now();
  const end = start + scene.seconds * 1_000;
  const before = cpu(target);
  const client = async () => {
    while (performance.now() < end) {
      const password = passwords === undefined ? target.password : passwords.pop();
      if (password === undefined) return;
      times.push((await visit(target, password, tls)).loginMs);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  const seconds = (performance.now() - start) / 1_000;
  const at = quantiles(times);
  return {
    perSecond: times.length / seconds,
    cpuUs: ((cpu(target) - before) * 1e6) / times.length,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
  };
}

/**
 * ms until somebody new is logged in, one after another with a pause: what a login takes where the pool was prepared
 * for it. From before the TCP connection to the first ReadyForQuery.
 *
 * @param {Scene} _scene
 * @param {Target} target
 * @returns {Promise<Sample>}
 */
export async function oneAtATime(_scene, target) {
  const passwords = await target.newcomers?.(LONE_LOGINS);
  /** @type {Visit[]} */
  const visits = [];
  for (let login = 0; login < LONE_LOGINS; login += 1) {
    await delay(LONE_PAUSE_MS);
    visits.push(await visit(target, passwords?.[login] ?? target.password, false));
  }
  const at = quantiles(visits.map(({ loginMs }) => loginMs));
  const connectMs = quantiles(visits.map((one) => one.connectMs))(0.5);
  return { p50Ms: at(0.5), p99Ms: at(0.99), beyondConnectMs: at(0.5) - connectMs };
}

/**
 * @typedef {{ connectMs: number, loginMs: number }} Visit
 *
 * @param {Target} target
 * @param {string} password
 * @param {boolean} tls
 * @returns {Promise<Visit>}
 */
async function visit({ port, user }, password, tls) {
  const start = performance.now();
  const client = await WireClient.login({ port, user, password, database: DATABASE, tls });
  const loginMs = performance.now() - start;
  const { rows } = await client.ask(STATEMENT);
  if (rows.length !== 1) throw new Error(`${rows.length} rows where there is one`);
  await client.end();
  return { connectMs: client.connectMs, loginMs };
}
