/**
 * `pgjot provider`: lists the identity providers of a configuration, or adds one and leaves the rest of the file as it is.
 *
 * Writes nothing that the proxy would not accept, and replaces no provider that is there.
 */
import { randomUUID } from 'node:crypto';
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { Command, Option } from 'commander';
import { type Config, type ConfigInput, loadConfig, parseConfig } from '../config.ts';
import { DEFAULT_ALGORITHMS, perIssuer } from '../config-provider.ts';
import { ConfigError } from '../errors.ts';
import { KeySet } from '../identity/jwks.ts';
import {
  type OwnSetting,
  type Preset,
  PRESET_NAMES,
  PRESETS,
  type PresetName,
} from '../presets.ts';
import { configOption } from './config-option.ts';
import { discover } from './discovery.ts';
import { CommandError } from './failure.ts';
import { addMember } from './json-edit.ts';
import { formatResult, visible } from './table.ts';

interface AddOptions {
  readonly config: string;
  readonly preset?: PresetName;
  readonly domain?: string;
  readonly project?: string;
  readonly realm?: string;
  readonly userPool?: string;
  readonly client?: readonly string[];
  readonly tenant?: string;
  readonly hostedDomain?: string;
  readonly tokens?: 'access' | 'id';
  readonly issuer?: string;
  readonly jwks?: string;
  readonly audience?: readonly string[];
  readonly anyAudience?: true;
  readonly authorizedParty?: readonly string[];
  readonly role?: readonly string[];
  readonly roleClaim?: string;
  readonly dryRun?: true;
  readonly offline?: true;
  readonly json?: true;
}

type Settings = ConfigInput['providers'][string];

/** What became of fetching one issuer's keys. */
interface KeyReport {
  readonly issuer: string;
  readonly jwksUri: string | undefined;
  /** How many are fit to verify tokens; null where that could not be seen. */
  readonly keys: number | null;
  readonly problems: readonly string[];
}

/** The command. */
export function providerCommand(): Command {
  return new Command('provider')
    .description('list the identity providers of the configuration, or add one')
    .addCommand(listCommand())
    .addCommand(addCommand());
}

function listCommand(): Command {
  return new Command('list')
    .description('list the providers, each issuer with the place of its keys')
    .addOption(configOption())
    .option('--json', 'print JSON')
    .action(({ config, json }: { config: string; json?: true }) => {
      const { providers } = loadConfig(config);
      console.log(json ? JSON.stringify(describe(providers), null, 2) : tableOf(providers));
    });
}

function addCommand(): Command {
  const several = (one: string, others: readonly string[] = []) => [...others, one];
  return new Command('add')
    .description('add a provider to the configuration, and see whether its keys are there')
    .argument('<name>', 'what to call it')
    .addOption(configOption())
    .addOption(new Option('--preset <name>', 'a provider that pgjot knows').choices(PRESET_NAMES))
    .option('--domain <host>', forPresets('domain'))
    .option('--project <id>', forPresets('project'))
    .option('--realm <name>', forPresets('realm'))
    .option('--user-pool <id>', forPresets('userPool'))
    .option('--client <id>', `${forPresets('clients')}; repeatable`, several)
    .option('--tenant <id>', forPresets('tenant'))
    .option('--hosted-domain <domain>', forPresets('hostedDomain'))
    .addOption(new Option('--tokens <kind>', forPresets('tokens')).choices(['access', 'id']))
    .option('--issuer <iss>', 'any other: its keys are found by OpenID Connect Discovery')
    .option('--jwks <url>', 'with --issuer: where its keys are; nothing is discovered then')
    .option('--audience <aud>', 'one that its tokens must have; repeatable', several)
    .option(
      '--any-audience',
      'let tokens have any audience: for an issuer of one application alone',
    )
    .option('--authorized-party <azp>', 'who may have asked for a token; repeatable', several)
    .option('--role <role>', 'one that its users may ask for; repeatable', several)
    .option('--role-claim <pointer>', 'a claim that must name the role too, as a JSON Pointer')
    .option('--dry-run', 'print the file as it would be, and write nothing')
    .option('--offline', 'do not fetch the keys')
    .option('--json', 'print what was done as JSON')
    .addHelpText('after', `\nWhat each preset needs:\n${presetLines()}`)
    .action(add);
}

