/**
 * The oracle: a real PostgreSQL that asks for a password in clear, as pgjot does, and with TLS refuses whoever comes in clear.
 *
 * Its only client role is the one that the corpus signs in as.
 */
import { createAuthority } from '../../support/certificate.ts';
import { connectAsSuperuser, startTestPostgres } from '../../support/postgres.ts';
import type { Login } from './corpus.ts';
import type { Target } from './probe.ts';

/** A running oracle. */
export interface Oracle extends AsyncDisposable {
  readonly target: Target;
  readonly login: Login;
}

const LOGIN: Login = { user: 'authenticated', database: 'app', password: 'oracle' };

/** Starts one; the caller disposes of it. */
export async function startOracle({ tls }: { readonly tls: boolean }): Promise<Oracle> {
  const { cert, key } = createAuthority().issue();
  // With TLS only with TLS, as pgjot's tls.mode "require"; the superuser's way in is always open.
  const clients = tls ? 'hostssl' : 'host';
  const hba = ['host all postgres all password', `${clients} all,replication all all password`];
  const server = await startTestPostgres({
    settings: { ssl: tls ? 'on' : 'off' },
    files: { 'pg_hba.conf': `${hba.join('\n')}\n`, 'server.crt': cert, 'server.key': key },
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
