/**
 * Where the soak runs: PostgreSQL with everybody's notes under Row-Level Security, an issuer whose keys change, and `pgjot start`.
 *
 * Everything that can be read of the proxy from outside is read here: memory and files in /proc, backends, rows and
 * leases in the database, what it has open by the probe, and its log.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import pg from 'pg';
import { startPostgres } from '../dist/cli/dev/postgres.js';
import { install } from '../dist/session-sql/install.js';
import { PGJOT } from './pgjot.mjs';
import { accepts, freePort, openFiles, residentMiB } from './stage.mjs';

const ISSUER = 'https://issuer.invalid';
const AUDIENCE = 'soak';
export const ROLES = { authenticated: { slots: 48 }, analyst: { slots: 16 } };
export const USERS = 60;
export const NOTES_EACH = 20;
const PROBE = fileURLToPath(new URL('./soak-probe.mjs', import.meta.url));
const PROBE_MS = 10_000;
const OVERLAP_MS = 5_000;
const ACCEPTED_MS = 30_000;

const TABLES = `
  create table notes (id bigint generated always as identity, owner text not null default auth.user_id(), body text not null);
  create index on notes (owner);
  insert into notes (owner, body)
    select 'user-' || u, 'note ' || n from generate_series(1, ${USERS}) u, generate_series(1, ${NOTES_EACH}) n;
  alter table notes enable row level security;
  alter table notes force row level security;
  create policy own on notes to authenticated, analyst using (owner = (select auth.user_id()));
  grant select, insert on notes to authenticated, analyst;`;

/** @typedef {Awaited<ReturnType<typeof openSite>>} Site */
/** @typedef {Awaited<ReturnType<Site['look']>>} Look */

/** @param {import('./stage.mjs').Stage} stage */
export async function openSite(stage) {
  const server = await startPostgres({
    dataDir: join(stage.folder, 'postgres'),
    settings: { max_connections: '200', autovacuum: 'off' },
  });
  await stage.defer(() => server.stop());
  const secret = randomBytes(32).toString('hex');
  const asAdmin = async (
    /** @type {string} */ sql,
    /** @type {unknown[]} */ values = [],
    /** @type {(admin: pg.Client) => Promise<unknown>} */ prepare = async () => {},
  ) => {
    const admin = new pg.Client({ ...server.superuser, application_name: 'soak' });
    // A restart of the server ends this one as well.
    admin.on('error', () => {});
    await admin.connect();
    try {
      await prepare(admin);
      return (values.length > 0 ? await admin.query(sql, values) : await admin.query(sql)).rows;
    } finally {
      await admin.end().catch(() => {});
    }
  };
  await asAdmin(TABLES, [], (admin) => install(admin, { secret, roles: ROLES }));

  const keys = await startKeys(stage);
  const port = await freePort();
  const adminPort = await freePort();
  const database = server.superuser.database;
  const configure = (/** @type {number} */ graceMs) =>
    JSON.stringify({
      listen: { port },
      providers: {
        soak: {
          issuer: ISSUER,
          jwksFile: keys.file,
          audience: AUDIENCE,
          algorithms: ['ES256'],
          roles: Object.keys(ROLES),
          clockToleranceMs: 0,
        },
      },
      upstreams: {
        main: {
          host: '127.0.0.1',
          port: server.port,
          database,
          secret: { file: stage.write('secret', secret) },
          roles: ROLES,
          pool: { idleTimeoutMs: 3_000, lifetimeMs: 60_000 },
        },
      },
      jwks: { fileCheckMs: 250, cooldownMs: 1_000 },
      sessions: { graceMs },
      // Few enough to be full, and thrown out, again and again.
      limits: { tokenCacheEntries: 200 },
      admin: { port: adminPort },
    });
  const configFile = stage.write('proxy.config.json', configure(2_000));
  const probeFile = join(stage.folder, 'probe.json');
  const proxy = await stage.serve(
    process.execPath,
    ['--expose-gc', '--import', PROBE, PGJOT, 'start', '--config', configFile],
    { ready: () => accepts(port), env: { PGJOT_SOAK_PROBE: probeFile } },
  );

  return {
    port,
    database,
    proxy,
    asAdmin,
    restart: () => server.restart(),
    token: keys.token,
    keys,
    /** @param {string} entry JSON */
    async revoke(entry) {
      const response = await fetch(`http://127.0.0.1:${adminPort}/revocations`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: entry,
      });
      if (response.status !== 204) throw new Error(`revoking was answered ${response.status}`);
    },
    /**
     * Has the configuration read again: another good one, or one that is wrong and must change nothing.
     *
     * @param {number} number
     * @param {boolean} good
     */
    reload(number, good) {
      const text = good ? configure(2_000 + (number % 2) * 100) : '{ "listen": ';
      renameSync(stage.write('proxy.config.new', text), configFile);
      process.kill(proxy.pid, 'SIGHUP');
    },
    /** What is in use now, everywhere. */
    async look() {
      const [row] = await asAdmin(`
        select (select count(*)::int from pg_stat_activity where usename ~ '^pgjot_.*_[0-9]+$') as backends,
               (select count(*)::int from pgjot.session) as rows,
               (select count(*)::int from pgjot.lease) as leases`);
      return {
        rssMiB: residentMiB(proxy.pid).now,
        files: openFiles(proxy.pid),
        backends: Number(row['backends']),
        rows: Number(row['rows']),
        leases: Number(row['leases']),
      };
    },
    /** What the process itself says it has open and holds. */
    async probe() {
      rmSync(probeFile, { force: true });
      process.kill(proxy.pid, 'SIGUSR2');
      const deadline = performance.now() + PROBE_MS;
      while (!existsSync(probeFile)) {
        if (performance.now() > deadline) throw new Error('the probe did not answer');
        await delay(50);
      }
      /** @type {{ open: Record<string, number>, heldMiB: number }} */
      const said = JSON.parse(readFileSync(probeFile, 'utf8'));
      return said;
    },
    /** Every line of the log. */
    log: () => readFileSync(proxy.log, 'utf8').trimEnd().split('\n'),
  };
}

