/**
 * By what an upstream has proved that it is the server: SCRAM, or what TLS has verified, before it hears a password or is believed.
 *
 * Slots log in by `connect.ts`, which asks here. All our other roles do so by `pg`, which would tell its password in clear
 * to whoever asks for that, and believes whoever says that it is let in.
 */
import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import type pg from 'pg';
import type { UpstreamConfig } from '../config.ts';
import { ProxyError } from '../errors.ts';
import { isLoopback, upstreamTlsMode } from '../exposure.ts';

/** Whether it is the server even without SCRAM: nobody is in between, TLS vouches for it, or we log in by a certificate. */
export function isKnownWithoutProof(upstream: UpstreamConfig): boolean {
  if (isLoopback(upstream.host)) return true;
  const mode = upstreamTlsMode(upstream);
  if (mode === 'verify-ca' || mode === 'verify-full') return true;
  return mode === 'require' && upstream.tls.certFile !== undefined;
}

/** Whether a password may be said on this stream as it is. */
export function mayHearPassword(stream: Duplex, upstream: UpstreamConfig): boolean {
  return stream instanceof TLSSocket ? stream.authorized : isLoopback(upstream.host);
}

/** Why a server is told no password. */
export function asksInClear(): ProxyError {
  return unproven('the server asks for a clear password on a connection that is not verified TLS');
}

/** Why a server that lets us in is not believed. */
export function letsUsInUnproven(): ProxyError {
  return unproven(
    'the server lets us in without a proof that it knows our password, and TLS has not verified it',
  );
}

/** Why any other method than SCRAM fails. */
export function asksForAnotherMethod(): ProxyError {
  return unproven('the server asks for an authentication method other than SCRAM-SHA-256');
}

/**
 * Has a client that has not connected yet break off its login, with `upstream_login_rejected`, before it says anything to a
 * server that has not proved itself.
 */
export function demandProof(client: pg.ClientBase, upstream: UpstreamConfig): void {
  const { connection } = client as pg.Client;
  let isProven = false;
  const breakOff = (error: ProxyError) => {
    connection.emit('error', error);
    // What `pg` writes next, our password, goes nowhere.
    connection.stream.destroy();
  };
  connection.on('authenticationCleartextPassword', () => {
    if (!mayHearPassword(connection.stream, upstream)) breakOff(asksInClear());
  });
  connection.on('authenticationMD5Password', () => breakOff(asksForAnotherMethod()));
  // `pg` itself fails where what this says is wrong.
  connection.on('authenticationSASLFinal', () => {
    isProven = true;
  });
  connection.on('authenticationOk', () => {
    if (!isProven && !isKnownWithoutProof(upstream)) breakOff(letsUsInUnproven());
  });
}

function unproven(why: string): ProxyError {
  return new ProxyError('upstream_login_rejected', { cause: new Error(why) });
}
