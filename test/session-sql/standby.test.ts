/** The session functions on a hot standby: an identity is believed when it was signed for that very backend, and nothing is written. */
import { createHmac } from 'node:crypto';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { deriveIdentityKey, slotName } from '../../src/session-sql/credentials.ts';
import { install, type InstallOptions } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { startStandby, type Standby } from '../support/standby.ts';
import { bind, Database, hello, lease, outcome, SECRET, sqlstate, value } from './database.ts';

const SLOTS = 3;
const MINUTE_MS = 60_000;
const OPTIONS: InstallOptions = {
  secret: SECRET,
  roles: { authenticated: { slots: SLOTS } },
  replicas: true,
};

interface Signed {
  readonly db: string;
  readonly slot: string;
  readonly port?: number;
  readonly iat?: number;
  readonly pid?: number;
  readonly start?: string;
  readonly exp: number;
  readonly claims: object;
}

type Changes = { readonly [Name in keyof Signed]?: Signed[Name] | undefined };

/** As `src/upstream/replica.ts` writes it; `text` is what is signed. */
function sign(text: string, key: Buffer = deriveIdentityKey(SECRET)): string {
  const signed = Buffer.from(text).toString('base64');
  return `${signed}.${createHmac('sha256', key).update(signed).digest('base64')}`;
}

