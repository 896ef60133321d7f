/**
 * Compares what a backend says of its user with what the proxy has verified.
 */
import { ProxyError } from '../errors.ts';

/** A question for the backend: who `pgjot.user_id()` says it is. In hexadecimal, because the client has chosen the encoding of answers. */
export const USER_ID = "pg_catalog.encode(pg_catalog.convert_to(pgjot.user_id(), 'UTF8'), 'hex')";

/** A question for the backend: its process id. */
export const BACKEND_PID = 'pg_catalog.pg_backend_pid()';

/**
 * Accepts the answer to `BACKEND_PID` when it is the one that the login said. A transaction pooler would have it asked of
 * another backend each time.
 *
 * @throws {ProxyError} upstream_protocol
 */
export function assertBackend(answer: string | null | undefined, processId: number): void {
  if (answer === String(processId)) return;
  throw new ProxyError('upstream_protocol', {
    cause: new Error(
      'the backend that answers is not the one that logged in: is a transaction pooler in between?',
    ),
  });
}

/**
 * Accepts the answer to `USER_ID` when it is the subject, or NULL for nobody.
 *
 * @param otherwise the likely reason, for the log.
 * @throws {ProxyError} session_setup_failed
 */
export function assertUser(
  answer: string | null | undefined,
  { subject, role }: { readonly subject: string | undefined; readonly role: string },
  otherwise: string,
): void {
  const expected = subject === undefined ? null : Buffer.from(subject, 'utf8').toString('hex');
  if (answer !== expected) throw setupFailed(role, otherwise);
}

/**
 * Whether policies in this database read what this mode writes.
 *
 * @throws {ProxyError} session_setup_failed
 */
export function assertPreparedFor(
  mode: string,
  { preparedFor }: { readonly preparedFor: string },
  { role }: { readonly role: string },
): void {
  if (preparedFor === mode) return;
  const why = `pgjot setup has prepared this database for session mode "${preparedFor}": run it again, or change "session"`;
  throw setupFailed(role, why);
}

/** The refusal of a session whose identity did not arrive; `why` is for the log. */
export function setupFailed(role: string, why: string): ProxyError {
  return new ProxyError('session_setup_failed', { role }, { cause: new Error(why) });
}
