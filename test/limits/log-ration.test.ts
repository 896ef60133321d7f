/**
 * Refusals write a bounded number of lines, whoever is refused and how often, and none goes uncounted.
 */
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { LogRation } from '../../src/limits/log-ration.ts';

interface Line {
  readonly event: string;
  readonly address: string;
  readonly suppressed: number;
  readonly reasons: Record<string, number>;
}

let lines: Line[];
let ration: LogRation;
beforeEach(() => {
  vi.useFakeTimers();
  lines = [];
  const sink = new Writable({
    write(chunk: Buffer, _, next) {
      lines.push(JSON.parse(chunk.toString()) as Line);
      next();
    },
  });
  ration = new LogRation(pino({ base: null }, sink), () => 5);
});
afterEach(() => {
  ration.close();
  vi.useRealTimers();
});

const refuse = (address: string, times: number, reason = 'token_rejected') =>
  Array.from({ length: times }, () => ration.allows(address, reason)).filter(Boolean).length;

test('a flood from one address has so many lines, then one that counts the rest', () => {
  expect(refuse('192.0.2.1', 1_000)).toBe(5);
  refuse('192.0.2.1', 3, 'token_missing');
  expect(lines).toEqual([]);

  vi.advanceTimersByTime(60_000);

  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatchObject({
    event: 'refusals_suppressed',
    address: '192.0.2.1',
    suppressed: 998,
    reasons: { token_rejected: 995, token_missing: 3 },
  });
  expect(refuse('192.0.2.1', 2)).toBe(2);
});

test('others have their lines while one floods', () => {
  refuse('192.0.2.1', 1_000);

  expect(refuse('192.0.2.2', 2)).toBe(2);
});

test('whoever has a network of IPv6 addresses is one address (attack: another one for each attempt)', () => {
  const from = Array.from({ length: 100 }, (_, n) => refuse(`2001:db8::${n.toString(16)}`, 1));

  expect(from.filter((written) => written > 0)).toHaveLength(5);
});

test('a thousand addresses have ten times as many lines together, and a bounded number of summaries', () => {
  const written = Array.from({ length: 1_000 }, (_, n) => refuse(`192.0.${n >> 8}.${n & 255}`, 2));

  ration.close();

  expect(written.reduce((sum, n) => sum + n, 0)).toBe(50);
  expect(lines.length).toBeLessThanOrEqual(101);
  expect(lines.reduce((sum, { suppressed }) => sum + suppressed, 0)).toBe(2_000 - 50);
});
