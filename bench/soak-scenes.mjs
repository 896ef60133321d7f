/**
 * What the clients of the soak do, one visit at a time: every way to use a session, and every way to leave it.
 *
 * Each scene knows what must come back, and throws when anything else does: another's row, a wrong SQLSTATE, what an
 * earlier user left behind, silence.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { serialize } from 'pg-protocol';
import { NOTES_EACH } from './soak-site.mjs';
import { Ended, WireClient } from './wire.mjs';

/**
 * @typedef {object} Visit
 * @property {import('./soak-site.mjs').Site} site
 * @property {string} subject
 * @property {string} role
 * @property {(limit: number) => number} random A whole number below this.
 * @property {(seconds?: number) => Promise<string>} token By default the one that this user has shown before.
 * @property {(token?: string) => Promise<WireClient>} login
 *
 * @typedef {(visit: Visit) => Promise<void>} Scene
 */

const NOTES = 'select owner, body from notes';
const WIDE = "select repeat('x', 1000) from generate_series(1, 4000)";

/** @type {Record<string, Scene>} */
export const SCENES = {
  async simple({ login, subject, random }) {
    const client = await login();
    for (let left = random(10); left >= 0; left -= 1) {
      assertOwn(await client.ask(NOTES), subject);
    }
    await client.end();
  },

  async extended({ login, subject }) {
    const client = await login();
    const one = [
      serialize.parse({ text: `${NOTES} where body <> $1` }),
      serialize.bind({ values: ['nothing'] }),
      serialize.execute(),
    ];
    client.send(...one, serialize.sync());
    assertOwn(await client.answer(), subject);
    // As libpq's pipeline mode does: several, and one Sync.
    client.send(...one, ...one, serialize.sync());
    assertOwn(await client.answer(), subject, 2);
    await client.end();
  },

  async prepared({ login, subject, random }) {
    const client = await login();
    // Never closed: to the next user of this backend the name must be free.
    client.send(serialize.parse({ name: 'kept', text: NOTES }), serialize.sync());
    assertGood(await client.answer());
    for (let left = random(20); left >= 0; left -= 1) {
      client.send(serialize.bind({ statement: 'kept' }), serialize.execute(), serialize.sync());
      assertOwn(await client.answer(), subject);
    }
    await client.end();
  },

  async leftovers({ login, subject }) {
    const client = await login();
    const { rows } = await client.ask(
      "select coalesce(current_setting('soak.mine', true), ''), to_regclass('pg_temp.mine'), auth.user_id(), current_setting('work_mem')",
    );
    const [[setting, table, user, memory] = []] = rows;
    assert(
      setting === '' && table === null && memory !== '1MB',
      `somebody left ${setting}, ${table}, ${memory}`,
    );
    assert(user === subject, `auth.user_id() is "${user}"`);
    assertGood(
      await client.ask(
        `set soak.mine = '${subject}'; set work_mem = '1MB'; create temp table mine (x int)`,
      ),
    );
    await client.end();
  },

  async copyOut({ login, subject }) {
    const client = await login();
    client.send(serialize.query(`copy (${NOTES}) to stdout`));
    let count = 0;
    for (;;) {
      const { type, body } = await client.next();
      if (type === 'd') {
        const [owner] = body.toString('utf8').split('\t');
        assert(owner === subject, `COPY brought a row of "${owner}"`);
        count += 1;
      }
      assert(type !== 'E', 'COPY out failed');
      if (type === 'Z') break;
    }
    assert(count >= NOTES_EACH, `COPY brought ${count} rows`);
    await client.end();
  },

  async copyIn({ login, random }) {
    const client = await login();
    const rows = 1 + random(5_000);
    assertGood(await client.ask('create temp table incoming (x text)'));
    client.send(serialize.query('copy incoming from stdin'));
    const line = Buffer.from(`${'y'.repeat(99)}\n`);
    for (let row = 0; row < rows; row += 1) client.send(serialize.copyData(line));
    if (random(4) === 0) return client.destroy();
    client.send(serialize.copyDone());
    const { tag } = await client.answer();
    assert(tag === `COPY ${rows}`, `COPY in of ${rows} rows said ${tag}`);
    await client.end();
  },

  async errors({ login, subject }) {
    const client = await login();
    assertFailed(await client.ask('select 1/0'), '22012');
    assertFailed(await client.ask('selec'), '42601');
    assertFailed(
      await client.ask("insert into notes (owner, body) values ('somebody else', 'x')"),
      '42501',
    );
    assertFailed(await client.ask('select * from pgjot.session'), '42501');
    await client.ask('begin');
    const { status } = await client.ask('select 1/0');
    assert(status === 'E', `a failed transaction says ${status}`);
    assertFailed(await client.ask(NOTES), '25P02');
    await client.ask('rollback');
    assertOwn(await client.ask(NOTES), subject);
    await client.end();
  },

  /** What is not committed must be gone; the end of the soak looks for it. */
  async open({ login, random }) {
    const client = await login();
    await client.ask('begin');
    assertGood(await client.ask("insert into notes (body) values ('open')"));
    await leave(client, random);
  },

  async cancelled({ login, site, subject, random }) {
    const client = await login();
    client.send(serialize.query('select pg_sleep(20)'));
    await delay(20 + random(80));
    await client.cancel(site);
    assertFailed(await client.answer(), '57014');
    assertOwn(await client.ask(NOTES), subject);
    await client.end();
  },

  async halfClosed({ login, subject }) {
    const client = await login();
    client.socket.end(serialize.query(NOTES));
    assertOwn(await client.answer(), subject);
    await client.ended();
    client.destroy();
  },

  async gone({ login, random }) {
    const client = await login();
    client.send(serialize.query(random(2) === 0 ? WIDE : 'select pg_sleep(20)'));
    await delay(random(50));
    await leave(client, random);
  },

  /** Disconnects inside a frame, so that a reset could be taken for the rest of it. */
  async cut({ login, random }) {
    const client = await login();
    const frame = serialize.query(`select '${'z'.repeat(1_000)}'`);
    client.send(frame.subarray(0, 1 + random(frame.length - 1)));
    await leave(client, random);
  },

  async slow({ login, random }) {
    const client = await login();
    client.send(serialize.query(WIDE));
    client.socket.pause();
    await delay(200 + random(1_500));
    client.socket.resume();
    const { rows } = await client.answer();
    assert(rows.length === 4_000, `a slow reader got ${rows.length} rows`);
    await client.end();
  },

  async expiry({ login, token, subject }) {
    const client = await login(await token(2));
    await assertEnds(client, '57P01', async () => assertOwn(await client.ask(NOTES), subject));
  },

  async renewal({ login, token, subject }) {
    const client = await login(await token(3));
    await delay(1_000);
    assertGood(await client.ask(`set pgjot.token = '${await token(60)}'`));
    await delay(3_000);
    assertOwn(await client.ask(NOTES), subject);
    await client.end();
  },

  async revoked({ login, token, site, subject }) {
    const shown = await token(60);
    const client = await login(shown);
    const { jti } = JSON.parse(
      Buffer.from(shown.split('.')[1] ?? '', 'base64url').toString('utf8'),
    );
    await site.revoke(JSON.stringify({ jti }));
    await assertEnds(client, '57P01', async () => assertOwn(await client.ask(NOTES), subject));
    await assertRefused(login(shown), '28P01');
  },

  async killed({ login, site, subject }) {
    const client = await login();
    const { rows } = await client.ask('select pg_backend_pid()');
    await site.asAdmin('select pg_terminate_backend($1)', [Number(rows[0]?.[0])]);
    await assertEnds(client, '57P01', async () => assertOwn(await client.ask(NOTES), subject));
  },

  async stranger({ login, site, random }) {
    if (random(2) === 0) return assertRefused(login('no.token.atall'), '28P01');
    const client = await WireClient.open(site);
    if (random(2) === 0) client.send(Buffer.from([0, 0, 0, 50, 0, 3]));
    await leave(client, random);
  },
};

