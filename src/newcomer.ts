/**
 * A client that has come, until it is known who it is: counted among the strangers, and sent away where there are too many.
 */
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Origins } from './accept/origin.ts';
import type { Arrival } from './connection.ts';
import type { ConnectionListener, ConnectionRecord } from './connection-record.ts';
import { ProxyError } from './errors.ts';
import type { Ledger } from './limits/ledger.ts';

/** One of them. A cancel request, which must get through when the house is full, counts as one until it is over. */
export class Newcomer implements Arrival, ConnectionListener {
  readonly #peer: string;
  readonly #origins: Origins;
  readonly #ledger: Ledger;
  /** Until it is known who it is: the splice may have another socket in its place. */
  #socket: Socket | undefined;
  #record: ConnectionRecord | undefined;
  #exit: (() => void) | undefined;

  constructor(socket: Socket, peer: string, origins: Origins, ledger: Ledger) {
    this.#socket = socket;
    this.#peer = peer;
    this.#origins = origins;
    this.#ledger = ledger;
    this.#enter(origins.isBalancer(peer) ? undefined : peer);
  }

  async locate(stream: Duplex, signal: AbortSignal): Promise<string> {
    const address = await this.#origins.locate(stream, this.#peer, signal);
    if (this.#origins.isBalancer(this.#peer)) {
      this.exit();
      this.#enter(address);
    }
    return address;
  }

  onArrival(record: ConnectionRecord): void {
    this.#record = record;
  }

  onIdentity(): void {
    this.exit();
    this.#socket = undefined;
    this.#record = undefined;
  }

  /** It is no stranger any more, or gone. May be called again. */
  exit(): void {
    this.#exit?.();
    this.#exit = undefined;
  }

  #enter(address: string | undefined): void {
    this.#exit = this.#ledger.enter(address, () => {
      this.#record?.end(new ProxyError('too_many_clients', { silent: true }), 0);
      this.#socket?.destroy();
    });
  }
}
