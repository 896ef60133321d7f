/** A preset through the whole proxy: the wire says who may not sign in, and why, and the log and the client get nothing of the token. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Stack, startStack } from '../support/stack.ts';

const ISSUER = 'https://id.example.com/realms/my-realm';
const ACCESS = { iss: ISSUER, aud: 'account', typ: 'Bearer', azp: 'my-app' };

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({
    provider: {
      preset: 'keycloak',
      domain: 'id.example.com',
      realm: 'my-realm',
      authorizedParties: ['my-app'],
      // The keys are the test's; everything else is the preset's.
      issuer: undefined,
      audience: undefined,
    },
  });
}, 60_000);

afterAll(async () => {
  await stack?.close();
});

describe('a provider with a preset', () => {
  it('lets an access token in, as its subject', async () => {
    const client = new pg.Client(stack.as('alice', ACCESS));
    await client.connect();

    const { rows } = await client.query('select auth.user_id() as id');
    await client.end();

    expect(rows).toEqual([{ id: 'alice' }]);
  });

  it.each([
    [
      'an ID token',
      { typ: 'ID', aud: 'my-app' },
      'The claim "/typ" is missing or has another value.',
    ],
    ['the token of another client', { azp: 'other-app' }, 'The claim "azp" names another party.'],
    ['a token of another realm', { iss: 'https://id.example.com/realms/other' }, undefined],
  ])('refuses %s', async (_, changes, detail) => {
    const password = await stack.token('alice', { ...ACCESS, ...changes });
    const client = new pg.Client({ ...stack.as('alice'), password });

    const refusal: unknown = await client.connect().catch((error: unknown) => error);

    expect(refusal).toMatchObject({
      code: '28P01',
      message: 'password authentication failed for user "authenticated"',
      detail,
    });
    const [, payload = '', signature = ''] = password.split('.');
    expect(stack.logs.join()).not.toContain(payload);
    expect(stack.logs.join()).not.toContain(signature);
  });
});
