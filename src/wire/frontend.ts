/**
 * Messages that a client sends (F → B in the manual): type bytes for the splice, and the few that we send upstream ourselves.
 *
 * Encoding is pg-protocol's; what it cannot do (a StartupMessage from nothing) is in `startup.ts`.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { serialize } from 'pg-protocol';

/** Type bytes of the messages that a client sends. */
export const FRONTEND = {
  Bind: 0x42, // B
  Close: 0x43, // C
  CopyDone: 0x63, // c
  CopyFail: 0x66, // f
  Describe: 0x44, // D
  Execute: 0x45, // E
  Flush: 0x48, // H
  FunctionCall: 0x46, // F
  Parse: 0x50, // P
  PasswordMessage: 0x70, // p, also the SASL responses
  Query: 0x51, // Q
  Sync: 0x53, // S
  Terminate: 0x58, // X
} as const;

/** Terminate. */
export const Terminate: Buffer = serialize.end();

/** Query. The text is always a constant of ours: no value is ever pasted into SQL. */
export function encodeQuery(sql: string): Buffer {
  return serialize.query(sql);
}

/** Parse messages by their statements, which are a few constants of ours, and long. */
const PARSES = new Map<string, Buffer>();
const EXECUTE_AND_SYNC = Buffer.concat([serialize.execute(), serialize.sync()]);

/** Parse, Bind, Execute and Sync of an unnamed statement: the text is a constant of ours, and the values are not part of it. */
export function encodeStatement(sql: string, values: readonly string[]): Buffer {
  let parse = PARSES.get(sql);
  if (parse === undefined) {
    parse = serialize.parse({ text: sql });
    PARSES.set(sql, parse);
  }
  return Buffer.concat([parse, serialize.bind({ values: [...values] }), EXECUTE_AND_SYNC]);
}

/** PasswordMessage. */
export function encodePasswordMessage(password: string): Buffer {
  return serialize.password(password);
}

/** SASLInitialResponse. */
export function encodeSASLInitialResponse(mechanism: string, response: string): Buffer {
  return serialize.sendSASLInitialResponseMessage(mechanism, response);
}

/** SASLResponse. */
export function encodeSASLResponse(response: string): Buffer {
  return serialize.sendSCRAMClientFinalMessage(response);
}
