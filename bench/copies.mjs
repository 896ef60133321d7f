/**
 * COPY in both directions, by psql: megabytes a second, what each costs the proxy, and whether its memory stays flat.
 */
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { cpu, environment, psql, psqlArguments } from './clients.mjs';
import { ROW_BYTES } from './sizes.mjs';
import { residentMiB } from './stage.mjs';

/**
 * @typedef {import('./clients.mjs').Scene} Scene
 * @typedef {import('./clients.mjs').Sample} Sample
 * @typedef {import('./targets.mjs').Target} Target
 */

const WATCH_MS = 100;
/** What goes each way before memory is looked at: buffers and code of the first COPY are no leak. */
const WARM_UP_MEGABYTES = 100;
const COPY_IN = ['-c', 'copy copied from stdin where false'];

/**
 * @param {Scene} scene
 * @param {Target} target
 * @param {keyof typeof ROW_BYTES} shape
 * @param {{ tls?: boolean }} [way]
 * @returns {Promise<Sample>}
 */
export function copyOut(scene, target, shape, way = {}) {
  return timeCopy(scene, target, copyOutArguments(scene.megabytes, ROW_BYTES[shape]), way);
}

/**
 * The rows are parsed and thrown away (`where false`): storing them would measure the disk.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {{ tls?: boolean }} [way]
 * @returns {Promise<Sample>}
 */
export async function copyIn(scene, target, way = {}) {
  const stdin = openSync(scene.copyFile, 'r');
  try {
    return await timeCopy(scene, target, COPY_IN, { ...way, stdin });
  } finally {
    closeSync(stdin);
  }
}

/**
 * By how many MiB the proxy grows during a COPY out and a COPY in of many gigabytes, generated on the way.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {number} megabytes
 * @returns {Promise<Sample>}
 */
export async function copyLong(scene, target, megabytes) {
  const out = await watchGrowth(
    target,
    (size) => psql(scene, target, copyOutArguments(size, ROW_BYTES.wide)),
    megabytes,
  );
  const into = await watchGrowth(target, (size) => pour(scene, target, size), megabytes);
  return {
    outMiB: out.grownMiB,
    outPerSecond: out.perSecond,
    inMiB: into.grownMiB,
    inPerSecond: into.perSecond,
  };
}

/**
 * @param {number} megabytes
 * @param {number} rowBytes
 */
function copyOutArguments(megabytes, rowBytes) {
  const rows = (megabytes * 1e6) / rowBytes;
  const query = `select repeat('x', ${rowBytes - 1}) from generate_series(1, ${rows})`;
  return ['-o', '/dev/null', '-c', `copy (${query}) to stdout`];
}

/**
 * Megabytes a second of the COPY alone, as psql's `\timing` has it, and the proxy's CPU time for each.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {readonly string[]} args
 * @param {{ tls?: boolean, stdin?: number }} way
 * @returns {Promise<Sample>}
 */
async function timeCopy(scene, target, args, way) {
  const cpuBefore = cpu(target);
  const output = await psql(scene, target, ['-c', '\\timing on', ...args], way);
  const milliseconds = Number(/^Time: ([\d.]+) ms/m.exec(output)?.[1]);
  return {
    perSecond: scene.megabytes / (milliseconds / 1_000),
    cpuUs: ((cpu(target) - cpuBefore) * 1e6) / scene.megabytes,
  };
}

/**
 * Runs a copy twice, a short one and then the long one, whose proxy is looked at ten times a second.
 *
 * @param {Target} target
 * @param {(megabytes: number) => Promise<unknown>} copy
 * @param {number} megabytes
 */
async function watchGrowth({ proxy }, copy, megabytes) {
  if (proxy === undefined) throw new Error('a direct connection has no proxy to watch');
  await copy(WARM_UP_MEGABYTES);
  const before = residentMiB(proxy.pid).now;
  let most = before;
  const timer = setInterval(() => {
    most = Math.max(most, residentMiB(proxy.pid).now);
  }, WATCH_MS);
  const start = performance.now();
  try {
    await copy(megabytes);
  } finally {
    clearInterval(timer);
  }
  const seconds = (performance.now() - start) / 1_000;
  return { grownMiB: most - before, perSecond: megabytes / seconds };
}

/**
 * COPY in of rows that exist nowhere but in this buffer.
 *
 * @param {Scene} scene
 * @param {Target} target
 * @param {number} megabytes
 */
async function pour({ stage, postgres }, target, megabytes) {
  const megabyte = Buffer.from(`${'x'.repeat(ROW_BYTES.wide - 1)}\n`.repeat(1e6 / ROW_BYTES.wide));
  const child = stage.launch(join(postgres.bin, 'psql'), psqlArguments(target, COPY_IN), {
    env: environment(target),
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  const { stdin } = child;
  if (stdin === null) throw new Error('psql has no standard input');
  const ended = once(child, 'close');
  // What it did not read is told by its exit status.
  stdin.on('error', () => {});
  for (let left = megabytes; left > 0 && child.exitCode === null; left -= 1) {
    if (!stdin.write(megabyte)) await Promise.race([once(stdin, 'drain'), ended]);
  }
  stdin.end();
  const [code] = await ended;
  if (code !== 0) throw new Error(`psql ended with ${code}`);
}
