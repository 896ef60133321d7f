/**
 * The configuration file, read and checked.
 *
 * One schema gives types, defaults, validation and the published JSON Schema. Unknown keys are errors, secrets are never in the file, and every problem is reported at once with
 * its path. Reads the files that the configuration names; opens no socket.
 */
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { crossChecks } from './config-rules.ts';
import { schema } from './config-schema.ts';
import { ConfigError, printable, type ConfigProblem } from './errors.ts';

/** A configuration as people write it: defaults may be left out. */
export type ConfigInput = z.input<typeof schema>;
/** A configuration with every default filled in, checked and frozen. File paths are absolute. */
export type Config = z.output<typeof schema>;
export type ProviderConfig = Config['providers'][string];
export type UpstreamConfig = Config['upstreams'][string];
export type LookupConfig = NonNullable<UpstreamConfig['lookup']>;
export type JwksConfig = Config['jwks'];

/**
 * Reads and checks a configuration file; paths inside it are relative to the file.
 *
 * @throws {ConfigError} with every problem found, each at its path.
 */
export function loadConfig(file: string): Config {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new ConfigError([
      {
        path: file,
        message: `cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`,
      },
    ]);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new ConfigError([{ path: file, message: `is not JSON: ${(error as Error).message}` }]);
  }
  return parseConfig(json, dirname(resolve(file)));
}

/**
 * Checks a configuration that is already an object; `base` is the folder its file paths start from.
 *
 * @throws {ConfigError} with every problem found, each at its path.
 */
export function parseConfig(input: unknown, base: string = process.cwd()): Config {
  const result = schema.safeParse(input);
  if (!result.success) {
    throw new ConfigError(result.error.issues.flatMap(describeIssue));
  }
  const config = absolutePaths(result.data, base);
  const problems = crossChecks(config);
  if (problems.length > 0) throw new ConfigError(problems);
  return deepFreeze(config);
}

/** What has been bound at the start and stays as it was. */
export function settingsThatNeedRestart(before: Config, after: Config): string[] {
  const bound = (config: Config): Record<string, unknown> => ({
    'listen.host': config.listen.host,
    'listen.port': config.listen.port,
    'admin.host': config.admin?.host,
    'admin.port': config.admin?.port,
    // Whether there is TLS, and whether certificates are asked for; the files are read again.
    'admin.tls': config.admin?.tls && `${config.admin.tls.clientCaFile !== undefined}`,
    'limits.store': JSON.stringify(config.limits.store),
  });
  const [old, current] = [bound(before), bound(after)];
  return Object.keys(old).filter((name) => old[name] !== current[name]);
}

/** So many paths at most; a configuration that is another one altogether says so by its first ones. */
const MAX_CHANGED = 50;

/** The paths of the settings that differ, for the log; never a value, and no secret has one here. */
export function changedSettings(before: unknown, after: unknown, path = ''): string[] {
  if (isDeepStrictEqual(before, after)) return [];
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!isObject(before) || !isObject(after)) return [path];
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  return [...names]
    .flatMap((name) =>
      changedSettings(before[name], after[name], path === '' ? name : `${path}.${printable(name)}`),
    )
    .slice(0, MAX_CHANGED);
}

/** The JSON Schema of the file, for editors; `proxy.config.schema.json` is this and a test holds the two equal. */
export function configJsonSchema(): object {
  return {
    title: 'pgjot configuration',
    ...z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }),
  };
}

/** An upstream's secret and, while that is rotated, the one before it. */
export interface SecretPair {
  readonly current: string;
  readonly previous?: string | undefined;
}

/**
 * The secrets of an upstream, whose path in the configuration this is.
 *
 * @throws {ConfigError} as `readSecret`.
 */
export function readSecrets(upstream: UpstreamConfig, path: string): SecretPair {
  const { secret, previousSecret } = upstream;
  return {
    current: readSecret(secret, `${path}.secret`),
    previous: previousSecret && readSecret(previousSecret, `${path}.previousSecret`),
  };
}

/**
 * The secret that a configuration points to.
 *
 * @throws {ConfigError} when the variable or file is missing or the secret is shorter than 32 characters.
 */
