/**
 * The oracle: a real PostgreSQL that asks for a password in clear, as pgjot does, with or without TLS.
 *
 * Its only client role is the one that the corpus signs in as.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { connectAsSuperuser, startTestPostgres } from '../../support/postgres.ts';
import type { Login } from './corpus.ts';
import type { Target } from './probe.ts';

const run = promisify(execFile);

/** A running oracle. */
export interface Oracle extends AsyncDisposable {
  readonly target: Target;
  readonly login: Login;
}

const HBA = [
  'local all all trust',
  'host all all all password',
  'host replication all all password',
];
const LOGIN: Login = { user: 'authenticated', database: 'app', password: 'oracle' };

/** Starts one; the caller disposes of it. */
export async function startOracle({ tls }: { readonly tls: boolean }): Promise<Oracle> {
  const server = await startTestPostgres({
    settings: tls ? { ssl: 'on' } : {},
    files: { 'pg_hba.conf': `${HBA.join('\n')}\n`, ...(tls ? await certificate() : {}) },
  });
  const admin = await connectAsSuperuser(server);
  try {
    await admin.query(`CREATE ROLE ${LOGIN.user} LOGIN PASSWORD '${LOGIN.password}'`);
    await admin.query(`CREATE DATABASE ${LOGIN.database}`);
  } finally {
    await admin.end();
  }
  const { host, port } = server.superuser;
  return {
    target: { host, port },
    login: LOGIN,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** A fresh self-signed certificate and its key, under the names that PostgreSQL looks for. */
async function certificate(): Promise<Record<'server.crt' | 'server.key', string>> {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-oracle-'));
  try {
    const [crt, key] = [join(folder, 'crt'), join(folder, 'key')];
    const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const subject = ['-subj', '/CN=localhost', '-days', '2'];
    await run('openssl', ['req', '-x509', ...newKey, ...subject, '-keyout', key, '-out', crt]);
    return { 'server.crt': await readFile(crt, 'utf8'), 'server.key': await readFile(key, 'utf8') };
  } finally {
    await rm(folder, { recursive: true });
  }
}