/** How often each is played, where that is not once in a round. */
export const WEIGHTS = new Map([
  ['simple', 6],
  ['extended', 4],
  ['prepared', 4],
  ['leftovers', 4],
  ['copyOut', 2],
  ['copyIn', 2],
]);

/**
 * Leaves in one of the ways in which clients leave.
 *
 * @param {WireClient} client
 * @param {(limit: number) => number} random
 */
async function leave(client, random) {
  const way = random(4);
  if (way === 0) return client.end();
  if (way === 1) return client.reset();
  if (way === 2) return client.destroy();
  client.socket.end();
  await delay(random(100));
  client.destroy();
}

/**
 * @param {import('./wire.mjs').Answer} answer
 * @param {string} subject
 * @param {number} [times]
 */
function assertOwn(answer, subject, times = 1) {
  assertGood(answer);
  const others = answer.rows.filter(([owner]) => owner !== subject);
  assert(others.length === 0, `${subject} saw ${others.length} rows of others`);
  assert(answer.rows.length === NOTES_EACH * times, `${subject} saw ${answer.rows.length} rows`);
}

/** @param {import('./wire.mjs').Answer} answer */
function assertGood({ sqlstate, message }) {
  assert(sqlstate === undefined, `unexpected ${sqlstate}: ${message}`);
}

/**
 * @param {import('./wire.mjs').Answer} answer
 * @param {string} wanted
 */
function assertFailed({ sqlstate, message }, wanted) {
  assert(sqlstate === wanted, `${sqlstate} ${message}, where ${wanted} is right`);
}

/**
 * The session must end with this SQLSTATE, soon, and be right until then.
 *
 * @param {WireClient} client
 * @param {string} wanted
 * @param {() => Promise<void>} work
 */
async function assertEnds(client, wanted, work) {
  const deadline = performance.now() + 10_000;
  try {
    while (performance.now() < deadline) {
      await work();
      await delay(100);
    }
  } catch (error) {
    if (error instanceof Ended && error.sqlstate === wanted) return;
    throw error;
  } finally {
    client.destroy();
  }
  throw new Error(`the session did not end with ${wanted}`);
}

/**
 * @param {Promise<WireClient>} login
 * @param {string} wanted
 */
async function assertRefused(login, wanted) {
  try {
    (await login).destroy();
  } catch (error) {
    if (error instanceof Ended && error.sqlstate === wanted) return;
    throw error;
  }
  throw new Error(`a login that must be refused was not`);
}

/**
 * @param {boolean} condition
 * @param {string} otherwise
 */
function assert(condition, otherwise) {
  if (!condition) throw new Error(otherwise);
}
