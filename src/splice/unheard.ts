/**
 * Ends streams whose peer has acknowledged nothing of what it was sent for about a minute: it is gone, and nobody has said so.
 *
 * Keepalives notice a dead peer only while nothing is on its way to it. With something on its way the kernel tries for a
 * quarter of an hour, which TCP_USER_TIMEOUT would shorten if Node offered it. So now and then we look at how often the
 * kernel has tried: in Linux's table of connections (proc_net_tcp(5)); on other systems the quarter of an hour it is.
 */
import { readFile } from 'node:fs/promises';
import { isIPv4, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { canonical } from '../limits/address.ts';

const TABLES = ['/proc/self/net/tcp', '/proc/self/net/tcp6'] as const;
const LOOK_MS = 10_000;
// With the shortest timeout, 200 ms, and twice that for each further one, the eighth has passed after 51 s.
const MOST_TRIES = 8;
const ESTABLISHED = 0x01;

const watched = new Map<string, () => void>();
let timer: NodeJS.Timeout | undefined;

/** Calls `onUnheard` when the peer of this stream, if it is one over TCP, does not acknowledge. Returns how to stop that. */
export function watchPeer(stream: Duplex, onUnheard: () => void): () => void {
  const key = keyOf(stream);
  if (key === undefined) return () => {};
  watched.set(key, onUnheard);
  timer ??= setInterval(() => void look(), LOOK_MS).unref();
  return () => {
    if (watched.get(key) !== onUnheard) return;
    watched.delete(key);
    if (watched.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
}

async function look(): Promise<void> {
  for (const table of TABLES) {
    // There is none where there is no such protocol, or no Linux.
    const text = await readFile(table, 'latin1').catch(() => '');
    for (const key of unheardIn(text)) watched.get(key)?.();
  }
}

/** The connections of a table whose peer has not acknowledged anything in so many tries, as `keyOf` names them. */
export function* unheardIn(table: string): Generator<string> {
  for (const line of table.split('\n').slice(1)) {
    const [, local, remote, state, , , tries] = line.trim().split(/\s+/);
    if (local === undefined || remote === undefined || tries === undefined) continue;
    if (Number.parseInt(tries, 16) < MOST_TRIES || Number.parseInt(state ?? '', 16) !== ESTABLISHED)
      continue;
    yield `${endpointOf(local)} ${endpointOf(remote)}`;
  }
}

function keyOf(stream: Duplex): string | undefined {
  if (!(stream instanceof Socket)) return undefined;
  const { localAddress, localPort, remoteAddress, remotePort } = stream;
  if (localAddress === undefined || remoteAddress === undefined) return undefined;
  return `${canonical(localAddress)}:${localPort} ${canonical(remoteAddress)}:${remotePort}`;
}

/** `0100007F:1538` as `127.0.0.1:5432`: words of four bytes, each in the byte order of the machine. */
function endpointOf(hex: string): string {
  const [address = '', port = ''] = hex.split(':');
  const bytes = Buffer.from(address, 'hex');
  if (LITTLE_ENDIAN) bytes.swap32();
  const text =
    bytes.length === 4 ? bytes.join('.') : (bytes.toString('hex').match(/.{4}/g) ?? []).join(':');
  return `${isIPv4(text) ? text : canonical(text)}:${Number.parseInt(port, 16)}`;
}

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
