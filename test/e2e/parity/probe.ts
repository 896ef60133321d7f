/**
 * Plays a script of bytes to a server and tells what came back, in the words of the protocol.
 *
 * It knows nothing about what the answer should be, and keeps no connection: when the server has
 * closed, or has been quiet for long enough, the observation is over and the socket is gone.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { once } from 'node:events';
import { connect as connectTcp, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';

/** One step of a script: write these bytes as one segment, wait for the server to say something, send FIN, begin TLS, or let time pass. */
export type Step =
  | Buffer
  | 'await reply'
  | 'half-close'
  | { readonly startTls: ConnectionOptions }
  | { readonly pauseMs: number };

/** Where to play it. */
export interface Target {
  readonly host: string;
  readonly port: number;
}

/** One thing that the server said. */
export type Reply =
  | { readonly kind: 'one byte'; readonly byte: string }
  | { readonly kind: 'asks password' }
  | { readonly kind: 'negotiates'; readonly version: string; readonly options: readonly string[] }
  | { readonly kind: 'logs in' }
  | { readonly kind: 'ready'; readonly status: string }
  | { readonly kind: 'row'; readonly values: readonly string[] }
  | {
      readonly kind: 'error';
      readonly severity: string;
      readonly sqlstate: string;
      readonly message: string;
      /** Every field of the ErrorResponse by its letter. */
      readonly fields: ReadonlyMap<string, string>;
    }
  | { readonly kind: 'message'; readonly type: string }
  | { readonly kind: 'tls'; readonly alpn: string | false; readonly protocol: string | null }
  | { readonly kind: 'no tls'; readonly reason: string }
  | { readonly kind: 'tls alert'; readonly code: number }
  | { readonly kind: 'error of protocol 2'; readonly message: string }
  | { readonly kind: 'garbage'; readonly hex: string };

/** What happened: the replies in order, and how it ended. */
export interface Observation {
  readonly replies: readonly Reply[];
  readonly end: 'closes' | 'waits';
  /** Everything that the server sent, inside TLS and out. */
  readonly bytes: Buffer;
}

/** How patient a probe is. */
export interface ProbeOptions {
  /** The server counts as waiting after this long without a byte either way. */
  readonly quietMs?: number;
}

const QUIET_MS = 300;
// A step that waits for a reply is only written where one must come: on a busy machine it may take its time.
const REPLY_MS = 8_000;

/**
 * Plays `steps` to `target` and watches until it closes or is quiet.
 *
 * @throws when the connection cannot be made at all; a reset after that is an answer like any other.
 */
export async function probe(
  target: Target,
  steps: readonly Step[],
  { quietMs = QUIET_MS }: ProbeOptions = {},
): Promise<Observation> {
  let wire = new Wire(await dial(target), quietMs);
  const before: Reply[] = [];
  const bytes: Buffer[] = [];
  try {
    for (const step of steps) {
      if (wire.closed) break;
      if (step === 'half-close') wire.socket.end();
      else if (step === 'await reply') await wire.reply();
      else if (Buffer.isBuffer(step)) await wire.write(step);
      else if ('pauseMs' in step) await delay(step.pauseMs);
      else {
        before.push(...decode(wire.bytes()));
        bytes.push(wire.bytes());
        const secured = await startTls(wire.release(), step.startTls);
        before.push(secured.reply);
        if (secured.socket === undefined) {
          return { replies: before, end: 'closes', bytes: Buffer.concat(bytes) };
        }
        wire = new Wire(secured.socket, quietMs);
      }
    }
    const end = await wire.end();
    const replies = [...before, ...decode(wire.bytes())];
    return { replies, end, bytes: Buffer.concat([...bytes, wire.bytes()]) };
  } finally {
    wire.socket.destroy();
  }
}

