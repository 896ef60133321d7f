/**
 * Session mode `pg_session_jwt` without a proxy: what `pgjot.*` believe of what the real extension says.
 *
 * The extension by itself is laxer: without a key it believes a setting that any client can set, and it forgives a
 * minute. Runs where a server has the extension; the start of the run says so when none has.
 */
import { generateKeyPairSync, sign } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { hasExtension, postgresVersions } from '../support/postgres.ts';
import { Database, SECRET, sqlstate, value } from './database.ts';

const versions = postgresVersions().map((version) => ({
  version,
  absent: !hasExtension(version, 'pg_session_jwt'),
}));

const { publicKey, privateKey } = generateKeyPairSync('ed25519');
const JWK = JSON.stringify(publicKey.export({ format: 'jwk' }));

const now = () => Math.floor(Date.now() / 1000);

/** A token as the proxy mints it. */
function token(claims: object): string {
  const input = [{ alg: 'EdDSA' }, { jti: 1, ...claims }]
    .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    .join('.');
  return `${input}.${sign(null, Buffer.from(input), privateKey).toString('base64url')}`;
}

describe.each(versions)('the extension on PostgreSQL $version', ({ version, absent }) => {
  let database: Database;

  beforeAll(async () => {
    if (absent) return;
    database = await Database.start({ version });
    // The extension's schema belongs to the superuser, whoever creates it.
    const superuser = await database.superuser();
    await superuser.query(
      'create extension pg_session_jwt; grant usage on schema auth to admin with grant option',
    );
    await database.end(superuser);
    const admin = await database.admin();
    const roles = { authenticated: { slots: 2 } };
    await install(admin, { secret: SECRET, roles, session: 'pg_session_jwt' });
    await installDemo(admin);
    await database.end(admin);
  });
  afterAll(() => database?.[Symbol.asyncDispose]());

  /** Slot 1, logged in with these parameters beside the role. */
  function login(parameters: Readonly<Record<string, string>> = {}): Promise<pg.Client> {
    const options = Object.entries({ role: 'authenticated', ...parameters })
      .map(([name, text]) => `-c ${name}=${text.replaceAll(/[\\\s]/g, '\\$&')}`)
      .join(' ');
    return database.slot(1, { options });
  }

  /** Runs `work` in a session with the key, and with a token of these claims. */
  async function withToken(
    claims: object,
    work: (client: pg.Client) => Promise<void>,
  ): Promise<void> {
    const client = await login({ 'pg_session_jwt.jwk': JWK, 'pg_session_jwt.jwt': token(claims) });
    try {
      await work(client);
    } finally {
      await database.end(client);
    }
  }

  it.skipIf(absent)(
    'E1: a session without a key is nobody’s to pgjot.*, whatever the setting says that the extension believes',
    async () => {
      const claims = JSON.stringify({ sub: 'bob', exp: now() + 600 });
      const client = await login();
      await client.query(`set pg_session_jwt.jwk = '${JWK}'; set request.jwt.claims = '${claims}'`);

      expect(await value(client, 'select pgjot.user_id()')).toBe(null);
      expect(await value(client, 'select pgjot.session()')).toBe(null);
      // Why no policy should hang on auth.user_id() where a slot can be reached without the proxy; the doctor says so.
      expect(await value(client, 'select auth.user_id()')).toBe('bob');
      await database.end(client);
    },
  );

  it.skipIf(absent)('E1: a session with a key and no token is nobody’s to all', async () => {
    const client = await login({ 'pg_session_jwt.jwk': JWK });
    await client.query(`set request.jwt.claims = '{"sub":"bob","exp":${now() + 600}}'`);

    for (const reader of ['pgjot.user_id()', 'auth.user_id()', 'pgjot.session()', 'pgjot.uid()']) {
      expect(await value(client, `select ${reader}`)).toBe(null);
    }
    expect(await value(client, 'select count(*)::int from public.todos')).toBe(0);
    await database.end(client);
  });

  it.skipIf(absent)(
    'a good token is somebody’s to all, and stays so over every reset',
    async () => {
      await withToken({ sub: 'alice', exp: now() + 600 }, async (client) => {
        for (const reset of ['select 1', 'reset all', 'discard all', 'reset pg_session_jwt.jwt']) {
          await client.query(reset);
          expect(await value(client, 'select pgjot.user_id()')).toBe('alice');
          expect(await value(client, 'select auth.user_id()')).toBe('alice');
          expect(await value(client, 'select count(*)::int from public.todos')).toBe(3);
        }
      });
    },
  );

  it.skipIf(absent)(
    'E10: pgjot.* forgive no second, where the extension forgives a minute',
    async () => {
      await withToken({ sub: 'alice', exp: now() - 5 }, async (client) => {
        expect(await value(client, 'select auth.user_id()')).toBe('alice');
        expect(await value(client, 'select pgjot.user_id()')).toBe(null);
      });
      await withToken({ sub: 'alice' }, async (client) => {
        expect(await value(client, 'select auth.user_id()')).toBe('alice');
        expect(await value(client, 'select pgjot.user_id()')).toBe(null);
      });
    },
  );

  it.skipIf(absent)(
    'E6: an identity that is set later, older, or of another key is an error',
    async () => {
      await withToken({ sub: 'alice', jti: 5, exp: now() + 600 }, async (client) => {
        expect(await value(client, 'select pgjot.user_id()')).toBe('alice');
        for (const forged of [
          token({ sub: 'bob', jti: 4, exp: now() + 600 }),
          token({ sub: 'bob', jti: 5, exp: now() + 600 }),
          token({ sub: 'bob', jti: 6, exp: now() + 600 }).slice(0, -4),
        ]) {
          await client.query("select set_config('pg_session_jwt.jwt', $1, false)", [forged]);
          expect(await sqlstate(client, 'select pgjot.user_id()')).toMatch(/23514|42804/);
          await client.query('reset all');
          expect(await value(client, 'select pgjot.user_id()')).toBe('alice');
        }
      });
    },
  );

  it.skipIf(absent)('E2: the key can be neither set nor reset', async () => {
    await withToken({ sub: 'alice', exp: now() + 600 }, async (client) => {
      await client.query('select auth.init()');
      for (const sql of [
        `set pg_session_jwt.jwk = '${JWK}'`,
        `set pg_session_jwt.jwk = ''`,
        'reset pg_session_jwt.jwk',
        `select set_config('pg_session_jwt.jwk', '', true)`,
      ]) {
        expect(await sqlstate(client, sql)).toBe('55P02');
      }
      expect(await value(client, 'select pgjot.user_id()')).toBe('alice');
    });
  });
});
