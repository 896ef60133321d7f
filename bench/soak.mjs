/**
 * `npm run soak`: an hour's mixed load on a real proxy in ten minutes, and whether everything is back at its start then.
 *
 * Many users through several roles, doing all that clients do and all that they should not, while keys rotate, the
 * configuration is read again, PostgreSQL restarts. Any wrong result fails it, and so does anything that stays: memory, files,
 * timers, backends, rows, leases. Exit status 1 then.
 */
import { parseArgs } from 'node:util';
import { setTimeout as delay } from 'node:timers/promises';
import { number, table } from './report.mjs';
import { SCENES, WEIGHTS } from './soak-scenes.mjs';
import { openSite, ROLES, USERS } from './soak-site.mjs';
import { openStage } from './stage.mjs';
import { Ended, WireClient } from './wire.mjs';

const CLIENTS = 16;
/** How much more the proxy may hold at the end, in MiB: resident, beside the highest of the first fifth; and of live objects. */
const ROOM = { rss: 32, held: 12 };
/** How long it may take until everything is back: idle sessions, a sweep, slots that were put aside for a minute. */
const REST_MS = 100_000;
/** For how long after an upheaval begins connections may break or be refused, in ms. */
const UPHEAVAL_MS = 15_000;
const TOKEN_SECONDS = 60;
const MOST_TOLD = 20;
/** What must be no more at the end than at the start. */
const COUNTS = /** @type {const} */ (['files', 'backends', 'rows', 'leases']);

/**
 * @typedef {Record<typeof COUNTS[number], number>} Counts
 * @typedef {Counts & { timers: number, sockets: number, rssMiB: number, heldMiB: number }} Rest
 */

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string' } },
});
const minutes = Number(values.minutes);
const seed = Number(values.seed ?? Date.now() % 2 ** 31);
if (!(minutes > 0) || !Number.isInteger(seed)) {
  process.stderr.write('usage: npm run soak -- [--minutes N] [--seed N]\n');
  process.exit(64);
}
const durationMs = minutes * 60_000;
const random = randomFrom(seed);

