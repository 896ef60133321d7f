/**
 * The part "admin" of the configuration: where administrators are answered, what they show, and what they call ready.
 */
import { z } from 'zod';
import { secret } from './config-values.ts';

/** The endpoint for administrators. */
export const admin = z.strictObject({
  host: z.string().min(1).default('127.0.0.1'),
  port: z.int().min(0).max(65_535).default(9187),
  token: secret
    .optional()
    .describe(
      'What administrators send as "Authorization: Bearer …". Required unless the address is loopback.',
    ),
  readToken: secret
    .optional()
    .describe('Another such token, with which one may look and change nothing.'),
  tls: z
    .strictObject({
      certFile: z.string().min(1),
      keyFile: z.string().min(1),
      clientCaFile: z
        .string()
        .min(1)
        .optional()
        .describe('Who signs administrators’ certificates: whoever has one needs no token.'),
    })
    .optional()
    .describe('The certificate with which the endpoint speaks TLS. Default: plain HTTP.'),
  readiness: z
    .strictObject({
      upstreams: z.array(z.string()).min(1).optional(),
      providers: z.array(z.string()).min(1).optional(),
    })
    .optional()
    .describe(
      'Upstreams that must be reachable, and providers that must have keys, for /readyz to say so. Default: any one.',
    ),
});
