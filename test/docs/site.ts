/**
 * Where a document is tried: an empty database with an ordinary administrator, the commands, and a proxy before it.
 *
 * Nothing is installed. The document says `pgjot setup`, as its reader would, and changes the configuration as it goes on.
 */
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import pg from 'pg';
import { createProxy, parseConfig, type ConfigInput, type Proxy } from '../../src/proxy.ts';
import { ROOT, runShell, type CliResult } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';
import { type Closers, fromParts } from '../support/parts.ts';
import { startTestPostgres, type TestPostgresOptions, withSuperuser } from '../support/postgres.ts';
import { recordedLogger } from '../support/logger.ts';
import { recordStack, recordUpstreamSecret } from '../support/record.ts';
import { SECRET } from '../support/stack.ts';

/** A place to try a document in. Close it. */
export interface Site extends AsyncDisposable {
  /**
   * The connection of somebody, opened when first asked for: `superuser`, `admin`, `nobody` who has no token, or any other
   * name, which is then the `sub` of a token. `role` is the one to ask the proxy for; default `authenticated`.
   */
  as(name: string, role?: string): Promise<pg.Client>;
  /** What this user's tokens say from now on, beside `sub`. */
  giveToken(name: string, claims: Readonly<Record<string, unknown>>): Promise<void>;
  /** How `pg` connects as somebody. */
  settingsFor(name: string, role?: string): Promise<pg.ClientConfig>;
  /** Merges a fragment into the configuration; who was connected, is no more. */
  configure(fragment: Readonly<Record<string, unknown>>): Promise<void>;
  /** The upstream `main` as it is configured now. */
  main(): ConfigInput['upstreams'][string];
  /** Runs a line of shell where `pgjot` can be called. */
  shell(line: string): Promise<CliResult>;
  close(): Promise<void>;
}

const ADMIN = { user: 'app_admin', password: 'app_admin' } as const;

/** Starts the server and an issuer; the proxy starts when the first user signs in. */
export async function startSite(options: TestPostgresOptions = {}): Promise<Site> {
  return fromParts((closers) => build(options, closers));
}

/** Pushes to `closers` what ends each part, as soon as it has begun. */
async function build(
  options: TestPostgresOptions,
  closers: Closers,
): Promise<Omit<Site, 'close' | typeof Symbol.asyncDispose>> {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-site-'));
  closers.push(() => rm(folder, { recursive: true, force: true }));
  recordStack();
  recordUpstreamSecret(SECRET, { authenticated: { slots: 5 } });
  const postgres = await startTestPostgres(options);
  closers.push(() => postgres.stop());
  const issuer = await startIssuer();
  closers.push(() => issuer.close());
  await withSuperuser(postgres, async (superuser) => {
    await superuser.query(
      `create role ${ADMIN.user} login createrole password '${ADMIN.password}'`,
    );
    await superuser.query(`create database app owner ${ADMIN.user}`);
  });
  await writeFile(join(folder, 'secret'), SECRET, { mode: 0o600 });
  await writeCommand(folder);

  const database = { host: postgres.host, port: postgres.port, database: 'app' };
  let config: ConfigInput = {
    listen: { port: 0 },
    providers: { own: issuer.provider({ roles: ['authenticated'] }) },
    upstreams: {
      main: {
        ...database,
        secret: { file: join(folder, 'secret') },
        // A document says what a new session sees.
        pool: { reuse: 'never', spares: 0 },
        roles: { authenticated: { slots: 5 } },
      },
    },
  };
  const saveConfig = () =>
    writeFile(join(folder, 'proxy.config.json'), JSON.stringify(config), { mode: 0o600 });
  await saveConfig();
  const gate = createGate(() => config, issuer);
  closers.push(() => gate.close());

  const settingsFor: Site['settingsFor'] = async (name, role = 'authenticated') => {
    if (name === 'superuser') return { ...postgres.superuser, database: 'app' };
    if (name === 'admin') return { ...database, ...ADMIN };
    return gate.settingsFor(name, role);
  };
  const url = `postgres://${ADMIN.user}:${ADMIN.password}@${database.host}:${database.port}/app`;
  const PATH = `${folder}${delimiter}${process.env['PATH']}`;
  return {
    settingsFor,
    as: (name, role = 'authenticated') =>
      gate.remember(`${name} ${role}`, () => settingsFor(name, role)),
    giveToken: (name, claims) => gate.giveToken(name, claims),
    async configure(fragment) {
      config = merged(config, fragment) as ConfigInput;
      parseConfig(config);
      await saveConfig();
      await gate.close();
    },
    main: () => config.upstreams['main'] as ConfigInput['upstreams'][string],
    shell: (line) => runShell(line, { cwd: folder, env: { PATH, PGJOT_ADMIN_URL: url } }),
  };
}

/** The proxy, which starts when somebody asks for it, and everybody's connections; closed, it starts again when asked. */
function createGate(config: () => ConfigInput, issuer: Issuer) {
  const claims = new Map<string, Readonly<Record<string, unknown>>>();
  const clients = new Map<string, pg.Client>();
  let running: { readonly proxy: Proxy; readonly port: number } | undefined;

  const signOut = async () => {
    const all = [...clients.values()];
    clients.clear();
    await Promise.all(all.map((client) => client.end()));
  };
  return {
    async settingsFor(name: string, role: string): Promise<pg.ClientConfig> {
      if (running === undefined) {
        const proxy = createProxy(parseConfig(config()), { logger: recordedLogger() });
        running = { proxy, port: (await proxy.start()).port };
      }
      const password = name === 'nobody' ? '' : issuer.mint({ sub: name, ...claims.get(name) });
      return { host: '127.0.0.1', port: running.port, database: 'app', user: role, password };
    },
    /** The connection of this name, opened where there is none. */
    async remember(name: string, settings: () => Promise<pg.ClientConfig>): Promise<pg.Client> {
      const known = clients.get(name);
      if (known !== undefined) return known;
      const client = new pg.Client(await settings());
      client.on('error', () => {});
      await client.connect();
      clients.set(name, client);
      return client;
    },
    async giveToken(name: string, given: Readonly<Record<string, unknown>>): Promise<void> {
      claims.set(name, given);
      await signOut();
    },
    async close(): Promise<void> {
      await signOut();
      await running?.proxy.close();
      running = undefined;
    },
  };
}

async function writeCommand(folder: string): Promise<void> {
  const file = join(folder, 'pgjot');
  await writeFile(file, `#!/bin/sh\nexec "${process.execPath}" "${ROOT}/dist/cli/main.js" "$@"\n`);
  await chmod(file, 0o755);
}

/** Objects are merged, everything else is replaced, and so is a list of roles: a document shows it whole. */
function merged(base: unknown, change: unknown): unknown {
  if (!isObject(base) || !isObject(change)) return change;
  const entries = Object.entries(change).map(([key, value]) => [
    key,
    key === 'roles' ? value : merged(base[key], value),
  ]);
  return { ...base, ...Object.fromEntries(entries) };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
