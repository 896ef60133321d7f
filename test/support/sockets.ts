/**
 * Two ends of a real connection over loopback, in the clear or in TLS, made as the proxy's own are.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
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
      for (const socket of made) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** What keeps this process alive beside what vitest itself does, for comparing before and after. */
export function activeResources(): Record<string, number> {
  const counts: Record<string, number> = {
    TCPSocketWrap: 0,
    TCPServerWrap: 0,
    TLSWrap: 0,
    Timeout: 0,
  };
  for (const name of process.getActiveResourcesInfo()) {
    if (name in counts) counts[name] = (counts[name] as number) + 1;
  }
  return counts;
}

/** Resolves when the stream is closed. */
export async function closed(
  stream: { readonly destroyed: boolean; readonly closed: boolean } & NodeJS.EventEmitter,
): Promise<void> {
  if (!stream.closed) await once(stream, 'close');
}

/** Reads a stream to its end, however it ends, and resolves with all of it. */
export function readAll(stream: Socket): Promise<Buffer> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    const finish = () => resolve(Buffer.concat(chunks));
    stream.once('end', finish);
    stream.once('close', finish);
  });
}
