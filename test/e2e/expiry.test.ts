/**
 * What a client hears, to the byte, whose token expires in the middle of something, and what PostgreSQL makes of what it was at.
 *
 * Every moment meets every policy. All wait for their tokens together, on one stack for each policy. What drivers and psql
 * make of these bytes is in `test/clients/expiry.test.ts`.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startStack, until, type Stack } from '../support/stack.ts';
import { cstring, frame, int32, query } from './parity/bytes.ts';
import { RawClient } from './raw-client.ts';

vi.setConfig({ maxConcurrency: 20 });

const LIFETIME_MS = 2_000;
// The end may come so much later, on a machine that has other things to do.
const LATE_MS = 4_000;
const ROW_MS = 100;
// Streams for as long, in rows: over when the token has expired, or longer than anything here.
const ROWS = { past: 26, endless: 1_000 };
// Less than the 8 KiB of PostgreSQL's buffer, which thus goes out in the middle of a row.
const WIDE_BYTES = 6_000;

const FATAL = frame(
  'E',
  Buffer.concat([
    cstring('SFATAL'),
    cstring('VFATAL'),
    cstring('C57P01'),
    cstring('Mterminating connection because the token expired'),
    cstring('HReconnect with a fresh token.'),
    Buffer.alloc(1),
  ]),
);

const int16 = (value: number) => Buffer.of(value >> 8, value & 0xff);
const parse = (sql: string) => frame('P', Buffer.concat([cstring(''), cstring(sql), int16(0)]));
const BIND = frame('B', Buffer.concat([cstring(''), cstring(''), ...Array(3).fill(int16(0))]));
const EXECUTE = frame('E', Buffer.concat([cstring(''), int32(0)]));
const FLUSH = frame('H');
const SYNC = frame('S');
const copyData = (text: string) => frame('d', text);
const COPY_DONE = frame('c');
const insert = (task: string) => `insert into inbox values ('${task}')`;

/** A frame of one column of text, and of one of type void, which is empty. */
function wideRow(): Buffer {
  const text = Buffer.alloc(WIDE_BYTES, 'x');
  return frame('D', Buffer.concat([int16(2), int32(text.length), text, int32(0)]));
}

/** Where a client is when its token expires. */
interface Moment {
  /** Gets there, writing `task` in between if it writes at all; answers how to go on to the end. */
  begin(client: RawClient, task: string, rows: number): Promise<() => Promise<unknown>>;
  /** The types of the frames that it has heard there, and perhaps more of them. */
  readonly cut: RegExp;
  /** The types of the frames when it has gone on to the end. */
  readonly whole: RegExp;
  /** Whether `task` is there in the end. */
  readonly writes: boolean;
  /** What each DataRow is, where the cut is in the middle of one, in which there is no room for a last word. */
  readonly row?: Buffer;
}

const MOMENTS: Readonly<Record<string, Moment>> = {
  'in a transaction': {
    async begin(client, task) {
      await client.ask('begin');
      await client.ask(insert(task));
      return () => client.ask('commit');
    },
    cut: /^CZCZ$/,
    whole: /^CZCZCZ$/,
    writes: true,
  },
  'in a transaction that has failed': {
    async begin(client, task) {
      await client.ask('begin');
      await client.ask(insert(task));
      await client.ask('syntax error');
      return () => client.ask('commit');
    },
    cut: /^CZCZEZ$/,
    whole: /^CZCZEZCZ$/,
    writes: false,
  },
  'between two messages of a COPY IN': {
    async begin(client, task) {
      client.send(query('copy inbox from stdin'), copyData(`${task}\n`));
      await client.next('G');
      return () => {
        client.send(COPY_DONE);
        return client.next('Z');
      };
    },
    cut: /^G$/,
    whole: /^GCZ$/,
    writes: true,
  },
  'in the middle of a message of a COPY IN': {
    async begin(client, task) {
      const message = copyData(`${task}\n`);
      client.send(query('copy inbox from stdin'), message.subarray(0, 8));
      await client.next('G');
      return () => {
        client.send(message.subarray(8), COPY_DONE);
        return client.next('Z');
      };
    },
    cut: /^G$/,
    whole: /^GCZ$/,
    writes: true,
  },
  'between two messages of a COPY OUT': {
    async begin(client, _, rows) {
      client.send(query(`copy (select drip(i) from generate_series(1, ${rows}) i) to stdout`));
      await client.next('d');
      return () => client.next('Z');
    },
    cut: /^HN(dN)+$/,
    whole: new RegExp(`^H(Nd){${ROWS.past}}cCZ$`),
    writes: false,
  },
  'between two rows of a slow result': {
    async begin(client, _, rows) {
      client.send(query(`select drip(i) from generate_series(1, ${rows}) i`));
      await client.next('D');
      return () => client.next('Z');
    },
    cut: /^TN(DN)+$/,
    whole: new RegExp(`^T(ND){${ROWS.past}}CZ$`),
    writes: false,
  },
  'in the middle of a row of a slow result': {
    async begin(client, _, rows) {
      client.send(
        query(
          `select repeat('x', ${WIDE_BYTES}), pg_sleep(${ROW_MS / 1_000}) from generate_series(1, ${rows})`,
        ),
      );
      await client.next('D');
      return () => client.next('Z');
    },
    cut: /^TD+$/,
    whole: new RegExp(`^TD{${ROWS.past}}CZ$`),
    writes: false,
    row: wideRow(),
  },
  'between Parse and Bind': {
    async begin(client, task) {
      client.send(parse(insert(task)), FLUSH);
      await client.next('1');
      return () => {
        client.send(BIND, EXECUTE, SYNC);
        return client.next('Z');
      };
    },
    cut: /^1$/,
    whole: /^12CZ$/,
    writes: true,
  },
  'between Execute and Sync': {
    async begin(client, task) {
      client.send(parse(insert(task)), BIND, EXECUTE, FLUSH);
      await client.next('C');
      return () => {
        client.send(SYNC);
        return client.next('Z');
      };
    },
    cut: /^12C$/,
    whole: /^12CZ$/,
    writes: true,
  },
};

