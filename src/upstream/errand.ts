/**
 * A login as one of our own roles that lasts no longer than one errand: mending a slot, or finding out whether a secret is right.
 */
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { UpstreamConfig } from '../config.ts';
import { upstreamTlsMode } from '../exposure.ts';
import { derivePassword } from '../session-sql/credentials.ts';
import { upstreamTlsOptions } from './dial.ts';
import { demandProof } from './proof.ts';

const GOODBYE_MS = 2_000;

// What a slot's last user left for whoever logs in with it must not hold for us.
const SETTINGS = '-c role=none -c search_path=pg_catalog,pg_temp';

/** Whom to log in as. */
export interface Errand {
  /** The LOGIN role. */
  readonly user: string;
  /** What the session is called in pg_stat_activity. */
  readonly name: string;
  readonly upstream: UpstreamConfig;
  /** The upstream's secret. */
  readonly secret: string;
}

/**
 * Lets `work` use a login as one of our roles. PostgreSQL has ended it when this resolves.
 *
 * @throws {ProxyError} upstream_login_rejected where the server does not prove itself.
 * @throws {pg.DatabaseError} what PostgreSQL answers; the system's error where it cannot be reached within `connectTimeoutMs`.
 */
export async function asRole<T>(
  { user, name, upstream, secret }: Errand,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const { host, port, database, connectTimeoutMs } = upstream;
  const socket = new Socket();
  const client = new pg.Client({
    host,
    port,
    database,
    user,
    password: derivePassword(secret, user),
    ssl: upstreamTlsMode(upstream) === 'disable' ? false : upstreamTlsOptions(upstream),
    stream: () => socket,
    application_name: name,
    options: SETTINGS,
    connectionTimeoutMillis: connectTimeoutMs,
    // Whoever filled a slot with settings by the thousand must not keep a backend busy: it gives up as well as we do.
    statement_timeout: connectTimeoutMs,
    query_timeout: connectTimeoutMs,
  });
  client.on('error', () => {});
  demandProof(client, upstream);
  try {
    await client.connect();
    const result = await work(client);
    await Promise.race([client.end(), delay(GOODBYE_MS, undefined, { ref: false })]);
    return result;
  } finally {
    socket.destroy();
  }
}
