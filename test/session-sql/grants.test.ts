/** What `setup --grant-schema` and `--force-rls` do to an application's schema, once and again. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type pg from 'pg';
import { install, type InstallOptions } from '../../src/session-sql/install.ts';
import { postgresVersions } from '../support/postgres.ts';
import { bind, Database, hello, outcome, SECRET, value } from './database.ts';

const ROLES = { authenticated: { slots: 1 }, analyst: { slots: 1 } };

const installWith = (admin: pg.Client, more: Partial<InstallOptions> = {}) =>
  install(admin, { secret: SECRET, roles: ROLES, ...more });

const SHOP = [{ schema: 'shop', role: 'authenticated' }];

describe.each(postgresVersions())('granting schemas on PostgreSQL %i', (version) => {
  let database: Database;
  let admin: pg.Client;
  beforeAll(async () => {
    database = await Database.start({ version });
    admin = await database.admin();
    await installWith(admin);
    await admin.query(`
      CREATE SCHEMA shop;
      CREATE TABLE shop.orders (id bigserial PRIMARY KEY, owner text);
      CREATE TABLE shop.parts (id int, owner text) PARTITION BY LIST (owner);
      CREATE TABLE shop.parts_a PARTITION OF shop.parts FOR VALUES IN ('a');
      CREATE VIEW shop.all_orders AS SELECT * FROM shop.orders;
      CREATE MATERIALIZED VIEW shop.old_orders AS SELECT * FROM shop.orders;
      CREATE POLICY own ON shop.orders TO authenticated USING (owner = (SELECT auth.user_id()))`);
  });
  afterAll(() => database[Symbol.asyncDispose]());

  const can = async (role: string, relation: string, privilege: string) =>
    value(admin, 'SELECT has_table_privilege($1, $2, $3)', [role, relation, privilege]);

  it('says what it does, and the second time nothing', async () => {
    const first = await installWith(admin, { grants: SHOP, forceRls: true });
    const second = await installWith(admin, { grants: SHOP, forceRls: true });

    expect(first).toEqual([
      'granted usage on schema "shop" to "authenticated"',
      'forced Row-Level Security on table shop.orders',
      'forced Row-Level Security on table shop.parts, which has no policy yet and shows no rows',
      'forced Row-Level Security on table shop.parts_a, which has no policy yet and shows no rows',
      'granted select, insert, update, delete on 3 tables of schema "shop" to "authenticated"',
      'granted by default select, insert, update, delete on each table that admin creates in schema "shop" to "authenticated"',
      'granted usage on 1 sequences of schema "shop" to "authenticated"',
      'granted by default usage on each sequence that admin creates in schema "shop" to "authenticated"',
    ]);
    expect(second).toEqual([]);
  });

  it('grants tables and sequences and nothing that looks past policies', async () => {
    expect(await can('authenticated', 'shop.orders', 'SELECT')).toBe(true);
    expect(await can('authenticated', 'shop.parts_a', 'DELETE')).toBe(true);
    for (const power of ['TRUNCATE', 'TRIGGER', 'REFERENCES']) {
      expect(await can('authenticated', 'shop.orders', power)).toBe(false);
    }
    expect(await can('authenticated', 'shop.all_orders', 'SELECT')).toBe(false);
    expect(await can('authenticated', 'shop.old_orders', 'SELECT')).toBe(false);
    expect(await can('analyst', 'shop.orders', 'SELECT')).toBe(false);
    expect(await value(admin, `SELECT has_schema_privilege('analyst', 'shop', 'USAGE')`)).toBe(
      false,
    );
  });

  it('lets a client work with its own rows', async () => {
    const control = await database.control();
    const client = await database.slot(1);
    await bind(control, await hello(client), 'alice');

    await client.query(`INSERT INTO shop.orders (owner) VALUES ('alice')`);

    expect(await outcome(client.query(`INSERT INTO shop.orders (owner) VALUES ('bob')`))).toBe(
      '42501',
    );
    expect(await value(client, 'SELECT count(*) FROM shop.orders')).toBe('1');
    expect(await value(admin, 'SELECT count(*) FROM shop.orders')).toBe('0');
    await database.end(client);
    await database.end(control);
  });

  it('grants what the administrator creates later, which has no Row-Level Security until setup runs again', async () => {
    await admin.query('CREATE TABLE shop.later (id serial)');

    expect(await can('authenticated', 'shop.later', 'UPDATE')).toBe(true);
    expect(
      await value(
        admin,
        `SELECT has_sequence_privilege('authenticated', 'shop.later_id_seq', 'USAGE')`,
      ),
    ).toBe(true);
    expect(await installWith(admin, { grants: SHOP, forceRls: true })).toEqual([
      'forced Row-Level Security on table shop.later, which has no policy yet and shows no rows',
    ]);
  });

  it('warns of tables without Row-Level Security where it is not to force it', async () => {
    await admin.query('CREATE SCHEMA open; CREATE TABLE open.house ()');

    const warnings = await warningsOf(admin, () =>
      installWith(admin, { grants: [{ schema: 'open', role: 'analyst' }] }),
    );

    expect(warnings).toEqual([
      'pgjot: table open.house has no Row-Level Security: clients read and change all of its rows',
    ]);
  });

  it('takes CREATE from PUBLIC in a schema of the administrator, and says where it cannot', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE SCHEMA theirs; GRANT CREATE, USAGE ON SCHEMA theirs TO PUBLIC');
    await superuser.query('GRANT USAGE ON SCHEMA theirs TO admin WITH GRANT OPTION');
    await admin.query('CREATE SCHEMA mine; GRANT CREATE ON SCHEMA mine TO PUBLIC');
    const grants = ['mine', 'theirs'].map((schema) => ({ schema, role: 'analyst' }));

    const warnings = await warningsOf(admin, () => installWith(admin, { grants }));

    const creates = (schema: string) =>
      value(admin, `SELECT has_schema_privilege('analyst', $1, 'CREATE')`, [schema]);
    expect(await creates('mine')).toBe(false);
    expect(await creates('theirs')).toBe(true);
    expect(warnings).toEqual([
      'pgjot: everybody may create objects in schema "theirs", and only its owner "postgres" can revoke that',
    ]);
    await superuser.query('DROP SCHEMA theirs');
    await database.end(superuser);
  });

  it('leaves tables of others alone, and does not pretend to have secured them', async () => {
    const superuser = await database.superuser();
    await superuser.query('CREATE TABLE shop.foreign_table ()');

    const warnings = await warningsOf(admin, () => installWith(admin, { grants: SHOP }));
    const forced = outcome(installWith(admin, { grants: SHOP, forceRls: true }));

    expect(warnings).toContain(
      'pgjot: table shop.foreign_table belongs to role "postgres", who alone can grant it to "authenticated"',
    );
    expect(await forced).toBe('42501');
    await superuser.query('DROP TABLE shop.foreign_table');
    await database.end(superuser);
  });

  it.each([
    ['nowhere', '3F000'],
    ['pgjot', '42939'],
    ['pg_catalog', '42939'],
    ['information_schema', '42939'],
  ])('refuses schema %s', async (schema, code) => {
    expect(await outcome(installWith(admin, { grants: [{ schema, role: 'authenticated' }] }))).toBe(
      code,
    );
  });

  it('quotes names', async () => {
    const schema = `a"b'; DROP TABLE shop.orders; --`;
    await admin.query(`CREATE SCHEMA ${admin.escapeIdentifier(schema)}`);
    await admin.query(`CREATE TABLE ${admin.escapeIdentifier(schema)}."x y" (id serial)`);

    const changes = await installWith(admin, {
      grants: [{ schema, role: 'analyst' }],
      forceRls: true,
    });

    expect(changes).toHaveLength(6);
    expect(await value(admin, `SELECT to_regclass('shop.orders')::text`)).toBe('shop.orders');
    await admin.query(`DROP SCHEMA ${admin.escapeIdentifier(schema)} CASCADE`);
  });
});

async function warningsOf(admin: pg.Client, work: () => Promise<unknown>): Promise<string[]> {
  const warnings: string[] = [];
  const listen = ({ severity, message = '' }: { severity?: string; message?: string }) => {
    if (severity === 'WARNING') warnings.push(message);
  };
  admin.on('notice', listen as never);
  await work();
  admin.off('notice', listen as never);
  return warnings;
}
