/**
 * A proxy whose clock is off, by libfaketime: tokens are good within `clockToleranceSeconds` of the true time, and not beyond.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { RawClient } from '../e2e/raw-client.ts';
import { startFleet, startGround, type Ground } from '../workers/fleet.ts';
import { missing } from './machine.ts';

const absent = missing('faketime');
if (absent !== undefined) console.error(`a clock that is off is ${absent}`);

let ground: Ground;

beforeAll(async () => {
  ground = await startGround(4);
});

afterAll(async () => {
  await ground[Symbol.asyncDispose]();
});

describe.skipIf(absent !== undefined)('a clock that is off', () => {
  it.each([
    [-25, 'lets a token in that is not valid yet', { in: true }],
    [-45, 'lets no token in that is not valid for so long', { in: false }],
    [25, 'lets a token in that has expired since', { in: true }],
    [45, 'lets no token in that has expired so long ago', { in: false }],
  ])('by %i s %s', async (offset, _, expected) => {
    await using fleet = await startFleet(ground, {
      workers: 1,
      // What measures time that passes, timeouts above all, goes right.
      env: { FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1' },
      under: ['faketime', '-f', `${offset < 0 ? '' : '+'}${offset}s`],
    });
    const now = Math.floor(Date.now() / 1000);
    // Issued just now, for an hour; or about to expire.
    const claims = offset < 0 ? { iat: now, nbf: now } : { exp: now + 3 };

    const outcome = await RawClient.login(
      { host: fleet.host, port: fleet.port, database: 'app' },
      fleet.token('alice', claims),
    ).then(
      (client) => {
        client.destroy();
        return 'in';
      },
      (error: { code: string }) => error.code,
    );
    const line = await fleet.logged(({ event }) => event === 'login');

    expect(outcome).toBe(expected.in ? 'in' : '28P01');
    // The clock is off indeed, as its own log shows.
    const shown = (Date.parse(String(line['time'])) - Date.now()) / 1000;
    expect(Math.abs(shown - offset)).toBeLessThan(10);
  });
});
