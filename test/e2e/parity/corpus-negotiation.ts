/**
 * The corpus of what may stand before a StartupMessage or in its place: encryption requests, TLS, cancel requests.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
 */
import type { Login, WireCase } from './corpus.ts';
import {
  byteByByte,
  CODES,
  cancelRequest,
  GSSENC_REQUEST,
  int32,
  packet,
  passwordMessage,
  query,
  SSL_REQUEST,
  startup,
  TERMINATE,
} from './bytes.ts';
import type { Step } from './probe.ts';

/** The cases of this file that any server can be asked. */
export function negotiationPhase(): WireCase[] {
  return [...requests(), ...earlyBytes(), ...cancels()];
}

const whole = ({ user, database }: Login) =>
  startup([
    ['user', user],
    ['database', database],
  ]);

const sends = (name: string, shows: string, ...steps: Step[]): WireCase => ({
  name,
  shows,
  steps: () => steps,
});

const script = (name: string, shows: string, steps: WireCase['steps']): WireCase => ({
  name,
  shows,
  steps,
});

const ssl = SSL_REQUEST;
const gss = GSSENC_REQUEST;

/** Each request, and its answer waited for. */
const asked = (...packets: Buffer[]) => packets.flatMap((one): Step[] => [one, 'await reply']);

const wholeLogin = (login: Login): Step[] => [
  ...asked(whole(login), passwordMessage(login.password), query("select 'in'")),
  TERMINATE,
];

function requests(): WireCase[] {
  const shows = 'each request is answered with one byte, and the packet that follows counts (A4)';
  return [
    sends('SSLRequest', shows, ssl),
    sends('SSLRequest, then EOF', shows, ssl, 'await reply', 'half-close'),
    sends('SSLRequest and EOF together', shows, ssl, 'half-close'),
    sends('SSLRequest one byte at a time', shows, ...byteByByte(ssl)),
    sends('GSSENCRequest', shows, gss),
    sends('GSSENCRequest, then EOF', shows, gss, 'await reply', 'half-close'),
    sends('GSSENCRequest one byte at a time', shows, ...byteByByte(gss)),
    sends('GSSENCRequest twice', shows, ...asked(gss, gss)),
    script('GSSENCRequest, then startup', shows, (login) => [...asked(gss), whole(login)]),
    sends('GSSENCRequest, then SSLRequest', shows, ...asked(gss, ssl)),
    sends('GSSENCRequest, SSLRequest, GSSENCRequest', shows, ...asked(gss, ssl, gss)),
    sends('GSSENCRequest, then CancelRequest', shows, ...asked(gss), cancelRequest()),
    sends('GSSENCRequest, then protocol 2.0', shows, ...asked(gss), packet(CODES.v2)),
    sends('GSSENCRequest, then a bad length', shows, ...asked(gss), int32(3)),
    sends('SSLRequest declaring 9 bytes', shows, packet(CODES.ssl, Buffer.alloc(1))),
    sends('SSLRequest declaring 12 bytes', shows, packet(CODES.ssl, Buffer.alloc(4))),
    sends('SSLRequest declaring 12 bytes, 8 sent', shows, packet(CODES.ssl, Buffer.alloc(0), 12)),
    sends('SSLRequest declaring 10,004 bytes', shows, packet(CODES.ssl, Buffer.alloc(9_996))),
    sends('GSSENCRequest declaring 9 bytes', shows, packet(CODES.gss, Buffer.alloc(1))),
    sends('SSLRequest declaring 7 bytes', shows, packet(CODES.ssl, Buffer.alloc(0), 7)),
  ];
}

function earlyBytes(): WireCase[] {
  const shows = 'bytes slipped in before the encryption end the connection (A1)';
  const one = (name: string, bytes: (login: Login) => Buffer) =>
    script(`${name} in one segment`, shows, (login) => [bytes(login)]);
  return [
    one('GSSENCRequest and startup', (login) => Buffer.concat([gss, whole(login)])),
    one('GSSENCRequest and one byte', () => Buffer.concat([gss, Buffer.alloc(1)])),
    one('GSSENCRequest and SSLRequest', () => Buffer.concat([gss, ssl])),
    one('SSLRequest and startup', (login) => Buffer.concat([ssl, whole(login)])),
    one('SSLRequest and one byte', () => Buffer.concat([ssl, Buffer.alloc(1)])),
    one('SSLRequest and SSLRequest', () => Buffer.concat([ssl, ssl])),
    one('SSLRequest and GSSENCRequest', () => Buffer.concat([ssl, gss])),
  ];
}

function cancels(): WireCase[] {
  const shows = 'a cancel request is never answered, whatever it holds';
  return [
    ...[0, 1, 3, 4, 5, 8, 31, 32, 64, 255, 256, 257, 2_000].map((keyBytes) =>
      sends(`CancelRequest with a key of ${keyBytes} bytes`, shows, cancelRequest(keyBytes)),
    ),
    sends('CancelRequest without a process id', shows, packet(CODES.cancel)),
    sends('CancelRequest with half a process id', shows, packet(CODES.cancel, Buffer.alloc(2))),
    sends('CancelRequest cut off', shows, cancelRequest().subarray(0, 14)),
    sends('CancelRequest cut off, then EOF', shows, cancelRequest().subarray(0, 14), 'half-close'),
    sends('CancelRequest, then EOF', shows, cancelRequest(), 'half-close'),
    sends('CancelRequest twice', shows, Buffer.concat([cancelRequest(), cancelRequest()])),
    sends('CancelRequest one byte at a time', shows, ...byteByByte(cancelRequest())),
    script('CancelRequest, then a startup', shows, (login) => [cancelRequest(), whole(login)]),
  ];
}

