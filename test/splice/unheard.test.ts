/**
 * Which connections of the kernel's table have a peer that acknowledges nothing. That they are ended is in `test/faults/darkness.test.ts`.
 */
import { expect, test } from 'vitest';
import { unheardIn } from '../../src/splice/unheard.ts';

/** A line of the table, as a little-endian machine writes it. */
const line = (local: string, remote: string, state: string, tries: string) =>
  `   1: ${local} ${remote} ${state} 00000005:00000000 01:00000171 ${tries}     0        0 953895 2 000000008a2a561d 652 0 0 1 -1`;
const table = (...lines: string[]) =>
  ['  sl  local_address rem_address   st …', ...lines, ''].join('\n');

const PEER = ['0100007F:1538', '02FAD50A:E558'] as const;

test('those that were tried eight times or more, by both addresses', () => {
  expect([...unheardIn(table(line(...PEER, '01', '00000008')))]).toEqual([
    '127.0.0.1:5432 10.213.250.2:58712',
  ]);
  expect([...unheardIn(table(line(...PEER, '01', '0000000F')))]).toHaveLength(1);
});

test('IPv6, and IPv4 in it, as everywhere here', () => {
  const mapped = '0000000000000000FFFF000002FAD50A:1E61';
  const true6 = 'B80D0120000000000000000001000000:0050';

  expect([...unheardIn(table(line(mapped, true6, '01', '00000009')))]).toEqual([
    '10.213.250.2:7777 2001:db8::1:80',
  ]);
});

test('none that is tried less often, that is not established, or whose line makes no sense', () => {
  const lines = [
    line(...PEER, '01', '00000007'),
    line(...PEER, '0A', '00000009'),
    line(...PEER, '02', '00000009'),
    'nonsense',
  ];

  expect([...unheardIn(table(...lines))]).toEqual([]);
  expect([...unheardIn('')]).toEqual([]);
});
