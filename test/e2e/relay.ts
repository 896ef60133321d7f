/**
 * A relay between pgjot and PostgreSQL that counts how often pgjot dials. It changes nothing.
 *
 * A count of zero is what "nothing was dialled upstream" means: PostgreSQL's own statistics and log
 * lag behind, the acceptance of a connection does not.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

/** A listening relay. Connections that come before `toward` was called wait for it. */
export class Relay implements AsyncDisposable {
  /** How many connections have been accepted since the start. */
  accepted = 0;
  readonly port: number;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #target: Promise<number>;
  #aim: (port: number) => void = () => undefined;

  private constructor(server: Server) {
    this.#server = server.on('connection', (socket: Socket) => this.#onConnection(socket));
    this.port = (server.address() as AddressInfo).port;
    this.#target = new Promise((resolve) => {
      this.#aim = resolve;
    });
  }

  /** Listens on a free port of the loopback address. */
  static async open(): Promise<Relay> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new Relay(server);
  }

  /** Says where PostgreSQL is. */
  toward(port: number): void {
    this.#aim(port);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close');
  }

  #onConnection(near: Socket): void {
    this.accepted += 1;
    this.#keep(near);
    void this.#target.then((port) => {
      const far = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
      this.#keep(far);
      near.pipe(far);
      far.pipe(near);
      near.on('close', () => far.destroy());
      far.on('close', () => near.destroy());
    });
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => this.#sockets.delete(socket));
  }
}
