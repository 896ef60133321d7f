/**
 * The PROXY protocol header: what it says, whatever it is split into, and what an attacker would do with it.
 */
import { PassThrough } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readProxyHeader } from '../../src/accept/proxy-protocol.ts';
import { ProxyError } from '../../src/errors.ts';
import { headerV2, SIGNATURE } from '../support/proxy-header.ts';

const BEHIND = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);
const patient = () => new AbortController().signal;

type Read = { readonly address?: string | undefined; readonly code?: string };

/** Reads a header that comes in these pieces, and what is left for the next reader. */
async function read(pieces: readonly Buffer[], { end = false } = {}) {
  const stream = new PassThrough();
  const reading = readProxyHeader(stream, patient()).then(
    (address): Read => ({ address }),
    (error: ProxyError): Read => ({ code: error.code }),
  );
  for (const piece of pieces) {
    stream.write(piece);
    if (pieces.length > 1) await turn();
  }
  if (end) stream.end();
  const result = await reading;
  const left = (stream.read() as Buffer | null) ?? Buffer.alloc(0);
  stream.destroy();
  return { ...result, left };
}

const TCP4 = Buffer.from([192, 0, 2, 1, 10, 0, 0, 1, 0x1f, 0x90, 0x19, 0x20]);
const TCP6 = Buffer.concat([
  Buffer.from('20010db8000000000000000000000001', 'hex'),
  Buffer.from('20010db8000000000000000000000002', 'hex'),
  Buffer.from([0x1f, 0x90, 0x19, 0x20]),
]);
const MAPPED = Buffer.concat([
  Buffer.from('00000000000000000000ffffc0000201', 'hex'),
  TCP6.subarray(16),
]);
const TLVS = Buffer.from([0x04, 0x00, 0x03, 1, 2, 3, 0xea, 0x00, 0x01, 9]);

const GOOD: [string, Buffer, string | undefined][] = [
  ['v1, IPv4', Buffer.from('PROXY TCP4 192.0.2.1 10.0.0.1 56324 6432\r\n'), '192.0.2.1'],
  ['v1, IPv6', Buffer.from('PROXY TCP6 2001:DB8::1 2001:db8::2 56324 6432\r\n'), '2001:db8::1'],
  ['v1, IPv4 in IPv6', Buffer.from('PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n'), '192.0.2.1'],
  ['v1, unknown', Buffer.from('PROXY UNKNOWN\r\n'), undefined],
  [
    'v1, unknown, and as long as it may be',
    Buffer.from(`PROXY UNKNOWN ${'f'.repeat(107 - 16)}\r\n`),
    undefined,
  ],
  ['v2, IPv4', headerV2(0x21, 0x11, TCP4), '192.0.2.1'],
  ['v2, IPv4 and TLVs', headerV2(0x21, 0x11, TCP4, TLVS), '192.0.2.1'],
  ['v2, IPv6', headerV2(0x21, 0x21, TCP6), '2001:db8::1'],
  ['v2, IPv4 in IPv6', headerV2(0x21, 0x21, MAPPED), '192.0.2.1'],
  ['v2, Unix', headerV2(0x21, 0x31, Buffer.alloc(216, 0x61)), undefined],
  ['v2, unspecified', headerV2(0x21, 0x00, TLVS), undefined],
  ['v2, local', headerV2(0x20, 0x00), undefined],
  ['v2, local, with an address that does not count', headerV2(0x20, 0x11, TCP4), undefined],
  ['v2, as long as it may be', headerV2(0x21, 0x11, TCP4, Buffer.alloc(4_096 - 28)), '192.0.2.1'],
];

describe('a header', () => {
  it.each(GOOD)(
    'of %s says whose connection it is, and leaves the rest',
    async (_, header, address) => {
      expect(await read([Buffer.concat([header, BEHIND])])).toEqual({ address, left: BEHIND });
    },
  );

  it.each(GOOD.filter(([, header]) => header.length < 300))(
    'of %s says so, split at every byte',
    async (_, header, address) => {
      const whole = Buffer.concat([header, BEHIND]);
      for (let at = 1; at < header.length; at++) {
        const seen = await read([whole.subarray(0, at), whole.subarray(at)]);
        expect(seen.address).toBe(address);
        expect(BEHIND.subarray(0, seen.left.length)).toEqual(seen.left);
      }
      const bytes = [...whole].map((byte) => Buffer.from([byte]));
      expect(await read(bytes)).toMatchObject({ address });
    },
  );
});

