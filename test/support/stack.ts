/**
 * The whole house for an end-to-end test: a real PostgreSQL with the demo table, an issuer, and the proxy before them.
 *
 * In session mode `replica` the proxy stands before a standby, and a primary with the same tables behind that.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { createProxy, parseConfig, type ConfigInput, type Proxy } from '../../src/proxy.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { createAuthority, type Authority } from './certificate.ts';
import { startIssuer, type Issuer, type MintOptions } from './issuer.ts';
import { type Closers, fromParts } from './parts.ts';
import { recordedLogger } from './logger.ts';
import { recordStack, recordUpstreamSecret } from './record.ts';
import {
  startTestPostgres,
  type TestPostgres,
  type TestPostgresOptions,
  withSuperuser,
} from './postgres.ts';
import { startStandby, type Standby } from './standby.ts';

/** The one secret of a test's upstream. */
export const SECRET = 'a-secret-for-tests-of-at-least-32-characters';

/** How the identity reaches SQL. */
export type SessionMode = 'portable' | 'pg_session_jwt' | 'replica';

/** How a stack differs from the plainest one. */
export interface StackOptions
  extends Pick<TestPostgresOptions, 'version' | 'settings' | 'files' | 'onLog'> {
  /** Default: `portable`. */
  readonly session?: SessionMode;
  /** Clients must use TLS. Default: plaintext on loopback. */
  readonly tls?: boolean;
  /** The proxy uses TLS to PostgreSQL, and verifies whom it speaks to. Default: plaintext on loopback. */
  readonly upstreamTls?: boolean;
  /** Slots of the role `authenticated`. Default 20. */
  readonly slots?: number;
  /** Whether the function that mends slots is installed, and, but on a standby, used. */
  readonly healSlots?: boolean;
  /** What the listener does beside listening. */
  readonly listen?: Omit<NonNullable<ConfigInput['listen']>, 'port' | 'tls'>;
  readonly limits?: ConfigInput['limits'];
  readonly sessions?: ConfigInput['sessions'];
  readonly startupParameters?: ConfigInput['startupParameters'];
  readonly revocations?: ConfigInput['revocations'];
  readonly admin?: ConfigInput['admin'];
  /** Group roles beside `authenticated`, and their slots. */
  readonly roles?: Readonly<Record<string, { readonly slots: number }>>;
  readonly anonymous?: ConfigInput['anonymous'];
  readonly provider?: Partial<ConfigInput['providers'][string]>;
  readonly upstream?: Partial<ConfigInput['upstreams'][string]>;
}

/** A running stack. Close it, or keep it with `await using`. */
export interface Stack extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly database: 'app';
  readonly proxy: Proxy;
  readonly issuer: Issuer;
  /** The server that clients end up on; in mode `replica`, the standby. */
  readonly postgres: TestPostgres;
  /** The server that takes writes. The same, but for mode `replica`. */
  readonly primary: TestPostgres;
  /** In mode `replica`, the same as `postgres`. */
  readonly standby: Standby | undefined;
  /** The authority that signed the proxy's certificate. */
  readonly authority: Authority;
  /** How to reach `postgres` itself, as superuser, in database `app`. */
  readonly admin: pg.ClientConfig;
  /** The configuration the proxy runs with, as written. */
  readonly config: ConfigInput;
  /** Every line that the proxy has logged. */
  readonly logs: string[];
  /** Runs SQL as superuser in database `app` of the primary; when it resolves, clients see what it did. */
  change(sql: string): Promise<void>;
  /** A good token for `sub`. */
  token(
    sub: string,
    claims?: Readonly<Record<string, unknown>>,
    options?: MintOptions,
  ): Promise<string>;
  /** How `pg` connects as `sub` through the proxy. */
  as(sub: string, claims?: Readonly<Record<string, unknown>>): pg.ClientConfig;
  /** Connects as `sub` through the proxy; the caller ends the client. */
  connect(sub: string, overrides?: pg.ClientConfig): Promise<pg.Client>;
  /** Resolves with the first log line, parsed, for which `matches` holds. */
  logged(matches: (line: Record<string, unknown>) => boolean): Promise<Record<string, unknown>>;
  close(): Promise<void>;
}

/** Starts everything; about a second, two with a standby. What was started before something failed is stopped again. */
export async function startStack(options: StackOptions = {}): Promise<Stack> {
  return fromParts((closers) => build(options, closers));
}

