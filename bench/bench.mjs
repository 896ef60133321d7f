/**
 * `npm run bench`: what pgjot costs, beside a direct connection, PgBouncer, HAProxy and a bare Node pipe.
 *
 * Everything runs on loopback, started and ended by this program. All columns take turns within each round,
 * so that what else the machine does touches them all alike: ratios are worth reading, absolute
 * figures are not. DESIGN.md section 9 has the targets.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, constants, cpus, release, totalmem } from 'node:os';
import { basename, dirname, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { MEASURES, rehearse } from './measures.mjs';
import { plot } from './plot.mjs';
import { countBackends, preparePostgres, writeCopyFile } from './postgres.mjs';
import { PICTURE, publish } from './publish.mjs';
import { ROWS } from './rows.mjs';
import { COLUMNS, figureTable, ratioTable, summarize, targetTable } from './report.mjs';
import { CROWD, IDLE_SECONDS, REHEARSAL_SECONDS, REST_SECONDS, SILENT } from './sizes.mjs';
import { openStage, residentMiB } from './stage.mjs';
import { startTargets, version } from './targets.mjs';

const USAGE = `usage: npm run bench -- [--quick] [--rounds N] [--seconds N] [--megabytes N] [--only measure,…]
                        [--json FILE] [--markdown FILE] [--svg FILE] [--publish] [--node-args A]

  --quick          one short round of the main measurements: is everything in order?
  --rounds N       how often every measurement is taken (5)
  --seconds N      length of one pgbench run (3)
  --megabytes N    length of one COPY (200)
  --only M,…       of ${MEASURES.map(({ id }) => id).join(', ')}
  --json FILE      where all samples go (test-results/bench.json)
  --markdown FILE  where the report goes (test-results/bench.md)
  --svg FILE       where the picture goes (test-results/bench.svg)
  --publish        also put the figures into README.md and docs/performance.md; every measure that has a target must be there
  --node-args A    for the Node that runs pgjot, for instance --node-args=--cpu-prof
`;

/** What a quick run has less of. */
const QUICK = { columns: ['direct', 'pgjot', 'pgbouncer'], crowd: 200 };
/** How long sessions may take to be gone that a crowd has left behind, and how many may stay. */
const SETTLE_MS = IDLE_SECONDS * 1_000 + 30_000;
const SETTLED_BACKENDS = 100;

/**
 * @typedef {ReturnType<typeof readOptions>} Options
 * @typedef {import('./rows.mjs').Round} Round
 * @typedef {import('./targets.mjs').Target} Target
 */

const options = readOptions();
const stage = await openStage();
/** @type {NodeJS.Signals | undefined} */
let interruptedBy;
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
  // Ending what runs makes `main` fail at whatever it waits for; it then exits by this signal's number.
  process.once(signal, () => {
    interruptedBy = signal;
    void stage.close();
  });
}
try {
  await main();
} catch (error) {
  if (interruptedBy === undefined) console.error(`bench: ${sentenceOf(error)}`);
  process.exitCode = interruptedBy === undefined ? 1 : 128 + constants.signals[interruptedBy];
} finally {
  await stage.close();
}

async function main() {
  say('starting PostgreSQL and the proxies');
  const postgres = await preparePostgres(stage);
  const { targets, missing } = await startTargets(stage, postgres, options);
  for (const sentence of missing) say(sentence);
  const rest = memoryOf(targets);
  const copyFile = writeCopyFile(stage, options.megabytes);
  const scene = { ...options, stage, copyFile, postgres };
  for (const target of targets) await rehearse(scene, target);
  if (!options.quick) await warmUp(scene, targets);

  const { rounds, failures } = await measure(scene, targets);

  const rows = summarize(rounds);
  const memory = { rest, peak: memoryOf(targets) };
  const machine = describeMachine(postgres);
  write(
    options.json,
    JSON.stringify({ machine, options, failures, rows, memory, rounds }, undefined, 2),
  );
  write(options.svg, plot(rows, machine));
  const picture = relative(dirname(options.markdown), options.svg);
  const report = `# What pgjot costs\n\n${describe(rows, memory, machine, failures, picture)}`;
  write(options.markdown, report);
  if (options.publish && failures.length === 0) {
    write(PICTURE, plot(rows, machine));
    publish({
      file: 'docs/performance.md',
      text: describe(rows, memory, machine, [], basename(PICTURE)),
    });
    publish({ file: 'README.md', text: summary(rows, machine) });
  }
  console.log(`\n${report}`);
  if (failures.length > 0) process.exitCode = 1;
}