async function add(name: string, options: AddOptions): Promise<void> {
  const { config: file, json } = options;
  assertConsistent(name, options);
  const text = readConfigText(file);
  const before = JSON.parse(text) as Readonly<Record<string, unknown>>;
  if (Object.hasOwn(before['providers'] ?? {}, name)) {
    throw new CommandError(
      'failure',
      `${file} has a provider "${name}" already; nothing is changed`,
    );
  }
  let settings = settingsOf(options, before);
  if (options.issuer !== undefined && options.preset === undefined && options.jwks === undefined) {
    // Once as if it were there, so that what is wrong otherwise is said before anybody is asked.
    const draft = check(
      file,
      addMember(text, 'providers', name, { ...settings, jwksUri: options.issuer }),
      name,
    );
    settings = { ...settings, ...(await discovered(options.issuer, draft)) };
  }
  const edited = addMember(text, 'providers', name, settings);
  const config = check(file, edited, name);
  const reports = options.offline ? [] : await fetchKeys(name, config);
  if (!options.dryRun) replaceFile(file, text, edited);
  if (json) {
    const written = options.dryRun === undefined;
    console.log(
      JSON.stringify({ provider: name, file, written, settings, issuers: reports }, null, 2),
    );
  } else if (options.dryRun) {
    process.stdout.write(edited);
  } else {
    console.log(`added provider "${name}" to ${file}`);
  }
  if (!json) reportKeys(reports, options);
}

/** What one option alone cannot tell. */
function assertConsistent(name: string, { preset, issuer, jwks }: AddOptions): void {
  const usage = (problem: string) => new CommandError('usage', problem);
  if (!/^[A-Za-z][\w.-]{0,62}$/.test(name)) {
    throw usage('the name must be of letters, digits and . _ -, and begin with a letter');
  }
  if (preset === undefined && issuer === undefined) throw usage('needs --preset or --issuer');
  if (preset !== undefined && issuer !== undefined) {
    throw usage('--preset and --issuer do not go together: a preset knows the issuer');
  }
  if (preset !== undefined && jwks !== undefined) {
    throw usage('--preset and --jwks do not go together: a preset knows where the keys are');
  }
}

/** The settings in the order in which people would write them. */
function settingsOf(options: AddOptions, before: Readonly<Record<string, unknown>>): Settings {
  const { preset, domain, project, realm, userPool, client, tenant, hostedDomain, tokens } =
    options;
  const { issuer, jwks, audience, anyAudience, authorizedParty, roleClaim } = options;
  const given = {
    preset,
    domain,
    project,
    realm,
    userPool,
    clients: client,
    tenant,
    hostedDomain,
    tokens,
    issuer,
    jwksUri: jwks,
    audience,
    anyAudience,
    authorizedParties: authorizedParty,
    roles: options.role ?? [defaultRole(before)],
    roleClaim,
  };
  return Object.fromEntries(
    Object.entries(given).filter(([, value]) => value !== undefined),
  ) as unknown as Settings;
}

/** The one role that there is, else `authenticated`. */
function defaultRole({ upstreams }: Readonly<Record<string, unknown>>): string {
  const roles = Object.values((upstreams ?? {}) as Record<string, { roles?: object }>).flatMap(
    (one) => Object.keys(one?.roles ?? {}),
  );
  const [only, ...others] = new Set(roles);
  if (only !== undefined && others.length === 0) return only;
  if (roles.includes('authenticated')) return 'authenticated';
  throw new CommandError('usage', `needs --role: ${[...new Set(roles)].join(', ')}`);
}

async function discovered(issuer: string, { jwks }: Config): Promise<Partial<Settings>> {
  const { jwksUri, algorithms } = await discover(issuer, jwks);
  // Where one of the default ones is among them there is nothing to say; access tokens may have another than ID tokens.
  const usual = DEFAULT_ALGORITHMS.some((one) => algorithms.includes(one));
  return { jwksUri, ...(usual || algorithms.length === 0 ? {} : { algorithms: [...algorithms] }) };
}

/**
 * The file as it is: an object with "providers" that are one, or without.
 *
 * @throws {ConfigError}
 */
