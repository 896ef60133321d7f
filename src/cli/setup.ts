/**
 * `pgjot setup`: installs the roles, slots and session functions of an upstream, or prints the SQL that would.
 *
 * The administrator's connection comes from $PGJOT_ADMIN_URL and is kept nowhere. May be run again at any time.
 */
import { Command } from 'commander';
import { Client, DatabaseError } from 'pg';
import { loadConfig, readSecret } from '../config.ts';
import { install, planInstall } from '../session-sql/install.ts';
import { CommandError } from './failure.ts';
import { CONFIG_FILE } from './start.ts';

const ADMIN_URL = 'PGJOT_ADMIN_URL';

/** The command. */
export function setupCommand(): Command {
  return new Command('setup')
    .description('install the roles, slots and session functions of an upstream; may be run again')
    .argument('<upstream>', 'its name in the configuration')
    .option('--config <file>', 'the configuration', CONFIG_FILE)
    .option('--dry-run', 'print the SQL, as a script for psql, and change nothing')
    .addHelpText(
      'after',
      `
$${ADMIN_URL} is the administrator's connection to that database (postgres://…): a role with
CREATEROLE that owns it, or a superuser.`,
    )
    .action(setUp);
}

async function setUp(name: string, options: { config: string; dryRun?: true }): Promise<void> {
  const config = loadConfig(options.config);
  const upstream = Object.hasOwn(config.upstreams, name) ? config.upstreams[name] : undefined;
  if (upstream === undefined) {
    const known = Object.keys(config.upstreams).join(', ');
    throw new CommandError('usage', `"${name}" is not an upstream of ${options.config}: ${known}`);
  }
  const plan = {
    secret: readSecret(upstream.secret, `upstreams.${name}.secret`),
    roles: upstream.roles,
  };
  if (options.dryRun) {
    console.log((await planInstall(plan)).join('\n\n'));
    return;
  }

  const admin = await connectAsAdmin(upstream.database);
  try {
    await install(admin, plan);
  } catch (error) {
    throw refusal(error);
  } finally {
    await admin.end().catch(() => {});
  }
  for (const [role, { slots }] of Object.entries(upstream.roles)) {
    console.log(`role "${role}" with ${slots} slots is ready in database "${upstream.database}"`);
  }
}

async function connectAsAdmin(database: string): Promise<Client> {
  const url = process.env[ADMIN_URL];
  if (url === undefined || url === '') {
    throw new CommandError(
      'usage',
      `set ${ADMIN_URL} to the administrator's connection (postgres://…)`,
    );
  }
  const admin = adminClient(url);
  if (admin.database !== database) {
    // The roles would be right, but the session functions would be in the wrong place.
    throw new CommandError(
      'usage',
      `${ADMIN_URL} leads to database "${admin.database}", the upstream's is "${database}"`,
    );
  }
  admin.on('error', () => {});
  admin.on('notice', ({ severity, message }) => console.error(`${severity}:  ${message}`));
  await admin.connect().catch((cause: Error) => {
    throw new CommandError('unavailable', `cannot connect with ${ADMIN_URL}: ${reason(cause)}`, {
      cause,
    });
  });
  return admin;
}

/** The parser's own message would repeat the URL, and with it the password. */
function adminClient(url: string): Client {
  try {
    return new Client({ connectionString: url, application_name: 'pgjot setup' });
  } catch {
    throw new CommandError('usage', `${ADMIN_URL} is not a connection URL (postgres://…)`);
  }
}

function refusal(error: unknown): unknown {
  if (!(error instanceof DatabaseError)) return error;
  const more = [error.detail && `DETAIL: ${error.detail}`, error.hint && `HINT: ${error.hint}`];
  const text = [`${error.severity} ${error.code}: ${error.message}`, ...more.filter(Boolean)];
  return new CommandError('failure', `nothing was changed: ${text.join('  ')}`, { cause: error });
}

/** Node puts what happened at each address of a host name into an AggregateError without a message. */
function reason(error: Error): string {
  return error instanceof AggregateError ? String(error.errors[0]) : error.message;
}
