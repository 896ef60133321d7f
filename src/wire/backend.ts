/**
 * Messages that a server sends (B → F in the manual): the ones we write to clients and the ones we read from the upstream while logging in.
 *
 * After the login nothing is decoded: the splice passes bytes.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { ERRORS, type ProxyError } from '../errors.ts';
import { decodeString, encodeFrame, encodeInt32, encodeString, type Frame } from './frame.ts';
import { ownCopy } from './read.ts';

/** Type bytes of the messages that a server sends. */
export const BACKEND = {
  Authentication: 0x52, // R
  BackendKeyData: 0x4b, // K
  BindComplete: 0x32, // 2
  CommandComplete: 0x43, // C
  CopyInResponse: 0x47, // G
  DataRow: 0x44, // D
  ErrorResponse: 0x45, // E
  NoticeResponse: 0x4e, // N
  NotificationResponse: 0x41, // A
  ParameterStatus: 0x53, // S
  ParseComplete: 0x31, // 1
  ReadyForQuery: 0x5a, // Z
  RowDescription: 0x54, // T
} as const;

/** The transaction status in ReadyForQuery: idle, in a transaction block, in a failed one. */
export type TransactionStatus = 'I' | 'T' | 'E';

/** AuthenticationOk. */
export const AuthenticationOk = encodeFrame('R', encodeInt32(0));
/** AuthenticationCleartextPassword. */
export const AuthenticationCleartextPassword = encodeFrame('R', encodeInt32(3));

/** AuthenticationSASL: the mechanisms among which the client may choose. */
export function encodeAuthenticationSASL(mechanisms: readonly string[]): Buffer {
  return encodeFrame('R', encodeInt32(10), ...mechanisms.map(encodeString), Buffer.from([0]));
}

/** AuthenticationSASLContinue: what the mechanism has to say, which may be nothing. */
export function encodeAuthenticationSASLContinue(challenge: string): Buffer {
  return encodeFrame('R', encodeInt32(11), Buffer.from(challenge, 'utf8'));
}

/** ReadyForQuery. */
export function encodeReadyForQuery(status: TransactionStatus): Buffer {
  return encodeFrame('Z', Buffer.from(status, 'latin1'));
}

/** BackendKeyData: a secret of 4 bytes in protocol 3.0, of up to 256 in 3.2. */
export function encodeBackendKeyData(processId: number, secretKey: Buffer): Buffer {
  return encodeFrame('K', encodeInt32(processId), secretKey);
}

/** NegotiateProtocolVersion: the version we go on with, and the protocol options we do not know. */
export function encodeNegotiateProtocolVersion(
  version: number,
  unknown: readonly string[],
): Buffer {
  return encodeFrame(
    'v',
    encodeInt32(version),
    encodeInt32(unknown.length),
    ...unknown.map(encodeString),
  );
}

/**
 * The ErrorResponse for a failure: the upstream's own bytes where the error holds them, else the table's row.
 *
 * Returns `undefined` for what a client is not told.
 */
export function encodeErrorResponse(error: ProxyError): Buffer | undefined {
  if (error.silent) return undefined;
  if (error.frame !== undefined) return error.frame;
  const { sqlstate, sent } = error.spec;
  return encodeErrorFields({
    severity: sent === 'ERROR' ? 'ERROR' : 'FATAL',
    sqlstate: sqlstate ?? ERRORS.internal.sqlstate,
    message: error.message,
    detail: error.detail,
    hint: error.hint,
  });
}

/** What an ErrorResponse or a NoticeResponse says. */
export interface Report {
  readonly severity: string;
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string | undefined;
  readonly hint?: string | undefined;
}

/** An ErrorResponse from its fields: always S, V, C and M, which clients may rely on. */
export function encodeErrorFields(fields: Report): Buffer {
  return encodeReport('E', fields);
}

/** A NoticeResponse, which may stand between any two messages of a server. */
export function encodeNotice(fields: Report): Buffer {
  return encodeReport('N', fields);
}

function encodeReport(messageType: 'E' | 'N', fields: Report): Buffer {
  const typed: [string, string | undefined][] = [
    ['S', fields.severity],
    ['V', fields.severity],
    ['C', fields.sqlstate],
    ['M', fields.message],
    ['D', fields.detail],
    ['H', fields.hint],
  ];
  const present = typed.filter((field): field is [string, string] => field[1] !== undefined);
  return encodeFrame(
    messageType,
    ...present.map(([type, text]) => encodeString(type + text.replaceAll('\0', ''))),
    Buffer.from([0]),
  );
}

/** The fields of an ErrorResponse or NoticeResponse by their one-letter types; tolerates missing ones (CVE-2026-6666 was a crash on that). */
export function decodeErrorFields(body: Buffer): ReadonlyMap<string, string> {
  const fields = new Map<string, string>();
  let at = 0;
  while (at < body.length && body[at] !== 0) {
    const value = decodeString(body, at + 1);
    if (value === undefined) break;
    fields.set(String.fromCharCode(body[at] as number), value.text);
    at = value.next;
  }
  return fields;
}

/** The setting and its value of a ParameterStatus; `undefined` when it is malformed. */
export function decodeParameterStatus(body: Buffer): { name: string; value: string } | undefined {
  const name = decodeString(body, 0);
  const value = name && decodeString(body, name.next);
  return value && { name: name.text, value: value.text };
}

/** The columns of a DataRow in text format, NULL as `null`; `undefined` when the row does not fit its frame. */
export function decodeDataRow(body: Buffer): (string | null)[] | undefined {
  if (body.length < 2) return undefined;
  const columns: (string | null)[] = [];
  let at = 2;
  for (let left = body.readInt16BE(0); left > 0; left--) {
    if (at + 4 > body.length) return undefined;
    const length = body.readInt32BE(at);
    at += 4;
    if (length === -1) {
      columns.push(null);
      continue;
    }
    if (length < 0 || at + length > body.length) return undefined;
    columns.push(body.toString('utf8', at, at + length));
    at += length;
  }
  return columns;
}

/** The process id and secret of a BackendKeyData; `undefined` when it is malformed. */
export function decodeBackendKeyData(
  frame: Frame,
): { processId: number; secretKey: Buffer } | undefined {
  const { body } = frame;
  if (body.length < 8 || body.length > 4 + 256) return undefined;
  return { processId: body.readInt32BE(0), secretKey: ownCopy(body.subarray(4)) };
}
