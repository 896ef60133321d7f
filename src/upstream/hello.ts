/**
 * Asks a backend that has just logged in who it is.
 *
 * For the session modes whose control connection cannot tell: what has its identity from the StartupMessage has to answer for
 * itself anyway.
 */
import { encodeQuery } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import type { UpstreamConnection } from './connect.ts';
import type { Hello } from './control.ts';
import { assertBackend } from './self-check.ts';

const HELLO = encodeQuery(
  'select h.pid, h.backend_start, h.dirty, h.in_recovery, pgjot.mode() from pgjot.hello() as h',
);

/**
 * What the backend says of itself.
 *
 * @throws {ProxyError} upstream_protocol when another backend answers than the one that logged in; upstream_rejected when a
 *   timeout that the client itself has set came first; upstream_lost.
 */
export async function hello(connection: UpstreamConnection, signal: AbortSignal): Promise<Hello> {
  const [pid, start, dirty, inRecovery, mode] = await ask(connection, HELLO, signal);
  assertBackend(start && pid, connection.processId);
  return {
    pid: connection.processId,
    start: start as string,
    dirty: dirty !== 'f',
    inRecovery: inRecovery === 't',
    preparedFor: mode ?? '',
  };
}