/**
 * What is measured often enough to depend on how warm a program is, in all columns alike, for nothing: V8 has compiled what a
 * login needs only after some thousands of them, and a round is too short for that.
 *
 * @param {import('./clients.mjs').Scene} scene
 * @param {readonly Target[]} targets
 */
async function warmUp(scene, targets) {
  for (const { id, applies, sample, warms } of options.measures) {
    if (warms !== true) continue;
    say(`warming up: ${id}`);
    for (const target of targets) {
      if (applies(target)) await sample({ ...scene, seconds: REHEARSAL_SECONDS }, target);
    }
  }
}

/**
 * All rounds, every measure in each, all targets taking turns; each round starts with another target.
 *
 * @param {import('./clients.mjs').Scene} scene
 * @param {readonly Target[]} targets
 */
async function measure(scene, targets) {
  /** @type {Round[]} */
  const rounds = [];
  /** @type {string[]} */
  const failures = [];
  const measures = options.measures.filter(({ tls }) => tls !== true || scene.postgres.certificate);
  if (measures.length < options.measures.length) {
    say('openssl is not installed: rows with TLS are left out');
  }
  for (let number = 0; number < options.rounds; number += 1) {
    /** @type {Round} */
    const round = {};
    rounds.push(round);
    for (const { id, applies, sample, crowded, once } of measures) {
      if (once === true && number > 0) continue;
      const cells = (round[id] ??= {});
      const turn = targets.filter((one) => applies(one) && options.columns.includes(one.column));
      for (const [index] of turn.entries()) {
        const target = turn[(index + number) % turn.length];
        if (target === undefined) continue;
        const what = `round ${number + 1}/${options.rounds}: ${id}, ${target.column}`;
        try {
          cells[target.column] = await sample(scene, target);
          say(`${what}: ${show(cells[target.column])}`);
        } catch (error) {
          if (interruptedBy !== undefined) throw error;
          failures.push(`${what}: ${sentenceOf(error)}`);
          say(`${what}: FAILED: ${sentenceOf(error)}`);
        }
        if (crowded === true) await settle(scene.postgres);
      }
    }
  }
  return { rounds, failures };
}

/**
 * Waits until the sessions that a crowd left in a pool are gone, or the next column would have to carry them.
 *
 * @param {import('./postgres.mjs').Postgres} postgres
 */
async function settle(postgres) {
  const deadline = performance.now() + SETTLE_MS;
  while ((await countBackends(postgres)) > SETTLED_BACKENDS) {
    if (performance.now() > deadline) return say('sessions of a crowd are still there');
    await delay(250);
  }
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      megabytes: { type: 'string' },
      only: { type: 'string' },
      json: { type: 'string', default: 'test-results/bench.json' },
      markdown: { type: 'string', default: 'test-results/bench.md' },
      svg: { type: 'string', default: 'test-results/bench.svg' },
      publish: { type: 'boolean', default: false },
      'node-args': { type: 'string', default: '' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    process.exit(0);
  }
  const only = values.only?.split(',');
  const unknown = only?.filter((wanted) => !MEASURES.some(({ id }) => id === wanted)) ?? [];
  if (unknown.length > 0) refuse(`no such measure: ${unknown.join(', ')}`);
  const number = (/** @type {string | undefined} */ text, /** @type {number} */ usual) => {
    const value = text === undefined ? usual : Number(text);
    if (!Number.isInteger(value) || value < 1) refuse(`not a whole number above 0: ${text}`);
    return value;
  };
  const { quick } = values;
  const judged = new Set(ROWS.filter(({ goals }) => goals).map((row) => row.measure));
  const missing = MEASURES.filter(({ id, onRequest }) => judged.has(id) && onRequest !== true)
    .map(({ id }) => id)
    .filter((id) => only?.includes(id) === false);
  if (values.publish && (quick || missing.length > 0)) {
    refuse(
      `--publish takes every measure that has a target: ${missing.join(', ') || 'not --quick'}`,
    );
  }
  return {
    quick,
    publish: values.publish,
    rounds: number(values.rounds, quick ? 1 : 5),
    // pgbench reports once a second and the first report only starts the clock.
    seconds: Math.max(3, number(values.seconds, 3)),
    megabytes: number(values.megabytes, quick ? 100 : 200),
    columns: quick ? QUICK.columns : Object.keys(COLUMNS),
    crowd: quick ? QUICK.crowd : CROWD,
    silent: SILENT,
    restSeconds: REST_SECONDS,
    measures: MEASURES.filter(({ id, thorough, onRequest }) =>
      only === undefined ? onRequest !== true && !(quick && thorough) : only.includes(id),
    ),
    json: values.json,
    markdown: values.markdown,
    svg: values.svg,
    nodeArgs: values['node-args'].split(' ').filter((word) => word !== ''),
  };
}

