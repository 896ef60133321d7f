/**
 * pgjot itself as a column: its built command line, as a user runs it, with an issuer of its own.
 *
 * One worker, no TLS, the default log; the token is long enough to outlive the run.
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import pg from 'pg';
import { DATABASE } from './postgres.mjs';
import { accepts, freePort } from './stage.mjs';

export const ISSUER = 'https://issuer.invalid';
export const AUDIENCE = 'bench';
const ROLE = 'authenticated';
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
  const roles = { [ROLE]: { slots: SLOTS } };
  const admin = new pg.Client(postgres.admin);
  try {
    await admin.connect();
    await install(admin, { secret, roles });
  } finally {
    await admin.end();
  }

  const port = await freePort();
  const { jwks, token } = await issue('alice');
  const write = (/** @type {string} */ name, /** @type {string} */ text) => {
    const file = join(stage.folder, name);
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  };
  const config = {
    listen: { host: '127.0.0.1', port },
    providers: {
      bench: {
        issuer: ISSUER,
        jwksFile: write('jwks.json', JSON.stringify(jwks)),
        audience: AUDIENCE,
        algorithms: ['ES256'],
        roles: [ROLE],
      },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: postgres.port,
        database: DATABASE,
        secret: { file: write('secret', secret) },
        roles,
      },
    },
  };
  const configFile = write('proxy.config.json', JSON.stringify(config));
  const proxy = await stage.serve(
    process.execPath,
    [...nodeArgs, PGJOT, 'start', '--config', configFile],
    { ready: () => accepts(port) },
  );
  return { column: 'pgjot', authenticates: true, port, user: ROLE, password: token, proxy };
}

/**
 * Keys of an issuer, and a token of its.
 *
 * @param {string} subject
 */
export async function issue(subject) {
  const { publicKey, privateKey } = await generateKeyPair('ES256');
  const token = await new SignJWT()
    .setProtectedHeader({ alg: 'ES256', kid: 'bench' })
    .setIssuer(ISSUER)
    .setAudience(AUDIENCE)
    .setSubject(subject)
    .setIssuedAt()
    .setExpirationTime('12h')
    .sign(privateKey);
  const key = { ...(await exportJWK(publicKey)), kid: 'bench', alg: 'ES256', use: 'sig' };
  return { jwks: { keys: [key] }, token };
}
