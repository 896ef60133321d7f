/**
 * The floor of a login in Node: a session pool that asks for a password, believes it, hands out a connection that it has, and
 * resets it afterwards. No limits, no checks, no log, no TLS, no errors.
 *
 * What pgjot costs beyond it at a login is pgjot's. Takes the port to listen on, the port to connect to, and the database.
 */
import { connect, createServer } from 'node:net';

const [listenPort, upstreamPort, database] = process.argv.slice(2);
if (database === undefined) {
  throw new Error('usage: node bench/bare.mjs LISTEN_PORT UPSTREAM_PORT DATABASE');
}

const ASK = Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 3]);
const DISCARD_ALL = message('Q', 'DISCARD ALL\0');
const TERMINATE = message('X', '');
const STARTUP = (() => {
  const body = Buffer.from(`\0\x03\0\0user\0bench_trust\0database\0${database}\0\0`, 'latin1');
  const length = Buffer.alloc(4);
  length.writeInt32BE(body.length + 4);
  return Buffer.concat([length, body]);
})();

/** @typedef {{ socket: import('node:net').Socket, greeting: Buffer, hear: (chunk: Buffer) => void }} Session */

/** @type {Session[]} */
const idle = [];

createServer({ noDelay: true }, (client) => {
  /** @type {Session | undefined} */
  let session;
  let isStarted = false;
  client.on('error', () => {});
  const begin = (/** @type {Session} */ given) => {
    session = given;
    session.hear = (bytes) => client.write(bytes);
    client.write(session.greeting);
  };
  client.on('data', (chunk) => {
    if (!isStarted) {
      isStarted = true;
      client.write(ASK);
    } else if (session === undefined) {
      const kept = idle.pop();
      if (kept === undefined) open(begin);
      else begin(kept);
    } else if (chunk.equals(TERMINATE)) {
      reset(session);
      client.end();
    } else {
      session.socket.write(chunk);
    }
  });
}).listen(Number(listenPort), '127.0.0.1');

/** @param {Session} session */
function reset(session) {
  session.hear = (chunk) => {
    if (isReady(chunk)) idle.push(session);
  };
  session.socket.write(DISCARD_ALL);
}

/** @param {(session: Session) => void} onOpen */
function open(onOpen) {
  const socket = connect({ host: '127.0.0.1', port: Number(upstreamPort), noDelay: true });
  socket.write(STARTUP);
  /** @type {Session} */
  const session = {
    socket,
    greeting: Buffer.alloc(0),
    hear(chunk) {
      session.greeting = Buffer.concat([session.greeting, chunk]);
      if (isReady(chunk)) onOpen(session);
    },
  };
  socket.on('data', (chunk) => session.hear(chunk));
}

/** @param {Buffer} chunk */
function isReady(chunk) {
  return chunk.length >= 6 && chunk.at(-6) === 0x5a && chunk.at(-1) === 0x49;
}

/**
 * @param {string} type
 * @param {string} body
 */
function message(type, body) {
  const head = Buffer.alloc(5);
  head.write(type, 0, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, Buffer.from(body, 'latin1')]);
}
