/**
 * Names and passwords of the roles that pgjot logs in as, all derived from one secret per upstream.
 *
 * Opens no connection and reads no file. The passwords exist in the proxy alone: what reaches the
 * server, by `install.ts`, are SCRAM verifiers (RFC 5802 §3), from which no password can be computed.
 */
import { createHash, createHmac, pbkdf2, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';

/** The login role of the control connection, the only one that may bind an identity to a backend. */
export const CONTROL_ROLE = 'pgjot_control';

/** The login role that a configured lookup runs as. */
export const LOOKUP_ROLE = 'pgjot_lookup';

// NAMEDATALEN - 1. PostgreSQL cuts longer names silently, so two slots would become one role.
const MAX_NAME_BYTES = 63;

// What PostgreSQL itself uses (SCRAM_SHA_256_DEFAULT_ITERATIONS, SCRAM_DEFAULT_SALT_LEN). More rounds
// would slow every login down and protect nothing: the password is 256 bits of HMAC output, not a word.
const ITERATIONS = 4096;
const SALT_BYTES = 16;
const KEY_BYTES = 32;

const pbkdf2Async = promisify(pbkdf2);

/**
 * The login role of slot number `index` (from 1) of a group role, `pgjot_<role>_<index>`.
 *
 * @throws {TypeError} when the name would exceed PostgreSQL's 63 bytes, or `index` is not a positive integer.
 */
export function slotName(role: string, index: number): string {
  if (role === '' || role.includes('\0')) throw new TypeError('a role name must not be empty');
  if (!Number.isSafeInteger(index) || index < 1) {
    throw new TypeError(`a slot's index must be a positive integer, not ${index}`);
  }
  const name = `pgjot_${role}_${index}`;
  if (Buffer.byteLength(name) > MAX_NAME_BYTES) {
    throw new TypeError(`slot name "${name}" is longer than ${MAX_NAME_BYTES} bytes`);
  }
  return name;
}

/**
 * The password of a login role: HMAC-SHA-256 of its name under the upstream's secret, as 43 base64url
 * characters. Whoever learns the password of one slot learns nothing about another's.
 */
export function derivePassword(secret: string, roleName: string): string {
  return createHmac('sha256', secret).update(roleName).digest('base64url');
}

/**
 * The key that signs identities for standbys: 64 bytes, the block length of HMAC-SHA-256, which SQL can then do in two
 * calls of `sha256`. Whoever has it can be anybody on the standbys.
 */
export function deriveIdentityKey(secret: string): Buffer {
  // The NUL keeps it apart from every password: no role's name can hold one.
  return createHmac('sha512', secret).update('identity\0key').digest();
}

/**
 * What PostgreSQL stores for a password under SCRAM-SHA-256, with a fresh salt:
 * `SCRAM-SHA-256$4096:<salt>$<StoredKey>:<ServerKey>`.
 *
 * SASLprep (RFC 4013) is left out: it is the identity on the ASCII that `derivePassword` returns.
 */
export async function scramVerifier(password: string): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const saltedPassword = await pbkdf2Async(password, salt, ITERATIONS, KEY_BYTES, 'sha256');
  const clientKey = createHmac('sha256', saltedPassword).update('Client Key').digest();
  const storedKey = createHash('sha256').update(clientKey).digest('base64');
  const serverKey = createHmac('sha256', saltedPassword).update('Server Key').digest('base64');
  return `SCRAM-SHA-256$${ITERATIONS}:${salt.toString('base64')}$${storedKey}:${serverKey}`;
}