/** Pushes to `closers` what ends each part, as soon as it has begun. */
async function build(
  options: StackOptions,
  closers: Closers,
): Promise<Omit<Stack, 'close' | typeof Symbol.asyncDispose>> {
  const roles = { authenticated: { slots: options.slots ?? 20 }, ...options.roles };
  recordStack();
  recordUpstreamSecret(SECRET, roles);
  const authority = createAuthority();
  const { primary, standby } = await startServers(options, roles, authority, closers);
  const postgres = standby ?? primary;
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-stack-'));
  closers.push(() => rm(folder, { recursive: true, force: true }));
  const issuer = await startIssuer();
  closers.push(() => issuer.close());
  const config = await writeConfig(folder, postgres.port, issuer, authority, roles, options);
  const logs: string[] = [];
  const proxy = createProxy(parseConfig(config), {
    logger: recordedLogger((line) => void logs.push(line)),
  });
  closers.push(() => proxy.close());
  const { host, port } = await proxy.start();

  const token: Stack['token'] = async (sub, claims = {}, mint = {}) =>
    issuer.mint({ sub, ...claims }, mint);
  const as: Stack['as'] = (sub, claims) => ({
    host,
    port,
    database: 'app',
    user: 'authenticated',
    password: () => token(sub, claims),
    ...(options.tls && { ssl: { ca: authority.ca } }),
  });
  return {
    host,
    port,
    database: 'app',
    proxy,
    issuer,
    postgres,
    primary,
    standby,
    authority,
    config,
    logs,
    token,
    as,
    admin: { ...postgres.superuser, database: 'app' },
    async change(sql) {
      await withSuperuser(primary, (client) => client.query(sql), 'app');
      await standby?.caughtUp();
    },
    async connect(sub, overrides = {}) {
      const client = new pg.Client({ ...as(sub), ...overrides });
      client.on('error', () => {});
      await client.connect();
      return client;
    },
    async logged(matches) {
      return until(() =>
        logs.map((line) => JSON.parse(line) as Record<string, unknown>).find(matches),
      );
    },
  };
}

/** Resolves with the first value of `probe` that is neither undefined nor false; fails after `ms`. */
export async function until<T>(
  probe: () => T | Promise<T>,
  ms = 10_000,
): Promise<Exclude<T, undefined | false>> {
  const deadline = performance.now() + ms;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== false) return value as Exclude<T, undefined | false>;
    if (performance.now() > deadline) throw new Error(`waited ${ms} ms in vain`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Resolves when a backend runs SQL that contains `marker`: a cancel request that overtakes its query is for nothing. */
export async function untilRunning(server: TestPostgres, marker: string): Promise<void> {
  await withSuperuser(server, (superuser) =>
    until(async () => {
      const { rowCount } = await superuser.query(
        "select from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid()",
        [`%${marker}%`],
      );
      return rowCount === 1;
    }),
  );
}

type Roles = NonNullable<StackOptions['roles']>;

async function startServers(
  options: StackOptions,
  roles: Roles,
  authority: Authority,
  closers: Closers,
): Promise<{ primary: TestPostgres; standby: Standby | undefined }> {
  const { session = 'portable', version, onLog } = options;
  const { cert, key } = authority.issue();
  const certificate = options.upstreamTls ? { 'server.crt': cert, 'server.key': key } : {};
  const both = {
    settings: { ...(options.upstreamTls && { ssl: 'on' }), ...options.settings },
    ...(onLog !== undefined && { onLog }),
  };
  const primary = await startTestPostgres({
    ...both,
    ...(version !== undefined && { version }),
    files: { ...certificate, ...options.files },
  });
  closers.push(() => primary.stop());
  await prepareDatabase(primary, options, roles);
  if (session !== 'replica') return { primary, standby: undefined };
  const standby = await startStandby(primary, both);
  closers.push(() => standby.stop());
  return { primary, standby };
}

async function prepareDatabase(
  postgres: TestPostgres,
  { session = 'portable', healSlots = false }: StackOptions,
  roles: Roles,
): Promise<void> {
  await withSuperuser(postgres, (superuser) => superuser.query('create database app'));
  const replicas = session === 'replica';
  const work = async (admin: pg.Client) => {
    // A standby has what its primary has.
    const installed = replicas ? 'portable' : session;
    await install(admin, { secret: SECRET, roles, session: installed, replicas, healSlots });
    await installDemo(admin);
  };
  await withSuperuser(postgres, work, 'app');
}

async function writeConfig(
  folder: string,
  port: number,
  issuer: Issuer,
  authority: Authority,
  roles: Roles,
  options: StackOptions,
): Promise<ConfigInput> {
  const { cert, key } = authority.issue();
  const [certFile, keyFile, caFile, secretFile] = [
    'server.crt',
    'server.key',
    'ca.crt',
    'secret',
  ].map((name) => join(folder, name)) as [string, string, string, string];
  await writeFile(certFile, cert);
  await writeFile(keyFile, key, { mode: 0o600 });
  await writeFile(caFile, authority.ca);
  await writeFile(secretFile, SECRET, { mode: 0o600 });
  return {
    listen: {
      port: 0,
      tls: options.tls ? { mode: 'require', certFile, keyFile } : {},
      ...options.listen,
    },
    providers: { test: { ...issuer.provider({ roles: ['authenticated'] }), ...options.provider } },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port,
        database: 'app',
        session: options.session ?? 'portable',
        healSlots: options.healSlots === true && options.session !== 'replica',
        ...(options.upstreamTls && { tls: { mode: 'verify-full', caFile } }),
        secret: { file: secretFile },
        roles: { ...roles },
        // A test that looks at what a client leaves behind wants nothing kept; those of reuse say how.
        pool: { reuse: 'never', spares: 0 },
        ...options.upstream,
      },
    },
    // A test that is refused a hundred times wants a hundred lines.
    log: { level: 'debug', refusalsPerMinute: 1_000_000 },
    ...(options.anonymous && { anonymous: options.anonymous }),
    ...(options.limits && { limits: options.limits }),
    ...(options.sessions && { sessions: options.sessions }),
    ...(options.startupParameters && { startupParameters: options.startupParameters }),
    ...(options.revocations && { revocations: options.revocations }),
    ...(options.admin && { admin: options.admin }),
  };
}
