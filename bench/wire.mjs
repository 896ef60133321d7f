/**
 * A PostgreSQL client of a few lines over a raw socket: for logins by the thousand, and for clients that no driver would be.
 *
 * pgbench cannot log in as somebody new each time, leave in the middle of a frame or keep five thousand sessions silent. Signs
 * in with a clear password or by SCRAM-SHA-256, over TCP or TLS, as libpq would. Decodes only what its callers look at.
 */
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls, TLSSocket } from 'node:tls';
import sasl from 'pg/lib/crypto/sasl.js';
import { serialize } from 'pg-protocol';

const SSL_REQUEST = Buffer.from('0000000804d2162f', 'hex');
const PATIENCE_MS = 30_000;

/**
 * @typedef {object} Door Where to knock, and as whom.
 * @property {number} port
 * @property {boolean} [tls] The certificate is not verified: it is the way there that is measured.
 * @property {string} user
 * @property {string} password
 * @property {string} database
 *
 * @typedef {{ type: string, body: Buffer }} Message
 *
 * @typedef {object} Answer What came between a request and its ReadyForQuery.
 * @property {(string | null)[][]} rows
 * @property {string} tag The last CommandComplete.
 * @property {string | undefined} sqlstate Of the error, where there was one.
 * @property {string} message
 * @property {string} status Of the transaction: I, T or E.
 */

/** The server has said FATAL, or has closed the connection. */
export class Ended extends Error {
  /**
   * @param {string} message
   * @param {string} [sqlstate] Undefined where the server closed without a word.
   */
  constructor(message, sqlstate) {
    super(message);
    this.sqlstate = sqlstate;
  }
}

/** One connection. Whoever opened it calls `end()`, `destroy()` or `reset()`. */
export class WireClient {
  /** @type {import('node:net').Socket} */
  socket;
  /** @type {{ processId: number, secretKey: Buffer } | undefined} */
  key;
  /** ms that TCP took to connect. */
  connectMs = 0;
  /** @type {Message[]} */
  #messages = [];
  /** @type {Buffer} */
  #rest = Buffer.alloc(0);
  #closed = false;
  #wake = () => {};

