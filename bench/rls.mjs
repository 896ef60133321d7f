/**
 * `npm run bench:rls`: what a policy costs a statement, by where it learns who asks, and what a lookup costs a login.
 *
 * The statements run in a loop on the server, in a session through pgjot, so no network is in the figures; on Linux they are
 * the CPU time of the backend. All policies take turns within each round: differences within a round are worth reading.
 * `pg_session_jwt` joins in where $PGJOT_POSTGRES_BIN names a server that has the extension.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, release } from 'node:os';
import { delimiter } from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { openSite, SUBJECT } from './rls-site.mjs';
import { number, range, spread, table } from './report.mjs';
import { openStage } from './stage.mjs';
import { POLICIES, ROWS } from './rls-policies.mjs';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '25' },
    statements: { type: 'string', default: '1000' },
    logins: { type: 'string', default: '10' },
    json: { type: 'string' },
  },
});
const rounds = Number(values.rounds);
const statements = Number(values.statements);
const logins = Number(values.logins);
// Of what takes a second and more.
const SLOW_ROUNDS = 5;
/** What `(select auth.user_id())` may add to a statement, in µs. */
const GOAL_US = 30;
/** What a login can cost: doors of the site, and their names in the table. */
const DOORS = {
  plain: 'without a lookup',
  remembered: 'with one that is remembered',
  asked: 'with one that asks the database',
};

/**
 * @typedef {import('./rls-policies.mjs').Policy} Policy
 * @typedef {{ prepared: number, parsed: number, scan: number }} Sample µs, µs and ms for one statement.
 */

const stage = await openStage();
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
  process.once(signal, () => void stage.close());
}
try {
  await main();
} finally {
  await stage.close();
}

async function main() {
  say('starting PostgreSQL and pgjot');
  const folders = (process.env['PGJOT_POSTGRES_BIN'] ?? '').split(delimiter);
  const site = await openSite(stage, folders[0] === '' ? undefined : folders[0]);
  const policies = POLICIES.filter(({ extension }) => extension !== true || site.hasExtension);
  if (!site.hasExtension) say('this PostgreSQL has no pg_session_jwt: its row is left out');
  const sessions = {
    portable: { index: await session(site, 'asked'), scan: await session(site, 'asked', true) },
    extension: site.hasExtension
      ? { index: await session(site, 'extension'), scan: await session(site, 'extension', true) }
      : undefined,
  };
  const of = (/** @type {Policy} */ { extension }) =>
    extension === true && sessions.extension !== undefined ? sessions.extension : sessions.portable;
  for (const policy of policies) await explainOnce(policy, of(policy));

  /** @type {Record<string, Sample[]>} */
  const samples = {};
  /** @type {Record<string, number[]>} */
  const loginTimes = {};
  for (let round = 0; round < rounds; round += 1) {
    for (const [index] of policies.entries()) {
      const policy = policies[(index + round) % policies.length];
      if (policy === undefined) continue;
      (samples[policy.id] ??= []).push(await sample(policy, of(policy), round));
    }
    for (const [door, ms] of Object.entries(await timeLogins(site))) {
      (loginTimes[door] ??= []).push(ms);
    }
    say(`round ${round + 1} of ${rounds}`);
  }
  report(policies, samples, loginTimes, site.version);
}

/**
 * A session of the one user, through pgjot; `scan` forbids it the indexes.
 *
 * @param {import('./rls-site.mjs').Site} site
 * @param {string} database
 * @param {boolean} [scan]
 */
async function session(site, database, scan = false) {
  const client = new pg.Client(site.as(database));
  await client.connect();
  await stage.defer(() => client.end());
  await client.query(`set app.tenant_id = '${site.tenant}'`);
  if (scan) {
    await client.query(
      'set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off',
    );
  }
  const { rows } = await client.query('select pg_backend_pid() as pid');
  return { client, pid: Number(rows[0]?.pid) };
}

/** @typedef {Awaited<ReturnType<typeof session>>} Session */

/**
 * Milliseconds that the backend has computed for a query; where the system does not say, that the query took.
 *
 * @param {Session} session
 * @param {string} query
 */
async function timedQuery({ client, pid }, query) {
  if (process.platform !== 'linux') return timed(() => client.query(query));
  const before = computedMs(pid);
  await client.query(query);
  return computedMs(pid) - before;
}

/** @param {number} pid */
function computedMs(pid) {
  return Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ', 1)[0]) / 1e6;
}

/**
 * Every policy must have the plan that its row of the table stands for. (That it lets ten rows through, its functions see to.)
 *
 * @param {Policy} policy
 * @param {{ index: Session, scan: Session }} sessions
 */