export function readSecret(source: UpstreamConfig['secret'], path: string): string {
  const { value, where } = readText(source, path);
  if (value.length < 32) {
    throw new ConfigError([
      { path, message: `${where} holds fewer than 32 characters; try: openssl rand -hex 32` },
    ]);
  }
  return value;
}

/**
 * The URL that a configuration points to, because it may hold a password.
 *
 * @throws {ConfigError} when the variable or file is missing or holds no URL of these protocols.
 */
export function readUrl(
  source: UpstreamConfig['secret'],
  path: string,
  protocols: readonly string[],
): string {
  const { value, where } = readText(source, path);
  // As it is understood here and not as it was written: of "REDISS://…" others may read no TLS.
  const url = URL.canParse(value) ? new URL(value).href : '';
  if (protocols.some((one) => url.startsWith(`${one}//`))) return url;
  const wanted = protocols.map((one) => `${one}//…`).join(' or ');
  throw new ConfigError([{ path, message: `${where} does not hold a URL ${wanted}` }]);
}

function readText(
  source: UpstreamConfig['secret'],
  path: string,
): { value: string; where: string } {
  const value = 'env' in source ? process.env[source.env] : readSecretFile(source.file, path);
  const where = 'env' in source ? `environment variable ${source.env}` : `file ${source.file}`;
  if (value === undefined || value === '') {
    throw new ConfigError([{ path, message: `${where} is not set or empty` }]);
  }
  return { value, where };
}

function readSecretFile(file: string, path: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new ConfigError([
      {
        path,
        message: `file ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`,
      },
    ]);
  }
}

function describeIssue(issue: z.core.$ZodIssue): ConfigProblem[] {
  const at = (...path: PropertyKey[]) => path.map(String).join('.') || '(top level)';
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({
      path: at(...issue.path, key),
      message: 'is not a known setting',
    }));
  }
  return [{ path: at(...issue.path), message: issue.message }];
}

function absolutePaths(config: Config, base: string): Config {
  const from = <T extends string | undefined>(file: T) =>
    file === undefined ? file : (resolve(base, file) as T);
  const tls = <
    T extends {
      certFile?: string | undefined;
      keyFile?: string | undefined;
      caFile?: string | undefined;
      clientCaFile?: string | undefined;
    },
  >(
    given: T,
  ): T => {
    const out = { ...given };
    for (const key of ['certFile', 'keyFile', 'caFile', 'clientCaFile'] as const) {
      const file = given[key];
      if (file !== undefined) out[key] = from(file);
    }
    return out;
  };
  const secret = (source: UpstreamConfig['secret']) =>
    'file' in source ? { file: from(source.file) } : source;
  const absoluteAdmin = (admin: NonNullable<Config['admin']>) => ({
    ...admin,
    ...(admin.token && { token: secret(admin.token) }),
    ...(admin.readToken && { readToken: secret(admin.readToken) }),
    ...(admin.tls && { tls: tls(admin.tls) }),
  });
  const absoluteLimits = ({ store, ...limits }: Config['limits']) =>
    store === undefined
      ? limits
      : {
          ...limits,
          store: {
            redis: {
              ...store.redis,
              ...(store.redis.tls && { tls: tls(store.redis.tls) }),
              url: secret(store.redis.url),
              secret: secret(store.redis.secret),
            },
          },
        };
  return {
    ...config,
    limits: absoluteLimits(config.limits),
    ...(config.admin && { admin: absoluteAdmin(config.admin) }),
    revocations:
      config.revocations.file === undefined ? {} : { file: from(config.revocations.file) },
    listen: { ...config.listen, tls: tls(config.listen.tls) },
    providers: mapValues(config.providers, (one) =>
      one.jwksFile === undefined ? one : { ...one, jwksFile: from(one.jwksFile) },
    ),
    upstreams: mapValues(config.upstreams, (one) => ({
      ...one,
      tls: tls(one.tls),
      secret: secret(one.secret),
      ...(one.previousSecret && { previousSecret: secret(one.previousSecret) }),
    })),
  };
}

function mapValues<V>(record: Record<string, V>, change: (value: V) => V): Record<string, V> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, change(value)]));
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
