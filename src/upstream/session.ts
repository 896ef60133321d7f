/**
 * Puts an identity on an upstream session and makes sure that SQL on that very backend sees it.
 *
 * The identity is written over the control connection, where the client has no way to reach; on the
 * client's own backend we only ask questions, in constant SQL whose names and operators are all qualified.
 */
import { ProxyError } from '../errors.ts';
import { BACKEND, decodeDataRow, decodeErrorFields } from '../wire/backend.ts';
import { readFrame } from '../wire/frame.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { UpstreamError, asProxyError, type UpstreamConnection } from './connect.ts';
import type { Backend, Control } from './control.ts';

/** What a backend says of itself. */
export interface Hello extends Backend {
  /** Its login role has settings of its own or an expiry: its last user changed it (attack E11). */
  readonly dirty: boolean;
}

/** Whom the session is to belong to; without a subject, to nobody. */
export interface SessionIdentity {
  readonly subject: string | undefined;
  readonly claims: Readonly<Record<string, unknown>>;
  /** When the session must be over, in ms since the epoch. */
  readonly expiresAt: number;
}

const MAX_ANSWER_BYTES = 65_536;
const HELLO = encodeQuery('select h.pid, h.backend_start, h.dirty from pgjot.hello() as h');
// In hexadecimal, because the client has chosen the encoding in which its backend answers.
const USER_ID = encodeQuery(
  "select pg_catalog.encode(pg_catalog.convert_to(pgjot.user_id(), 'UTF8'), 'hex')",
);

/**
 * Asks the backend who it is.
 *
 * @throws {ProxyError} upstream_protocol when another backend answers than the one that logged in: then a
 *   transaction pooler stands between, and no identity would be safe.
 */
export async function hello(connection: UpstreamConnection, signal: AbortSignal): Promise<Hello> {
  const [pid, start, dirty] = await ask(connection, HELLO, signal);
  if (Number(pid) !== connection.processId || start === undefined || start === null) {
    throw new ProxyError('upstream_protocol', {
      cause: new Error(
        'the backend that answers is not the one that logged in: is a transaction pooler in between?',
      ),
    });
  }
  return { pid: connection.processId, start, dirty: dirty !== 'f' };
}

/**
 * Binds the identity to the backend, then has the backend itself say who its user is.
 *
 * @throws {ProxyError} session_setup_failed when the two are not the same; the caller drops the connection.
 */
export async function install(
  connection: UpstreamConnection,
  backend: Backend,
  identity: SessionIdentity,
  role: string,
  control: Control,
  signal: AbortSignal,
): Promise<void> {
  const { subject, claims, expiresAt } = identity;
  // Nobody's session has no row: what an earlier backend with this pid left would not match it either.
  if (subject !== undefined) await control.bind(backend, claims, expiresAt);
  const [seen] = await ask(connection, USER_ID, signal);
  const expected = subject === undefined ? null : Buffer.from(subject, 'utf8').toString('hex');
  if (seen !== expected) {
    throw new ProxyError(
      'session_setup_failed',
      { role },
      {
        cause: new Error('pgjot.user_id() is not the subject that was verified'),
      },
    );
  }
}

/** The one row of a constant query, in text. Leaves the connection idle at a frame boundary. */
async function ask(
  { stream }: UpstreamConnection,
  query: Buffer,
  signal: AbortSignal,
): Promise<(string | null)[]> {
  stream.write(query);
  let row: (string | null)[] | undefined;
  let failure: UpstreamError | undefined;
  try {
    for (;;) {
      const frame = await readFrame(stream, MAX_ANSWER_BYTES, signal);
      if (frame.type === BACKEND.DataRow) row = decodeDataRow(frame.body);
      else if (frame.type === BACKEND.ErrorResponse)
        failure = new UpstreamError(decodeErrorFields(frame.body));
      else if (frame.type === BACKEND.ReadyForQuery) break;
    }
  } catch (error) {
    signal.throwIfAborted();
    throw asProxyError(error);
  }
  if (failure !== undefined) throw new ProxyError('upstream_protocol', { cause: failure });
  if (row === undefined)
    throw new ProxyError('upstream_protocol', {
      cause: new Error('no row where one was asked for'),
    });
  return row;
}
