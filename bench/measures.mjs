/**
 * What is measured, in which columns, and how one sample of it is taken.
 *
 * A sample is a few named numbers; what they mean together is `rows.mjs`'s business. Wherever PostgreSQL's own programs
 * can be the client they are, so that no client of ours flatters any proxy.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { psql } from './clients.mjs';
import { copyIn, copyLong, copyOut } from './copies.mjs';
import { newcomers, oneAtATime, returning } from './logins.mjs';
import { silence } from './memory.mjs';
import { CLIENTS } from './sizes.mjs';
import { alone, crowdOf, paced, steady } from './statements.mjs';
import { tokenCost } from './token.mjs';

/**
 * @typedef {import('./targets.mjs').Target} Target
 * @typedef {import('./clients.mjs').Scene} Scene
 * @typedef {import('./clients.mjs').Sample} Sample
 *
 * @typedef {object} Measure
 * @property {string} id
 * @property {(target: Target) => boolean} applies
 * @property {(scene: Scene, target: Target) => Promise<Sample>} sample
 * @property {boolean} [thorough] Left out of a quick run.
 * @property {boolean} [crowded] It leaves sessions behind that must be gone before the next.
 * @property {boolean} [once] It varies so little, and takes so long, that the first round will do.
 * @property {boolean} [tls] Needs the certificate.
 * @property {boolean} [warms] Worth a rehearsal: what it measures becomes cheaper while a program runs.
 * @property {boolean} [onRequest] Runs only where `--only` names it.
 */

/** What the long COPYs are long. */
const LONG_MEGABYTES = 10_000;

// Once logged in, all targets of one column are the same, so one of them stands for it. PgBouncer's is the
// one without authentication: its pool then needs no client's keys to log in upstream.
const loggedIn = (/** @type {Target} */ target) =>
  target.column !== 'bare' && target.authenticates !== (target.column === 'pgbouncer');
/** The columns that matter most, where measuring all would take too long. */
const MAIN = new Set(['direct', 'pgjot', 'pgbouncer']);
const few = (/** @type {Target} */ target) => loggedIn(target) && MAIN.has(target.column);
const isPgjot = (/** @type {Target} */ target) => target.column === 'pgjot';
const authenticates = (/** @type {Target} */ target) => target.authenticates;

const fewAtTheDoor = (/** @type {Target} */ target) =>
  authenticates(target) && MAIN.has(target.column);

/** @type {readonly Measure[]} */
export const MEASURES = [
  ...['simple', 'extended', 'prepared'].flatMap((mode) => [
    {
      id: mode,
      applies: mode === 'prepared' ? loggedIn : few,
      thorough: mode !== 'prepared',
      sample: (/** @type {Scene} */ scene, /** @type {Target} */ target) =>
        steady(scene, target, mode, CLIENTS),
    },
    {
      id: `${mode}-1`,
      applies: mode === 'prepared' ? loggedIn : few,
      thorough: mode !== 'prepared',
      sample: (/** @type {Scene} */ scene, /** @type {Target} */ target) =>
        alone(scene, target, mode),
    },
    {
      id: `${mode}-64`,
      applies: few,
      thorough: true,
      sample: (/** @type {Scene} */ scene, /** @type {Target} */ target) =>
        steady(scene, target, mode, 64),
    },
  ]),
  {
    id: 'prepared-tls',
    applies: few,
    tls: true,
    thorough: true,
    sample: (scene, target) => steady(scene, target, 'prepared', CLIENTS, { tls: true }),
  },
  { id: 'logins', applies: authenticates, warms: true, sample: returning },
  {
    id: 'open-logins',
    applies: (target) => !target.authenticates,
    warms: true,
    sample: returning,
  },
  { id: 'new-logins', applies: fewAtTheDoor, warms: true, sample: newcomers },
  { id: 'lone-login', applies: fewAtTheDoor, sample: oneAtATime },
  { id: 'open-lone-login', applies: (target) => !target.authenticates, sample: oneAtATime },
  {
    id: 'logins-tls',
    applies: fewAtTheDoor,
    tls: true,
    sample: (scene, target) => returning(scene, target, { tls: true }),
  },
  {
    id: 'new-logins-tls',
    applies: fewAtTheDoor,
    tls: true,
    thorough: true,
    sample: (scene, target) => newcomers(scene, target, { tls: true }),
  },
  { id: 'copy-out', applies: loggedIn, sample: (scene, target) => copyOut(scene, target, 'wide') },
  {
    id: 'copy-out-narrow',
    applies: few,
    thorough: true,
    sample: (scene, target) => copyOut(scene, target, 'narrow'),
  },
  { id: 'copy-in', applies: loggedIn, sample: copyIn },
  {
    id: 'copy-out-tls',
    applies: few,
    tls: true,
    thorough: true,
    sample: (scene, target) => copyOut(scene, target, 'wide', { tls: true }),
  },
  {
    id: 'prepared-1000',
    applies: few,
    crowded: true,
    sample: (scene, target) => steady(scene, target, 'prepared', scene.crowd, crowdOf(target)),
  },
  ...[10, 100, 1_000].map((clients) => ({
    id: `paced-${clients}`,
    applies: few,
    crowded: clients > 100,
    thorough: true,
    sample: (/** @type {Scene} */ scene, /** @type {Target} */ target) =>
      paced(scene, target, Math.min(clients, scene.crowd)),
  })),
  { id: 'token', applies: isPgjot, sample: tokenCost },
  { id: 'rls', applies: isPgjot, once: true, thorough: true, sample: policyCost },
  {
    id: 'silent',
    applies: (target) => few(target) && target.proxy !== undefined,
    once: true,
    thorough: true,
    sample: silence,
  },
  {
    id: 'silent-tls',
    applies: (target) => few(target) && target.proxy !== undefined,
    once: true,
    tls: true,
    thorough: true,
    sample: (scene, target) => silence(scene, target, { tls: true }),
  },
  {
    id: 'copy-10gb',
    applies: (target) => loggedIn(target) && target.proxy !== undefined,
    onRequest: true,
    sample: (scene, target) => copyLong(scene, target, LONG_MEGABYTES),
  },
];

/**
 * What `npm run bench:rls` says of `(select auth.user_id())` in a short run; alone it compares all policies, at length.
 *
 * @param {Scene} scene
 * @returns {Promise<Sample>}
 */
async function policyCost({ stage }) {
  const script = fileURLToPath(new URL('./rls.mjs', import.meta.url));
  const file = join(stage.folder, 'rls.json');
  const short = '--rounds 2 --statements 300 --logins 1'.split(' ');
  await stage.run(process.execPath, [script, ...short, '--json', file]);
  const { addedUs } = JSON.parse(readFileSync(file, 'utf8'));
  return { addedUs };
}

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
