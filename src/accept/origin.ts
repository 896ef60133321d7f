/**
 * Where a client is really from, and whether anybody from there is served.
 */
import type { Duplex } from 'node:stream';
import type { Config } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { createAdmittance, Networks } from '../limits/address.ts';
import { readProxyHeader } from './proxy-protocol.ts';

/** What a listener's configuration says of origins. */
export interface Origins {
  /**
   * Whether what connects from this canonical address is worth a look: a client that may connect, or a load balancer. Where it
   * is not, the socket is closed without a word.
   */
  mayArrive(peer: string): boolean;
  /** Whether `peer` begins by saying whose connection it is. */
  isBalancer(peer: string): boolean;
  /**
   * The client's canonical address, `peer` or what that says; to be called before the client's first byte is read.
   *
   * @throws {ProxyError} proxy_header_invalid, address_denied, probe, or the signal's reason.
   */
  locate(stream: Duplex, peer: string, signal: AbortSignal): Promise<string>;
}

/** The origins of one configuration. */
export function createOrigins({ proxyProtocol, ...listen }: Config['listen']): Origins {
  const mayConnect = createAdmittance(listen);
  const balancers = proxyProtocol && new Networks(proxyProtocol.from);
  const isBalancer = (peer: string) => balancers?.has(peer) ?? false;
  return {
    mayArrive: (peer) => (balancers === undefined ? mayConnect(peer) : isBalancer(peer)),
    isBalancer,
    async locate(stream, peer, signal) {
      if (!isBalancer(peer)) return peer;
      const address = (await readProxyHeader(stream, signal)) ?? peer;
      // The balancer itself, which checks our health, is not among the clients.
      if (address !== peer && !mayConnect(address)) throw new ProxyError('address_denied');
      return address;
    },
  };
}
