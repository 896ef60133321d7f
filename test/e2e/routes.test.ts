/** Tenants in databases of their own: the token chooses, whatever the client asks for. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { install } from '../../src/session-sql/install.ts';
import { withSuperuser } from '../support/postgres.ts';
import { SECRET, startStack, type Stack } from '../support/stack.ts';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ slots: 6 });
  await withSuperuser(stack.postgres, (admin) => admin.query('create database globex'));
  await withSuperuser(
    stack.postgres,
    (admin) => install(admin, { secret: SECRET, roles: { authenticated: { slots: 6 } } }),
    'globex',
  );
  const { main } = stack.config.upstreams;
  if (main === undefined) throw new TypeError('the stack has an upstream');
  stack.proxy.reload(
    parseConfig({
      ...stack.config,
      upstreams: { main, globex: { ...main, database: 'globex' } },
      routes: [
        { database: 'tenants', byClaim: '/org', upstreams: { acme: 'main', globex: 'globex' } },
        { database: 'reports', claims: { '/groups': 'analysts' }, upstream: 'globex' },
        { database: 'app', upstream: 'main' },
      ],
    }),
  );
});
afterAll(() => stack?.close());

/** The database that a client ends up in who asks for one. */
async function databaseOf(database: string, claims: Record<string, unknown>): Promise<unknown> {
  const password = await stack.token('alice', claims);
  const client = new pg.Client({ ...stack.as('alice'), database, password });
  await client.connect();
  const { rows } = await client.query('select current_database() as name, auth.user_id()');
  await client.end();
  return rows[0];
}

describe('a route', () => {
  it.each([
    ['tenants', { org: 'acme' }, 'app'],
    ['tenants', { org: 'globex' }, 'globex'],
    ['reports', { groups: ['staff', 'analysts'] }, 'globex'],
    ['app', { org: 'globex' }, 'app'],
  ])('of database %s leads %j to %s', async (database, claims, name) => {
    expect(await databaseOf(database, claims)).toEqual({ name, user_id: 'alice' });
  });

  it.each([
    ['tenants', {}],
    ['tenants', { org: 'initech' }],
    ['tenants', { org: 'main' }],
    ['tenants', { org: ['acme'] }],
    ['tenants', { org: 'constructor' }],
    ['reports', { groups: ['staff'] }],
    ['globex', { org: 'globex' }],
  ])('of database %s is closed to %j', async (database, claims) => {
    await expect(databaseOf(database, claims)).rejects.toMatchObject({
      code: '28000',
      message: 'role "authenticated" is not permitted to log in',
    });
  });
});

it('a new token for another tenant does not take the session there', async () => {
  const password = await stack.token('alice', { org: 'acme' });
  const client = new pg.Client({ ...stack.as('alice'), database: 'tenants', password });
  await client.connect();

  const renewal = client.query(
    `set pgjot.token = '${await stack.token('alice', { org: 'globex' })}'`,
  );

  await expect(renewal).rejects.toMatchObject({
    message: 'the token was not accepted: it is for another user, role or database',
  });
  await client.end();
});
