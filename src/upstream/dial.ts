/**
 * Opens a stream to the upstream: TCP or a Unix socket, and TLS as libpq's sslmode says.
 *
 * Sends nothing but the SSLRequest; who logs in with it, or cancels, is up to the caller.
 * https://www.postgresql.org/docs/current/libpq-ssl.html
 */
import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls, type ConnectionOptions } from 'node:tls';
import type { Duplex } from 'node:stream';
import type { UpstreamConfig } from '../config.ts';
import { isExhausted, ProxyError } from '../errors.ts';
import { upstreamTlsMode } from '../exposure.ts';
import { TlsFiles } from '../tls-files.ts';
import { encodeSSLRequest } from '../wire/startup.ts';
import { readExactly } from '../wire/read.ts';

const KEEPALIVE_MS = 60_000;

/**
 * Settings for every session, in seconds: PostgreSQL ends the backends of a proxy that vanished, and so frees their
 * slots, in a minute; by the kernel's own defaults it takes two hours. On a Unix socket PostgreSQL ignores them.
 */
export const KEEPALIVES = [
  ['tcp_keepalives_idle', '30'],
  ['tcp_keepalives_interval', '10'],
  ['tcp_keepalives_count', '3'],
] as const;

/**
 * A connected stream, encrypted where the configuration asks for it. The caller owns and closes it.
 *
 * The name is resolved at every call, so that a failover by DNS is followed.
 *
 * @throws {ProxyError} upstream_unreachable, whose `cause` holds the address and reason for the log; too_many_clients for want
 *   of descriptors or ports of our own.
 */
export async function dial(upstream: UpstreamConfig, signal: AbortSignal): Promise<Duplex> {
  let stream: Duplex | undefined;
  try {
    const socket = await openSocket(upstream, signal);
    stream = socket;
    if (upstreamTlsMode(upstream) === 'disable') return socket;
    await requestTls(socket, signal);
    const secured = connectTls({ socket, ...upstreamTlsOptions(upstream) });
    stream = secured;
    secured.on('error', () => {});
    await once(secured, 'secureConnect', signal);
    return secured;
  } catch (cause) {
    stream?.on('error', () => {}).destroy();
    signal.throwIfAborted();
    throw new ProxyError(isExhausted(cause) ? 'too_many_clients' : 'upstream_unreachable', {
      cause,
    });
  }
}

/**
 * The TLS options for Node (and so for `pg`) that mean what the mode means in libpq.
 *
 * @throws {ConfigError} when the files of this upstream are read here for the first time, and cannot be used.
 */
export function upstreamTlsOptions(upstream: UpstreamConfig): ConnectionOptions {
  const mode = upstreamTlsMode(upstream);
  return {
    ...(isIP(upstream.host) === 0 && { servername: upstream.host }),
    host: upstream.host,
    rejectUnauthorized: mode === 'verify-ca' || mode === 'verify-full',
    ...(mode !== 'verify-full' && { checkServerIdentity: () => undefined }),
    secureContext: upstreamTlsFiles(upstream).context,
  };
}

const tlsFiles = new WeakMap<UpstreamConfig, TlsFiles>();

/**
 * The certificates of this upstream, read once for all who connect to it. Whoever keeps a pool of it has them read again.
 *
 * @throws {ConfigError} at the first call, when they cannot be used; `id` is the upstream's name in the configuration.
 */
export function upstreamTlsFiles(upstream: UpstreamConfig, id = upstream.host): TlsFiles {
  const known = tlsFiles.get(upstream) ?? new TlsFiles(upstream.tls, `upstreams.${id}.tls`);
  tlsFiles.set(upstream, known);
  return known;
}

async function openSocket({ host, port }: UpstreamConfig, signal: AbortSignal): Promise<Socket> {
  const socket = host.startsWith('/')
    ? connectTcp({ path: `${host}/.s.PGSQL.${port}`, allowHalfOpen: true })
    : connectTcp({
        host,
        port,
        allowHalfOpen: true,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEPALIVE_MS,
      });
  try {
    await once(socket, 'connect', signal);
  } catch (error) {
    socket.on('error', () => {}).destroy();
    throw error;
  }
  // Later errors reach whoever reads or writes; without a listener they would end the process.
  return socket.on('error', () => {});
}

/**
 * SSLRequest must be answered by `S` and nothing behind it: a byte more was not sent by the server that
 * TLS will authenticate (attack A2, CVE-2021-23222), and going on in clear after `N` is a downgrade (A3).
 */
async function requestTls(socket: Socket, signal: AbortSignal): Promise<void> {
  socket.write(encodeSSLRequest());
  const answer = (await readExactly(socket, 1, signal)).toString('latin1');
  if (answer !== 'S') {
    throw new Error(
      answer === 'N' ? 'the server does not offer TLS' : 'the server refused the SSLRequest',
    );
  }
  if (socket.readableLength > 0)
    throw new Error('the server sent unencrypted bytes after its answer to SSLRequest');
}

function once(
  stream: Socket,
  event: 'connect' | 'secureConnect',
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (finish: () => void) => {
      stream.off(event, onEvent);
      stream.off('error', onError);
      stream.off('close', onClose);
      signal.removeEventListener('abort', onAbort);
      finish();
    };
    const onEvent = () => settle(resolve);
    const onError = (error: Error) => settle(() => reject(error));
    const onClose = () => settle(() => reject(new Error('the server closed the connection')));
    const onAbort = () => settle(() => reject(signal.reason as Error));
    stream.on(event, onEvent);
    stream.on('error', onError);
    stream.on('close', onClose);
    signal.addEventListener('abort', onAbort);
    if (signal.aborted) onAbort();
  });
}
