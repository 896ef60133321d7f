/**
 * `pgjot dev`: PostgreSQL, an issuer, the demonstration and the proxy, on this machine alone, with one command.
 *
 * What it keeps is in `.pgjot`. It stops what it started, however it ends.
 */
import { once } from 'node:events';
import { createWriteStream, type WriteStream } from 'node:fs';
import { createServer } from 'node:net';
import { join, relative } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { Client } from 'pg';
import { pino, stdTimeFunctions } from 'pino';
import { parseConfig, type ConfigInput } from '../config.ts';
import { createProxy } from '../proxy.ts';
import { install, installDemo } from '../session-sql/install.ts';
import { startIssuer, type RunningIssuer } from './dev/issuer.ts';
import { DEV_AUDIENCE } from './dev/mint.ts';
import { startPostgres, type PostgresServer } from './dev/postgres.ts';
import {
  createStateFolder,
  forgetState,
  stateOf,
  upstreamSecret,
  writeConfig,
  type State,
} from './dev/state.ts';
import { closeAll, CommandError } from './failure.ts';
import { stopRequests } from './signals.ts';
import { listening } from './start.ts';

const HOST = '127.0.0.1';
const ROLE = 'authenticated';
const DATABASE = 'app';
const SLOTS = 20;

interface DevOptions {
  readonly port: number;
  readonly reset?: true;
}

/** The command. */
export function devCommand(): Command {
  return new Command('dev')
    .description('run everything here: PostgreSQL, an issuer, demo data and the proxy')
    .option('--port <number>', 'the port of the proxy; 0 takes a free one', parsePort, 6432)
    .option('--reset', 'forget data, keys and tokens of earlier runs')
    .action(dev);
}

async function dev(options: DevOptions): Promise<void> {
  using stop = stopRequests(['SIGINT', 'SIGTERM', 'SIGHUP']);
  const startedAt = performance.now();
  // First of all, so that a second `dev` beside the first touches nothing.
  await assertFree(options.port);
  const state = stateOf();
  await createStateFolder(state);
  const log = await openLog(state.proxyLog);
  const opened: (() => Promise<void>)[] = [];
  try {
    const server = await openPostgres(state, options);
    opened.unshift(() => stopSoon(server, stop.second));
    if (options.reset) await forgetState(state);
    await prepareDatabase(server, await upstreamSecret(state));
    const issuer = await startIssuer(state, options.port === 0 ? 0 : options.port + 1);
    opened.unshift(() => issuer.close());
    const proxy = openProxy(configFor(server, issuer, options.port), state.folder, log);
    opened.unshift(() => proxy.close());
    const { port } = await listening(proxy);
    await writeConfig(state, configFor(server, issuer, port));

    if (!stop.requested) {
      console.log(welcome(state, port, server, performance.now() - startedAt));
    }
    await Promise.race([stop.first, failWhenGone(server)]);
    console.error('\nstopping');
  } finally {
    await closeAll(opened);
  }
}

/** A port that is taken now would only be noticed after everything else has started. */
async function assertFree(port: number): Promise<void> {
  const probe = createServer();
  await new Promise<void>((resolve, reject) => {
    probe.once('error', reject).listen(port, HOST, resolve);
  }).catch((cause: NodeJS.ErrnoException) => {
    throw new CommandError(
      'failure',
      cause.code === 'EADDRINUSE'
        ? `port ${port} is taken (by another "pgjot dev"?); choose one with --port`
        : cause.message,
      { cause },
    );
  });
  await new Promise((closed) => probe.close(closed));
}

/** A file to log to. Should it fail later (a full disk), lines are lost and nothing else. */
async function openLog(file: string): Promise<WriteStream> {
  const log = createWriteStream(file, { mode: 0o600 });
  try {
    await once(log, 'open');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new CommandError('failure', `cannot write ${file} (${code})`, { cause });
  }
  log.on('error', () => {});
  return log;
}

async function openPostgres(state: State, options: DevOptions): Promise<PostgresServer> {
  const log = await openLog(state.postgresLog);
  try {
    const server = await startPostgres({
      dataDir: state.dataDir,
      reset: options.reset === true,
      onLog: (line) => log.write(`${line}\n`),
    });
    void server.exited.then(() => log.end());
    return server;
  } catch (error) {
    log.end();
    throw error;
  }
}

