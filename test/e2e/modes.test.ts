/**
 * The three ways in which an identity reaches SQL, as users meet them: they see the same functions, claims and rows in each.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hasExtension, postgresVersions } from '../support/postgres.ts';
import { Relay } from './relay.ts';
import { startStack, type SessionMode, type Stack } from '../support/stack.ts';

const MODES = postgresVersions().flatMap((version) =>
  (['portable', 'replica', 'pg_session_jwt'] satisfies SessionMode[])
    .filter((session) => session !== 'pg_session_jwt' || hasExtension(version, session))
    .map((session) => ({ session, version })),
);

describe.each(MODES)('session mode $session on PostgreSQL $version', ({ session, version }) => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startStack({
      session,
      version,
      roles: { authenticated: { slots: 4 }, anonymous: { slots: 1 } },
      anonymous: { enabled: true },
      upstream: { sessionClaims: ['email', 'big', 'groups', 'lookup'] },
    });
  }, 60_000);
  afterAll(() => stack?.close());

  it('shows each user the rows of its own, and who it is', async () => {
    for (const [sub, rows] of [
      ['alice', 3],
      ['bob', 2],
    ] as const) {
      const client = await stack.connect(sub);
      const { rows: seen } = await client.query('select user_id from todos');

      await client.end();
      expect(seen).toEqual(Array.from({ length: rows }, () => ({ user_id: sub })));
    }
  });

  it('gives SQL the chosen claims alone, through each of the functions', async () => {
    const sub = '00000000-0000-4000-8000-00000000abcd';
    const claims = { email: 'zoë@example.com', big: 2 ** 53 - 1, phone: '+1', lookup: 'mine' };
    const client = await stack.connect('', { password: await stack.token(sub, claims) });

    const { rows } = await client.query<Record<string, unknown>>(
      'select auth.user_id(), auth.uid(), auth.session(), auth.jwt(), pgjot.user_id() as own, pgjot.session() as whole',
    );
    await client.end();

    const { session: seen, jwt, whole, ...rest } = rows[0] ?? {};
    expect(rest).toEqual({ user_id: sub, uid: sub, own: sub });
    expect(jwt).toEqual(seen);
    expect(whole).toEqual(seen);
    const { exp, jti, ...chosen } = seen as Record<string, unknown>;
    expect(chosen).toEqual({ sub, email: 'zoë@example.com', big: 2 ** 53 - 1 });
    // What the extension itself needs.
    expect([typeof exp, typeof jti]).toEqual(
      session === 'pg_session_jwt' ? ['number', 'number'] : ['undefined', 'undefined'],
    );
  });

  it('keeps the identity whatever the client resets', async () => {
    const client = await stack.connect('alice');
    for (const statement of [
      'reset all',
      'discard all',
      'reset role',
      'reset session authorization',
      'begin; set local search_path = pg_temp; rollback',
    ]) {
      await client.query(statement);
      const { rows } = await client.query('select auth.user_id(), current_user::text');

      expect(rows).toEqual([{ user_id: 'alice', current_user: 'authenticated' }]);
    }
    await client.end();
  });

  it('is nobody for those who need no token', async () => {
    const client = await stack.connect('', { user: 'anonymous', password: '' });

    const { rows } = await client.query(
      "select auth.user_id(), auth.uid(), nullif(auth.session(), 'null') as session, pgjot.session() as whole",
    );
    await client.end();

    expect(rows).toEqual([{ user_id: null, uid: null, session: null, whole: null }]);
  });

  it('refuses in words what does not fit', async () => {
    const groups = 'x'.repeat(11_000);
    const login = stack.connect('', { password: await stack.token('alice', { groups }) });

    if (session === 'portable') {
      const client = await login;
      const { rows } = await client.query("select length(auth.session() ->> 'groups')");
      await client.end();
      expect(rows).toEqual([{ length: 11_000 }]);
    } else {
      await expect(login).rejects.toMatchObject({
        code: '54000',
        message: 'the claims are too large for a session',
      });
    }
  });
});

it('serves a standby behind a translated address, whose sessions are nobody after a reset', async () => {
  await using relay = await Relay.open();
  await using stack = await startStack({ session: 'replica', upstream: { port: relay.port } });
  relay.toward(stack.postgres.port);
  const client = await stack.connect('alice');
  const user = async () => {
    const { rows } = await client.query<{ user_id: string }>('select auth.user_id()');
    return rows[0]?.user_id;
  };

  expect(await user()).toBe('alice');
  await client.query('discard all');
  expect(await user()).toBe(null);
  await client.end();
});
