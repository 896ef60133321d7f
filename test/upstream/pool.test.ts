/**
 * Getting a session and giving it back, with a real PostgreSQL whose control connection hangs, whose slots refuse, or which does not answer.
 */
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import type { UpstreamConfig } from '../../src/config.ts';
import { ProxyError } from '../../src/errors.ts';
import { slotName } from '../../src/session-sql/credentials.ts';
import { install } from '../../src/session-sql/install.ts';
import { createPool, type Pool } from '../../src/upstream/pool.ts';
import { encodeQuery } from '../../src/wire/frontend.ts';
import * as fake from '../support/fake-postgres.ts';
import { connectAsSuperuser, startTestPostgres } from '../support/postgres.ts';
import { SECRET, until } from '../support/stack.ts';

const SLOTS = 6;
const never = new AbortController().signal;
const unfinished = { busy: false, idle: false, reported: false, cancelled: Promise.resolve(true) };

let postgres: Awaited<ReturnType<typeof startTestPostgres>>;
let folder: string;
let admin: pg.Client;
let pool: Pool;
let quarantined: string[];

const setUp = () => install(admin, { secret: SECRET, roles: { authenticated: { slots: SLOTS } } });
const booked = () => pool.counts()['authenticated'];
const acquire = (signal = never) =>
  pool.acquire(
    {
      role: 'authenticated',
      issuer: 'https://issuer.example',
      subject: 'alice',
      claims: { sub: 'alice' },
      expiresAt: Date.now() + 60_000,
    },
    new Map(),
    signal,
  );
const spoil = (...numbers: number[]) =>
  admin.query(
    numbers
      .map((number) => `alter role ${slotName('authenticated', number)} password 'spoilt'`)
      .join(';'),
  );

function openPool(overrides: Partial<UpstreamConfig> = {}): Pool {
  quarantined = [];
  const upstream = fake.upstreamAt(postgres.port, {
    host: postgres.host,
    roles: { authenticated: { slots: SLOTS } },
    acquireTimeoutMs: 2_000,
    ...overrides,
  });
  return createPool(
    upstream,
    { current: SECRET },
    {
      onEntered: () => {},
      onWaited: () => {},
      onQuarantine: (slot) => void quarantined.push(slot),
      onHealed: () => {},
      onSecretChange: () => {},
      onSecretsRefused: () => {},
      onHealingFailed: () => {},
      onMoved: () => {},
      onLookupFailed: () => {},
    },
  );
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-pool-'));
  // PostgreSQL may run as somebody else.
  await chmod(folder, 0o777);
  postgres = await startTestPostgres({ settings: { unix_socket_directories: folder } });
  const superuser = await connectAsSuperuser(postgres);
  await superuser.query('create database app');
  await superuser.end();
  admin = await connectAsSuperuser(postgres, 'app');
  await setUp();
});
afterAll(async () => {
  await admin.end();
  await postgres.stop();
  await rm(folder, { recursive: true });
  vi.unstubAllEnvs();
});
beforeEach(() => {
  pool = openPool();
});
afterEach(() => pool.close());

describe('acquire', () => {
  test('is given up at once while the control connection hangs, and its slot comes back', async () => {
    await (await acquire()).release(unfinished);
    await until(() => booked()?.busy === 0);
    const abort = new AbortController();
    const reason = new ProxyError('login_timeout');
    await admin.query('begin; lock table pgjot.session in access exclusive mode');
    const login = acquire(abort.signal);
    await until(async () => {
      const { rows } = await admin.query(
        "select from pg_locks where relation = 'pgjot.session'::regclass and not granted",
      );
      return rows.length > 0;
    });

    const start = performance.now();
    abort.abort(reason);

    await expect(login).rejects.toBe(reason);
    expect(performance.now() - start).toBeLessThan(200);
    expect(booked()?.busy).toBe(1);
    await admin.query('rollback');
    await until(() => booked()?.busy === 0);
    const { rows } = await admin.query('select from pgjot.session');
    expect(rows).toEqual([]);
  });

  test('is refused with the reason of a signal that has aborted', async () => {
    const reason = new ProxyError('client_lost');

    await expect(acquire(AbortSignal.abort(reason))).rejects.toBe(reason);

    await until(() => booked()?.busy === 0);
  });

  test('gives what was given up back before the pool is closed', async () => {
    const abort = new AbortController();
    const login = acquire(abort.signal);
    abort.abort(new ProxyError('draining'));
    await expect(login).rejects.toMatchObject({ code: 'draining' });

    await pool.close();

    expect(booked()).toMatchObject({ busy: 0, waiting: 0 });
  });
});

