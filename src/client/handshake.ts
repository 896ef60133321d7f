/**
 * From the first byte to a StartupMessage or a CancelRequest: SSLRequest, GSSENCRequest, direct TLS, protocol negotiation.
 *
 * Iterative, each request at most once (CVE-2026-6479 was recursion in this very dance), and nothing
 * that arrived in the clear is ever read as if it had come encrypted (CVE-2021-23214, CVE-2021-23222).
 * Judges no user and no token.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { TLSSocket, type SecureContext } from 'node:tls';
import { ProxyError } from '../errors.ts';
import { encodeNegotiateProtocolVersion } from '../wire/backend.ts';
import { EndOfStream, readExactly } from '../wire/read.ts';
import {
  NEWEST_MINOR,
  PROTOCOL_3_0,
  REQUEST_CODE,
  decodeParameters,
  readStartupPacket,
  type StartupPacket,
} from '../wire/startup.ts';
import { judgeStartup, type StartupRequest } from './startup.ts';
import { send, type Client } from './stream.ts';

/** What the handshake needs to know of the listener. */
export interface HandshakeOptions {
  /** `require` refuses a plaintext client before it is asked for a password. */
  readonly tlsMode: 'require' | 'allow' | 'disable';
  /** Certificate and key; absent where TLS is off. */
  readonly secureContext: SecureContext | undefined;
  /** Startup parameters that the configuration allows beside the built-in list. */
  readonly allowParameters: readonly string[];
}

/** A client that wants to log in. */
export interface Startup extends StartupRequest {
  readonly kind: 'startup';
  /** The protocol's minor version that both sides go on with: 3.`minor`. */
  readonly minor: number;
}

/** A client that wants a query of another connection cancelled. */
export interface Cancel {
  readonly kind: 'cancel';
  readonly processId: number;
  readonly secretKey: Buffer;
}

const TLS_HANDSHAKE_RECORD = 0x16;
const ALPN = 'postgresql';

/**
 * Conducts the handshake on `client.stream`, which it replaces when TLS begins.
 *
 * @throws {ProxyError} probe, malformed_startup, bytes_before_tls, unsupported_protocol, tls_required,
 *   user_missing, replication_unsupported, parameter_forbidden, or the signal's reason.
 */
export async function handshake(
  client: Client,
  options: HandshakeOptions,
  signal: AbortSignal,
): Promise<Startup | Cancel> {
  try {
    await acceptDirectTls(client, options, signal);
    const packet = await negotiateEncryption(client, options, signal);
    if (packet.code === REQUEST_CODE.CancelRequest) return decodeCancelRequest(packet);
    return await acceptStartup(client, packet, options, signal);
  } catch (error) {
    if (error instanceof EndOfStream) throw new ProxyError('probe', { cause: error });
    throw error;
  }
}

/** Direct TLS (PostgreSQL 17's sslnegotiation=direct): the first byte is a TLS record's, and ALPN must say what it is for. */
async function acceptDirectTls(
  client: Client,
  options: HandshakeOptions,
  signal: AbortSignal,
): Promise<void> {
  const first = await readExactly(client.stream, 1, signal);
  client.stream.unshift(first);
  if (first[0] !== TLS_HANDSHAKE_RECORD) return;
  if (options.secureContext === undefined) {
    throw new ProxyError(
      'malformed_startup',
      { problem: 'TLS is not configured' },
      { silent: true },
    );
  }
  const secured = await startTls(client, options.secureContext, signal);
  if (secured.alpnProtocol !== ALPN) {
    throw new ProxyError(
      'malformed_startup',
      { problem: 'direct TLS without ALPN' },
      { silent: true },
    );
  }
}

