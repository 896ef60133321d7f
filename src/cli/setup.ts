/**
 * `pgjot setup`: installs the roles, slots and session functions of an upstream, prints the SQL that would, or removes them.
 *
 * The administrator's connection comes from $PGJOT_ADMIN_URL and is kept nowhere. May be run again at any
 * time; it prints what it changed and says nothing of what was there already.
 */
import { Command } from 'commander';
import { DatabaseError, type Client } from 'pg';
import { readSecret, type UpstreamConfig } from '../config.ts';
import {
  install,
  planInstall,
  planUninstall,
  uninstall,
  type InstallOptions,
  type SchemaGrant,
} from '../session-sql/install.ts';
import { ADMIN_URL, answer, connectAsAdmin, upstreamNamed } from './admin.ts';
import { configOption } from './config-option.ts';
import { CommandError } from './failure.ts';
import { replicasOf } from './standbys.ts';
import { visible } from './table.ts';

interface SetupOptions {
  readonly config: string;
  readonly dryRun?: true;
  readonly grantSchema: readonly string[];
  readonly forceRls?: true;
  readonly uninstall?: true;
  readonly keepRoles?: true;
}

/** The command. */
export function setupCommand(): Command {
  return new Command('setup')
    .description('install the roles, slots and session functions of an upstream; may be run again')
    .argument('<upstream>', 'its name in the configuration')
    .addOption(configOption())
    .option('--dry-run', 'print the SQL, as a script for psql, and change nothing')
    .option(
      '--grant-schema <name[:role]>',
      'let clients use the tables of this schema, now and by default: all roles of the upstream, or one; repeatable',
      (name: string, names: readonly string[]) => [...names, name],
      [],
    )
    .option('--force-rls', 'enable and force Row-Level Security on every table of those schemas')
    .option('--uninstall', 'remove them; the group roles and the tables stay')
    .option('--keep-roles', 'with --uninstall: leave the roles, which other databases use')
    .addHelpText(
      'after',
      `
$${ADMIN_URL} is the administrator's connection to that database (postgres://…): a role with
CREATEROLE that owns it, or a superuser.`,
    )
    .action(setUp);
}

async function setUp(name: string, options: SetupOptions): Promise<void> {
  const problem = contradiction(options);
  if (problem !== undefined) throw new CommandError('usage', problem);
  const { config, upstream } = upstreamNamed(name, options.config);
  if (options.uninstall) {
    const how = { keepRoles: options.keepRoles === true };
    if (options.dryRun) return console.log((await planUninstall(how)).join('\n\n'));
    return change(upstream, (admin) => uninstall(admin, how), 'nothing was there to remove');
  }
  if (upstream.session === 'replica') {
    throw new CommandError(
      'usage',
      `"${name}" is a standby: what it has comes from its primary, so run setup for that`,
    );
  }
  const secret = readSecret(upstream.secret, `upstreams.${name}.secret`);
  const replicas = replicasOf(config, name);
  const wanted: InstallOptions = {
    secret,
    roles: upstream.roles,
    session: upstream.session,
    replicas: replicas.length > 0,
    lookup: [upstream, ...replicas].some(({ lookup }) => lookup !== undefined),
    healSlots: upstream.healSlots,
    grants: options.grantSchema.flatMap((text) => schemaGrants(text, Object.keys(upstream.roles))),
    forceRls: options.forceRls === true,
  };
  if (options.dryRun) return console.log((await planInstall(wanted)).join('\n\n'));
  return change(
    upstream,
    (admin) => install(admin, wanted),
    'nothing was missing; the passwords were set anew, as they are each time',
  );
}

function contradiction(options: SetupOptions): string | undefined {
  const { grantSchema, forceRls, keepRoles } = options;
  if (options.uninstall && (grantSchema.length > 0 || forceRls)) {
    return '--uninstall goes with neither --grant-schema nor --force-rls';
  }
  if (keepRoles && !options.uninstall) return '--keep-roles is for --uninstall';
  if (forceRls && grantSchema.length === 0) return '--force-rls needs --grant-schema';
  return undefined;
}

/** `public` is for every role of the upstream, `public:analyst` for one. */
function schemaGrants(text: string, roles: readonly string[]): SchemaGrant[] {
  const colon = text.lastIndexOf(':');
  if (colon === -1) return roles.map((role) => ({ schema: text, role }));
  const [schema, role] = [text.slice(0, colon), text.slice(colon + 1)];
  if (roles.includes(role)) return [{ schema, role }];
  throw new CommandError(
    'usage',
    `--grant-schema ${text}: "${role}" is not a role of the upstream: ${roles.join(', ')}`,
  );
}

/** Makes the changes and prints them, one line each. */
async function change(
  { database }: UpstreamConfig,
  work: (admin: Client) => Promise<readonly string[]>,
  unchanged: string,
): Promise<void> {
  const admin = await connectAsAdmin(database, 'pgjot setup');
  admin.on('notice', ({ severity, message = '' }) => {
    if (severity !== 'INFO') console.error(visible(`${severity}:  ${message}`));
  });
  try {
    const changes = await work(admin);
    for (const line of changes.length > 0 ? changes : [unchanged]) console.log(visible(line));
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    const text = visible(answer(error));
    throw new CommandError('failure', `nothing was changed: ${text}`, { cause: error });
  } finally {
    await admin.end().catch(() => {});
  }
}
