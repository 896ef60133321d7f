/**
 * The configuration file: one schema that gives types, defaults, validation and the published JSON Schema.
 *
 * Unknown keys are errors, secrets are never in the file, and every problem is reported at once with
 * its path. Reads the files that the configuration names; opens no socket.
 */
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { crossChecks } from './config-rules.ts';
import { ConfigError, type ConfigProblem } from './errors.ts';

/** Algorithms a provider may allow: asymmetric ones alone, so no published key can ever be an HMAC secret (attack C2). */
export const ALGORITHMS = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
] as const;

/** A name in PostgreSQL: at most NAMEDATALEN - 1 = 63 bytes, no control characters. */
const name = z
  .string()
  .min(1)
  // eslint-disable-next-line no-control-regex
  .regex(/^[^\u0000-\u001f\u007f]+$/, 'must not hold control characters')
  .refine((text) => Buffer.byteLength(text) <= 63, 'must be at most 63 bytes');

const port = z.int().min(1).max(65_535);
const milliseconds = z
  .int()
  .min(0)
  .max(2 ** 31 - 1);

const secret = z
  .union([z.strictObject({ env: z.string().min(1) }), z.strictObject({ file: z.string().min(1) })])
  .describe(
    'Where the secret is: { "env": "NAME" } or { "file": "path" }. Never the secret itself.',
  );

const listen = z.strictObject({
  host: z.string().min(1).default('127.0.0.1').describe('Address to listen on.'),
  port: z.int().min(0).max(65_535).default(6432).describe('Port to listen on; 0 takes a free one.'),
  tls: z
    .strictObject({
      mode: z
        .enum(['require', 'allow', 'disable'])
        .optional()
        .describe(
          'Whether clients must use TLS. Default: "require", or "allow" on a loopback address.',
        ),
      certFile: z.string().optional().describe('PEM certificate chain.'),
      keyFile: z.string().optional().describe('PEM private key.'),
    })
    .default({}),
  allowPlaintext: z
    .boolean()
    .default(false)
    .describe(
      'Permit a TLS mode other than "require" on an address that is not loopback. Tokens then cross the network readable.',
    ),
});

const provider = z.strictObject({
  issuer: z.string().min(1).describe('The exact "iss" of its tokens.'),
  jwksUri: z.url().optional().describe('Where its keys are published. https, or http on loopback.'),
  jwksFile: z.string().optional().describe('A JWKS on disk instead, for air-gapped use.'),
  audience: z
    .union([
      z
        .string()
        .min(1)
        .transform((one) => [one]),
      z.array(z.string().min(1)).min(1),
    ])
    .optional()
    .describe('One of these must be in "aud".'),
  anyAudience: z
    .boolean()
    .default(false)
    .describe(
      'Accept tokens meant for any audience. Only for an issuer that serves this application alone.',
    ),
  algorithms: z.array(z.enum(ALGORITHMS)).min(1).default(['RS256', 'ES256', 'EdDSA']),
  roles: z.array(name).min(1).describe('PostgreSQL roles that its users may ask for.'),
  roleClaim: z
    .string()
    .regex(
      /^(\/([^~/]|~0|~1)*)+$/,
      'must be a JSON Pointer (RFC 6901), for instance "/app_metadata/role"',
    )
    .optional()
    .describe(
      'JSON Pointer to a claim (string or array of strings) that must name the role as well.',
    ),
  requiredClaims: z
    .array(z.string().min(1))
    .default([])
    .describe('Claims that must be present beside exp, iss, sub and aud.'),
  clockToleranceMs: milliseconds.max(300_000).default(30_000),
  maxTokenAgeMs: milliseconds
    .min(1)
    .optional()
    .describe('Refuse tokens whose "iat" is older than this.'),
});

const upstream = z.strictObject({
  host: z.string().min(1),
  port: port.default(5432),
  database: name,
  tls: z
    .strictObject({
      mode: z
        .enum(['disable', 'require', 'verify-ca', 'verify-full'])
        .optional()
        .describe(
          'As libpq\'s sslmode. Default: "verify-full", or "disable" on a loopback address.',
        ),
      caFile: z.string().optional(),
      certFile: z.string().optional().describe('Client certificate.'),
      keyFile: z.string().optional(),
    })
    .default({}),
  session: z.literal('portable').default('portable').describe('How the identity reaches SQL.'),
  secret: secret.describe(
    'The one secret from which the passwords of all slots and of the control role derive.',
  ),
  roles: z
    .record(name, z.strictObject({ slots: z.int().min(1).max(10_000) }))
    .refine((roles) => Object.keys(roles).length > 0, 'must name at least one role')
    .describe('Roles that clients may become here, and how many may be logged in at once.'),
  connectTimeoutMs: milliseconds.min(1).default(3_000),
  acquireTimeoutMs: milliseconds
    .min(1)
    .default(8_000)
    .describe('How long a login waits for a free slot.'),
});