/**
 * Keys in a file that the proxy watches, and tokens signed with the latest.
 *
 * @param {import('./stage.mjs').Stage} stage
 */
async function startKeys(stage) {
  const make = async () => {
    const kid = randomUUID();
    const { publicKey, privateKey } = await generateKeyPair('ES256');
    return { kid, privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg: 'ES256' } };
  };
  const publish = (/** @type {readonly { jwk: object }[]} */ all) => {
    const text = JSON.stringify({ keys: all.map(({ jwk }) => jwk) });
    const file = join(stage.folder, 'jwks.json');
    renameSync(stage.write('jwks.new', text), file);
    return file;
  };
  let current = await make();
  const file = publish([current]);
  const sign = (
    /** @type {typeof current} */ key,
    /** @type {string} */ subject,
    /** @type {number} */ seconds,
  ) =>
    new SignJWT({ jti: randomUUID() })
      .setProtectedHeader({ alg: 'ES256', kid: key.kid })
      .setIssuer(ISSUER)
      .setAudience(AUDIENCE)
      .setSubject(subject)
      .setIssuedAt()
      .setExpirationTime(Math.floor(Date.now() / 1_000) + seconds)
      .sign(key.privateKey);
  return {
    file,
    token: (/** @type {string} */ subject, /** @type {number} */ seconds) =>
      sign(current, subject, seconds),
    /**
     * Publishes a new key beside the old one, signs with it once `accepted` says so of a token, then withdraws the old one
     * until `accepted` denies that. Between the two it calls `forget`, and gives tokens that are on their way some time.
     *
     * @param {(token: string) => Promise<boolean>} accepted
     * @param {() => void} forget
     */
    async rotate(accepted, forget) {
      const [old, next] = [current, await make()];
      publish([old, next]);
      await until(
        async () => accepted(await sign(next, 'user-1', 60)),
        'the new key was not taken',
      );
      current = next;
      forget();
      await delay(OVERLAP_MS);
      publish([next]);
      await until(
        async () => !(await accepted(await sign(old, 'user-1', 60))),
        'the key that was withdrawn is still good',
      );
    },
  };
}

/**
 * @param {() => Promise<boolean>} condition
 * @param {string} otherwise
 */
async function until(condition, otherwise) {
  const deadline = performance.now() + ACCEPTED_MS;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(otherwise);
    await delay(200);
  }
}