/**
 * @param {string} problem
 * @returns {never}
 */
function refuse(problem) {
  process.stderr.write(`bench: ${problem}\n${USAGE}`);
  process.exit(64);
}

/**
 * MiB of every proxy; where a column has two, of the larger.
 *
 * @param {readonly Target[]} targets
 */
function memoryOf(targets) {
  /** @type {Partial<Record<Target['column'], { now: number, peak: number }>>} */
  const memory = {};
  for (const { column, proxy } of targets) {
    if (proxy === undefined || !proxy.running()) continue;
    const { now, peak } = residentMiB(proxy.pid);
    const other = memory[column];
    memory[column] = {
      now: Math.max(now, other?.now ?? 0),
      peak: Math.max(peak, other?.peak ?? 0),
    };
  }
  return memory;
}

/** @param {import('./postgres.mjs').Postgres} postgres */
function describeMachine({ bin, version: postgres }) {
  const model = cpus()[0]?.model.trim() || 'unknown processor';
  const gib = Math.round(totalmem() / 2 ** 30);
  const [pgbouncer, haproxy] = [version.pgbouncer(), version.haproxy()];
  return [
    `${availableParallelism()} cores of ${model}, ${gib} GiB, ${process.platform} ${release()}`,
    `PostgreSQL ${postgres}`,
    `pgbench ${version.pgbench(bin)}`,
    ...(pgbouncer === '' ? [] : [`PgBouncer ${pgbouncer} (session pool)`]),
    ...(haproxy === '' ? [] : [`HAProxy ${haproxy} (TCP mode, 1 thread)`]),
    `Node ${process.versions.node}; ${new Date().toISOString().slice(0, 10)}.`,
  ].join('; ');
}

/**
 * The whole report, fit to be pasted.
 *
 * @param {ReturnType<typeof summarize>} rows
 * @param {{ rest: ReturnType<typeof memoryOf>, peak: ReturnType<typeof memoryOf> }} memory
 * @param {string} machine
 * @param {readonly string[]} failures
 * @param {string} picture Where it is, as seen from the report.
 */
function describe(rows, memory, machine, failures, picture) {
  return [
    machine,
    '',
    `${options.rounds} rounds of ${options.seconds} s and ${options.megabytes} MB, the columns taking turns within each: ` +
      'medians, and in brackets the lowest and the highest round. Client, proxy and PostgreSQL share the cores and whatever ' +
      'else the machine does, so absolute figures wander by ±20 % from run to run: compare only ratios within one run. ' +
      'What each row means, and what is fair about it, is in `bench/README.md`. ' +
      `It took ${Math.ceil(performance.now() / 60_000)} minutes.`,
    '',
    ...failures.flatMap((failure) => [`**FAILED**: ${failure}`, '']),
    '## Targets',
    '',
    targetTable(rows),
    '',
    `![pgjot compared with the others](${picture})`,
    '',
    '## pgjot divided by each other column',
    '',
    'The median of the ratios within a round.',
    '',
    ratioTable(rows),
    '',
    '## Figures',
    '',
    figureTable(rows, memory),
    '',
  ].join('\n');
}

/**
 * What README.md says of it all.
 *
 * @param {ReturnType<typeof summarize>} rows
 * @param {string} machine
 */
function summary(rows, machine) {
  return [
    targetTable(rows),
    '',
    '![pgjot compared with the others](docs/performance.svg)',
    '',
    `${machine} ${options.rounds} rounds, the columns taking turns within each: medians, and the lowest and the highest round.`,
  ].join('\n');
}

/**
 * @param {string} file
 * @param {string} text
 */
function write(file, text) {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text.endsWith('\n') ? text : `${text}\n`);
  say(`written: ${file}`);
}

/** @param {Record<string, number> | undefined} sample */
function show(sample) {
  return Object.entries(sample ?? {})
    .filter(([, value]) => Number.isFinite(value))
    .map(([name, value]) => `${name} ${value.toFixed(1)}`)
    .join(', ');
}

/** @param {unknown} error */
function sentenceOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/** @param {string} sentence */
function say(sentence) {
  process.stderr.write(`${sentence}\n`);
}
