/**
 * pgjot itself as a column: its built command line, as a user runs it, with an issuer of its own.
 *
 * One worker, the default log; tokens live long enough to outlive the run.
 */
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import pg from 'pg';
import { DATABASE } from './postgres.mjs';
import { CLIENTS, CROWD, IDLE_SECONDS } from './sizes.mjs';
import { accepts, freePort } from './stage.mjs';

export const ISSUER = 'https://issuer.invalid';
export const AUDIENCE = 'bench';
const ROLE = 'authenticated';
/** A role of its own for a thousand at once, so that the others' measurements find as many slots as a usual set-up has. */
const CROWD_ROLE = 'crowd';
/** The built command line; `npm run bench` builds it first. */
export const PGJOT = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
/** Twice the busy measurements' clients and more: a slot is free only when PostgreSQL has let its backend go. */
const SLOTS = 64;

/**
 * @param {import('./stage.mjs').Stage} stage
 * @param {import('./postgres.mjs').Postgres} postgres
 * @param {{ nodeArgs: readonly string[] }} options
 * @returns {Promise<import('./targets.mjs').Target>}
 */
export async function startPgjot(stage, postgres, { nodeArgs }) {
  const { install } = await import('../dist/session-sql/install.js');
  const secret = randomBytes(32).toString('hex');
  const roles = { [ROLE]: { slots: SLOTS }, [CROWD_ROLE]: { slots: CROWD + 100 } };
  const admin = new pg.Client(postgres.admin);
  try {
    await admin.connect();
    await install(admin, { secret, roles });
  } finally {
    await admin.end();
  }

  const issuer = await createIssuer();
  const { port, proxy } = await serve(stage, postgres, { issuer, secret, roles, nodeArgs });
  const passwords = await issuer.mint(CLIENTS, 'user');
  return {
    column: 'pgjot',
    authenticates: true,
    port,
    user: ROLE,
    password: passwords[0] ?? '',
    passwords,
    newcomers: (count) => issuer.mint(count, 'newcomer'),
    crowdUser: CROWD_ROLE,
    proxy,
  };
}

/**
 * A pgjot before `silent-postgres.mjs`, with as many slots as there will be sessions.
 *
 * @param {import('./stage.mjs').Stage} stage
 * @param {import('./postgres.mjs').Postgres} postgres
 * @param {number} slots
 * @returns {Promise<import('./targets.mjs').Target>}
 */
export async function startSilentPgjot(stage, postgres, slots) {
  const issuer = await createIssuer();
  const secret = randomBytes(32).toString('hex');
  const { port, proxy } = await serve(stage, postgres, {
    issuer,
    secret,
    roles: { [ROLE]: { slots } },
    nodeArgs: [],
  });
  return {
    column: 'pgjot',
    authenticates: true,
    port,
    user: ROLE,
    password: '',
    newcomers: (count) => issuer.mint(count, 'silent'),
    proxy,
  };
}

/**
 * @param {import('./stage.mjs').Stage} stage
 * @param {import('./postgres.mjs').Postgres} postgres
 * @param {{ issuer: Awaited<ReturnType<typeof createIssuer>>, secret: string, roles: Record<string, { slots: number }>, nodeArgs: readonly string[] }} options
 */
async function serve(stage, postgres, { issuer, secret, roles, nodeArgs }) {
  const port = await freePort();
  const { certificate } = postgres;
  const config = {
    listen: {
      host: '127.0.0.1',
      port,
      ...(certificate && {
        tls: { mode: 'allow', certFile: certificate.certFile, keyFile: certificate.keyFile },
      }),
    },
    providers: {
      bench: {
        issuer: ISSUER,
        jwksFile: stage.write(`jwks-${port}.json`, JSON.stringify(issuer.jwks)),
        audience: AUDIENCE,
        algorithms: ['ES256'],
        roles: Object.keys(roles),
      },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: postgres.port,
        database: DATABASE,
        secret: { file: stage.write(`secret-${port}`, secret) },
        pool: { spares: CLIENTS, idleTimeoutMs: IDLE_SECONDS * 1_000 },
        roles,
      },
    },
  };
  const configFile = stage.write(`proxy-${port}.json`, JSON.stringify(config));
  const proxy = await stage.serve(
    process.execPath,
    [...nodeArgs, PGJOT, 'start', '--config', configFile],
    { ready: () => accepts(port) },
  );
  return { port, proxy };
}

/** An issuer: its public keys, and tokens of users who were never there before, numbered behind `prefix`. */
export async function createIssuer() {
  const { publicKey, privateKey } = await generateKeyPair('ES256');
  const key = { ...(await exportJWK(publicKey)), kid: 'bench', alg: 'ES256', use: 'sig' };
  let count = 0;
  const token = (/** @type {string} */ subject) =>
    new SignJWT()
      .setProtectedHeader({ alg: 'ES256', kid: 'bench' })
      .setIssuer(ISSUER)
      .setAudience(AUDIENCE)
      .setSubject(subject)
      .setIssuedAt()
      .setExpirationTime('12h')
      .sign(privateKey);
  return {
    jwks: { keys: [key] },
    token,
    mint: (/** @type {number} */ wanted, /** @type {string} */ prefix) =>
      Promise.all(Array.from({ length: wanted }, () => token(`${prefix}-${(count += 1)}`))),
  };
}
