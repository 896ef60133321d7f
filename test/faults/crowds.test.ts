/**
 * A PostgreSQL that has no connection left: logins wait for one in the order in which they came, and nobody starves.
 */
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RawClient } from '../e2e/raw-client.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

const ROOM = 20;
const ACQUIRE_TIMEOUT_MS = 4_000;

let stack: Stack;
let strangers: pg.Client[];

beforeEach(async () => {
  stack = await startStack({
    slots: 40,
    settings: { max_connections: String(ROOM), superuser_reserved_connections: '3' },
    upstream: { acquireTimeoutMs: ACQUIRE_TIMEOUT_MS },
  });
  strangers = [];
});

afterEach(async () => {
  await Promise.all(strangers.map((one) => one.end().catch(() => {})));
  await stack.close();
});

/** Takes every connection that is left, as an application beside pgjot would; `keep` sessions of ours are in already. */
async function fillUp(): Promise<void> {
  await stack.change("create role stranger login password 'stranger'");
  for (;;) {
    const stranger = new pg.Client({ ...stack.admin, user: 'stranger', password: 'stranger' });
    stranger.on('error', () => {});
    const full = await stranger.connect().then(
      () => false,
      (error: { code: string }) => error.code === '53300',
    );
    if (full) return;
    strangers.push(stranger);
  }
}

const slots = () => stack.proxy.counts().upstreams['main']?.['authenticated'];

describe('a server that is full', () => {
  it('lets logins in one by one as room comes, in the order in which they came', async () => {
    const token = await stack.token('alice');
    using inside = await RawClient.login(stack, token);
    await fillUp();
    const order: number[] = [];
    const waiting: Promise<RawClient>[] = [];
    for (let n = 0; n < 6; n++) {
      const login = RawClient.login(stack, token);
      void login.then(() => order.push(n));
      waiting.push(login);
      // The next one comes when this one is seen to wait.
      await until(() => (slots()?.busy ?? 0) === n + 2);
    }

    for (let n = 0; n < 6; n++) {
      await strangers.pop()?.end();
      await until(() => order.length === n + 1);
    }

    expect(order).toEqual([0, 1, 2, 3, 4, 5]);
    expect((await inside.ask('select 1')).rows).toEqual([['1']]);
    for (const login of waiting) (await login).destroy();
    inside.destroy();
    await until(() => slots()?.busy === 0);
  });

  it('that stays full: each hears 53300 when its time is over, and not before', async () => {
    const token = await stack.token('alice');
    using inside = await RawClient.login(stack, token);
    await fillUp();
    const began = performance.now();

    const refusals = await Promise.all(
      Array.from({ length: 5 }, () =>
        RawClient.login(stack, token).then(
          () => 'in',
          (error: { code: string }) => error.code,
        ),
      ),
    );

    expect(refusals).toEqual(Array.from({ length: 5 }, () => '53300'));
    expect(performance.now() - began).toBeGreaterThan(ACQUIRE_TIMEOUT_MS - 600);
    expect(slots()).toMatchObject({ quarantined: 0, busy: 1 });
    inside.destroy();
  });

  it('has the place of whoever leaves first given to whoever waits', async () => {
    const token = await stack.token('alice');
    using inside = await RawClient.login(stack, token);
    await fillUp();
    const waiting = RawClient.login(stack, await stack.token('bob'));
    await until(() => slots()?.busy === 2);

    inside.destroy();
    using bob = await waiting;

    expect((await bob.ask('select auth.user_id()')).rows).toEqual([['bob']]);
  });
});
