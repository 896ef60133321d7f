/**
 * `pgjot sql`: runs SQL through a proxy as somebody, for a machine without psql.
 *
 * It is a plain client: it sends the token as the password and sees what the policies let it see.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import type { ConnectionOptions } from 'node:tls';
import { Command } from 'commander';
import { Client, DatabaseError, type ClientConfig, type QueryConfig, type QueryResult } from 'pg';
import { loadConfig, type Config } from '../config.ts';
import { clientTlsMode } from '../exposure.ts';
import { mintHere } from './dev/mint.ts';
import { devConfigFile, stateOf } from './dev/state.ts';
import { CommandError } from './failure.ts';
import { formatResult } from './table.ts';

interface SqlOptions {
  readonly sub?: string;
  readonly tokenFile?: string;
  readonly config?: string;
  readonly caFile?: string;
  readonly role?: string;
  readonly database?: string;
  readonly json?: true;
}

/** The command. */
export function sqlCommand(): Command {
  return new Command('sql')
    .description('run SQL through the proxy as somebody and print a table')
    .argument('<sql>', 'the statements; "-" reads them from standard input')
    .option('--sub <subject>', 'as this subject, with a fresh token of the development issuer')
    .option('--token-file <file>', 'with the token in this file; "-" reads standard input')
    .option('--config <file>', 'the proxy is that of this configuration (default: of "pgjot dev")')
    .option(
      '--ca-file <file>',
      "trust who this authority (PEM) vouches for (default: the configuration's certificate alone)",
    )
    .option('--role <role>', 'the PostgreSQL role to ask for (default: the first configured)')
    .option('--database <name>', 'the database to ask for (default: the first configured)')
    .option('--json', 'print the rows as JSON, one array for each statement that returns rows')
    .action(runSql);
}

async function runSql(given: string, options: SqlOptions): Promise<void> {
  const config = loadConfig(options.config ?? devConfigFile());
  const password = await tokenFor(options);
  const sql = given === '-' ? await text(process.stdin) : given;
  const client = new Client({
    ...(await target(config, options)),
    password,
    application_name: 'pgjot sql',
    connectionTimeoutMillis: config.limits.loginTimeoutMs + 1_000,
  });
  client.on('notice', ({ severity, message }) => console.error(`${severity}:  ${message}`));
  // The query under way reports the loss; without a listener Node would throw it a second time.
  client.on('error', () => {});
  await client.connect().catch((error: Error) => {
    throw describe(error, 'unavailable');
  });
  try {
    const query = { text: sql, ...(options.json ? {} : { rowMode: 'array', types: AS_TEXT }) };
    // pg answers several statements with an array, which its types do not say.
    const result: QueryResult | QueryResult[] = await client.query(query as QueryConfig);
    print([result].flat(), options.json === true);
  } catch (error) {
    throw describe(error as Error, 'failure');
  } finally {
    await client.end();
  }
}

// Values as PostgreSQL wrote them: what a table should show, rather than JavaScript's idea of a date.
const AS_TEXT = { getTypeParser: () => (value: string) => value };

function print(results: QueryResult[], asJson: boolean): void {
  for (const result of results) {
    if (!asJson) console.log(formatResult(result));
    else if (result.fields.length > 0) console.log(JSON.stringify(result.rows, null, 2));
  }
}

async function tokenFor({ sub, tokenFile }: SqlOptions): Promise<string> {
  if ((sub === undefined) === (tokenFile === undefined)) {
    throw new CommandError('usage', 'say who is asking: either --sub or --token-file');
  }
  if (sub !== undefined) return mintHere(stateOf(), { subject: sub });
  const file = tokenFile ?? '-';
  const token = file === '-' ? text(process.stdin) : readFile(file, 'utf8');
  return (
    await token.catch((cause: NodeJS.ErrnoException) => {
      throw new CommandError('failure', `cannot read ${file} (${cause.code})`, { cause });
    })
  ).trim();
}

/** Where the proxy of this configuration listens, and what to ask it for. */
async function target(config: Config, options: SqlOptions): Promise<ClientConfig> {
  const [upstream] = Object.values(config.upstreams);
  const [provider] = Object.values(config.providers);
  return {
    host: dialled(config),
    port: config.listen.port,
    user: options.role ?? provider?.roles[0] ?? '',
    database: options.database ?? config.routes?.[0]?.database ?? upstream?.database ?? '',
    ssl: await trust(config, options.caFile),
  };
}

/** The address of a proxy on this machine. */
function dialled({ listen: { host } }: Config): string {
  return host === '0.0.0.0' || host === '::' ? 'localhost' : host;
}

/**
 * Whom to send a token to: the holder of the very certificate that the configuration names, whatever names it
 * bears, since we dial the address that the proxy listens on. With `caFile`, whoever that authority vouches for
 * by the address dialled. The well-known authorities vouch for too many.
 */
async function trust(
  config: Config,
  caFile: string | undefined,
): Promise<ConnectionOptions | false> {
  if (caFile !== undefined) return { ca: await readFile(caFile, 'utf8'), host: dialled(config) };
  const { certFile } = config.listen.tls;
  if (clientTlsMode(config) !== 'require' || certFile === undefined) return false;
  // The proxy's own comes first in its file; those that follow sign others' too.
  const own = new X509Certificate(await readFile(certFile));
  return {
    ca: own.toString(),
    allowPartialTrustChain: true,
    // Attack: `own` may be an authority as well, and have signed another's.
    checkServerIdentity: (_, { raw }) =>
      raw.equals(own.raw)
        ? undefined
        : new Error('the certificate is not the one in listen.tls.certFile'),
  };
}

/** One line for what PostgreSQL or the proxy answered, or for not having been reached. */
function describe(error: Error, otherwise: 'unavailable' | 'failure'): CommandError {
  if (!(error instanceof DatabaseError)) {
    const reason = error instanceof AggregateError ? String(error.errors[0]) : error.message;
    const advice = reason.includes('ECONNREFUSED') ? ' (is the proxy running?)' : '';
    return new CommandError(otherwise, `${reason}${advice}`, { cause: error });
  }
  const { severity, code, message, detail, hint } = error;
  const more = [detail && `DETAIL: ${detail}`, hint && `HINT: ${hint}`].filter(Boolean);
  return new CommandError('failure', [`${severity} ${code}: ${message}`, ...more].join('  '), {
    cause: error,
  });
}