/** A socket with all that has arrived on it, and a way to wait for more. */
class Wire {
  readonly socket: Socket;
  closed = false;
  readonly #quietMs: number;
  readonly #chunks: Buffer[] = [];
  #seen = 0;
  #wake: () => void = () => undefined;
  readonly #onData = (chunk: Buffer): void => {
    this.#chunks.push(chunk);
    this.#wake();
  };
  readonly #onClosed = (): void => {
    this.closed = true;
    this.#wake();
  };

  constructor(socket: Socket, quietMs: number) {
    this.socket = socket;
    this.#quietMs = quietMs;
    // A server that closes with bytes of ours unread sends RST: for the observer that is a close.
    socket.on('error', this.#onClosed);
    socket.on('end', this.#onClosed);
    socket.on('close', this.#onClosed);
    socket.on('data', this.#onData);
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  // Each step is its own segment: handed to the kernel, and one turn of the loop, before the next.
  async write(bytes: Buffer): Promise<void> {
    this.socket.write(bytes);
    await new Promise(setImmediate);
  }

  /** Resolves when the server has said something that no earlier `reply` waited for, or has closed. */
  async reply(): Promise<void> {
    if (this.#chunks.length === this.#seen && !this.closed) await this.#happens(REPLY_MS);
    this.#seen = this.#chunks.length;
  }

  /** Resolves when the server has closed or is quiet. */
  async end(): Promise<Observation['end']> {
    while (!this.closed && (await this.#happens(this.#quietMs)));
    return this.closed ? 'closes' : 'waits';
  }

  /** Gives up the socket to the TLS that will run over it. */
  release(): Socket {
    this.socket.off('data', this.#onData);
    return this.socket;
  }

  #happens(withinMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, withinMs, false);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(true);
      };
    });
  }
}

/** An observation in one line, fit for comparing: `N, asks password, 28P01, closes`. Notices and parameters are left out. */
export function describe({ replies, end }: Observation): string {
  return [...replies.flatMap(describeReply), end].join(', ');
}

function describeReply(reply: Reply): string[] {
  switch (reply.kind) {
    case 'one byte':
      return [reply.byte];
    case 'negotiates':
      return [`negotiates ${reply.version} [${reply.options.join(' ')}]`];
    case 'ready':
      return [`ready ${reply.status}`];
    case 'row':
      return [`row ${JSON.stringify(reply.values.join(' | '))}`];
    case 'error':
      return [reply.severity === 'FATAL' ? reply.sqlstate : `${reply.severity} ${reply.sqlstate}`];
    case 'message':
      // ParameterStatus, NoticeResponse, BackendKeyData, RowDescription, CommandComplete: not what is compared here.
      return 'SNKTC'.includes(reply.type) ? [] : [`message ${reply.type}`];
    case 'garbage':
      return [`garbage ${reply.hex}`];
    case 'tls':
      return [reply.alpn === false ? 'tls' : `tls ${reply.alpn}`];
    case 'asks password':
    case 'error of protocol 2':
    case 'logs in':
    case 'no tls':
    case 'tls alert':
      break;
  }
  return [reply.kind];
}

async function dial({ host, port }: Target): Promise<Socket> {
  // allowHalfOpen: a server that ends its side must not end ours before the script does.
  const socket = connectTcp({ host, port, allowHalfOpen: true, noDelay: true });
  await once(socket, 'connect');
  return socket;
}

async function startTls(
  socket: Socket,
  options: ConnectionOptions,
): Promise<{ reply: Reply; socket?: Socket }> {
  const secure = connectTls({ rejectUnauthorized: false, ...options, socket });
  const refusal = await new Promise<string | undefined>((resolve) => {
    secure.once('secureConnect', () => resolve(undefined));
    secure.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    secure.once('close', () => resolve('closed'));
  });
  if (refusal !== undefined) {
    secure.destroy();
    return { reply: { kind: 'no tls', reason: refusal } };
  }
  // null where ALPN was offered and ignored, false where it was not offered.
  const alpn = secure.alpnProtocol ?? false;
  return { reply: { kind: 'tls', alpn, protocol: secure.getProtocol() }, socket: secure };
}

/** Reads the server's bytes into replies. */
export function decode(bytes: Buffer): Reply[] {
  const replies: Reply[] = [];
  let at = 0;
  while (at < bytes.length) {
    const type = String.fromCharCode(bytes[at] ?? 0);
    const length = bytes.length - at >= 5 ? bytes.readUInt32BE(at + 1) : 0;
    // The answer to SSLRequest is a bare byte that is also the type of a message. A frame's length
    // starts with a zero byte here, what follows a bare byte (another type byte) never does.
    const framed = length >= 4 && length < 0x100_0000;
    if (!framed && 'NSG'.includes(type)) {
      replies.push({ kind: 'one byte', byte: type });
      at += 1;
    } else if (type === 'E' && /^FATAL: .*\n\0$/s.test(bytes.toString('utf8', at + 1))) {
      // How servers spoke before 7.4, and PostgreSQL still does to clients that claim to be that old.
      replies.push({ kind: 'error of protocol 2', message: bytes.toString('utf8', at + 1) });
      at = bytes.length;
    } else if (bytes[at] === 0x15 && bytes[at + 1] === 3) {
      replies.push({ kind: 'tls alert', code: bytes[at + 6] ?? 0 });
      at += 7;
    } else if (!framed || at + 1 + length > bytes.length) {
      replies.push({ kind: 'garbage', hex: bytes.toString('hex', at, at + 32) });
      at = bytes.length;
    } else {
      replies.push(decodeFrame(type, bytes.subarray(at + 5, at + 1 + length)));
      at += 1 + length;
    }
  }
  return replies;
}

function decodeFrame(type: string, body: Buffer): Reply {
  if (type === 'R' && body.equals(Buffer.of(0, 0, 0, 3))) return { kind: 'asks password' };
  if (type === 'R' && body.equals(Buffer.of(0, 0, 0, 0))) return { kind: 'logs in' };
  if (type === 'Z') return { kind: 'ready', status: body.toString('latin1') };
  if (type === 'E') return decodeError(body);
  if (type === 'D') return { kind: 'row', values: decodeRow(body) };
  if (type === 'v') {
    const number = body.readUInt32BE(0);
    const options = body.toString('utf8', 8).split('\0').slice(0, body.readUInt32BE(4));
    return { kind: 'negotiates', version: `${number >>> 16}.${number & 0xffff}`, options };
  }
  return { kind: 'message', type };
}

function decodeError(body: Buffer): Reply {
  const fields = new Map(
    body
      .toString('utf8')
      .split('\0')
      .filter((field) => field !== '')
      .map((field): [string, string] => [field.slice(0, 1), field.slice(1)]),
  );
  return {
    kind: 'error',
    severity: fields.get('V') ?? '',
    sqlstate: fields.get('C') ?? '',
    message: fields.get('M') ?? '',
    fields,
  };
}

function decodeRow(body: Buffer): string[] {
  const values: string[] = [];
  let at = 2;
  for (let column = body.readUInt16BE(0); column > 0; column -= 1) {
    const length = body.readInt32BE(at);
    at += 4;
    values.push(length < 0 ? 'NULL' : body.toString('utf8', at, at + length));
    at += Math.max(length, 0);
  }
  return values;
}
