/**
 * Builds the bytes that a client sends, legal or not, without a line of pgjot's own codec.
 *
 * Every length can be a lie and no terminator is put in for you: the corpus and the wire attacks are
 * made of what an honest encoder refuses to write.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** The protocol versions and request codes that may stand at the head of a startup packet. */
export const CODES = {
  v2: version(2, 0),
  v3: version(3, 0),
  v32: version(3, 2),
  cancel: version(1234, 5678),
  ssl: version(1234, 5679),
  gss: version(1234, 5680),
} as const;

/** Major and minor version as the one number that travels. */
export function version(major: number, minor: number): number {
  return major * 0x1_0000 + minor;
}

/** Four bytes, big-endian; negative numbers as two's complement. */
export function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** The text and its NUL. */
export function cstring(text: string | Buffer): Buffer {
  return Buffer.concat([Buffer.from(text), Buffer.alloc(1)]);
}

/** A startup packet: length, code, body. `length` overrides the true length (which counts itself). */
export function packet(code: number, body: Buffer = Buffer.alloc(0), length?: number): Buffer {
  return Buffer.concat([int32(length ?? 8 + body.length), int32(code), body]);
}

/** A parameter of a StartupMessage. */
export type Parameter = readonly [name: string | Buffer, value: string | Buffer];

/** A whole StartupMessage with these parameters in this order. */
export function startup(parameters: readonly Parameter[], code: number = CODES.v3): Buffer {
  const pairs = parameters.flatMap(([name, value]) => [cstring(name), cstring(value)]);
  return packet(code, Buffer.concat([...pairs, Buffer.alloc(1)]));
}

/** A typed message. `length` overrides the true length (which counts itself but not the type byte). */
export function frame(type: string | number, body: Buffer | string = '', length?: number): Buffer {
  const bytes = Buffer.from(body);
  const first = typeof type === 'number' ? Buffer.of(type) : Buffer.from(type, 'latin1');
  return Buffer.concat([first, int32(length ?? 4 + bytes.length), bytes]);
}

/** PasswordMessage. */
export function passwordMessage(password: string): Buffer {
  return frame('p', cstring(password));
}

/** Query. */
export function query(sql: string): Buffer {
  return frame('Q', cstring(sql));
}

export const SSL_REQUEST = packet(CODES.ssl);
export const GSSENC_REQUEST = packet(CODES.gss);
export const TERMINATE = frame('X');

/** CancelRequest for a process that does not exist, with a key of this many bytes. */
export function cancelRequest(keyBytes = 4, length?: number): Buffer {
  return packet(
    CODES.cancel,
    Buffer.concat([int32(0x7fff_fffe), Buffer.alloc(keyBytes, 0xab)]),
    length,
  );
}

/** One buffer for each byte. */
export function byteByByte(bytes: Buffer): Buffer[] {
  return Array.from(bytes, (byte) => Buffer.of(byte));
}

/** The bytes of a whole session, message by message: startup, password, one query, Terminate. */
export function session(
  login: { readonly user: string; readonly database: string; readonly password: string },
  sql = "select 'in'",
): Buffer[] {
  const pairs: Parameter[] = [
    ['user', login.user],
    ['database', login.database],
  ];
  return [startup(pairs), passwordMessage(login.password), query(sql), TERMINATE];
}