async function explainOnce({ id, query, indexless }, sessions) {
  const plan = async (/** @type {Session} */ { client }) => {
    const { rows } = await client.query({ text: `explain (costs off) ${query}`, rowMode: 'array' });
    return rows.map(([line]) => String(line)).join('\n');
  };
  const [byIndex, byScan] = [await plan(sessions.index), await plan(sessions.scan)];
  if (/Index Scan (on|using) (rows_\w+_(tenant|user)_id_idx)/.test(byIndex) !== !indexless) {
    throw new Error(`${id} has another plan than it should:\n${byIndex}`);
  }
  if (!byScan.includes('Seq Scan on rows_')) {
    throw new Error(`${id} does not look at every row:\n${byScan}`);
  }
}

/**
 * @param {Policy} policy
 * @param {{ index: Session, scan: Session }} sessions
 * @param {number} round
 * @returns {Promise<Sample>}
 */
async function sample({ id, slow, indexless }, { index, scan }, round) {
  const call = async (
    /** @type {Session} */ where,
    /** @type {string} */ name,
    /** @type {number} */ times,
  ) => (await timedQuery(where, `select ${name}_${id}(${times})`)) / times;
  const times = indexless === true ? Math.ceil(statements / 100) : statements;
  const skipped = slow === true && round >= SLOW_ROUNDS;
  return {
    prepared: (await call(index, 'prepared', times)) * 1_000,
    parsed: (await call(index, 'parsed', times)) * 1_000,
    scan: skipped ? NaN : await call(scan, 'prepared', slow === true ? 1 : 10),
  };
}

/**
 * Milliseconds of a login, its first statement and its end, through each door: medians of some, which take turns.
 *
 * @param {import('./rls-site.mjs').Site} site
 */
async function timeLogins(site) {
  /** @type {Record<string, number[]>} */
  const times = {};
  for (let login = 0; login < logins; login += 1) {
    for (const door of Object.keys(DOORS)) {
      const took = await timed(async () => {
        const client = new pg.Client(site.as(door));
        await client.connect();
        await client.query('select 1');
        await client.end();
      });
      (times[door] ??= []).push(took);
    }
  }
  return Object.fromEntries(
    Object.entries(times).map(([door, all]) => [door, spread(all)?.median ?? NaN]),
  );
}

/** @param {() => Promise<unknown>} work */
async function timed(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/**
 * @param {readonly Policy[]} policies
 * @param {Record<string, Sample[]>} samples
 * @param {Record<string, number[]>} loginTimes
 * @param {string} version
 */
function report(policies, samples, loginTimes, version) {
  const base = samples['none'] ?? [];
  const added = (/** @type {string} */ id, /** @type {keyof Sample} */ name) =>
    (samples[id] ?? []).map((one, round) => one[name] - (base[round]?.[name] ?? NaN));
  const shown = (/** @type {Policy} */ { id }, /** @type {keyof Sample} */ name) =>
    id === 'none'
      ? range(spread(base.map((one) => one[name])), number)
      : range(
          spread(added(id, name)),
          (value) => (value < 0 ? '−' : '+') + number(Math.abs(value)),
        );
  const lines = table(
    [
      'the policy asks',
      'index, prepared, µs',
      'index, parsed anew, µs',
      `all of ${ROWS.toLocaleString('en')} rows, ms`,
    ],
    policies.map((policy) => [
      policy.title,
      shown(policy, 'prepared'),
      shown(policy, 'parsed'),
      shown(policy, 'scan'),
    ]),
  );
  const doors = table(
    ['a login', 'ms'],
    Object.entries(DOORS).map(([door, title]) => [
      title,
      range(spread(loginTimes[door] ?? []), number),
    ]),
  );
  const goal = spread(added('user_id', 'prepared'))?.median ?? NaN;
  if (values.json !== undefined) {
    writeFileSync(values.json, JSON.stringify({ addedUs: goal, samples, loginTimes }));
  }
  console.log(`\n${lines.join('\n')}\n\n${doors.join('\n')}\n`);
  console.log(
    `auth.user_id() adds ${number(goal)} µs to a statement, of at most ${GOAL_US}: ${goal <= GOAL_US ? 'met' : '**behind**'}\n`,
  );
  console.log(
    `Median (lowest–highest) of ${rounds} rounds, ${SLOW_ROUNDS} of what takes a second; of the backend’s CPU time: a statement without a policy as it is, the others by what they add to that of` +
      ` the same round. PostgreSQL ${version}, ${availableParallelism()} cores of ${cpus()[0]?.model.trim() || 'an unknown processor'},` +
      ` ${process.platform} ${release()}, Node ${process.versions.node}, ${new Date().toISOString().slice(0, 10)}; as ${SUBJECT}.`,
  );
}

/** @param {string} sentence */
function say(sentence) {
  process.stderr.write(`${sentence}\n`);
}
