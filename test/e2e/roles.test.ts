/**
 * Which role a client gets: the one it asks for where its provider and its claims grant it, or nobody's without a token.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startStack, type Stack } from '../support/stack.ts';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({
    roles: { analyst: { slots: 2 }, anonymous: { slots: 2 } },
    anonymous: { enabled: true },
    provider: { roles: ['authenticated', 'analyst'], roleClaim: '/app/roles' },
  });
  const admin = new pg.Client(stack.admin);
  await admin.connect();
  await admin.query(`
    create table notices (text text);
    insert into notices values ('open on Sundays');
    grant select on notices, todos to anonymous;
    grant select on notices, todos to analyst;
    create policy analysts_see_all on todos for select to analyst using (true);
  `);
  await admin.end();
});

afterAll(async () => {
  await stack.close();
});

async function ask(client: pg.Client, sql: string): Promise<unknown[]> {
  const { rows } = await client.query<Record<string, unknown>>(sql);
  return rows.flatMap((row) => Object.values(row));
}

describe('a custom role', () => {
  const claims = (roles: unknown) => ({ app: { roles } });

  it('is taken by who asks for it and whose claim names it, with slots of its own', async () => {
    const client = await stack.connect('ann', {
      ...stack.as('ann', claims(['authenticated', 'analyst'])),
      user: 'analyst',
    });

    const who = await ask(client, 'select current_user, session_user, auth.user_id()');
    const seen = await ask(client, 'select count(*)::int from todos');
    await client.end();

    expect(who).toEqual(['analyst', expect.stringMatching(/^pgjot_analyst_[12]$/), 'ann']);
    expect(seen).toEqual([5]);
  });

  it.each([
    ['authenticated'],
    [['authenticated']],
    [undefined],
    [{ analyst: true }],
    [['Analyst']],
  ])('is refused where the claim is %j', async (roles) => {
    const attempt = stack.connect('ann', { ...stack.as('ann', claims(roles)), user: 'analyst' });

    await expect(attempt).rejects.toMatchObject({
      code: '28000',
      message: 'role "analyst" is not permitted to log in',
    });
  });

  it.each(['postgres', 'pgjot_control', 'pgjot_owner', 'pgjot_analyst_1', 'ANALYST', 'anonymous '])(
    'is never %s',
    async (user) => {
      const attempt = stack.connect('ann', { ...stack.as('ann', claims([user])), user });

      await expect(attempt).rejects.toMatchObject({ code: '28000' });
    },
  );
});

describe('the anonymous role', () => {
  const anonymous = () => ({ ...stack.as('nobody'), user: 'anonymous', password: undefined });

  it('needs no password, and is nobody', async () => {
    const client = await stack.connect('nobody', anonymous());

    const who = await ask(
      client,
      'select current_user, auth.user_id(), auth.uid(), auth.session(), auth.jwt()',
    );
    await client.end();

    expect(who).toEqual(['anonymous', null, null, null, null]);
  });

  it('sees what is granted to it, and of the rows of users none', async () => {
    const client = await stack.connect('nobody', anonymous());

    expect(await ask(client, 'select text from notices')).toEqual(['open on Sundays']);
    expect(await ask(client, 'select task from todos')).toEqual([]);
    await expect(client.query("insert into todos (task) values ('x')")).rejects.toMatchObject({
      code: '42501',
    });
    await client.end();
  });

  it('becomes nobody else by SET, and stays nobody behind somebody who had the slot', async () => {
    for (let round = 0; round < 4; round++) {
      const client = await stack.connect('nobody', anonymous());
      await client.query('set request.jwt.claims = \'{"sub":"alice"}\'');
      for (const role of ['authenticated', 'analyst']) {
        await expect(client.query(`set role ${role}`)).rejects.toMatchObject({ code: '42501' });
      }
      await client.query('discard all');
      expect(await ask(client, 'select auth.user_id()')).toEqual([null]);
      await client.end();
    }
  });

  it('is logged as nobody: no provider, no subject', async () => {
    const client = await stack.connect('nobody', anonymous());
    await client.end();

    const line = await stack.logged(({ event, role }) => event === 'login' && role === 'anonymous');
    expect(line).toMatchObject({ outcome: 'accepted', user: 'anonymous' });
    expect(line).not.toHaveProperty('subject');
  });

  it('is not to be had where the configuration does not say so', async () => {
    await using closed = await startStack({ roles: { anonymous: { slots: 1 } } });

    const attempt = closed.connect('nobody', { ...closed.as('nobody'), user: 'anonymous' });

    await expect(attempt).rejects.toMatchObject({ code: '28000' });
  });
});
