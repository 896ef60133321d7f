/**
 * Asks a client's backend a question of ours before the client may speak.
 *
 * Constant SQL whose names and operators are all qualified; a value, where there is one, travels as a bind parameter.
 */
import { ProxyError } from '../errors.ts';
import { BACKEND, decodeDataRow, decodeErrorFields } from '../wire/backend.ts';
import { readFrame, takeFrame, type Frame } from '../wire/frame.ts';
import { EndOfStream } from '../wire/read.ts';
import { UpstreamError, asProxyError, type UpstreamConnection } from './connect.ts';

/** Far above any answer to a question of ours. */
export const MAX_ANSWER_BYTES = 65_536;
export const MAX_ANSWER_FRAMES = 256;
const REPORTS: ReadonlySet<number> = new Set([BACKEND.ParameterStatus, BACKEND.NoticeResponse]);
const PASSED_OVER: ReadonlySet<number> = new Set([
  BACKEND.ParseComplete,
  BACKEND.BindComplete,
  BACKEND.RowDescription,
  BACKEND.CommandComplete,
  BACKEND.NotificationResponse,
]);

/**
 * The one row of a query, in text. Leaves the connection idle at a frame boundary.
 *
 * What the server reports meanwhile (settings, notices) belongs to the client, so it joins the greeting.
 *
 * @throws {ProxyError} upstream_rejected when a timeout that the client itself has set came first, or the server is
 *   shutting down; upstream_protocol; upstream_lost.
 */
export async function ask(
  connection: UpstreamConnection,
  query: Buffer,
  signal: AbortSignal,
): Promise<(string | null)[]> {
  connection.stream.write(query);
  return readAnswer(connection, signal);
}

/** The one row of a query that has been sent already; else as `ask`. */
export async function readAnswer(
  { stream, greeting }: UpstreamConnection,
  signal: AbortSignal,
): Promise<(string | null)[]> {
  let row: (string | null)[] | undefined;
  let failure: Frame | undefined;
  try {
    for (let frames = 0; frames < MAX_ANSWER_FRAMES; frames++) {
      const frame =
        takeFrame(stream, MAX_ANSWER_BYTES) ?? (await readFrame(stream, MAX_ANSWER_BYTES, signal));
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
