/**
 * Kinds of values that several parts of the configuration have: names, ports, networks, durations, JSON Pointers.
 *
 * Knows no setting.
 */
import { isIP } from 'node:net';
import { z } from 'zod';

/** A name in PostgreSQL: at most NAMEDATALEN - 1 = 63 bytes, no control characters. */
export const name = z
  .string()
  .min(1)
  // eslint-disable-next-line no-control-regex
  .regex(/^[^\u0000-\u001f\u007f]+$/, 'must not hold control characters')
  .refine((text) => Buffer.byteLength(text) <= 63, 'must be at most 63 bytes');

export const port = z.int().min(1).max(65_535);

/** An address, or a network in CIDR notation. */
export const network = z
  .string()
  .refine(
    isNetwork,
    'must be an address or a network, for instance "10.0.0.0/8" or "2001:db8::/32"',
  );

// The shortest prefix within which an IPv6 network holds IPv4 addresses and nothing else.
const MAPPED = /^::ffff:\d+\.\d+\.\d+\.\d+$/i;

function isNetwork(text: string): boolean {
  const [address = '', bits, ...rest] = text.split('/');
  const kind = address.includes('%') ? 0 : isIP(address);
  if (kind === 0 || rest.length > 0) return false;
  if (bits === undefined) return true;
  const shortest = MAPPED.test(address) ? 96 : 0;
  return /^\d{1,3}$/.test(bits) && +bits >= shortest && +bits <= (kind === 4 ? 32 : 128);
}

/** A duration that setTimeout can keep. */
export const milliseconds = z
  .int()
  .min(0)
  .max(2 ** 31 - 1);

/** A host name as TLS clients name it. */
export const hostName = z.string().regex(/^[a-z0-9._-]+$/, 'must be a host name in lower case');

/** Where in the claims something is (RFC 6901). */
export const jsonPointer = z
  .string()
  .regex(
    /^(\/([^~/]|~0|~1)*)+$/,
    'must be a JSON Pointer (RFC 6901), for instance "/app_metadata/role"',
  );

/** Where a secret is. */
export const secret = z
  .union([z.strictObject({ env: z.string().min(1) }), z.strictObject({ file: z.string().min(1) })])
  .describe(
    'Where the secret is: { "env": "NAME" } or { "file": "path" }. Never the secret itself.',
  );
