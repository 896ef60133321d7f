/**
 * Two ends of a real connection over loopback, in the clear or in TLS, made as the proxy's own are.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { TLSSocket, connect as connectTls, createSecureContext } from 'node:tls';
import { createAuthority } from './certificate.ts';

/** The accepted end and the connecting one; both allow half-open, as every socket of the proxy does. */
export interface SocketPair<S extends Socket = Socket> {
  readonly accepted: S;
  readonly connected: S;
}

/** Makes pairs until it is closed. */
export interface PairMaker extends AsyncDisposable {
  readonly server: Server;
  plain(): Promise<SocketPair>;
  tls(): Promise<SocketPair<TLSSocket>>;
}

const authority = createAuthority();
const certificate = authority.issue();
const secureContext = createSecureContext(certificate);

/** Listens on a free port of loopback. Disposing destroys every socket it has made. */
export async function makePairs(): Promise<PairMaker> {
  const made = new Set<Socket>();
  const keep = <S extends Socket>(socket: S): S => {
    made.add(socket);
    socket.on('error', () => {});
    return socket;
  };
  const server = createServer({ allowHalfOpen: true, noDelay: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  // One at a time, so that the accepted socket is the one of this connection.
  let turn: Promise<unknown> = Promise.resolve();
  const pair = async (): Promise<SocketPair> => {
    const arrival = once(server, 'connection') as Promise<[Socket]>;
    const connected = keep(
      connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true }),
    );
    const [[accepted]] = await Promise.all([arrival, once(connected, 'connect')]);
    return { accepted: keep(accepted), connected };
  };
  const plain = (): Promise<SocketPair> => {
    const next = turn.then(pair);
    turn = next.catch(() => {});
    return next;
  };

  return {
    server,
    plain,
    async tls() {
      const { accepted, connected } = await plain();
      const inner = keep(new TLSSocket(accepted, { isServer: true, secureContext }));
      const outer = keep(
        connectTls({ socket: connected, ca: authority.ca, servername: 'localhost' }),
      );
      await Promise.all([once(inner, 'secure'), once(outer, 'secureConnect')]);
      return { accepted: inner, connected: outer };
    },
    async [Symbol.asyncDispose]() {
      // TLS before what it lies over: Node crashes (20 to 26) when both end in one turn, and the socket first.
      for (const socket of [...made].toReversed()) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

const WATCHED_RESOURCES = ['TCPSocketWrap', 'TCPServerWrap', 'TLSWrap', 'Timeout'] as const;

/** How many sockets, listeners and timers this process has open. */
export function openResources(): Record<(typeof WATCHED_RESOURCES)[number], number> {
  const open = process.getActiveResourcesInfo();
  const count = (name: string) => open.filter((one) => one === name).length;
  return {
    TCPSocketWrap: count('TCPSocketWrap'),
    TCPServerWrap: count('TCPServerWrap'),
    TLSWrap: count('TLSWrap'),
    Timeout: count('Timeout'),
  };
}

/**
 * Resolves when no more is open than before, and no timer at all; otherwise fails, saying what has leaked.
 *
 * Vitest itself has a timer now and then, which comes and goes; none of them stays.
 */
export async function nothingLeaked(open: ReturnType<typeof openResources>): Promise<void> {
  const before = { ...open, Timeout: 0 };
  const deadline = performance.now() + 5_000;
  for (;;) {
    const now = openResources();
    const leaked = WATCHED_RESOURCES.filter((name) => now[name] > before[name]);
    if (leaked.length === 0) return;
    if (performance.now() > deadline) {
      throw new Error(
        `leaked: ${leaked.map((name) => `${now[name] - before[name]} ${name}`).join(', ')}`,
      );
    }
    await new Promise(setImmediate);
  }
}

/** Resolves when the stream is closed, with or without an error. */
export async function closed(stream: Duplex): Promise<void> {
  if (!stream.closed) await new Promise<void>((resolve) => stream.once('close', () => resolve()));
}

/** Reads a stream to its end, however it ends, and resolves with all of it. */
export function readAll(stream: Socket): Promise<Buffer> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    const finish = () => resolve(Buffer.concat(chunks));
    stream.once('end', finish);
    stream.once('close', finish);
    stream.resume();
  });
}

/** A port that is free now: an endpoint on port 0 would be found by nobody. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