/** Answers SSLRequest and GSSENCRequest, each at most once, until another packet comes. */
async function negotiateEncryption(
  client: Client,
  options: HandshakeOptions,
  signal: AbortSignal,
): Promise<StartupPacket> {
  let sslSeen = client.encrypted;
  let gssSeen = client.encrypted;
  for (;;) {
    const packet = await readStartupPacket(client.stream, signal);
    if (packet.code === REQUEST_CODE.SSLRequest && !sslSeen) {
      sslSeen = true;
      refuseEarlyBytes(client, 'SSL request');
      if (options.secureContext === undefined) {
        await send(client.stream, Buffer.from('N'));
      } else {
        await send(client.stream, Buffer.from('S'));
        await startTls(client, options.secureContext, signal);
        gssSeen = true;
      }
    } else if (packet.code === REQUEST_CODE.GSSENCRequest && !gssSeen) {
      gssSeen = true;
      refuseEarlyBytes(client, 'GSSAPI encryption request');
      await send(client.stream, Buffer.from('N'));
    } else {
      return packet;
    }
  }
}

/** Attack A1: bytes already here were sent before our answer, so a man in the middle may have put them there. */
function refuseEarlyBytes(client: Client, request: string): void {
  if (client.stream.readableLength > 0) throw new ProxyError('bytes_before_tls', { request });
}

async function startTls(
  client: Client,
  secureContext: SecureContext,
  signal: AbortSignal,
): Promise<TLSSocket> {
  const secured = new TLSSocket(client.stream, {
    isServer: true,
    secureContext,
    ALPNProtocols: [ALPN],
  });
  client.stream = secured;
  await new Promise<void>((resolve, reject) => {
    const settle = (finish: () => void) => {
      secured.off('secure', onSecure);
      secured.off('end', onClose);
      secured.off('close', onClose);
      secured.off('error', onError);
      signal.removeEventListener('abort', onAbort);
      finish();
    };
    const onSecure = () => settle(resolve);
    const onClose = () => settle(() => reject(new EndOfStream(0)));
    // What failed is the peer's TLS; telling it in clear text would only confuse it.
    const onError = (cause: Error) =>
      settle(() =>
        reject(
          new ProxyError(
            'malformed_startup',
            { problem: 'TLS handshake failed' },
            { cause, silent: true },
          ),
        ),
      );
    const onAbort = () => settle(() => reject(signal.reason as Error));
    secured.on('secure', onSecure);
    // The listener allows half-open sockets, so a FIN alone does not close this one.
    secured.on('end', onClose);
    secured.on('close', onClose);
    secured.on('error', onError);
    signal.addEventListener('abort', onAbort);
    if (signal.aborted) onAbort();
  });
  // Later errors of the stream reach whoever reads or writes; without a listener they would end the process.
  secured.on('error', () => {});
  client.encrypted = true;
  return secured;
}

async function acceptStartup(
  client: Client,
  { code, body }: StartupPacket,
  options: HandshakeOptions,
  signal: AbortSignal,
): Promise<Startup> {
  const major = code >>> 16;
  const minor = code & 0xffff;
  if (major !== 3) throw new ProxyError('unsupported_protocol', { version: `${major}.${minor}` });
  const pairs = decodeParameters(body);
  const agreed = Math.min(minor, NEWEST_MINOR);
  const unknownOptions = pairs.map(([name]) => name).filter((name) => name.startsWith('_pq_.'));
  if (minor > NEWEST_MINOR || unknownOptions.length > 0) {
    await send(
      client.stream,
      encodeNegotiateProtocolVersion(PROTOCOL_3_0 + agreed, unknownOptions),
    );
  }
  // Before a password is asked for: libpq's default sslmode=prefer would otherwise send the token in clear.
  if (options.tlsMode === 'require' && !client.encrypted) throw new ProxyError('tls_required');
  signal.throwIfAborted();
  return { kind: 'startup', minor: agreed, ...judgeStartup(pairs, options.allowParameters) };
}

/** Both the 4-byte key of protocol 3.0 and the longer ones of 3.2; any other length is closed without a word, as PostgreSQL does. */
function decodeCancelRequest({ body }: StartupPacket): Cancel {
  const keyLength = body.length - 4;
  if (keyLength < 4 || keyLength > 256) {
    throw new ProxyError(
      'malformed_startup',
      { problem: 'invalid length of cancel request' },
      { silent: true },
    );
  }
  return {
    kind: 'cancel',
    processId: body.readInt32BE(0),
    secretKey: Buffer.from(body.subarray(4)),
  };
}