const stage = await openStage();
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
  process.once(signal, () => void stage.close());
}
try {
  await main();
} catch (error) {
  console.error(`soak: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  await stage.close();
}

async function main() {
  say(`${minutes} minutes, ${CLIENTS} clients, seed ${seed}`);
  const site = await openSite(stage);
  const load = createLoad(site);
  for (const role of Object.keys(ROLES)) await (await load.enter('user-1', role)).end();
  const start = await atRest(site, undefined);
  say(`at rest before the load: ${JSON.stringify(start)}`);

  const begun = performance.now();
  const share = () => (performance.now() - begun) / durationMs;
  const clients = Array.from({ length: CLIENTS }, () => load.run(() => share() < 1));
  const upheavals = stir(site, load, share);
  /** @type {Awaited<ReturnType<typeof sample>>[]} */
  const timeline = [];
  while (share() < 1) {
    await delay(Math.min(durationMs / 30, 20_000));
    timeline.push(await sample(site, load, share() * minutes));
  }
  await Promise.all([...clients, upheavals]);
  const end = await atRest(site, start);

  const problems = [...load.problems, ...judge(start, end, timeline), ...(await search(site))];
  const columns = ['minute', 'visits', 'rssMiB', 'files', 'backends', 'rows', 'leases'];
  const lines = timeline.map((one) => columns.map((name) => number(Number(one[name]))));
  console.log(`\n${table(columns, lines).join('\n')}\n`);
  console.log(table(['at rest', 'before', 'after'], compare(start, end)).join('\n'));
  console.log(`\n${load.visits} visits, by scene: ${load.told()}.`);
  for (const problem of problems.slice(0, MOST_TOLD)) console.log(`WRONG: ${problem}`);
  if (problems.length > MOST_TOLD) console.log(`… and ${problems.length - MOST_TOLD} more`);
  console.log(
    problems.length === 0 ? 'Everything is back at its start.' : `Failed (seed ${seed}).`,
  );
  if (problems.length > 0) process.exitCode = 1;
}

/**
 * The clients: each plays one scene after another as one user after another.
 *
 * @param {import('./soak-site.mjs').Site} site
 */
function createLoad(site) {
  const deck = Object.keys(SCENES).flatMap((name) =>
    Array.from({ length: WEIGHTS.get(name) ?? 1 }, () => name),
  );
  /** @type {Map<string, { token: Promise<string>, until: number }>} */
  const tokens = new Map();
  /** @type {Map<string, number>} */
  const played = new Map();
  /** @type {string[]} */
  const problems = [];
  let excusedUntil = -Infinity;

  const token = (/** @type {string} */ subject, /** @type {number | undefined} */ seconds) => {
    if (seconds !== undefined) return site.token(subject, seconds);
    const known = tokens.get(subject);
    if (known !== undefined && known.until > performance.now()) return known.token;
    const fresh = site.token(subject, TOKEN_SECONDS);
    tokens.set(subject, { token: fresh, until: performance.now() + TOKEN_SECONDS * 500 });
    return fresh;
  };
  const enter = async (
    /** @type {string} */ subject,
    /** @type {string} */ role,
    /** @type {string} */ shown = '',
  ) =>
    WireClient.login({
      port: site.port,
      user: role,
      database: site.database,
      password: shown === '' ? await token(subject, undefined) : shown,
    });

  const visit = async () => {
    const name = deck[random(deck.length)] ?? 'simple';
    const subject = `user-${1 + random(USERS)}`;
    const role = Object.keys(ROLES)[random(3) === 0 ? 1 : 0] ?? '';
    /** @type {WireClient[]} */
    const opened = [];
    const began = performance.now();
    played.set(name, (played.get(name) ?? 0) + 1);
    try {
      await SCENES[name]?.({
        site,
        subject,
        role,
        random,
        token: (seconds) => token(subject, seconds),
        async login(shown) {
          const client = await enter(subject, role, shown);
          opened.push(client);
          return client;
        },
      });
    } catch (error) {
      // While the server restarts connections break; a wrong row is never excused.
      const broken =
        error instanceof Ended || /ECONN|terminat|shut|start|said nothing/.test(String(error));
      if (broken && began < excusedUntil) return;
      const what = error instanceof Ended ? `${error.sqlstate} ${error.message}` : String(error);
      problems.push(`${name} as ${subject}, ${role}: ${what}`);
      say(`WRONG: ${problems.at(-1)}`);
    } finally {
      for (const client of opened) client.destroy();
    }
  };

  return {
    problems,
    enter,
    get visits() {
      return [...played.values()].reduce((sum, one) => sum + one, 0);
    },
    told: () => [...played].map(([name, count]) => `${name} ${count}`).join(', '),
    /** Tokens that were signed with a key that is no more are no good. */
    forgetTokens: () => tokens.clear(),
    /** Connections may break from now on for a while, those that are there included. */
    excuse() {
      excusedUntil = performance.now() + UPHEAVAL_MS;
    },
    /** @param {() => boolean} more */
    async run(more) {
      while (more()) await visit();
    },
  };
}

/**
 * What happens to everybody at once, at fixed parts of the whole.
 *
 * @param {import('./soak-site.mjs').Site} site
 * @param {ReturnType<typeof createLoad>} load
 * @param {() => number} share
 */
async function stir(site, load, share) {
  const accepted = async (/** @type {string} */ shown) => {
    try {
      await (await load.enter('user-1', 'authenticated', shown)).end();
      return true;
    } catch (error) {
      if (error instanceof Ended && error.sqlstate === '28P01') return false;
      throw error;
    }
  };
  /** @type {[number, string, () => void | Promise<void>][]} */
  const plan = [
    ...[0.1, 0.25, 0.4, 0.7, 0.85].map(
      (when, index) =>
        /** @type {[number, string, () => void]} */ ([
          when,
          index === 3 ? 'a wrong configuration' : 'a reload',
          () => site.reload(index, index !== 3),
        ]),
    ),
    [0.33, 'new keys', () => site.keys.rotate(accepted, load.forgetTokens)],
    [
      0.55,
      'PostgreSQL restarts',
      async () => {
        load.excuse();
        await site.restart();
        load.excuse();
      },
    ],
    [0.78, 'new keys', () => site.keys.rotate(accepted, load.forgetTokens)],
  ];
  for (const [when, what, happens] of plan.toSorted(([a], [b]) => a - b)) {
    while (share() < when) await delay(100);
    say(what);
    try {
      await happens();
    } catch (error) {
      load.problems.push(`${what}: ${String(error)}`);
    }
  }
}

/**
 * @param {import('./soak-site.mjs').Site} site
 * @param {ReturnType<typeof createLoad>} load
 * @param {number} minute
 * @returns {Promise<Record<string, number>>}
 */
async function sample(site, load, minute) {
  // PostgreSQL may be restarting.
  const look = await site.look().catch(() => ({}));
  const one = { minute, visits: load.visits, ...look };
  say(JSON.stringify(one));
  return one;
}

/**
 * What is in use once nothing moves any more; where a start is given, once no more is in use than then, or time is up.
 *
 * @param {import('./soak-site.mjs').Site} site
 * @param {Rest | undefined} start
 * @returns {Promise<Rest>}
 */
async function atRest(site, start) {
  const deadline = performance.now() + REST_MS;
  let before = '';
  let calm = 0;
  for (;;) {
    const { rssMiB, ...counts } = await site.look();
    const now = JSON.stringify(counts);
    calm = now === before ? calm + 1 : 0;
    before = now;
    const over = performance.now() > deadline;
    if (calm >= 8 && (start === undefined || over || isBack(start, counts))) {
      const { open, heldMiB } = await site.probe();
      return { ...counts, timers: open['Timeout'] ?? 0, sockets: sockets(open), rssMiB, heldMiB };
    }
    if (over) throw new Error(`it does not come to rest: ${now}`);
    await delay(1_000);
  }
}

/**
 * @param {Rest} start
 * @param {Counts} now
 */
function isBack(start, now) {
  return COUNTS.every((name) => now[name] <= start[name]);
}

/** @param {Record<string, number>} open */
function sockets(open) {
  return (open['TCPSocketWrap'] ?? 0) + (open['TLSWrap'] ?? 0);
}

/**
 * @param {Rest} start
 * @param {Rest} end
 */
function compare(start, end) {
  const names = /** @type {(keyof Rest)[]} */ (Object.keys(start));
  return names.map((name) => [name, number(start[name]), number(end[name])]);
}

/**
 * @param {Rest} start
 * @param {Rest} end
 * @param {readonly Record<string, number>[]} timeline
 */
function judge(start, end, timeline) {
  const problems = [...COUNTS, /** @type {const} */ ('timers'), /** @type {const} */ ('sockets')]
    .filter((name) => end[name] > start[name])
    .map((name) => `${end[name]} ${name} at the end, ${start[name]} at the start`);
  const early = timeline.filter(({ minute = 0 }) => minute <= minutes / 5);
  const warm = Math.max(start.rssMiB, ...early.map(({ rssMiB = 0 }) => rssMiB));
  if (end.rssMiB > warm + ROOM.rss) {
    problems.push(`${number(end.rssMiB)} MiB resident at the end, ${number(warm)} MiB when warm`);
  }
  if (end.heldMiB > start.heldMiB + ROOM.held) {
    problems.push(
      `${number(end.heldMiB)} MiB held at the end, ${number(start.heldMiB)} MiB before`,
    );
  }
  return problems;
}

/**
 * What must not be there: what nobody committed, a bug of ours in the log, a token in it.
 *
 * @param {import('./soak-site.mjs').Site} site
 */
async function search(site) {
  const [row] = await site.asAdmin("select count(*)::int as open from notes where body = 'open'");
  const lines = site.log();
  const reasons = lines.filter((line) => line.includes('"reason":"internal"'));
  const tokens = lines.filter((line) => /eyJ[\w-]{20,}/.test(line));
  return [
    ...(row['open'] > 0 ? [`${row['open']} rows that nobody committed`] : []),
    ...(tokens.length > 0 ? [`${tokens.length} lines of the log hold a token`] : []),
    ...reasons.map((line) => `a bug: ${line.slice(0, 500)}`),
    ...(site.proxy.running() ? [] : ['the proxy has ended']),
  ];
}

/**
 * Whole numbers below a limit, the same for the same seed (mulberry32); which client draws which depends on time.
 *
 * @param {number} from
 */
function randomFrom(from) {
  let state = from;
  return (/** @type {number} */ limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit) | 0;
  };
}

/** @param {string} sentence */
function say(sentence) {
  process.stderr.write(`${sentence}\n`);
}
