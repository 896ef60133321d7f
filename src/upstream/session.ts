/**
 * Puts an identity on an upstream session and makes sure that SQL on that very backend sees it.
 *
 * The identity is written over the control connection, where the client has no way to reach; on the
 * client's own backend we only ask questions, in constant SQL whose names and operators are all qualified.
 */
import { ProxyError } from '../errors.ts';
import { BACKEND, decodeDataRow, decodeErrorFields } from '../wire/backend.ts';
import { readFrame, type Frame } from '../wire/frame.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { EndOfStream } from '../wire/read.ts';
import { UpstreamError, asProxyError, type UpstreamConnection } from './connect.ts';
import type { Backend, Control } from './control.ts';

/** What a backend says of itself. */
export interface Hello extends Backend {
  /** Its login role has settings of its own: its last user changed it (attack E11). */
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
const MAX_ANSWER_FRAMES = 256;
const REPORTS: ReadonlySet<number> = new Set([BACKEND.ParameterStatus, BACKEND.NoticeResponse]);
const PASSED_OVER: ReadonlySet<number> = new Set([
  BACKEND.RowDescription,
  BACKEND.CommandComplete,
  BACKEND.NotificationResponse,
]);
const HELLO = encodeQuery('select h.pid, h.backend_start, h.dirty from pgjot.hello() as h');
// In hexadecimal, because the client has chosen the encoding in which its backend answers.
const USER_ID = encodeQuery(
  "select pg_catalog.encode(pg_catalog.convert_to(pgjot.user_id(), 'UTF8'), 'hex')",
);

/**
 * Asks the backend who it is.
 *
 * @throws {ProxyError} upstream_protocol when another backend answers than the one that logged in: then a
 *   transaction pooler stands between, and no identity would be safe. upstream_rejected when a timeout that the
 *   client itself has set came first; upstream_lost.
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

/**
 * The one row of a constant query, in text. Leaves the connection idle at a frame boundary.
 *
 * What the server reports meanwhile (settings, notices) belongs to the client, so it joins the greeting.
 */
async function ask(
  { stream, greeting }: UpstreamConnection,
  query: Buffer,
  signal: AbortSignal,
): Promise<(string | null)[]> {
  stream.write(query);
  let row: (string | null)[] | undefined;
  let failure: Frame | undefined;
  try {
    for (let frames = 0; frames < MAX_ANSWER_FRAMES; frames++) {
      const frame = await readFrame(stream, MAX_ANSWER_BYTES, signal);
      if (frame.type === BACKEND.ReadyForQuery) {
        if (failure !== undefined) throw failed(failure);
        if (row === undefined) throw broken('no row where one was asked for');
        return row;
      }
      if (frame.type === BACKEND.DataRow) row = decodeDataRow(frame.body);
      else if (frame.type === BACKEND.ErrorResponse) failure = frame;
      else if (REPORTS.has(frame.type)) greeting.push(frame.bytes);
      else if (!PASSED_OVER.has(frame.type))
        throw broken(`message type ${frame.type} in an answer`);
    }
    throw broken('the answer never ended');
  } catch (error) {
    signal.throwIfAborted();
    // A FATAL one is followed by the end of the connection.
    throw failure !== undefined && error instanceof EndOfStream
      ? failed(failure)
      : asProxyError(error);
  }
}

/** What an ErrorResponse to a question of ours means: the client's own timeouts, and a shutdown, are for the client to read about. */
function failed(frame: Frame): ProxyError {
  const cause = new UpstreamError(decodeErrorFields(frame.body));
  return /^(57014|57P0|25P0)/.test(cause.sqlstate)
    ? new ProxyError('upstream_rejected', { cause, frame: frame.bytes })
    : new ProxyError('upstream_protocol', { cause });
}

function broken(why: string): ProxyError {
  return new ProxyError('upstream_protocol', { cause: new Error(why) });
}
