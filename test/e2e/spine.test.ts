/**
 * The main path, end to end: a token in the password field, and each user's own rows.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startStack, until, type Stack } from '../support/stack.ts';

describe.each([{ tls: false }, { tls: true }])('signing in with a token (tls: $tls)', ({ tls }) => {
  let stack: Stack;

  beforeAll(async () => {
    stack = await startStack({ tls });
  });

  afterAll(async () => {
    await stack.close();
  });

  it('shows each user their own rows', async () => {
    for (const [sub, count] of [
      ['alice', 3],
      ['bob', 2],
    ] as const) {
      const client = await stack.connect(sub);
      const { rows } = await client.query('select user_id from todos');
      await client.end();

      expect(rows).toEqual(Array.from({ length: count }, () => ({ user_id: sub })));
    }
  });

  it('says in one line that a login was accepted, and in one that its session ended', async () => {
    const client = await stack.connect('carol');
    await client.query('select 1');
    await client.end();

    const login = await stack.logged(
      (line) => line['event'] === 'login' && line['subject'] === 'carol',
    );
    const end = await stack.logged(
      (line) => line['event'] === 'session_end' && line['subject'] === 'carol',
    );
    expect(login).toMatchObject({
      outcome: 'accepted',
      user: 'authenticated',
      role: 'authenticated',
      provider: 'test',
    });
    expect(end).toMatchObject({ endedBy: 'client', session: login['session'] });
  });

  it('gives every slot back', async () => {
    const client = await stack.connect('dave');
    expect(stack.proxy.counts().upstreams['main']?.['authenticated']).toMatchObject({ busy: 1 });
    await client.end();

    await until(() => stack.proxy.counts().connections === 0);
    expect(stack.proxy.counts().upstreams['main']?.['authenticated']).toMatchObject({
      busy: 0,
      quarantined: 0,
    });
  });
});
