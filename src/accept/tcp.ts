/**
 * The TCP way in: a listener that turns each arrival into a stream.
 *
 * Counts nobody and reads nothing; it only sets the socket up.
 */
import { createServer, type Server, type ServerOpts, type Socket } from 'node:net';

/** Where a listener is. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

const KEEPALIVE_MS = 60_000;
const BACKLOG = 1_024;

/**
 * Listens, and gives every accepted socket to `onArrival`, who owns it. `onError` is told when one could not be
 * accepted (out of memory or buffers, refused by a firewall); the listener goes on. With `pauseOnConnect` nobody reads
 * the sockets, so that another process can.
 *
 * @throws the system's error when the address cannot be bound (EADDRINUSE, EACCES, EADDRNOTAVAIL).
 */
export async function listen(
  address: Address,
  onArrival: (socket: Socket) => void,
  onError: (error: Error) => void,
  options: Pick<ServerOpts, 'pauseOnConnect'> = {},
): Promise<Server> {
  const server = createServer(
    {
      allowHalfOpen: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEPALIVE_MS,
      ...options,
    },
    (socket) => {
      // An error reaches whoever reads or writes; without a listener it would end the process.
      socket.on('error', () => {});
      onArrival(socket);
    },
  );
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ ...address, backlog: BACKLOG }, () => {
      server.off('error', reject);
      server.on('error', onError);
      resolve();
    });
  });
  return server;
}

/** Where the listener really is, once a port of 0 has become one. */
export function addressOf(server: Server): Address {
  const address = server.address();
  if (address === null || typeof address === 'string')
    throw new TypeError('not a listening TCP server');
  return { host: address.address, port: address.port };
}
