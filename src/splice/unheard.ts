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

/** Why such a stream is destroyed, for the log. */
const UNHEARD = new Error('it has not acknowledged what it was sent in a minute');

/** Whoever has a stream, which may be another one by the time it is looked at. */
interface Watched {
  readonly stream: Duplex;
}

const watched = new Set<Watched>();
let timer: NodeJS.Timeout | undefined;

/** From now on the stream is destroyed when its peer, if it is one over TCP, does not acknowledge. */
export function watchPeer(peer: Watched): void {
  watched.add(peer);
  timer ??= setInterval(() => void look(), LOOK_MS).unref();
}

/** From now on it is not. */
export function unwatchPeer(peer: Watched): void {
  watched.delete(peer);
  if (watched.size > 0) return;
  clearInterval(timer);
  timer = undefined;
}

async function look(): Promise<void> {
  const unheard = new Set<string>();
  for (const table of TABLES) {
    // There is none where there is no such protocol, or no Linux.
    const text = await readFile(table, 'latin1').catch(() => '');
    for (const key of unheardIn(text)) unheard.add(key);
  }
  // The kernel is asked for each socket's addresses only where somebody is unheard, which is seldom.
  if (unheard.size === 0) return;
  for (const { stream } of watched) {
    const key = keyOf(stream);
    if (key !== undefined && unheard.has(key)) stream.destroy(UNHEARD);
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
