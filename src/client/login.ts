/**
 * Asks the client for its password, which is the token, and nothing else.
 *
 * Judges no token: it hands over the text exactly as it came.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { ProxyError } from '../errors.ts';
import { AuthenticationCleartextPassword } from '../wire/backend.ts';
import { FRONTEND } from '../wire/frontend.ts';
import { EndOfStream, readExactly, skip } from '../wire/read.ts';
import { send, type Client } from './stream.ts';

// PG_MAX_AUTH_TOKEN_LENGTH of PostgreSQL's auth.h: what any client may send as a password message.
const MAX_PASSWORD_MESSAGE_BYTES = 65_535;

/**
 * Sends AuthenticationCleartextPassword and returns the token of the PasswordMessage.
 *
 * A token of more than `maxTokenBytes` is read and forgotten, never held, and `user` is only for the
 * message of that refusal.
 *
 * @throws {ProxyError} unexpected_message, token_missing, token_rejected, client_lost, or the signal's reason.
 */
export async function askForToken(
  client: Client,
  user: string,
  maxTokenBytes: number,
  signal: AbortSignal,
): Promise<string> {
  try {
    await send(client.stream, AuthenticationCleartextPassword);
    const length = await readPasswordHeader(client, signal);
    if (length - 1 > maxTokenBytes) {
      await skip(client.stream, length, signal);
      const cause = new Error(
        `the token has ${length - 1} bytes, more than limits.maxTokenBytes (${maxTokenBytes})`,
      );
      throw new ProxyError('token_rejected', { user }, { cause });
    }
    return await readPassword(client, length, user, signal);
  } catch (error) {
    if (error instanceof EndOfStream) throw new ProxyError('client_lost', { cause: error });
    throw error;
  }
}

/** The length of the message's body. The type is judged before the length is waited for, as PostgreSQL does. */
async function readPasswordHeader(client: Client, signal: AbortSignal): Promise<number> {
  const [type] = await readExactly(client.stream, 1, signal);
  if (type !== FRONTEND.PasswordMessage) {
    throw new ProxyError('unexpected_message', {
      problem: `expected password response, got message type ${type}`,
    });
  }
  const length = (await readExactly(client.stream, 4, signal)).readInt32BE(0);
  if (length < 4 || length > MAX_PASSWORD_MESSAGE_BYTES) {
    throw new ProxyError('unexpected_message', { problem: 'invalid message length' });
  }
  return length - 4;
}

async function readPassword(
  client: Client,
  length: number,
  user: string,
  signal: AbortSignal,
): Promise<string> {
  const body = await readExactly(client.stream, length, signal);
  // Attack A7: exactly one NUL, at the very end, as recv_password_packet() insists on.
  if (length === 0 || body.indexOf(0) !== length - 1) {
    throw new ProxyError('unexpected_message', { problem: 'invalid password packet size' });
  }
  const token = body.toString('latin1', 0, length - 1);
  body.fill(0);
  if (token === '') throw new ProxyError('token_missing', { user });
  return token;
}