const schema = z.strictObject({
  $schema: z.string().optional(),
  listen: listen.prefault({}),
  providers: z
    .record(z.string().min(1), provider)
    .refine((providers) => Object.keys(providers).length > 0, 'must name at least one provider'),
  upstreams: z
    .record(z.string().min(1), upstream)
    .refine((upstreams) => Object.keys(upstreams).length > 0, 'must name at least one upstream'),
  anonymous: z
    .strictObject({
      enabled: z.boolean().default(false).describe('Let clients in without a token, as nobody.'),
      role: name
        .default('anonymous')
        .describe('The role they get by asking for it; auth.user_id() is NULL.'),
    })
    .prefault({}),
  routes: z
    .array(z.strictObject({ database: name, upstream: z.string() }))
    .optional()
    .describe('First match wins. Default: one route for each upstream, by its database.'),
  startupParameters: z
    .strictObject({
      allow: z
        .array(z.string().regex(/^[a-z_][a-z0-9_.]*$/, 'must be a lower-case parameter name'))
        .default([])
        .describe('Startup parameters that pass beside the built-in list.'),
    })
    .prefault({}),
  jwks: z
    .strictObject({
      freshMs: milliseconds
        .min(1_000)
        .default(300_000)
        .describe('How long keys count as fresh when the issuer does not say.'),
      staleMs: milliseconds
        .default(3_600_000)
        .describe('How much longer known keys serve while the issuer is down.'),
      cooldownMs: milliseconds
        .min(1_000)
        .default(30_000)
        .describe('At most one fetch for unknown key ids in this time.'),
      timeoutMs: milliseconds.min(1).default(5_000),
      maxBytes: z.int().min(1_024).max(16_777_216).default(262_144),
      maxKeys: z.int().min(1).max(1_000).default(100),
    })
    .prefault({}),
  sessions: z
    .strictObject({
      graceMs: milliseconds
        .default(30_000)
        .describe('How long a running transaction may go on after its token expired.'),
      drainTimeoutMs: milliseconds
        .default(60_000)
        .describe('How long busy sessions may go on after SIGTERM.'),
    })
    .prefault({}),
  limits: z
    .strictObject({
      maxClients: z.int().min(1).default(10_000),
      loginTimeoutMs: milliseconds
        .min(100)
        .default(10_000)
        .describe('From accept to ReadyForQuery.'),
      maxTokenBytes: z.int().min(256).max(65_530).default(16_384),
      tokenCacheEntries: z
        .int()
        .min(0)
        .default(10_000)
        .describe('Verified tokens remembered; 0 turns the cache off.'),
    })
    .prefault({}),
  log: z
    .strictObject({ level: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info') })
    .prefault({}),
});

/** A configuration as people write it: defaults may be left out. */
export type ConfigInput = z.input<typeof schema>;
/** A configuration with every default filled in, checked and frozen. File paths are absolute. */
export type Config = z.output<typeof schema>;
export type ProviderConfig = Config['providers'][string];
export type UpstreamConfig = Config['upstreams'][string];
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

/** The JSON Schema of the file, for editors; `proxy.config.schema.json` is this and a test holds the two equal. */
export function configJsonSchema(): object {
  return {
    title: 'pgjot configuration',
    ...z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }),
  };
}

/**
 * The secret that a configuration points to.
 *
 * @throws {ConfigError} when the variable or file is missing or the secret is shorter than 32 characters.
 */
export function readSecret(source: UpstreamConfig['secret'], path: string): string {
  const value = 'env' in source ? process.env[source.env] : readSecretFile(source.file, path);
  const where = 'env' in source ? `environment variable ${source.env}` : `file ${source.file}`;
  if (value === undefined || value === '') {
    throw new ConfigError([{ path, message: `${where} is not set or empty` }]);
  }
  if (value.length < 32) {
    throw new ConfigError([
      { path, message: `${where} holds fewer than 32 characters; try: openssl rand -hex 32` },
    ]);
  }
  return value;
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
    },
  >(
    given: T,
  ): T => {
    const out = { ...given };
    for (const key of ['certFile', 'keyFile', 'caFile'] as const) {
      const file = given[key];
      if (file !== undefined) out[key] = from(file);
    }
    return out;
  };
  return {
    ...config,
    listen: { ...config.listen, tls: tls(config.listen.tls) },
    providers: mapValues(config.providers, (one) =>
      one.jwksFile === undefined ? one : { ...one, jwksFile: from(one.jwksFile) },
    ),
    upstreams: mapValues(config.upstreams, (one) => ({
      ...one,
      tls: tls(one.tls),
      secret: 'file' in one.secret ? { file: from(one.secret.file) } : one.secret,
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
