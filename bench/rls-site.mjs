/**
 * Where `rls.mjs` measures: PostgreSQL with every policy's table, and a proxy with and without a lookup before it.
 *
 * The proxy runs in this program: what is measured runs on the server, but for logins, which are compared among themselves.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import pg from 'pg';
import { startPostgres } from '../dist/cli/dev/postgres.js';
import { createProxy, parseConfig } from '../dist/proxy.js';
import { install } from '../dist/session-sql/install.js';
import { AUDIENCE, createIssuer, ISSUER } from './pgjot.mjs';
import { POLICIES, sqlOf, TABLES } from './rls-policies.mjs';

/** The one user of all sessions. */
export const SUBJECT = 'user-42';

const ROLES = { authenticated: { slots: 64 } };
const LOOKUP = {
  sql: 'select tenant_id, org_role from public.members where user_id = $1',
  params: ['/sub'],
};

/** @typedef {Awaited<ReturnType<typeof openSite>>} Site */

/**
 * @param {import('./stage.mjs').Stage} stage
 * @param {string | undefined} binaries Folder of the server's programs. Default: those that the project brings along.
 */
export async function openSite(stage, binaries) {
  const server = await startPostgres({
    dataDir: join(stage.folder, 'postgres'),
    settings: {
      max_connections: '200',
      shared_buffers: '512MB',
      autovacuum: 'off',
      jit: 'off',
      max_wal_size: '4GB',
      max_parallel_workers_per_gather: '0',
    },
    ...(binaries !== undefined && { binaries }),
  });
  await stage.defer(() => server.stop());
  const secret = randomBytes(32).toString('hex');
  const first = await withAdmin(server.superuser, async (admin) => {
    await admin.query('create database portable');
    await admin.query('create database extension');
    const { rows } = await admin.query(
      `select split_part(version(), ' ', 2) as version,
              exists (select from pg_available_extensions where name = 'pg_session_jwt') as found`,
    );
    return /** @type {{ version: string, found: boolean }} */ (rows[0]);
  });
  await fill({ ...server.superuser, database: 'portable' }, secret, 'portable');
  if (first.found) {
    await fill({ ...server.superuser, database: 'extension' }, secret, 'pg_session_jwt');
  }

  const issuer = await createIssuer();
  const token = await issuer.token(SUBJECT);
  const portable = {
    host: '127.0.0.1',
    port: server.port,
    database: 'portable',
    secret: { file: stage.write('secret', secret) },
    roles: ROLES,
  };
  /** @type {import('../dist/config.js').ConfigInput['upstreams']} */
  const upstreams = {
    plain: portable,
    remembered: { ...portable, lookup: { ...LOOKUP, cacheMs: 3_600_000 } },
    asked: { ...portable, lookup: { ...LOOKUP, cacheMs: 0 } },
    ...(first.found && {
      extension: { ...portable, database: 'extension', session: 'pg_session_jwt' },
    }),
  };
  const proxy = createProxy(
    parseConfig({
      listen: { port: 0 },
      providers: {
        bench: {
          issuer: ISSUER,
          jwksFile: stage.write('jwks.json', JSON.stringify(issuer.jwks)),
          audience: AUDIENCE,
          algorithms: ['ES256'],
          roles: Object.keys(ROLES),
        },
      },
      upstreams,
      routes: Object.keys(upstreams).map((name) => ({ database: name, upstream: name })),
      log: { level: 'error' },
    }),
  );
  await stage.defer(() => proxy.close());
  const { host, port } = await proxy.start();

  return {
    hasExtension: first.found,
    version: first.version,
    /** What the lookup finds, for the setting that plays its part. */
    tenant: await withAdmin({ ...server.superuser, database: 'portable' }, async (admin) => {
      const { rows } = await admin.query("select md5('tenant 42')::uuid as tenant");
      return String(rows[0]?.tenant);
    }),
    /**
     * How to connect through the proxy to one of the upstreams.
     *
     * @param {string} database
     */
    as: (database) => ({ host, port, database, user: 'authenticated', password: token }),
  };
}

/**
 * @param {pg.ClientConfig} where
 * @param {string} secret
 * @param {'portable' | 'pg_session_jwt'} session
 */
async function fill(where, secret, session) {
  await withAdmin(where, async (admin) => {
    await install(admin, { secret, roles: ROLES, session, lookup: true });
    await admin.query('set client_min_messages = warning');
    await admin.query(`${TABLES} grant select on members to pgjot_lookup;`);
    for (const policy of POLICIES) {
      if ((policy.extension === true) !== (session === 'pg_session_jwt')) continue;
      await admin.query(sqlOf(policy));
    }
    await admin.query('vacuum analyze');
  });
}

/**
 * @template Result
 * @param {pg.ClientConfig} where
 * @param {(admin: pg.Client) => Promise<Result>} work
 */
async function withAdmin(where, work) {
  const admin = new pg.Client(where);
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.end();
  }
}
