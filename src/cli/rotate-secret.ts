/**
 * `pgjot rotate-secret`: gives a database the new secret of its upstream while proxies and clients work on.
 *
 * All passwords change in one transaction, or none does; who has both secrets notices nothing. So first every proxy must
 * have both, and this refuses to go on while it sees one that has not. The administrator's connection comes from
 * $PGJOT_ADMIN_URL, as for `pgjot setup`. No secret, password or key is ever printed.
 */
import { Command } from 'commander';
import { DatabaseError, type Client } from 'pg';
import { readSecrets, type UpstreamConfig } from '../config.ts';
import { CONTROL_ROLE } from '../session-sql/credentials.ts';
import {
  endSessions,
  rotate,
  survey,
  type ProxyConnection,
  type Tenancy,
} from '../session-sql/rotation.ts';
import { asRole } from '../upstream/errand.ts';
import { isPasswordRefused, Secrets } from '../upstream/secrets.ts';
import { ADMIN_URL, answer, connectAsAdmin, upstreamNamed } from './admin.ts';
import { configOption } from './config-option.ts';
import { CommandError } from './failure.ts';
import { replicasOf } from './standbys.ts';
import { visible } from './table.ts';

interface RotateSecretOptions {
  readonly config: string;
  readonly dryRun?: true;
  readonly force?: true;
  readonly endSessions?: true;
  readonly finish?: true;
}

/** The command. */
export function rotateSecretCommand(): Command {
  return new Command('rotate-secret')
    .description("give a database its upstream's new secret, while proxies and clients work on")
    .argument('<upstream>', 'its name in the configuration')
    .addOption(configOption())
    .option('--dry-run', 'say what would be done, and change nothing')
    .option('--force', 'even while there are proxies that have not got both secrets')
    .option(
      '--end-sessions',
      'then end every session, for who has the old secret may be logged in; clients have to reconnect',
    )
    .option(
      '--finish',
      'with standbys: forget the previous identity key, when the sessions from before the rotation have ended',
    )
    .addHelpText(
      'after',
      `
Before it: put the new secret into "secret" of the upstream and the old one into "previousSecret",
and have every proxy read that (SIGHUP, or a restart where secrets are environment variables).
$${ADMIN_URL} is the administrator's connection to the primary, as for pgjot setup.`,
    )
    .action(rotateSecret);
}

/** A rotation, and everything that is known of it. */
interface Rotation {
  readonly name: string;
  readonly upstream: UpstreamConfig;
  readonly secrets: Secrets;
  /** Names of the standbys' upstreams. */
  readonly standbys: readonly string[];
  readonly options: RotateSecretOptions;
}

async function rotateSecret(name: string, options: RotateSecretOptions): Promise<void> {
  const { config, upstream } = upstreamNamed(name, options.config);
  if (upstream.session === 'replica') {
    throw new CommandError('usage', `"${name}" is a standby: rotate the secret of its primary`);
  }
  const replicas = replicasOf(config, name);
  const rotation: Rotation = {
    name,
    upstream,
    secrets: new Secrets(readSecrets(upstream, `upstreams.${name}`)),
    standbys: Object.keys(config.upstreams).filter((one) =>
      replicas.includes(config.upstreams[one] as UpstreamConfig),
    ),
    options,
  };
  const admin = await connectAsAdmin(upstream.database, 'pgjot rotate-secret');
  try {
    await perform(admin, rotation);
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    throw new CommandError('failure', `nothing was changed: ${visible(answer(error))}`, {
      cause: error,
    });
  } finally {
    await admin.end().catch(() => {});
  }
}

async function perform(admin: Client, rotation: Rotation): Promise<void> {
  const { name, upstream, secrets, standbys, options } = rotation;
  const tenancy = await survey(admin);
  if (tenancy.logins.length === 0) {
    throw new CommandError('usage', `pgjot is not installed there: pgjot setup ${name}`);
  }
  const secret = secrets.all[0] as string;
  const isDone = (await verdict(upstream, secret)) === 'accepted';
  if (!isDone) assertEveryoneIsReady(rotation, tenancy);
  if (options.finish && !isDone) {
    throw new CommandError('usage', '--finish is for a secret that the server has already');
  }
  if (options.dryRun) return say(intentions(rotation, tenancy, isDone));
  const forget = options.finish === true || options.endSessions === true;
  const change = { secret, replicas: standbys.length > 0, forget };
  say(await rotate(admin, tenancy.logins, change));
  say(await confirmations(upstream, secrets));
  if (options.endSessions) {
    const ended = await endSessions(admin, (ms) =>
      say([`ending sessions, and for ${ms / 1000} s those that are half-way in their login …`]),
    ).catch((error: unknown) => {
      if (!(error instanceof DatabaseError)) throw error;
      const text = visible(answer(error));
      throw new CommandError('failure', `the secret is rotated, but sessions go on: ${text}`);
    });
    say([`ended ${ended} sessions`]);
  }
  say(['', 'What is left to do:', ...numbered(nextSteps(rotation, tenancy))]);
}