describe('slots whose password is refused', () => {
  afterEach(() => setUp());

  test('one after the other, while none has got in, are not to blame: no slot is set aside for long', async () => {
    await spoil(1, 2, 3, 4, 5, 6);

    const start = performance.now();
    await expect(acquire()).rejects.toMatchObject({
      code: 'upstream_login_rejected',
      cause: { message: expect.stringMatching(/secret.*pg_hba/) },
    });

    expect(performance.now() - start).toBeLessThan(1_500);
    expect(quarantined).toEqual([]);
    await setUp();
    await until(() =>
      acquire().then(
        (lease) => lease.release(unfinished).then(() => true),
        () => false,
      ),
    );
    await until(() => booked()?.busy === 0);
  });

  test('are spoilt when another gets in: that one is given, and they are named', async () => {
    await spoil(1);

    const lease = await acquire();

    expect(quarantined).toEqual([slotName('authenticated', 1)]);
    await lease.release(unfinished);
  });

  test('are spoilt, however many, when somebody has just got in', async () => {
    const first = await acquire();
    await spoil(2, 3, 4);

    const lease = await acquire();

    expect(quarantined).toEqual([2, 3, 4].map((number) => slotName('authenticated', number)));
    expect(booked()).toMatchObject({ busy: 2, quarantined: 3 });
    await Promise.all([first.release(unfinished), lease.release(unfinished)]);
  });
});

describe('release', () => {
  afterEach(() => setUp());

  test('keeps a session that was left idle, but not while a cancel may still be on its way to it', async () => {
    const idle = { busy: false, idle: true, reported: false };
    await (await acquire()).release({ ...idle, cancelled: Promise.resolve(true) });
    expect(booked()).toMatchObject({ idle: 1, busy: 0 });

    await (await acquire()).release({ ...idle, cancelled: Promise.resolve(false) });

    expect(booked()).toMatchObject({ idle: 0, busy: 0 });
  });

  test('counts a backend as alive as long as PostgreSQL refuses to say', async () => {
    const lease = await acquire();
    await admin.query('revoke execute on function pgjot.unbind(int4, int8) from pgjot_control');

    const released = lease.release(unfinished);
    await until(async () => {
      const { rows } = await admin.query(
        "select from pg_stat_activity where usename like 'pgjot_authenticated%'",
      );
      return rows.length === 0;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));

    expect(booked()?.busy).toBe(1);
    await admin.query('grant execute on function pgjot.unbind(int4, int8) to pgjot_control');
    await released;
    expect(booked()).toMatchObject({ busy: 0, quarantined: 0 });
  });
});

test('tells PostgreSQL how soon a vanished proxy is noticed, over TCP; a Unix socket needs no telling', async () => {
  const settings = async (host: string) => {
    const one = openPool({ host });
    const lease = await one.acquire(
      {
        role: 'authenticated',
        issuer: 'https://issuer.example',
        subject: 'alice',
        claims: { sub: 'alice' },
        expiresAt: Date.now() + 60_000,
      },
      new Map([['tcp_keepalives_count', '5']]),
      never,
    );
    const stream = lease.peer.stream;

    stream.write(
      encodeQuery(
        "select current_setting('tcp_keepalives_idle') || ' ' || current_setting('tcp_keepalives_count')",
      ),
    );
    const answer = await until(() => (stream.read() as Buffer | null) ?? undefined);
    await lease.release(unfinished);
    await one.close();
    return answer.toString('latin1');
  };

  // A client's own setting comes behind ours.
  expect(await settings('127.0.0.1')).toContain('30 5');
  expect(await settings(folder)).toContain('0 0');
});

test('a session that its user has left is not disowned any more: it may be another one’s', async () => {
  await pool.close();
  pool = openPool({ pool: { ...fake.upstreamAt(1).pool, reuse: 'same-identity', spares: 0 } });
  const left = await acquire();
  await left.release({ ...unfinished, idle: true });
  const again = await acquire();
  expect(again.cancelTarget).toBe(left.cancelTarget);

  await left.disown();

  const { rows } = await admin.query("select claims ->> 'sub' as sub from pgjot.session");
  expect(rows).toEqual([{ sub: 'alice' }]);
  await again.release(unfinished);
});
