/**
 * `pgjot check`: every problem of a configuration at once, each with its path.
 *
 * Opens no connection unless asked to with `--online`; changes nothing in either case.
 */
import type { X509Certificate } from 'node:crypto';
import { Command } from 'commander';
import { DatabaseError } from 'pg';
import { readCredentials } from '../admin/principal.ts';
import { perIssuer } from '../config-provider.ts';
import { loadConfig, readSecrets, type Config } from '../config.ts';
import { ConfigError, ProxyError, type ConfigProblem } from '../errors.ts';
import { KeySet } from '../identity/jwks.ts';
import { RedisLink } from '../limits/redis-link.ts';
import { createLogger } from '../log.ts';
import { TlsFiles } from '../tls-files.ts';
import { createControl } from '../upstream/control.ts';
import { createLookup } from '../upstream/lookup.ts';
import { Secrets } from '../upstream/secrets.ts';
import { clockProblems } from './clocks.ts';
import { configOption } from './config-option.ts';
import { EXIT } from './failure.ts';

interface CheckOptions {
  readonly config: string;
  readonly online?: true;
  readonly json?: true;
}

/** The command. */
export function checkCommand(): Command {
  return new Command('check')
    .description('report every problem of the configuration')
    .addOption(configOption())
    .option('--online', "also fetch each provider's keys and log in to each upstream")
    .option(
      '--json',
      'print { "problems": [{ "path", "message" }], "notes": […] } on standard output',
    )
    .action(async (options: CheckOptions) => {
      const { problems, config } = checkOffline(options.config);
      const notes: ConfigProblem[] = [];
      let status: number = problems.length > 0 ? EXIT.config : 0;
      if (options.online && config !== undefined) {
        const found = await checkOnline(config, notes);
        if (found.length > 0 && status === 0) status = EXIT.unavailable;
        problems.push(...found);
      }
      if (options.json) console.log(JSON.stringify({ problems, notes }, null, 2));
      else {
        for (const { path, message } of problems) console.error(`${path}: ${message}`);
        for (const { path, message } of notes) console.log(`note: ${path} ${message}`);
      }
      if (problems.length === 0 && !options.json) console.log(`${options.config} is fine`);
      process.exitCode = status;
    });
}

/** The schema's problems; without any, those of the files and variables that the configuration names. */
function checkOffline(file: string): { problems: ConfigProblem[]; config?: Config } {
  try {
    const config = loadConfig(file);
    const problems = [...secretProblems(config), ...certificateProblems(config)];
    // Some read certificates along with their secret.
    const texts = problems.map(({ path, message }) => `${path}: ${message}`);
    return {
      config,
      problems: problems.filter((_, at) => texts.indexOf(texts[at] as string) === at),
    };
  } catch (error) {
    if (error instanceof ConfigError) return { problems: [...error.problems] };
    throw error;
  }
}

/** Reads every secret as the proxy will, and the certificates of those who have a secret too. */
function secretProblems({ upstreams, limits, admin, log }: Config): ConfigProblem[] {
  const { store } = limits;
  const silent = createLogger({ ...log, level: 'silent' });
  return [
    ...Object.entries(upstreams).flatMap(([name, upstream]) =>
      problemsIn(() => void readSecrets(upstream, `upstreams.${name}`)),
    ),
    // It connects to nothing before it is told to.
    ...problemsIn(() => store && new RedisLink(store.redis, silent)),
    ...problemsIn(() => admin && readCredentials(admin)),
  ];
}