/** What goes on in clear after `N`: for servers without TLS. */
export function clearCases(): WireCase[] {
  const shows = 'after N the connection goes on in clear (A4)';
  const pingPong = Array.from({ length: 20 }, () => asked(ssl, gss)).flat();
  return [
    sends('SSLRequest twice', shows, ...asked(ssl, ssl)),
    sends('SSLRequest, then GSSENCRequest', shows, ...asked(ssl, gss)),
    sends('SSLRequest, GSSENCRequest, SSLRequest', shows, ...asked(ssl, gss, ssl)),
    sends('ping-pong of 40 requests', shows, ...pingPong),
    sends('SSLRequest, then CancelRequest', shows, ...asked(ssl), cancelRequest()),
    script('both requests, then a whole login', shows, (login) => [
      ...asked(gss, ssl),
      ...wholeLogin(login),
    ]),
    script('SSLRequest, then a whole login', shows, (login) => [
      ...asked(ssl),
      ...wholeLogin(login),
    ]),
    sends('SSLRequest, then a TLS hello all the same', shows, ...asked(ssl), CLIENT_HELLO_START),
  ];
}

/** How a ClientHello begins, in a record that says it is far longer. */
const CLIENT_HELLO_START = Buffer.from('1603010200010001fc0303', 'hex');
/** A whole record, with a ClientHello of one byte. */
const CLIENT_HELLO_MALFORMED = Buffer.from('16030100050100000100', 'hex');

/** The same case inside TLS that was asked for with SSLRequest. */
export function insideTls({ name, shows, steps }: WireCase): WireCase {
  return {
    name: `${name}, inside TLS`,
    shows,
    steps: (login) => [ssl, 'await reply', { startTls: {} }, ...steps(login)],
  };
}

/** How TLS begins: for servers with a certificate. */
export function tlsCases(): WireCase[] {
  const shows = 'TLS begins in two ways, and a name for the protocol is binding (A5)';
  const direct = (...ALPNProtocols: string[]): Step => ({
    startTls: ALPNProtocols.length === 0 ? {} : { ALPNProtocols },
  });
  return [
    script('direct TLS with ALPN postgresql', shows, (login) => [
      direct('postgresql'),
      ...wholeLogin(login),
    ]),
    script('direct TLS with postgresql among other names', shows, (login) => [
      direct('h2', 'postgresql'),
      ...wholeLogin(login),
    ]),
    script('direct TLS without ALPN', shows, (login) => [direct(), ...wholeLogin(login)]),
    script('direct TLS with ALPN http/1.1', shows, (login) => [
      direct('http/1.1'),
      ...wholeLogin(login),
    ]),
    sends('direct TLS, then SSLRequest', shows, direct('postgresql'), ssl),
    sends('direct TLS, then GSSENCRequest', shows, direct('postgresql'), gss),
    sends('direct TLS, then CancelRequest', shows, direct('postgresql'), cancelRequest()),
    sends('direct TLS, then nothing', shows, direct('postgresql')),
    sends('direct TLS, then EOF', shows, direct('postgresql'), 'half-close'),
    sends('direct TLS, then TLS again', shows, direct('postgresql'), CLIENT_HELLO_START),
    script('SSLRequest, then TLS with ALPN postgresql', shows, (login) => [
      ...asked(ssl),
      direct('postgresql'),
      ...wholeLogin(login),
    ]),
    script('SSLRequest, then TLS with ALPN http/1.1', shows, (login) => [
      ...asked(ssl),
      direct('http/1.1'),
      ...wholeLogin(login),
    ]),
    script('GSSENCRequest, then SSLRequest, then TLS', shows, (login) => [
      ...asked(gss, ssl),
      direct(),
      ...wholeLogin(login),
    ]),
    script('GSSENCRequest, then direct TLS', shows, () => [...asked(gss), CLIENT_HELLO_START]),
    script('SSLRequest, then a startup in clear', shows, (login) => [...asked(ssl), whole(login)]),
    sends('SSLRequest, then SSLRequest in clear', shows, ...asked(ssl, ssl)),
    sends('SSLRequest, then half a ClientHello', shows, ...asked(ssl), CLIENT_HELLO_START),
    sends(
      'SSLRequest, then half a ClientHello and EOF',
      shows,
      ...asked(ssl),
      CLIENT_HELLO_START,
      'half-close',
    ),
    sends('a malformed ClientHello', shows, CLIENT_HELLO_MALFORMED),
    sends('SSLRequest, then a malformed ClientHello', shows, ...asked(ssl), CLIENT_HELLO_MALFORMED),
    sends('half a ClientHello', shows, CLIENT_HELLO_START),
    sends('half a ClientHello and EOF', shows, CLIENT_HELLO_START, 'half-close'),
  ];
}