function readConfigText(file: string): string {
  try {
    const text = readFileSync(file, 'utf8');
    const value: unknown = JSON.parse(text);
    if (isObject(value) && isObject(value['providers'] ?? {})) return text;
  } catch {
    // Said by loadConfig as everywhere else.
  }
  loadConfig(file);
  throw new ConfigError([{ path: file, message: 'is not a configuration' }]);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The configuration as it would be.
 *
 * @throws {CommandError} where what the options say of this provider is wrong.
 * @throws {ConfigError} where something else is.
 */
function check(file: string, text: string, name: string): Config {
  try {
    return parseConfig(JSON.parse(text), dirname(resolve(file)));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const prefix = `providers.${name}.`;
    const others = error.problems.filter(({ path }) => !`${path}.`.startsWith(prefix));
    if (others.length > 0) throw new ConfigError(others);
    const said = error.problems.map(
      ({ path, message }) => `${path.replace(prefix, '')} ${message}`,
    );
    throw new CommandError('usage', said.join('; '));
  }
}

async function fetchKeys(name: string, config: Config): Promise<readonly KeyReport[]> {
  const provider = config.providers[name];
  if (provider === undefined) return [];
  return Promise.all(
    perIssuer(provider).map(async (one) => {
      const problems: string[] = [];
      const onKeyProblem = (_: string, problem: string) =>
        problems.push(problem.replace(/^refresh failed: /, ''));
      const keySet = new KeySet(name, one, config.jwks, { onKeyProblem });
      const { issuer, jwksUri } = one;
      try {
        return { issuer, jwksUri, keys: (await keySet.current()).size, problems };
      } catch {
        return { issuer, jwksUri, keys: null, problems };
      } finally {
        keySet.close();
      }
    }),
  );
}

/** Standard output is the file's where it is printed, so what is said of it goes to standard error. */
function reportKeys(reports: readonly KeyReport[], { dryRun, offline }: AddOptions): void {
  const say = dryRun ? console.error : console.log;
  if (offline) say('its keys were not looked at');
  for (const { issuer, jwksUri, keys, problems } of reports) {
    const place = `issuer ${visible(issuer)}, keys at ${jwksUri}`;
    if (keys === null) {
      console.error(`pgjot: ${place}: could not be checked: ${visible(problems.join('; '))}`);
      continue;
    }
    say(`${place}: ${keys} ${keys === 1 ? 'is' : 'are'} fit`);
    for (const problem of problems) console.error(`pgjot: ${visible(problem)}`);
  }
}

/**
 * Replaces the file in one step: a proxy that watches it never reads half of it. Its owner and its mode stay; where they cannot,
 * or where somebody else has changed it from what it was, it stays as it is.
 */
function replaceFile(file: string, before: string, text: string): void {
  const target = realpathSync(file);
  const draft = `${target}.${randomUUID()}.tmp`;
  let made: number | undefined;
  try {
    const { mode, uid, gid } = statSync(target);
    made = openSync(draft, 'wx', 0o600);
    writeFileSync(made, text);
    const own = fstatSync(made);
    if (own.uid !== uid || own.gid !== gid) fchownSync(made, uid, gid);
    // Not when it is made: the umask would have its say.
    fchmodSync(made, mode & 0o7777);
    if (readFileSync(target, 'utf8') !== before) {
      throw new CommandError('failure', `${file} was changed meanwhile; nothing is written`);
    }
    renameSync(draft, target);
  } catch (error) {
    if (made !== undefined) rmSync(draft, { force: true });
    if (error instanceof CommandError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new CommandError('failure', `${file} cannot be written (${code ?? 'unknown error'})`);
  } finally {
    if (made !== undefined) closeSync(made);
  }
}

function describe(providers: Config['providers']): object[] {
  return Object.entries(providers).map(([name, one]) => ({
    name,
    preset: one.preset ?? null,
    issuers: perIssuer(one).map(({ issuer, jwksUri, jwksFile }) => ({ issuer, jwksUri, jwksFile })),
    audience: one.audience ?? null,
    authorizedParties: one.authorizedParties ?? null,
    roles: one.roles,
  }));
}

function tableOf(providers: Config['providers']): string {
  const rows = Object.entries(providers).flatMap(([name, provider]) =>
    perIssuer(provider).map(({ preset, issuer, jwksUri, jwksFile, audience, roles }) => [
      name,
      preset ?? '',
      issuer,
      jwksUri ?? jwksFile ?? '',
      audience?.join(', ') ?? '',
      roles.join(', '),
    ]),
  );
  const fields = ['name', 'preset', 'issuer', 'keys', 'audience', 'roles'];
  return formatResult({
    command: 'SELECT',
    rowCount: rows.length,
    // 25 is text.
    fields: fields.map((field) => ({ name: field, dataTypeID: 25 })),
    rows,
  });
}

function forPresets(setting: OwnSetting): string {
  const names = Object.entries<Preset>(PRESETS)
    .filter(([, { needs, takes }]) => [...needs, ...takes].includes(setting))
    .map(([name]) => name);
  return `with --preset ${names.join(', ')}`;
}

function presetLines(): string {
  const flag = (setting: string) =>
    `--${setting === 'clients' ? 'client' : setting.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
  return Object.entries<Preset>(PRESETS)
    .map(([name, { needs, takes }]) => {
      const words = [...needs.map(flag), ...takes.map((setting) => `[${flag(setting)}]`)];
      return `  ${name.padEnd(12)}${words.join(' ')}`;
    })
    .join('\n');
}
