/**
 * The settings of `limits`: how many, how fast, how long, how large.
 */
import { isIP } from 'node:net';
import { z } from 'zod';
import { hostName, milliseconds, secret } from './config-values.ts';

/** What one client, one address and all of them together may have. `docs/limits.md` says what happens beyond it. */
export const limits = z.strictObject({
  maxClients: z.int().min(1).default(10_000).describe('Connections at once that log in or have.'),
  maxClientsPerAddress: z
    .int()
    .min(1)
    .optional()
    .describe('Of them, those from one address. Default: all.'),
  maxClientsPerSubject: z
    .int()
    .min(1)
    .optional()
    .describe('Of them, those with one issuer and subject. Default: all.'),
  maxUnauthenticated: z
    .int()
    .min(1)
    .default(1_000)
    .describe('Sockets at once of which it is not known yet whose they are.'),
  maxUnauthenticatedPerAddress: z
    .int()
    .min(1)
    .default(200)
    .describe('Of them, those from one address.'),
  ipv6PrefixBits: z
    .int()
    .min(1)
    .max(128)
    .default(64)
    .describe('How much of an IPv6 address is one address to these limits.'),
  loginsPerSecond: z.int().min(1).optional().describe('Logins begun. Default: no limit.'),
  loginsPerSecondPerAddress: z
    .int()
    .min(1)
    .optional()
    .describe('Logins begun from one address. Default: no limit.'),
  failedLogins: z
    .strictObject({
      allowed: z
        .int()
        .min(0)
        .max(1_000_000)
        .default(20)
        .describe(
          'How many logins with tokens that one issuer is named in may fail from one address, with no success between them.',
        ),
      delayMs: milliseconds
        .min(1)
        .default(1_000)
        .describe('For how long the next one is not looked at. It doubles with each failure.'),
      maxDelayMs: milliseconds.min(1).default(60_000).describe('The longest such delay.'),
    })
    .prefault({}),
  store: z
    .strictObject({
      redis: z.strictObject({
        url: secret.describe(
          'Where its URL is, which may hold a password: redis://… or rediss://… (TLS).',
        ),
        secret: secret.describe(
          'What all proxies that share it have in common: names in the store, and the encryption of cancel requests, derive from it.',
        ),
        tls: z
          .strictObject({
            caFile: z.string().optional().describe('Default: the usual authorities.'),
            serverName: hostName
              .refine((text) => isIP(text) === 0, 'must be a name')
              .optional()
              .describe("Whose the server's certificate must be. Default: the host in the URL."),
            certFile: z.string().optional().describe('Client certificate.'),
            keyFile: z.string().optional(),
          })
          .optional()
          .describe('For rediss://.'),
        timeoutMs: milliseconds
          .min(10)
          .max(5_000)
          .default(250)
          .describe('How long an answer is awaited.'),
      }),
    })
    .optional()
    .describe('A Redis or Valkey that several proxies share. Default: each proxy counts alone.'),
  missedCancelsPerSecond: z
    .int()
    .min(1)
    .default(100)
    .describe('Cancel requests from one address that may be for no session of ours.'),
  loginTimeoutMs: milliseconds.min(100).default(10_000).describe('From accept to ReadyForQuery.'),
  maxTokenBytes: z.int().min(256).max(65_530).default(16_384),
  tokenCacheEntries: z
    .int()
    .min(0)
    .default(10_000)
    .describe('Verified tokens remembered; 0 turns the cache off.'),
});
