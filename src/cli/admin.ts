/**
 * The administrator's connection to an upstream's database, from $PGJOT_ADMIN_URL.
 *
 * The URL is read when a command needs it, kept nowhere and never printed: it holds a password.
 */
import { Client, type DatabaseError } from 'pg';
import { loadConfig, type Config, type UpstreamConfig } from '../config.ts';
import { CommandError } from './failure.ts';

/** The variable that holds the URL. */
export const ADMIN_URL = 'PGJOT_ADMIN_URL';

/**
 * The upstream of this name, and the configuration that it is in.
 *
 * @throws {CommandError} usage when there is none.
 * @throws {ConfigError} when the configuration is wrong.
 */
export function upstreamNamed(
  name: string,
  file: string,
): { config: Config; upstream: UpstreamConfig } {
  const config = loadConfig(file);
  const upstream = Object.hasOwn(config.upstreams, name) ? config.upstreams[name] : undefined;
  if (upstream !== undefined) return { config, upstream };
  const known = Object.keys(config.upstreams).join(', ');
  throw new CommandError('usage', `"${name}" is not an upstream of ${file}: ${known}`);
}

/**
 * Connects to that database as the administrator; the caller ends the client.
 *
 * @throws {CommandError} usage when the URL is missing, is none, or leads to another database; unavailable
 *   when nobody answers there or the login is refused.
 */
export async function connectAsAdmin(database: string, applicationName: string): Promise<Client> {
  const url = process.env[ADMIN_URL];
  if (url === undefined || url === '') {
    throw new CommandError(
      'usage',
      `set ${ADMIN_URL} to the administrator's connection (postgres://…)`,
    );
  }
  const admin = clientFor(url, applicationName);
  if (admin.database !== database) {
    // The roles would be right, but the session functions would be in the wrong place.
    throw new CommandError(
      'usage',
      `${ADMIN_URL} leads to database "${admin.database}", the upstream's is "${database}"`,
    );
  }
  admin.on('error', () => {});
  await admin.connect().catch((cause: Error) => {
    throw new CommandError(
      'unavailable',
      `cannot connect with ${ADMIN_URL}: ${connectFailure(cause)}`,
      {
        cause,
      },
    );
  });
  return admin;
}

/** What PostgreSQL answered, in one line. */
export function answer({ severity, code, message, detail, hint }: DatabaseError): string {
  const more = [detail && `DETAIL: ${detail}`, hint && `HINT: ${hint}`].filter(Boolean);
  return [`${severity} ${code}: ${message}`, ...more].join('  ');
}

/** Node puts what happened at each address of a host name into an AggregateError without a message. */
export function connectFailure(error: Error): string {
  return error instanceof AggregateError ? String(error.errors[0]) : error.message;
}

/** The parser's own message would repeat the URL, and with it the password. */
function clientFor(connectionString: string, application_name: string): Client {
  try {
    return new Client({ connectionString, application_name });
  } catch {
    throw new CommandError('usage', `${ADMIN_URL} is not a connection URL (postgres://…)`);
  }
}