describe.each(postgresVersions())('a standby on PostgreSQL %i', (version) => {
  let database: Database;
  let standby: Standby;
  let there: { host: string; port: number };
  let slot: pg.Client;

  const setUp = async (options: InstallOptions) => {
    const admin = await database.admin();
    await install(admin, options);
    await database.end(admin);
    await standby?.caughtUp();
  };
  /** What would be a good identity on `client`, but for `changes`. */
  const identity = async (client: pg.Client, changes: Changes = {}): Promise<object> => {
    const { slot: name } = await hello(client);
    const port = Number(await value(client, 'select inet_client_port()'));
    const iat = Date.now();
    const claims = { sub: 'alice' };
    return { db: 'app', slot: name, port, iat, exp: iat + MINUTE_MS, claims, ...changes };
  };
  const userWith = async (client: pg.Client, setting: string) => {
    await client.query("select set_config('pgjot.identity', $1, false)", [setting]);
    return value(client, 'select auth.user_id()');
  };

  beforeAll(async () => {
    database = await Database.start({ version });
    await setUp(OPTIONS);
    standby = await startStandby(database.server);
    there = { host: standby.host, port: standby.port };
    slot = await database.slot(1, there);
  }, 60_000);
  afterAll(async () => {
    await slot?.end();
    await standby?.stop();
    await database?.[Symbol.asyncDispose]();
  });
  afterEach(() => slot.query('discard all'));

  it('believes what was signed for this backend, and nobody before', async () => {
    expect(await value(slot, 'select auth.user_id()')).toBe(null);

    expect(await userWith(slot, sign(JSON.stringify(await identity(slot))))).toBe('alice');
    expect(await value(slot, 'select auth.session()')).toEqual({ sub: 'alice' });
  });

  it('believes what was signed for its pid and start, wherever it comes from', async () => {
    const { pid, start } = await hello(slot);
    const signed = (changes: Changes) =>
      identity(slot, { port: undefined, iat: undefined, pid, start, ...changes }).then((one) =>
        sign(JSON.stringify(one)),
      );

    expect(await userWith(slot, await signed({}))).toBe('alice');
    for (const changes of [
      { pid: pid + 1 },
      { start: String(BigInt(start) + 1n) },
      { start: '0' },
      { slot: slotName('authenticated', 2) },
      { exp: Date.now() - 1 },
    ]) {
      expect({ changes, user: await userWith(slot, await signed(changes)) }).toEqual({
        changes,
        user: null,
      });
    }
  });

  it.each<[string, Partial<Signed>]>([
    ['another slot', { slot: slotName('authenticated', 2) }],
    ['the group itself', { slot: 'authenticated' }],
    ['another port', { port: 1 }],
    ['another database', { db: 'postgres' }],
    ['a backend that started more than a minute earlier', { iat: Date.now() + 5 * MINUTE_MS }],
    ['a backend that started more than a minute later', { iat: Date.now() - 5 * MINUTE_MS }],
    ['a time that is over', { exp: Date.now() - 1 }],
  ])('does not believe what was signed for %s', async (_, changes) => {
    const signed = sign(JSON.stringify(await identity(slot, changes)));

    expect(await userWith(slot, signed)).toBe(null);
  });

  it('does not believe what somebody else has signed, or nobody', async () => {
    const text = JSON.stringify(await identity(slot, { claims: { sub: 'victim' } }));
    const good = sign(JSON.stringify(await identity(slot)));
    const [, signature = ''] = good.split('.');
    const forged = Buffer.from(text).toString('base64');

    for (const setting of [
      '',
      'x',
      '.',
      '..',
      forged,
      `${forged}.`,
      `${forged}.${signature}`,
      `${forged}.${'A'.repeat(43)}=`,
      sign(text, deriveIdentityKey('another secret of thirty-two bytes')),
      sign(text, Buffer.alloc(64)),
      sign(text, Buffer.alloc(0)),
      `${good} `,
      `\n${good}`,
      `${good}.${signature}`,
      good.toLowerCase(),
      good.replace('.', ','),
      JSON.stringify({ sub: 'victim' }),
      "'; select 1; --",
      'A'.repeat(100_000),
    ]) {
      expect({ setting, user: await userWith(slot, setting) }).toEqual({ setting, user: null });
    }
  });

  it('believes it no longer when its time is over', async () => {
    const signed = sign(JSON.stringify(await identity(slot, { exp: Date.now() + 400 })));
    expect(await userWith(slot, signed)).toBe('alice');

    await slot.query('select pg_sleep(0.45)');

    expect(await value(slot, 'select auth.user_id()')).toBe(null);
  });

  it('does not believe it on the backend of another session, not even one of the same user', async () => {
    const stolen = sign(JSON.stringify(await identity(slot)));
    const other = await database.slot(2, there);

    expect(await userWith(other, stolen)).toBe(null);
    await other.end();
  });

  it.each([
    'select * from pgjot.identity_key',
    'select pgjot.signed_claims()',
    "select pgjot.lease('authenticated', 1)",
    "select pgjot.bind(1, 1, '{}', 1)",
  ])('keeps its clients from %s', async (statement) => {
    expect(await outcome(slot.query(statement))).toBe('42501');
  });

  it('names slots that nobody uses, and writes nothing', async () => {
    const control = await database.login('pgjot_control', there);
    const idle = [2, 3].map((index) => slotName('authenticated', index));

    expect((await lease(control, 10)).toSorted()).toEqual(idle);
    expect((await lease(control, 10)).toSorted()).toEqual(idle);
    await control.query('select pgjot.release($1)', [idle[0]]);
    expect(await value(control, 'select pgjot.sweep()')).toBe('0');
    const { pid, start } = await hello(slot);
    expect(await value(control, 'select pgjot.unbind($1, $2)', [pid, start])).toBe(true);
    expect(await value(control, 'select pgjot.unbind($1, 1)', [pid])).toBe(false);
    expect(await outcome(bind(control, await hello(slot), 'alice'))).toBe('55000');
    await control.end();
  });

  it('believes nothing when no replica is configured any more, or the secret is another', async () => {
    const signed = sign(JSON.stringify(await identity(slot)));
    try {
      for (const options of [{ replicas: false }, { secret: `${SECRET}, rotated` }]) {
        expect(await userWith(slot, signed)).toBe('alice');
        await setUp({ ...OPTIONS, ...options });
        expect(await value(slot, 'select auth.user_id()')).toBe(null);
        await setUp(OPTIONS);
      }
    } finally {
      await setUp(OPTIONS);
    }
  });

  it('is not believed by the primary, where a session that shows one has lost its identity', async () => {
    const here = await database.slot(3);
    const signed = sign(JSON.stringify(await identity(here)));

    await expect(userWith(here, signed)).rejects.toMatchObject({
      code: '55000',
      hint: 'Reconnect.',
    });

    const control = await database.control();
    await bind(control, await hello(here), 'bob');
    expect(await userWith(here, signed)).toBe('bob');
    await database.end(control);
    await database.end(here);
  });

  it('holds for a session that was there when it was promoted: an error, and no identity', async () => {
    const signed = sign(JSON.stringify(await identity(slot)));
    expect(await userWith(slot, signed)).toBe('alice');

    await standby.promote();

    expect(await sqlstate(slot, 'select auth.user_id()')).toBe('55000');
    await slot.query('reset pgjot.identity');
    expect(await value(slot, 'select auth.user_id()')).toBe(null);
  });
});