function problemsIn(work: () => unknown): readonly ConfigProblem[] {
  try {
    work();
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

/** Loads every certificate and key as the proxy will, and says which certificates are out of date. */
function certificateProblems(config: Config): ConfigProblem[] {
  const places = [
    { path: 'listen.tls', tls: config.listen.tls },
    { path: 'admin.tls', tls: config.admin?.tls ?? {} },
    { path: 'limits.store.redis.tls', tls: config.limits.store?.redis.tls ?? {} },
    ...Object.entries(config.upstreams).map(([name, { tls }]) => ({
      path: `upstreams.${name}.tls`,
      tls,
    })),
  ];
  return places.flatMap(({ path, tls }) => {
    let certificate: X509Certificate | undefined;
    const problems = problemsIn(() => ({ certificate } = new TlsFiles(tls, path)));
    return certificate === undefined
      ? problems
      : [...problems, ...validityProblems(`${path}.certFile`, certificate)];
  });
}

function validityProblems(path: string, { validFrom, validTo }: X509Certificate): ConfigProblem[] {
  const [from, to] = [new Date(validFrom), new Date(validTo)];
  if (to.getTime() < Date.now()) {
    return [{ path, message: `the certificate has expired at ${to.toISOString()}` }];
  }
  if (from.getTime() > Date.now()) {
    return [{ path, message: `the certificate is not valid before ${from.toISOString()}` }];
  }
  return [];
}

/** The problems; what is no problem but good to know is added to `notes`. */
async function checkOnline(config: Config, notes: ConfigProblem[]): Promise<ConfigProblem[]> {
  const found = await Promise.all([
    ...Object.entries(config.providers).flatMap(([name, provider]) =>
      perIssuer(provider).flatMap((one) => [
        keyProblems(name, one, config),
        clockProblems(name, one, config.jwks),
      ]),
    ),
    ...Object.keys(config.upstreams).map((name) => upstreamProblems(name, config, notes)),
  ]);
  return found.flat();
}

/** Fetches the keys once, with the proxy's own limits. */
async function keyProblems(
  name: string,
  provider: Config['providers'][string],
  config: Config,
): Promise<ConfigProblem[]> {
  const path = `providers.${name}.${provider.jwksFile === undefined ? 'jwksUri' : 'jwksFile'}`;
  const problems: ConfigProblem[] = [];
  const onKeyProblem = (_: string, message: string) => problems.push({ path, message });
  const keys = new KeySet(name, provider, config.jwks, { onKeyProblem });
  try {
    await keys.current();
  } catch (error) {
    if (problems.length === 0) problems.push({ path, message: innermost(error) });
  } finally {
    keys.close();
  }
  return problems;
}

// What `pgjot.lease` says of a role without slots: undefined_object.
const UNKNOWN_ROLE = '42704';

/** Logs in as the control role and asks for no slot at all of each role, which it alone may do; then tries the lookup. */
async function upstreamProblems(
  name: string,
  config: Config,
  notes: ConfigProblem[],
): Promise<ConfigProblem[]> {
  const path = `upstreams.${name}`;
  const upstream = config.upstreams[name];
  if (upstream === undefined) return [];
  let secrets: Secrets;
  try {
    secrets = new Secrets(readSecrets(upstream, path));
  } catch {
    // Reported already.
    return [];
  }
  const problems: ConfigProblem[] = [];
  const control = createControl(upstream, secrets, () => {});
  try {
    for (const role of Object.keys(upstream.roles)) {
      try {
        await control.lease(role, 0);
      } catch (error) {
        const ofRole = sqlstateOf(error) === UNKNOWN_ROLE;
        // An answer of PostgreSQL's means that it is there but not as "setup" leaves it.
        const answered = sqlstateOf(error) !== undefined;
        const advice = answered ? `; "pgjot setup ${name}" installs what is missing` : '';
        problems.push({
          path: ofRole ? `${path}.roles.${role}` : path,
          message: innermost(error) + advice,
        });
        // What is wrong with the upstream is wrong for every role, and for the lookup.
        if (!ofRole) return problems;
      }
    }
    notes.push(...rotationNotes(name, secrets));
    problems.push(...(await lookupProblems(upstream, secrets, path)));
    return problems;
  } finally {
    await control.close();
  }
}

/** Where the rotation of the secret stands; the control connection has shown which one the server has. */
function rotationNotes(name: string, { all, inUse }: Secrets): ConfigProblem[] {
  const path = `upstreams.${name}.previousSecret`;
  if (all.length === 1) return [];
  const message =
    inUse === all[0]
      ? 'is of no use any more: the server has the new secret. Take it out, and reload every proxy'
      : `is what the server still has: run "pgjot rotate-secret ${name}" when every proxy has both secrets`;
  return [{ path, message }];
}

/** Has PostgreSQL judge the lookup's query without running it. */
async function lookupProblems(
  upstream: Config['upstreams'][string],
  secrets: Secrets,
  path: string,
): Promise<ConfigProblem[]> {
  const lookup = createLookup(upstream, secrets);
  try {
    await lookup?.check();
    return [];
  } catch (error) {
    const { cause: problem } = error as ProxyError;
    const reason = problem instanceof Error && problem.cause ? `: ${innermost(problem.cause)}` : '';
    return [{ path: `${path}.lookup`, message: innermost(error) + reason }];
  } finally {
    await lookup?.close();
  }
}

/** The SQLSTATE of PostgreSQL's own answer, where it gave one. */
function sqlstateOf(error: unknown): string | undefined {
  const answer = error instanceof ProxyError ? error.cause : undefined;
  return answer instanceof DatabaseError ? answer.code : undefined;
}

/** What a client must not be told is what the operator has to know. */
function innermost(error: unknown): string {
  const inner = error instanceof ProxyError ? (error.cause ?? error) : error;
  if (inner instanceof AggregateError) return String(inner.errors[0]);
  return inner instanceof Error ? inner.message : String(inner);
}