/** Who has signed in: `expiresAt` in ms since the epoch, `greeting` in frames. */
type Guest = RawClient & {
  readonly sub: string;
  readonly expiresAt: number;
  readonly greeting: number;
};

/** A stack of one policy, with a table that takes COPY, which one under Row-Level Security does not. */
class Scene {
  readonly stack: Stack;
  readonly admin: pg.Pool;
  #logins = 0;

  private constructor(stack: Stack, admin: pg.Pool) {
    this.stack = stack;
    this.admin = admin;
  }

  static async open(sessions: NonNullable<Stack['config']['sessions']>): Promise<Scene> {
    const stack = await startStack({ provider: { clockToleranceMs: 0 }, sessions });
    const admin = new pg.Pool({ ...stack.admin, max: 1 });
    try {
      await stack.change(`
        create table inbox (task text);
        grant insert on inbox to authenticated;
        create function drip(nth int) returns int language plpgsql as $$
        begin
          perform pg_sleep(${ROW_MS / 1_000});
          raise notice 'all that was before this is on its way';
          return nth;
        end $$`);
    } catch (error) {
      await stack.close();
      throw error;
    }
    return new Scene(stack, admin);
  }

  /** Somebody of whom nobody has heard before, with a token of two seconds. */
  async signIn(): Promise<Guest> {
    const sub = `somebody-${++this.#logins}`;
    const expiresAt = Date.now() + LIFETIME_MS;
    const token = await this.stack.token(sub, { exp: expiresAt / 1_000 });
    const client = await RawClient.login(this.stack, token);
    return Object.assign(client, { sub, expiresAt, greeting: client.heard.length });
  }

  /** What the log says of the end of this user's session, once its backend is gone and its work kept or undone. */
  async aftermath(sub: string): Promise<Record<string, unknown>> {
    const login = await this.stack.logged(
      ({ event, subject }) => event === 'login' && subject === sub,
    );
    const end = await this.stack.logged(
      ({ event, subject }) => event === 'session_end' && subject === sub,
    );
    const sql = 'select from pg_stat_activity where pid = $1';
    await until(async () => (await this.admin.query(sql, [login['backendPid']])).rowCount === 0);
    return end;
  }

  async wrote(task: string): Promise<boolean> {
    return (await this.admin.query('select from inbox where task = $1', [task])).rowCount === 1;
  }

  async close(): Promise<void> {
    await this.admin.end();
    await this.stack.close();
  }
}

const typesOf = ({ heard, greeting }: Guest) =>
  heard
    .slice(greeting)
    .map(({ type }) => type)
    .join('');
const bytesOf = ({ type, body }: RawClient['heard'][number]) => frame(type, body);

/** That the last frame is the FATAL one, and nothing behind it; answers the types of those before. */
function lastWords(client: Guest): string {
  const types = typesOf(client);
  expect(types.at(-1)).toBe('E');
  expect(bytesOf(client.heard.at(-1) as RawClient['heard'][number])).toEqual(FATAL);
  expect(client.rest).toHaveLength(0);
  return types.slice(0, -1);
}

/** That it heard rows, each as it must be, and of the last one a part. */
function expectCutRow(client: Guest, row: Buffer): void {
  for (const one of client.heard.filter(({ type }) => type === 'D')) {
    expect(bytesOf(one).equals(row)).toBe(true);
  }
  expect(client.rest.length).toBeGreaterThan(0);
  expect(row.subarray(0, client.rest.length).equals(client.rest)).toBe(true);
}