describe('refuses', () => {
  it.each<[string, Buffer]>([
    ['no header: an SSLRequest', BEHIND],
    ['no header: a TLS record', Buffer.from([0x16, 3, 1])],
    ['no header: HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['no header: HTTP that begins alike', Buffer.from('POST / HTTP/1.1\r\n\r\n')],
    ['a line that never ends', Buffer.from(`PROXY UNKNOWN ${'f'.repeat(200)}`)],
    ['a line of 108 bytes', Buffer.from(`PROXY UNKNOWN ${'f'.repeat(108 - 16)}\r\n`)],
    [
      'a line without carriage return',
      Buffer.from(`PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n${'\n'.repeat(99)}`),
    ],
    ['a name for an address', Buffer.from('PROXY TCP4 localhost 10.0.0.1 1 2\r\n')],
    ['an IPv6 address for IPv4', Buffer.from('PROXY TCP4 ::1 ::1 1 2\r\n')],
    ['an IPv4 address for IPv6', Buffer.from('PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n')],
    ['a zone', Buffer.from('PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n')],
    ['an address with a leading zero', Buffer.from('PROXY TCP4 010.0.0.1 10.0.0.1 1 2\r\n')],
    ['a port beyond 65,535', Buffer.from('PROXY TCP4 192.0.2.1 10.0.0.1 65536 2\r\n')],
    ['a port too few', Buffer.from('PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n')],
    ['more than ports', Buffer.from('PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n')],
    ['UDP', Buffer.from('PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n')],
    ['version 2 of UDP', headerV2(0x21, 0x12, TCP4)],
    ['version 2 of an unknown command', headerV2(0x22, 0x11, TCP4)],
    ['version 3', headerV2(0x31, 0x11, TCP4)],
    ['version 2 that is shorter than its addresses', headerV2(0x21, 0x21, TCP4)],
    ['version 2 that is too long', headerV2(0x21, 0x11, TCP4, Buffer.alloc(4_096 - 27))],
    ['a signature with a wrong end', Buffer.concat([SIGNATURE.subarray(0, 11), Buffer.alloc(5)])],
  ])('%s', async (_, bytes) => {
    expect(await read([bytes])).toMatchObject({ code: 'proxy_header_invalid' });
  });

  it('attack: a length of 65,535 is refused before a byte of it is waited for', async () => {
    const head = Buffer.concat([SIGNATURE, Buffer.from([0x21, 0x11, 0xff, 0xff])]);

    expect(await read([head])).toMatchObject({ code: 'proxy_header_invalid' });
  });

  it.each([0, 1, 5, 12, 15, 20])('an end after %i bytes, as a probe', async (length) => {
    const header = headerV2(0x21, 0x11, TCP4).subarray(0, length);

    expect(await read([header], { end: true })).toMatchObject({ code: 'probe' });
  });

  it('attack: a slow header, by the deadline of the login', async () => {
    const stream = new PassThrough();
    const abort = new AbortController();
    stream.write('PROXY TCP4 192.0');
    const reading = readProxyHeader(stream, abort.signal);
    abort.abort(new ProxyError('login_timeout'));

    await expect(reading).rejects.toMatchObject({ code: 'login_timeout' });
  });

  it('attack: garbage, and never with anything but its own error', async () => {
    const start = fc.constantFrom(Buffer.alloc(0), SIGNATURE, Buffer.from('PROXY '));
    await fc.assert(
      fc.asyncProperty(start, fc.uint8Array({ maxLength: 300 }), async (prefix, rest) => {
        const { left: _, ...result } = await read([Buffer.concat([prefix, rest])], { end: true });
        const isKnown =
          'address' in result || /^(proxy_header_invalid|probe)$/.test(result.code ?? '');
        expect(isKnown).toBe(true);
      }),
      { numRuns: 100 },
    );
  });
});
