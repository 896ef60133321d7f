/**
 * The configuration's schema: every setting with its type, its default and one sentence for editors.
 *
 * What one setting alone can say is here; what must agree with another is in `config-rules.ts`.
 */
import { z } from 'zod';
import { admin } from './config-admin.ts';
import { limits } from './config-limits.ts';
import { provider } from './config-provider.ts';
import { upstream } from './config-upstream.ts';
import { hostName, jsonPointer, milliseconds, name, network } from './config-values.ts';

/** How a client can present its token. */
const AUTHENTICATION_METHODS = ['password', 'oauth'] as const;

const discovery = {
  provider: z
    .string()
    .min(1)
    .optional()
    .describe('Where a client of method "oauth" is told to get its token. Default: the only one.'),
  scope: z
    .string()
    .regex(/^[!#-[\]-~]+( [!#-[\]-~]+)*$/, 'must be scopes with a space between them (RFC 6749)'),
};

const authenticationRule = z.strictObject({
  user: name.optional(),
  database: name.optional(),
  sni: hostName.optional().describe('The host name that the client gave in its TLS handshake.'),
  method: z.enum(AUTHENTICATION_METHODS),
  ...discovery,
  scope: discovery.scope.optional(),
});

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
  allow: z
    .array(network)
    .min(1)
    .optional()
    .describe('Addresses and networks that may connect. Default: all.'),
  deny: z
    .array(network)
    .default([])
    .describe('Addresses and networks that may not, although they are in "allow".'),
  proxyProtocol: z
    .strictObject({
      from: z
        .array(network)
        .min(1)
        .describe(
          'The load balancers: each connection begins with their header. No others may connect.',
        ),
    })
    .optional()
    .describe(
      'Where load balancers say, by PROXY protocol 1 or 2, whose connection it is. Default: nowhere.',
    ),
  authentication: z
    .enum(AUTHENTICATION_METHODS)
    .default('password')
    .describe(
      'How clients present their token: as the password, or by SASL OAUTHBEARER, which libpq speaks from version 18 on.',
    ),
  authenticationRules: z
    .array(authenticationRule)
    .default([])
    .describe('Clients of whom something else is asked. First match wins.'),
  oauth: z
    .strictObject({ ...discovery, scope: discovery.scope.default('openid') })
    .prefault({})
    .describe('What a client of method "oauth" is told that asks where to get a token.'),
});

const claimValue = z.union([z.string(), z.number(), z.boolean()]);

const route = z.strictObject({
  database: name
    .optional()
    .describe('What the client asks for; it need not be what it is called upstream.'),
  sni: hostName.optional().describe('The host name that the client gave in its TLS handshake.'),
  provider: z.string().min(1).optional().describe('Whose token it is.'),
  claims: z
    .record(jsonPointer, z.union([claimValue, z.array(claimValue).min(1)]))
    .optional()
    .describe('What claims must be, or contain where they are arrays, by JSON Pointers.'),
  upstream: z.string().min(1).optional().describe('Where such clients go.'),
  byClaim: jsonPointer
    .optional()
    .describe('Instead: a JSON Pointer to the claim that chooses among `upstreams`.'),
  upstreams: z
    .record(z.string().min(1), z.string().min(1))
    .optional()
    .describe('Upstreams by the value of that claim. Any other value is refused.'),
});

/** The whole file. */
export const schema = z.strictObject({
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
    .array(route)
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
        .describe('How long keys count as fresh: at most, and where the issuer does not say.'),
      staleMs: milliseconds
        .default(3_600_000)
        .describe('How much longer known keys serve while the issuer is down.'),
      cooldownMs: milliseconds
        .min(1_000)
        .default(30_000)
        .describe(
          'At most one fetch for unknown key ids in this time, and at most two fetches for whatever reason in twice this time.',
        ),
      retryMs: milliseconds
        .min(100)
        .default(1_000)
        .describe('The pause after a failed fetch. It doubles with each further failure.'),
      maxRetryMs: milliseconds
        .min(100)
        .default(60_000)
        .describe('The longest such pause, before up to a quarter more at random.'),
      timeoutMs: milliseconds
        .min(1)
        .default(5_000)
        .describe('For one fetch, from the name to the last byte.'),
      maxBytes: z.int().min(1_024).max(16_777_216).default(262_144),
      maxKeys: z.int().min(1).max(1_000).default(100),
      maxKeysTried: z
        .int()
        .min(0)
        .max(16)
        .default(4)
        .describe(
          'A token without "kid" is tried with each key that fits its "alg" if they are no more than this; 0 refuses it.',
        ),
      maxUnknownKids: z
        .int()
        .min(0)
        .max(100_000)
        .default(1_000)
        .describe(
          'Unknown key ids remembered for each issuer, so that they cause no more fetches.',
        ),
      fileCheckMs: milliseconds
        .min(100)
        .default(1_000)
        .describe('How often a "jwksFile" is looked at.'),
      privateHosts: z
        .array(z.string().regex(/^[a-z0-9._-]+$/, 'must be a host name in lower case'))
        .default([])
        .describe(
          'Hosts of a "jwksUri" that may have addresses inside a private network. Any other must not.',
        ),
    })
    .prefault({}),
  sessions: z
    .strictObject({
      onTokenExpiry: z
        .enum(['drain', 'terminate', 'ignore'])
        .default('drain')
        .describe(
          'What happens to a session whose token expires: it ends when its transaction does, it ends at once, or nothing.',
        ),
      graceMs: milliseconds
        .default(30_000)
        .describe('How long a running transaction may go on after its token expired.'),
      noticeMs: milliseconds
        .default(0)
        .describe('How long before that the client is warned with a NOTICE; 0 never.'),
      maxLifetimeMs: milliseconds
        .default(0)
        .describe(
          'How long any session may last, whatever its tokens say; 0 for as long as they do.',
        ),
      drainTimeoutMs: milliseconds
        .default(60_000)
        .describe('How long busy sessions may go on after SIGTERM.'),
    })
    .prefault({}),
  limits: limits.prefault({}),
  revocations: z
    .strictObject({
      file: z
        .string()
        .optional()
        .describe('A JSON array of what is accepted no more, read again whenever it changes.'),
    })
    .prefault({}),
  admin: admin.optional().describe('The HTTP endpoint for administrators. Default: none.'),
  log: z
    .strictObject({
      level: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
      refusalsPerMinute: z
        .int()
        .min(1)
        .default(60)
        .describe(
          'How many refusals of one address have a line of their own in a minute, and a tenth of how many all together have. The rest is counted.',
        ),
    })
    .prefault({}),
});