const TOGETHER = { concurrent: true } as const;
const each = Object.entries(MOMENTS);

describe.each([
  ['terminate', { onTokenExpiry: 'terminate' }, 0],
  ['drain, and the grace is over', { onTokenExpiry: 'drain', graceMs: 1_000 }, 1_000],
] as const)('a token that expires under %s', (_, sessions, graceMs) => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await Scene.open(sessions);
  });
  afterAll(() => scene?.close());

  it.for(each)('%s: the client is cut off, and its work undone', TOGETHER, async ([, moment]) => {
    using client = await scene.signIn();
    await moment.begin(client, client.sub, ROWS.endless);

    await client.end();
    const late = Date.now() - client.expiresAt - graceMs;

    if (moment.row === undefined) {
      expect(lastWords(client)).toMatch(moment.cut);
    } else {
      expect(typesOf(client)).toMatch(moment.cut);
      expectCutRow(client, moment.row);
    }
    // A timer of Node may be a millisecond early.
    expect(late).toBeGreaterThanOrEqual(-2);
    expect(late).toBeLessThan(LATE_MS);
    expect(await scene.aftermath(client.sub)).toMatchObject({
      endedBy: 'proxy',
      reason: 'session_expired',
    });
    expect(await scene.wrote(client.sub)).toBe(false);
  });

  it('idle: the client hears why, and nothing else, without any grace', TOGETHER, async () => {
    using client = await scene.signIn();

    await client.end();

    expect(lastWords(client)).toBe('');
    expect(Date.now() - client.expiresAt).toBeGreaterThanOrEqual(-2);
    if (graceMs > 0) expect(Date.now() - client.expiresAt).toBeLessThan(graceMs);
    await scene.aftermath(client.sub);
  });

  it('reading too slowly: the client never has words in a row', TOGETHER, async () => {
    using client = await scene.signIn();
    client.send(
      query(`select repeat('x', ${WIDE_BYTES}), ''::text from generate_series(1, 20000)`),
    );
    await client.next('D');
    client.socket.pause();
    await scene.aftermath(client.sub);
    client.socket.resume();
    await client.end();

    const row = wideRow();
    expect(typesOf(client)).toMatch(/^TD+E?$/);
    if (client.rest.length > 0) expectCutRow(client, row);
    else expect(lastWords(client)).toMatch(/^TD+$/);
  });

  it('leaves nothing behind', () => expectNothingLeft(scene));
});

describe('a token that expires under drain, within the grace', () => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await Scene.open({ onTokenExpiry: 'drain', graceMs: 15_000 });
  });
  afterAll(() => scene?.close());

  it.for(each)('%s: the client goes on to the end of it', TOGETHER, async ([, moment]) => {
    using client = await scene.signIn();
    const goOn = await moment.begin(client, client.sub, ROWS.past);
    await until(() => Date.now() > client.expiresAt + 200);
    const closedBefore = client.closed;
    await goOn();
    await client.end();

    expect(closedBefore).toBe(false);
    expect(lastWords(client)).toMatch(moment.whole);
    await scene.aftermath(client.sub);
    expect(await scene.wrote(client.sub)).toBe(moment.writes);
  });

  it('leaves nothing behind', () => expectNothingLeft(scene));
});

describe('a token that expires under ignore', () => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await Scene.open({ onTokenExpiry: 'ignore' });
  });
  afterAll(() => scene?.close());

  it.for(each)('%s: the client hears nothing of it', TOGETHER, async ([, moment]) => {
    using client = await scene.signIn();
    const goOn = await moment.begin(client, client.sub, ROWS.past);
    await until(() => Date.now() > client.expiresAt + 200);
    await goOn();

    expect(typesOf(client)).toMatch(moment.whole);
    expect((await client.ask('select auth.user_id()')).rows).toEqual([[client.sub]]);
    client.send(frame('X'));
    expect(await scene.aftermath(client.sub)).toMatchObject({ endedBy: 'client' });
    expect(await scene.wrote(client.sub)).toBe(moment.writes);
  });

  it('leaves nothing behind', () => expectNothingLeft(scene));
});

async function expectNothingLeft({ stack, admin }: Scene): Promise<void> {
  await until(() => stack.proxy.counts().connections === 0);
  expect(stack.proxy.counts()).toMatchObject({
    clients: 0,
    upstreams: { main: { authenticated: { busy: 0, quarantined: 0, waiting: 0 } } },
  });
  const { rows } = await admin.query(
    `select (select count(*)::int from pg_stat_activity where usename like 'pgjot\\_authenticated\\_%') as backends,
            (select count(*)::int from pgjot.session) as identities`,
  );
  expect(rows).toEqual([{ backends: 0, identities: 0 }]);
}
