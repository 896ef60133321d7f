/** The page on hostile users: each thing that they can do, done, and what holds against it, set. */
import { once } from 'node:events';
import type pg from 'pg';
import type { ClientConfig, Notification } from 'pg';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { withSuperuser } from '../support/postgres.ts';
import { startStack, until } from '../support/stack.ts';
import { describeDocument } from './describe-document.ts';

// Most of these start servers, standbys and commands.
vi.setConfig({ testTimeout: 60_000 });

describeDocument('hostile-users.md');

describe('what takes more than one session of a user', () => {
  it('takes all slots of a role, and none of another role', async () => {
    await using stack = await startStack({
      slots: 2,
      roles: { staff: { slots: 1 } },
      provider: { roles: ['authenticated', 'staff'] },
      upstream: { acquireTimeoutMs: 500 },
    });
    const connect = async (sub: string, settings: ClientConfig = {}) => {
      const client = await stack.connect(sub, settings);
      onTestFinished(() => client.end().catch(() => {}));
      return client;
    };
    await connect('mallory');
    await connect('mallory');

    await expect(stack.connect('alice')).rejects.toMatchObject({
      code: '53300',
      message: 'timed out waiting for an upstream connection',
    });
    const staff = await connect('sam', { user: 'staff' });
    const { rows } = await staff.query('select auth.user_id()');
    expect(rows).toEqual([{ user_id: 'sam' }]);
  });

  it("hears other users' notifications, and sends what seems to be theirs", async () => {
    await using stack = await startStack();
    const [mallory, alice] = [await stack.connect('mallory'), await stack.connect('alice')];
    const heard = { mallory: [] as unknown[], alice: [] as unknown[] };
    mallory.on('notification', ({ payload }: Notification) => heard.mallory.push(payload));
    alice.on('notification', ({ payload }: Notification) => heard.alice.push(payload));
    await mallory.query('listen orders');
    await alice.query('listen orders');

    await alice.query("notify orders, 'order 17 is placed'");
    await until(() => heard.mallory.length === 1);
    await mallory.query("notify orders, 'order 17 is paid'");
    await until(() => heard.mallory.length === 2 && heard.alice.length === 2);
    await Promise.all([mallory.end(), alice.end()]);

    const all = ['order 17 is placed', 'order 17 is paid'];
    expect(heard).toEqual({ mallory: all, alice: all });
  });

  it('keeps no transaction open for longer than a session may last', async () => {
    await using stack = await startStack({ sessions: { maxLifetimeMs: 500, graceMs: 200 } });
    const mallory = await stack.connect('mallory');
    const ended = once(mallory, 'error') as Promise<[pg.DatabaseError]>;

    await mallory.query('begin isolation level repeatable read');
    await mallory.query('select count(*) from todos');
    const [error] = await ended;

    expect(error.code).toBe('57P01');
    await withSuperuser(
      stack.postgres,
      (admin) =>
        until(async () => {
          const { rows } = await admin.query(
            "select from pg_stat_activity where usename ^@ 'pgjot_authenticated_' and xact_start is not null",
          );
          return rows.length === 0;
        }),
      'app',
    );
  });

  it('spoils a slot, and no later session gets it', async () => {
    await using stack = await startStack({ slots: 2 });
    const mallory = await stack.connect('mallory');
    const { rows } = await mallory.query('select session_user::text as slot');
    await mallory.query('set role none');
    await mallory.query("alter role current_user set search_path = 'nowhere'");
    await mallory.end();

    const later = await stack.connect('alice');
    const { rows: found } = await later.query(
      "select session_user::text as slot, current_setting('search_path') as path",
    );
    await later.end();

    expect(found).not.toMatchObject(rows);
    expect(found).toMatchObject([{ path: '"$user", public' }]);
  });
});
