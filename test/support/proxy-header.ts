/** Headers of the PROXY protocol, as a load balancer writes them. */

/** How a header of version 2 begins. */
export const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');

/** A header of version 2: version and command, family and transport, and what follows. */
export function headerV2(command: number, family: number, ...parts: readonly Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  const head = Buffer.from([command, family, body.length >> 8, body.length & 0xff]);
  return Buffer.concat([SIGNATURE, head, body]);
}

/** A header of version 1 for a client at `address`, IPv4 or IPv6. */
export function headerV1(address: string): Buffer {
  const [family, own] = address.includes(':') ? ['TCP6', '::1'] : ['TCP4', '127.0.0.1'];
  return Buffer.from(`PROXY ${family} ${address} ${own} 50000 6432\r\n`);
}
