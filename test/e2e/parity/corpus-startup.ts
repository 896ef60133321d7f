/**
 * The corpus of the first packet: lengths, strangers, packets cut off, layouts, versions.
 *
 * No case here gets as far as a password; encryption and cancel requests are in `corpus-negotiation.ts`.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-STARTUPMESSAGE
 */
import type { Login, WireCase } from './corpus.ts';
import {
  byteByByte,
  CODES,
  cstring,
  int32,
  packet,
  passwordMessage,
  startup,
  TERMINATE,
  version,
} from './bytes.ts';
import type { Step } from './probe.ts';

/** The cases of this file. */
export function startupPhase(): WireCase[] {
  return [...lengths(), ...strangers(), ...truncations(), ...layouts(), ...versions()];
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

function lengths(): WireCase[] {
  const shows = 'a length is believed or refused on its own, before anything else is read';
  const declared = [
    ...Array.from({ length: 10 }, (_, length) => length),
    9_999,
    10_000,
    10_001,
    10_002,
    10_003,
    10_004,
    10_005,
    10_006,
    65_536,
    0x0100_0000,
    0x7fff_ffff,
    -1,
    -8,
    -0x8000_0000,
  ];
  // Blanks in `options` fill the packet up to the limit of 10,000 bytes and its length word, and mean nothing.
  const filled = (total: number) => {
    const blanks = (count: number) =>
      startup([
        ['user', 'u'],
        ['options', ' '.repeat(count)],
      ]);
    return blanks(total - blanks(0).length);
  };
  return [
    ...declared.map((length) => sends(`declares length ${length}`, shows, int32(length))),
    ...[0, 4, 7, 8].map((length) =>
      sends(
        `declares length ${length} before a whole packet`,
        'what stands behind a bad length is never parsed',
        packet(CODES.v3, cstring('user'), length),
      ),
    ),
    ...[10_003, 10_004, 10_005].map((total) =>
      sends(`startup of ${total} bytes, all there`, 'the limit is exact', filled(total)),
    ),
  ];
}

function strangers(): WireCase[] {
  const shows = 'who is no Postgres client is left without a word';
  const said: [name: string, bytes: Buffer | string][] = [
    ['HTTP GET', 'GET / HTTP/1.1\r\nHost: db.example.com\r\n\r\n'],
    ['HTTP POST', 'POST /sql HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}'],
    ['HTTP/2 preface', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['SSH banner', 'SSH-2.0-OpenSSH_9.2\r\n'],
    ['SMTP greeting', 'EHLO mail.example.com\r\n'],
    ['Redis command', '*1\r\n$4\r\nPING\r\n'],
    ['PROXY protocol 1', 'PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n'],
    ['PROXY protocol 2', Buffer.from('0d0a0d0a000d0a515549540a2100000c', 'hex')],
    ['SOCKS 5', Buffer.from('050100', 'hex')],
    ['SOCKS 4', Buffer.from('0401005016000001', 'hex')],
    ['RDP cookie', Buffer.from('030000130ee000000000000100080003000000', 'hex')],
    ['MySQL login', Buffer.from('200000010fa23b0000000040080000', 'hex')],
    ['MongoDB hello', Buffer.from('3a0000000100000000000000d40700000000', 'hex')],
    ['eight zero bytes', Buffer.alloc(8)],
    ['64 zero bytes', Buffer.alloc(64)],
    ['64 bytes of 0xff', Buffer.alloc(64, 0xff)],
    ['a typed message first', passwordMessage('x')],
    ['Terminate first', TERMINATE],
    ['a line of text', 'hello\n'],
    ['one zero byte', Buffer.alloc(1)],
    ['TLS record that is none', Buffer.from('160301ffff00112233445566778899', 'hex')],
    ['the one byte 0x16', Buffer.of(0x16)],
    ['TLS alert', Buffer.from('15030100020228', 'hex')],
  ];
  return said.map(([name, bytes]) => sends(name, shows, Buffer.from(bytes)));
}

function truncations(): WireCase[] {
  const shows = 'a client that leaves inside a startup packet is let go without a word';
  return [
    sends('nothing', 'a silent client is waited for'),
    sends('EOF at once', 'a port probe costs nothing', 'half-close'),
    ...[1, 2, 3, 4, 5, 7, 8, 9, 12, 13].map(
      (count): WireCase => ({
        name: `EOF after ${count} bytes of a startup`,
        shows,
        steps: (login) => [whole(login).subarray(0, count), 'half-close'],
      }),
    ),
    {
      name: 'EOF one byte before the end of a startup',
      shows,
      steps: (login) => [whole(login).subarray(0, -1), 'half-close'],
    },
    {
      name: 'startup without its last byte, held',
      shows: 'an unfinished packet is waited for',
      steps: (login) => [whole(login).subarray(0, -1)],
    },
    {
      name: 'startup one byte at a time',
      shows: 'boundaries between segments mean nothing',
      steps: (login) => byteByByte(whole(login)),
    },
    {
      name: 'startup and EOF in one go',
      shows: 'the answer is attempted though the client has half-closed',
      steps: (login) => [whole(login), 'half-close'],
    },
  ];
}

function layouts(): WireCase[] {
  const shows = 'a packet that does not end where its parameters end is refused aloud';
  const body = (name: string, ...parts: (string | Buffer)[]) =>
    sends(name, shows, packet(CODES.v3, Buffer.concat(parts.map((part) => Buffer.from(part)))));
  return [
    body('no body at all'),
    body('only the terminator', '\0'),
    body('two terminators', '\0\0'),
    body('a name alone', 'user\0'),
    body('a name and the terminator', 'user\0\0'),
    body('a name without NUL', 'user'),
    body('a pair without the terminator', 'user\0u\0'),
    body('a value without NUL', 'user\0u'),
    body('an odd name behind a pair', 'user\0u\0database\0\0'),
    body('an empty name, then more', 'user\0u\0\0x\0\0'),
    body('a byte behind the terminator', 'user\0u\0\0x'),
    body('a NUL behind the terminator', 'user\0u\0\0\0'),
    body('a second startup inside the first', 'user\0u\0\0', packet(CODES.v3, cstring('user'))),
    body('an empty value', 'user\0u\0application_name\0\0\0'),
    body('an empty name first', '\0user\0u\0\0'),
    body('high bytes everywhere', Buffer.alloc(40, 0xfe)),
    body('a thousand empty pairs', Buffer.alloc(2_000)),
  ];
}

function versions(): WireCase[] {
  const shows = 'a version is accepted, negotiated down or refused as PostgreSQL does';
  const numbers: [number, number][] = [
    [0, 0],
    [1, 0],
    [2, 0],
    [2, 65_535],
    [3, 0],
    [3, 1],
    [3, 2],
    [3, 3],
    [3, 99],
    [3, 9_999],
    [3, 65_535],
    [4, 0],
    [5, 1],
    [1_233, 0],
    [1_234, 0],
    [1_234, 5_676],
    [1_234, 5_677],
    [1_234, 5_681],
    [1_234, 65_535],
    [32_767, 0],
    [32_768, 0],
    [65_535, 65_535],
  ];
  return [
    ...numbers.map(
      ([major, minor]): WireCase => ({
        name: `protocol ${major}.${minor}`,
        shows,
        steps: ({ user }) => [startup([['user', user]], version(major, minor))],
      }),
    ),
    sends('protocol 2.0, garbage behind', shows, packet(CODES.v2, Buffer.alloc(288, 0x41))),
    sends('protocol 4.0, no body', shows, packet(version(4, 0))),
    sends('protocol 3.99, no body', shows, packet(version(3, 99))),
    sends('protocol 3.99, no user', shows, packet(version(3, 99), Buffer.alloc(1))),
  ];
}
