/**
 * Where the name of an upstream leads: what is connected elsewhere, as after a failover by DNS, is not to be used any more.
 *
 * Whatever connects anew resolves the name by itself (`dial.ts`); this is about what would stay connected.
 */
import { lookup } from 'node:dns/promises';
import { isIP, Socket } from 'node:net';
import type { Duplex } from 'node:stream';

/** All addresses that `host` leads to now; undefined where it is no name, or nobody can say. */
export async function addressesOf(host: string): Promise<ReadonlySet<string> | undefined> {
  if (isIP(host) !== 0 || host.startsWith('/')) return undefined;
  try {
    const found = await lookup(host, { all: true });
    return found.length === 0 ? undefined : new Set(found.map(({ address }) => address));
  } catch {
    return undefined;
  }
}

/** Whether a stream is connected to none of these addresses. */
export function leadsElsewhere(stream: Duplex | undefined, to: ReadonlySet<string>): boolean {
  const address = stream instanceof Socket ? stream.remoteAddress : undefined;
  return address !== undefined && !to.has(address);
}
