/**
 * A client of a few lines that says exactly what a test tells it to, over TCP or TLS, and keeps every frame it hears.
 *
 * For attacks and faults that no driver would commit. It judges nothing and never answers by itself.
 */
import { once } from 'node:events';
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { Stack } from '../support/stack.ts';
import {
  CODES,
  int32,
  packet,
  passwordMessage,
  query,
  SSL_REQUEST,
  startup,
} from './parity/bytes.ts';
import { decode, type Reply } from './parity/probe.ts';

/** The key that a server gives a client for its cancel requests. */
export interface Key {
  readonly processId: number;
  readonly secretKey: Buffer;
}

/** A frame that arrived, decoded as far as `probe` knows it. */
export interface Heard {
  readonly type: string;
  readonly body: Buffer;
  readonly reply: Reply;
}

/** Where to connect, and whether with TLS. */
export interface Destination {
  readonly host: string;
  readonly port: number;
  readonly tls?: boolean;
  /** The host name to ask for in the TLS handshake. */
  readonly servername?: string;
}

const PATIENCE_MS = 15_000;

/** A connected raw client. Whoever opened it calls `destroy()`; a reset by the peer is no error. */
export class RawClient implements Disposable {
  readonly socket: Socket;
  /** Whole frames, in order. */
  readonly heard: Heard[] = [];
  /** Bytes that are not yet a whole frame. */
  rest: Buffer = Buffer.alloc(0);
  closed = false;
  #read = 0;
  #wake: () => void = () => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    const onEnd = () => {
      this.closed = true;
      this.#wake();
    };
    socket.on('error', onEnd).on('end', onEnd).on('close', onEnd);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
  }

  /** Connects, and does the TLS dance where it is asked for. */
  static async open({ host, port, tls = false, servername }: Destination): Promise<RawClient> {
    const socket = connectTcp({ host, port, noDelay: true, allowHalfOpen: true });
    await once(socket, 'connect');
    if (!tls) return new RawClient(socket);
    socket.write(SSL_REQUEST);
    await once(socket, 'readable');
    const answer = String(socket.read(1));
    if (answer !== 'S') throw new Error(`the server answered SSLRequest with ${answer}`);
    const named = servername === undefined ? {} : { servername };
    const secured = connectTls({ socket, rejectUnauthorized: false, ...named });
    await once(secured, 'secureConnect');
    return new RawClient(secured);
  }

  /** Connects and signs in; resolves at the first ReadyForQuery. */
  static async login(
    to: Destination & Partial<Pick<Stack, 'database'>>,
    token: string,
    code: number = CODES.v3,
    parameters: readonly (readonly [string, string])[] = [],
  ): Promise<RawClient> {
    const client = await RawClient.open(to);
    client.send(
      startup([['user', 'authenticated'], ['database', to.database ?? 'app'], ...parameters], code),
      passwordMessage(token),
    );
    try {
      await client.next('Z');
    } catch (error) {
      client.destroy();
      throw error;
    }
    return client;
  }

  send(...bytes: Buffer[]): void {
    this.socket.write(Buffer.concat(bytes));
  }

  /** The next frame of this type that was not returned before; what comes in between is skipped. */
  async next(type: string): Promise<Heard> {
    const deadline = performance.now() + PATIENCE_MS;
    for (;;) {
      for (; this.#read < this.heard.length; ) {
        const one = this.heard[this.#read++] as Heard;
        if (one.type === type) return one;
        if (one.type === 'E' && one.reply.kind === 'error' && one.reply.severity === 'FATAL') {
          throw Object.assign(new Error(one.reply.message), { code: one.reply.sqlstate });
        }
      }
      if (this.closed) throw new Error(`closed before a frame of type ${type} came`);
      const left = deadline - performance.now();
      if (left < 0) throw new Error(`no frame of type ${type} within ${PATIENCE_MS} ms`);
      await this.#happens(left);
    }
  }

  /** Sends a Query and resolves at its ReadyForQuery with the rows, or with the SQLSTATE of its error. */
  async ask(sql: string): Promise<{ rows: (readonly string[])[]; sqlstate: string | undefined }> {
    const from = this.heard.length;
    this.send(query(sql));
    await this.next('Z');
    const replies = this.heard.slice(from).map(({ reply }) => reply);
    const error = replies.find((reply) => reply.kind === 'error');
    return {
      rows: replies.flatMap((reply) => (reply.kind === 'row' ? [reply.values] : [])),
      sqlstate: error?.sqlstate,
    };
  }

  /** The key of BackendKeyData. */
  get key(): Key {
    const frame = this.heard.find(({ type }) => type === 'K');
    if (frame === undefined) throw new Error('no BackendKeyData yet');
    return { processId: frame.body.readInt32BE(0), secretKey: frame.body.subarray(4) };
  }

  /** Resolves when the peer has closed. */
  async end(ms: number = PATIENCE_MS): Promise<void> {
    const deadline = performance.now() + ms;
    while (!this.closed) {
      const left = deadline - performance.now();
      if (left < 0) throw new Error(`still open after ${ms} ms`);
      await this.#happens(left);
    }
  }

  destroy(): void {
    this.socket.destroy();
  }

  [Symbol.dispose](): void {
    this.destroy();
  }

  #take(chunk: Buffer): void {
    this.rest = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk]);
    while (this.rest.length >= 5) {
      const length = this.rest.readUInt32BE(1) + 1;
      if (this.rest.length < length) break;
      const bytes = this.rest.subarray(0, length);
      this.rest = this.rest.subarray(length);
      const [reply = { kind: 'garbage', hex: '' } as const] = decode(bytes);
      this.heard.push({
        type: String.fromCharCode(bytes[0] as number),
        body: bytes.subarray(5),
        reply,
      });
    }
    this.#wake();
  }

  #happens(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** A CancelRequest with this key. */
export function cancelRequest({ processId, secretKey }: Key): Buffer {
  return packet(CODES.cancel, Buffer.concat([int32(processId), secretKey]));
}

/** Sends a CancelRequest on a connection of its own; resolves with the bytes that came back, when the server has closed. */
export async function cancel(to: Destination, key: Key): Promise<Buffer> {
  using client = await RawClient.open(to);
  client.send(cancelRequest(key));
  await client.end(15_000);
  return Buffer.concat([...client.heard.map(({ body }) => body), client.rest]);
}
