/**
 * Who could read the wire: which addresses only this machine can reach, and where TLS is needed therefore.
 */
import { isIP } from 'node:net';
import type { Config, UpstreamConfig } from './config.ts';

/** Whether an address can only be reached from this machine: a loopback address, `localhost`, or a Unix socket directory. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host.startsWith('/')) return true;
  const kind = isIP(host);
  if (kind === 4) return host.startsWith('127.');
  return kind === 6 && (host === '::1' || host.toLowerCase().startsWith('::ffff:127.'));
}

/** Whether this listener asks for TLS: as configured, else `require` unless it is on loopback. */
export function clientTlsMode(config: Config): 'require' | 'allow' | 'disable' {
  return config.listen.tls.mode ?? (isLoopback(config.listen.host) ? 'allow' : 'require');
}

/** libpq's sslmode for this upstream: as configured, else `verify-full` unless it is on loopback. */
export function upstreamTlsMode(
  config: UpstreamConfig,
): NonNullable<UpstreamConfig['tls']['mode']> {
  return config.tls.mode ?? (isLoopback(config.host) ? 'disable' : 'verify-full');
}