async function stopSoon(server: PostgresServer, insisted: Promise<void>): Promise<void> {
  await Promise.race([server.stop('fast'), insisted.then(() => server.stop('immediate'))]);
}

/** The demonstration's database, roles, functions and rows; what is there already stays as it is. */
async function prepareDatabase(server: PostgresServer, secret: string): Promise<void> {
  await asSuperuser(server, server.superuser.database, async (admin) => {
    const found = await admin.query('SELECT FROM pg_database WHERE datname = $1', [DATABASE]);
    if (found.rowCount === 0) await admin.query(`CREATE DATABASE ${DATABASE}`);
  });
  await asSuperuser(server, DATABASE, async (admin) => {
    await install(admin, { secret, roles: { [ROLE]: { slots: SLOTS } } });
    await installDemo(admin);
  });
}

async function asSuperuser(
  { superuser }: PostgresServer,
  database: string,
  work: (admin: Client) => Promise<void>,
): Promise<void> {
  const admin = new Client({ ...superuser, database });
  await admin.connect();
  try {
    await work(admin);
  } finally {
    await admin.end();
  }
}

function configFor(server: PostgresServer, issuer: RunningIssuer, port: number): ConfigInput {
  return {
    listen: { host: HOST, port },
    providers: {
      dev: {
        issuer: issuer.url,
        jwksUri: issuer.jwksUri,
        audience: [DEV_AUDIENCE],
        algorithms: ['ES256'],
        roles: [ROLE],
      },
    },
    upstreams: {
      dev: {
        host: server.host,
        port: server.port,
        database: DATABASE,
        secret: { file: 'upstream.secret' },
        roles: { [ROLE]: { slots: SLOTS } },
      },
    },
  };
}

/** The proxy, logging to a file: the terminal belongs to what the user does next. */
function openProxy(input: ConfigInput, folder: string, log: WriteStream) {
  const config = parseConfig(input, folder);
  const format = { level: config.log.level, base: null, timestamp: stdTimeFunctions.isoTime };
  const proxy = createProxy(config, { logger: pino(format, log) });
  return {
    start: () => proxy.start(),
    async close() {
      try {
        await proxy.close();
      } finally {
        // Called even where the file cannot be written any more.
        await new Promise<void>((closed) => log.end(() => closed()));
      }
    },
  };
}

async function failWhenGone(server: PostgresServer): Promise<never> {
  await server.exited;
  throw new CommandError('failure', 'PostgreSQL has ended by itself; .pgjot/postgres.log says why');
}

/** What to do next: every line works as it is, in this folder. */
function welcome(state: State, port: number, server: PostgresServer, elapsedMs: number): string {
  const folder = relative(process.cwd(), state.folder);
  const connect = `-h ${HOST} -p ${port} -U ${ROLE} -d ${DATABASE}`;
  const url = `postgres://${ROLE}@${HOST}:${port}/${DATABASE}`;
  const psql = (sub: string) =>
    `PGPASSWORD=$(npx pgjot token --sub ${sub}) psql ${connect} -c 'select * from todos'`;
  return `
pgjot is ready after ${(elapsedMs / 1000).toFixed(1)} s: PostgreSQL ${server.major}, an issuer, and the proxy on ${HOST}:${port}.

Alice and Bob see different rows of one table. In another terminal, in this folder:

  ${psql('alice')}
  ${psql('bob')}

Without psql:

  npx pgjot sql --sub alice 'select * from todos'

With node-postgres, or any other driver: the token is the password.

  PGPASSWORD=$(npx pgjot token --sub bob) node -e "new (require('pg').Pool)({ connectionString: '${url}', max: 1, allowExitOnIdle: true }).query('select * from todos').then((result) => console.table(result.rows))"

Who may do what, and why a login was refused: ${join(folder, 'proxy.config.json')}, ${join(folder, 'proxy.log')}
Ctrl-C stops everything; data and tokens stay in ${folder} (pgjot dev --reset forgets them).
`;
}

function parsePort(text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port > 65_535) {
    throw new InvalidArgumentError('It must be a number from 0 to 65535.');
  }
  return port;
}
