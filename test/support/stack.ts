/**
 * The whole house for an end-to-end test: a real PostgreSQL with the demo table, an issuer, and the proxy before them.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import pg from 'pg';
import { pino } from 'pino';
import { createProxy, parseConfig, type ConfigInput, type Proxy } from '../../src/proxy.ts';
import { install, installDemo } from '../../src/session-sql/install.ts';
import { createAuthority, type Authority } from './certificate.ts';
import { startIssuer, type Issuer, type MintOptions } from './issuer.ts';
import { connectAsSuperuser, startTestPostgres, type TestPostgresOptions } from './postgres.ts';

/** The one secret of a test's upstream. */
export const SECRET = 'a-secret-for-tests-of-at-least-32-characters';

/** How a stack differs from the plainest one. */
export interface StackOptions
  extends Pick<TestPostgresOptions, 'version' | 'settings' | 'files' | 'onLog'> {
  /** Clients must use TLS. Default: plaintext on loopback. */
  readonly tls?: boolean;
  /** Slots of the role `authenticated`. Default 20. */
  readonly slots?: number;
  readonly limits?: ConfigInput['limits'];
  readonly sessions?: ConfigInput['sessions'];
  readonly startupParameters?: ConfigInput['startupParameters'];
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
  readonly postgres: Awaited<ReturnType<typeof startTestPostgres>>;
  /** The authority that signed the proxy's certificate. */
  readonly authority: Authority;
  /** How to reach PostgreSQL itself, as superuser, in database `app`. */
  readonly admin: pg.ClientConfig;
  /** The configuration the proxy runs with, as written. */
  readonly config: ConfigInput;
  /** Every line that the proxy has logged. */
  readonly logs: string[];
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

/** Starts everything; about a second. */
export async function startStack(options: StackOptions = {}): Promise<Stack> {
  const { version, settings, files, onLog } = options;
  const postgres = await startTestPostgres({
    ...(version !== undefined && { version }),
    ...(settings !== undefined && { settings }),
    ...(files !== undefined && { files }),
    ...(onLog !== undefined && { onLog }),
  });
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-stack-'));
  const issuer = await startIssuer();
  const authority = createAuthority();
  const roles = { authenticated: { slots: options.slots ?? 20 }, ...options.roles };
  await prepareDatabase(postgres, roles);
  const config = await writeConfig(folder, postgres.port, issuer, authority, roles, options);

  const logs: string[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _, next) {
      logs.push(...chunk.toString().trimEnd().split('\n'));
      next();
    },
  });
  const proxy = createProxy(parseConfig(config), {
    logger: pino({ level: 'debug', base: null }, sink),
  });
  const { host, port } = await proxy.start();
  const close = async () => {
    await proxy.close();
    await issuer.close();
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  };
  const admin = { ...postgres.superuser, database: 'app' };
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
    authority,
    admin,
    config,
    logs,
    token,
    as,
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
    close,
    [Symbol.asyncDispose]: close,
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

type Roles = NonNullable<StackOptions['roles']>;

async function prepareDatabase(postgres: Stack['postgres'], roles: Roles): Promise<void> {
  const superuser = await connectAsSuperuser(postgres);
  await superuser.query('create database app');
  await superuser.end();
  const admin = await connectAsSuperuser(postgres, 'app');
  try {
    await install(admin, { secret: SECRET, roles });
    await installDemo(admin);
  } finally {
    await admin.end();
  }
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
  const [certFile, keyFile, secretFile] = ['server.crt', 'server.key', 'secret'].map((name) =>
    join(folder, name),
  ) as [string, string, string];
  await writeFile(certFile, cert);
  await writeFile(keyFile, key, { mode: 0o600 });
  await writeFile(secretFile, SECRET, { mode: 0o600 });
  return {
    listen: { port: 0, tls: options.tls ? { mode: 'require', certFile, keyFile } : {} },
    providers: { test: { ...issuer.provider({ roles: ['authenticated'] }), ...options.provider } },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port,
        database: 'app',
        secret: { file: secretFile },
        roles: { ...roles },
        ...options.upstream,
      },
    },
    ...(options.anonymous && { anonymous: options.anonymous }),
    ...(options.limits && { limits: options.limits }),
    ...(options.sessions && { sessions: options.sessions }),
    ...(options.startupParameters && { startupParameters: options.startupParameters }),
  };
}