  /**
   * @param {import('node:net').Socket} socket
   */
  constructor(socket) {
    this.socket = socket;
    const onEnd = () => {
      this.#closed = true;
      this.#wake();
    };
    socket.on('error', onEnd).on('end', onEnd).on('close', onEnd);
    socket.on('data', (chunk) => this.#take(chunk));
  }

  /**
   * Connects, with TLS where that is wanted.
   *
   * @param {Pick<Door, 'port' | 'tls'>} door
   */
  static async open({ port, tls = false }) {
    const start = performance.now();
    const socket = connectTcp({ host: '127.0.0.1', port, noDelay: true, allowHalfOpen: true });
    await once(socket, 'connect');
    const connectMs = performance.now() - start;
    if (!tls) return Object.assign(new WireClient(socket), { connectMs });
    socket.write(SSL_REQUEST);
    await once(socket, 'readable');
    const answer = String(socket.read(1));
    if (answer !== 'S') {
      socket.destroy();
      throw new Ended(`the server answered SSLRequest with "${answer}"`);
    }
    const secured = connectTls({ socket, rejectUnauthorized: false });
    try {
      await once(secured, 'secureConnect');
    } catch (error) {
      socket.destroy();
      throw error;
    }
    return Object.assign(new WireClient(secured), { connectMs });
  }

  /**
   * Connects and signs in; resolves at the first ReadyForQuery.
   *
   * @param {Door} door
   */
  static async login(door) {
    const client = await WireClient.open(door);
    try {
      const { user, database } = door;
      client.send(serialize.startup({ user, database }));
      await client.#authenticate(door.password);
      return client;
    } catch (error) {
      client.destroy();
      throw error;
    }
  }

  /** @param {readonly Buffer[]} bytes */
  send(...bytes) {
    const [only] = bytes;
    this.socket.write(only !== undefined && bytes.length === 1 ? only : Buffer.concat(bytes));
  }

  /**
   * The next message.
   *
   * @param {number} [patienceMs]
   * @throws {Ended} when there is none, and there will be none.
   */
  async next(patienceMs = PATIENCE_MS) {
    for (;;) {
      const message = this.#messages.shift();
      if (message?.type === 'E') {
        const { severity, sqlstate, text } = errorOf(message.body);
        if (severity === 'FATAL' || severity === 'PANIC') throw new Ended(text, sqlstate);
      }
      if (message !== undefined) return message;
      if (this.#closed) throw new Ended('the server closed the connection');
      await this.#happens(patienceMs);
    }
  }

  /**
   * Everything up to ReadyForQuery; notices and settings are passed over.
   *
   * @param {number} [patienceMs] For each message.
   * @returns {Promise<Answer>}
   */
  async answer(patienceMs) {
    /** @type {Answer} */
    const answer = { rows: [], tag: '', sqlstate: undefined, message: '', status: '' };
    for (;;) {
      const { type, body } = await this.next(patienceMs);
      if (type === 'D') answer.rows.push(rowOf(body));
      else if (type === 'C') answer.tag = body.toString('latin1', 0, body.length - 1);
      else if (type === 'E') {
        const { sqlstate, text } = errorOf(body);
        Object.assign(answer, { sqlstate, message: text });
      } else if (type === 'Z') return { ...answer, status: body.toString('latin1') };
    }
  }

  /**
   * One simple query.
   *
   * @param {string} sql
   * @param {number} [patienceMs]
   */
  ask(sql, patienceMs) {
    this.send(serialize.query(sql));
    return this.answer(patienceMs);
  }

  /**
   * Asks the server to cancel what this connection is doing, over a connection of its own.
   *
   * @param {Pick<Door, 'port' | 'tls'>} door
   */
  async cancel(door) {
    const { processId, secretKey } = this.key ?? { processId: 0, secretKey: Buffer.alloc(4) };
    const packet = Buffer.alloc(12);
    packet.writeUInt32BE(12 + secretKey.length, 0);
    packet.writeUInt32BE(80_877_102, 4);
    packet.writeInt32BE(processId, 8);
    const other = await WireClient.open(door);
    other.send(packet, secretKey);
    await other.ended();
    other.destroy();
  }

  /** Resolves when the server has closed; what it says until then is not looked at. */
  async ended(patienceMs = PATIENCE_MS) {
    while (!this.#closed) await this.#happens(patienceMs);
  }

  /** Says goodbye, and resolves when the connection is closed. */
  async end() {
    if (!this.#closed) this.socket.end(serialize.end());
    await this.ended().catch(() => {});
    this.destroy();
  }

  destroy() {
    this.socket.destroy();
  }

  /** Leaves by RST. */
  reset() {
    if (this.socket instanceof TLSSocket) this.socket.destroy();
    else this.socket.resetAndDestroy();
  }

  /** @param {string} password */
  async #authenticate(password) {
    /** @type {import('pg/lib/crypto/sasl.js').default.Session | undefined} */
    let session;
    for (;;) {
      const { type, body } = await this.next();
      if (type === 'Z') return;
      if (type === 'K') {
        this.key = { processId: body.readInt32BE(0), secretKey: Buffer.from(body.subarray(4)) };
      }
      if (type !== 'R') continue;
      const method = body.readInt32BE(0);
      const rest = body.toString('latin1', 4);
      const bindable = this.socket instanceof TLSSocket ? this.socket : null;
      if (method === 3) this.send(serialize.password(password));
      else if (method === 10) {
        session = sasl.startSession(rest.split('\0').filter(Boolean), bindable);
        this.send(serialize.sendSASLInitialResponseMessage(session.mechanism, session.response));
      } else if (method === 11 && session !== undefined) {
        await sasl.continueSession(session, password, rest, bindable);
        this.send(serialize.sendSCRAMClientFinalMessage(session.response));
      } else if (method === 12 && session !== undefined) sasl.finalizeSession(session, rest);
      else if (method !== 0) throw new Error(`the server asks for authentication ${method}`);
    }
  }

  /** @param {Buffer} chunk */
  #take(chunk) {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (bytes.length >= 5) {
      const length = bytes.readUInt32BE(1) + 1;
      if (bytes.length < length) break;
      const type = String.fromCharCode(bytes[0] ?? 0);
      this.#messages.push({ type, body: bytes.subarray(5, length) });
      bytes = bytes.subarray(length);
    }
    this.#rest = bytes;
    this.#wake();
  }

  /**
   * Something has come, or the connection is closed.
   *
   * @param {number} patienceMs
   * @returns {Promise<void>}
   */
  #happens(patienceMs) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`the server said nothing for ${patienceMs} ms`)),
        patienceMs,
      );
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** @param {Buffer} body */
function rowOf(body) {
  /** @type {(string | null)[]} */
  const row = [];
  let at = 2;
  for (let left = body.readInt16BE(0); left > 0; left -= 1) {
    const length = body.readInt32BE(at);
    at += 4;
    row.push(length < 0 ? null : body.toString('utf8', at, at + length));
    at += Math.max(length, 0);
  }
  return row;
}

/** @param {Buffer} body */
function errorOf(body) {
  const fields = new Map(
    body
      .toString('utf8')
      .split('\0')
      .map((field) => [field.slice(0, 1), field.slice(1)]),
  );
  return {
    severity: fields.get('V') ?? fields.get('S') ?? '',
    sqlstate: fields.get('C') ?? '',
    text: fields.get('M') ?? '',
  };
}
