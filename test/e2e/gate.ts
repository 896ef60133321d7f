/**
 * A relay between pgjot and PostgreSQL that a test can shut, freeze and break, at any moment, on the same port.
 *
 * Where only a count is wanted, `relay.ts` does.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

interface Pair {
  readonly near: Socket;
  readonly far: Socket;
}

/** A relay toward the port of a PostgreSQL. */
export class Gate implements AsyncDisposable {
  /** Where PostgreSQL is. */
  target = 0;
  /** Bytes that are said to every newcomer in place of PostgreSQL, who is then sent away. */
  answer: Buffer | undefined;
  /** Hears what PostgreSQL says, on which connection. */
  onBytes: ((chunk: Buffer, far: Socket) => void) | undefined;
  #server: Server;
  #silent = false;
  readonly #port: number;
  readonly #pairs = new Set<Pair>();

  readonly #host: string;

  private constructor(server: Server) {
    this.#server = server;
    const { address, port } = server.address() as AddressInfo;
    this.#host = address;
    this.#port = port;
  }

  /** Listens on this address of loopback, by default on a free port. */
  static async open(host = '127.0.0.1', port = 0): Promise<Gate> {
    const server = await listen(host, port);
    const gate = new Gate(server);
    server.on('connection', (socket: Socket) => gate.#onConnection(socket));
    return gate;
  }

  get port(): number {
    return this.#port;
  }

  /** Refuses newcomers (ECONNREFUSED). */
  async shut(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.breakAll();
    await closed;
  }

  /** Lets newcomers in again. */
  async reopen(): Promise<void> {
    this.#server = await listen(this.#host, this.#port);
    this.#server.on('connection', (socket: Socket) => this.#onConnection(socket));
  }

  /** From now on newcomers are accepted and hear nothing; those inside hear nothing more. */
  freeze(): void {
    this.#silent = true;
    for (const { near, far } of this.#pairs) {
      near.unpipe();
      far.unpipe();
    }
  }

  /** Lets newcomers through again; who was frozen stays so. */
  thaw(): void {
    this.#silent = false;
  }

  /** Resets every connection, on both sides. */
  breakAll(): void {
    for (const { near, far } of this.#pairs) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { near, far } of this.#pairs) {
      near.destroy();
      far.destroy();
    }
    if (this.#server.listening) await new Promise((resolve) => this.#server.close(resolve));
  }

  #onConnection(near: Socket): void {
    near.on('error', () => {});
    if (this.answer !== undefined) {
      near.end(this.answer);
      near.resume();
      return;
    }
    const far = connect({ port: this.target, host: '127.0.0.1', allowHalfOpen: true });
    far.on('error', () => {});
    const pair = { near, far };
    this.#pairs.add(pair);
    near.on('close', () => {
      far.destroy();
      this.#pairs.delete(pair);
    });
    far.on('close', () => near.destroy());
    if (this.#silent) return;
    far.on('data', (chunk: Buffer) => this.onBytes?.(chunk, far));
    near.pipe(far);
    far.pipe(near);
  }
}

async function listen(host: string, port: number): Promise<Server> {
  const server = createServer({ allowHalfOpen: true, noDelay: true }).listen(port, host);
  await once(server, 'listening');
  return server;
}