/** Whether the server takes this secret, asked as the proxy would ask; `unknown` where nobody answers there. */
async function verdict(
  upstream: UpstreamConfig,
  secret: string,
): Promise<'accepted' | 'refused' | 'unknown'> {
  const errand = { user: CONTROL_ROLE, name: 'pgjot rotate-secret', upstream, secret };
  return asRole(errand, async () => 'accepted' as const).catch((error: unknown) =>
    isPasswordRefused(error) ? 'refused' : 'unknown',
  );
}

/** @throws {CommandError} usage where logins would fail as soon as the passwords are others. */
function assertEveryoneIsReady({ name, secrets, options }: Rotation, { proxies }: Tenancy): void {
  if (options.force) return;
  if (secrets.all.length === 1) {
    throw new CommandError(
      'usage',
      `upstreams.${name} has no previousSecret: put the new secret into "secret", the old one into "previousSecret", ` +
        'have every proxy read that, and run this again (--force: proxies are refused until they have the new one)',
    );
  }
  const unready = proxies.filter((one) => !one.name.split(' ').includes(secrets.sign));
  if (unready.length === 0) return;
  throw new CommandError(
    'usage',
    `${unready.length} of ${proxies.length} proxies have not got these two secrets, and could let nobody in afterwards: ` +
      `${unready.map(describe).join('; ')}. Have them read their configuration again, or use --force`,
  );
}

function describe({ database, address, since, name }: ProxyConnection): string {
  const how = name.includes(' keys:') ? 'two others' : 'one secret';
  return visible(`${address ?? 'a local socket'} in database ${database} since ${since} (${how})`);
}

function intentions(rotation: Rotation, tenancy: Tenancy, isDone: boolean): string[] {
  const { standbys, options } = rotation;
  const { logins, proxies, sessions } = tenancy;
  return [
    isDone
      ? 'the server has the new secret already; passwords would be set anew'
      : 'the server has not got the new secret',
    `would set the passwords of ${logins.length} roles, in one transaction`,
    ...(standbys.length > 0
      ? [`would give standbys the new identity key: ${standbys.join(', ')}`]
      : []),
    `${proxies.length} proxies are connected; ${sessions} sessions would ${options.endSessions ? 'be ended' : 'go on'}`,
  ];
}

/** What the server says to both secrets now. */
async function confirmations(upstream: UpstreamConfig, { all }: Secrets): Promise<string[]> {
  const [current = '', previous] = all;
  const now = await verdict(upstream, current);
  if (now === 'unknown') {
    return [`could not look at it from here: nobody answers at ${upstream.host}:${upstream.port}`];
  }
  if (now === 'refused') {
    throw new CommandError(
      'failure',
      `the passwords are set, but ${upstream.host}:${upstream.port} refuses the new secret: is that the server that ${ADMIN_URL} leads to?`,
    );
  }
  const lines = ['checked: the new secret lets us in'];
  if (previous !== undefined) {
    const before = await verdict(upstream, previous);
    lines.push(
      before === 'refused'
        ? 'checked: the old one is refused'
        : 'the old one lets us in as well: does pg_hba.conf ask for passwords at all (scram-sha-256, or cert)?',
    );
  }
  return lines;
}

function nextSteps(rotation: Rotation, { sessions, otherDatabases }: Tenancy): string[] {
  const { name, standbys, options, secrets } = rotation;
  const steps: string[] = [];
  if (otherDatabases.length > 0) {
    steps.push(
      `Other databases of this server have pgjot, and the same roles: ${otherDatabases.join(', ')}. Their upstreams need the new secret too; ` +
        'run this for those that have standbys.',
    );
  }
  if (secrets.all.length > 1) {
    steps.push(
      `Take "previousSecret" out of upstreams.${[name, ...standbys].join(' and upstreams.')}, and have every proxy read that.`,
    );
  }
  if (standbys.length > 0 && !options.finish && !options.endSessions) {
    steps.push(
      `Once the sessions on ${standbys.join(', ')} from before now have ended, pgjot rotate-secret ${name} --finish: until then ` +
        'the previous identity key holds there.',
    );
  }
  if (standbys.length > 0 && options.endSessions) {
    steps.push(
      `On each standby end the sessions, as superuser: select pg_terminate_backend(pid) from pg_stat_activity where usename ~ '^pgjot_';`,
    );
  }
  if (!options.endSessions && !options.finish) {
    steps.push(
      `${sessions} sessions began with the old secret and go on. If it may have leaked, end them: pgjot rotate-secret ${name} --end-sessions`,
    );
  }
  steps.push('Destroy the old secret, and keep the new one where backups of the old one were.');
  return steps.map(visible);
}

const numbered = (steps: readonly string[]) => steps.map((step, at) => `${at + 1}. ${step}`);

function say(lines: readonly string[]): void {
  for (const line of lines) console.log(visible(line));
}
