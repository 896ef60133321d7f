/**
 * The part of the configuration's schema that is about upstreams.
 */
import { z } from 'zod';
import { jsonPointer, milliseconds, name, port, secret } from './config-values.ts';

/** How an identity can reach SQL; `src/upstream/` has a file for each. */
export const SESSION_MODES = ['portable', 'pg_session_jwt', 'replica'] as const;

/** Role attributes that put a session above Row-Level Security, or let it get there. */
export const ROLE_ATTRIBUTES = ['SUPERUSER', 'BYPASSRLS', 'CREATEROLE', 'REPLICATION'] as const;

const role = z.strictObject({
  slots: z.int().min(1).max(10_000),
  maxConnections: z
    .int()
    .min(1)
    .optional()
    .describe('How many of them this proxy may use at once. Default: all.'),
  attributes: z
    .array(z.enum(ROLE_ATTRIBUTES))
    .optional()
    .describe(
      'What the role may be although Row-Level Security does not hold for it then. Any that is not named here is refused.',
    ),
});

const lookup = z.strictObject({
  sql: z
    .string()
    .min(1)
    .describe('One SELECT; its row becomes the claim "lookup". Run as role pgjot_lookup.'),
  params: z
    .array(jsonPointer)
    .max(100)
    .default([])
    .describe('The values of $1, $2, …: JSON Pointers into the verified claims.'),
  cacheMs: milliseconds
    .default(60_000)
    .describe('How long a row is remembered; 0 asks at every login.'),
  timeoutMs: milliseconds.min(1).default(2_000),
  required: z
    .boolean()
    .default(true)
    .describe('Refuse the login where there is no row. Otherwise the claim is null.'),
});

const pool = z.strictObject({
  mode: z.enum(['session']).default('session').describe('One upstream session for each client.'),
  reuse: z
    .enum(['same-identity', 'never', 'any'])
    .default('same-identity')
    .describe(
      'Who may have a session after its client has left: the same issuer, subject and role with the same settings, nobody, or any user of the role.',
    ),
  spares: z
    .int()
    .min(0)
    .max(1_000)
    .default(4)
    .describe(
      'Sessions of each role that are logged in beforehand, for users who have none yet; never more than a quarter of its slots.',
    ),
  maxConnections: z
    .int()
    .min(1)
    .optional()
    .describe('How many sessions there may be, over all roles. Default: as many as slots.'),
  maxWaiting: z
    .int()
    .min(0)
    .default(1_000)
    .describe('How many logins of a role may wait for a slot; more are refused at once.'),
  idleTimeoutMs: milliseconds
    .min(1_000)
    .default(60_000)
    .describe('How long a session waits for its user to come back, give or take a tenth.'),
  lifetimeMs: milliseconds
    .min(1_000)
    .default(3_600_000)
    .describe('How old a session may be when it is used again, give or take a tenth.'),
});

/** One upstream. */
export const upstream = z.strictObject({
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
  session: z
    .enum(SESSION_MODES)
    .default('portable')
    .describe(
      'How the identity reaches SQL: a row that the proxy writes, the extension pg_session_jwt, or, on hot standbys, a signed setting.',
    ),
  sessionClaims: z
    .array(z.string().min(1))
    .optional()
    .describe('The claims that SQL sees, beside "sub". Default: all.'),
  lookup: lookup
    .optional()
    .describe('Claims that the token does not have, from the database itself.'),
  secret: secret.describe(
    'The one secret from which the passwords of all slots and of the control role derive.',
  ),
  previousSecret: secret
    .optional()
    .describe(
      'While the secret is rotated: the one before it, which is tried where the server refuses the other.',
    ),
  roles: z
    .record(name, role)
    .refine((roles) => Object.keys(roles).length > 0, 'must name at least one role')
    .describe('Roles that clients may become here, and how many may be logged in at once.'),
  healSlots: z
    .boolean()
    .default(false)
    .describe(
      'Let the proxy mend slots that a user has spoilt. `pgjot setup` then makes a role with CREATEROLE, pgjot_healer, for one function that does nothing else.',
    ),
  nameSessions: z
    .boolean()
    .default(false)
    .describe(
      "Put the id of a session's log lines into its application_name, for PostgreSQL's own log to be joined. Costs a round trip at each login.",
    ),
  connectTimeoutMs: milliseconds.min(1).default(3_000),
  pool: pool.prefault({}).describe('What becomes of sessions whose client has left.'),
  acquireTimeoutMs: milliseconds
    .min(1)
    .default(8_000)
    .describe('How long a login waits for a free slot.'),
});
