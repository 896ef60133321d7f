/** How often an issuer is asked, by the numbers: attack D1 without an issuer. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FetchRation, UnknownKids } from '../../src/identity/ration.ts';
import { configWith } from './rig.ts';

const { jwks } = configWith({
  dev: {
    issuer: 'https://id.example',
    jwksUri: 'https://id.example/keys',
    audience: 'a',
    roles: ['analyst'],
  },
});

describe('the ration of fetches', () => {
  test('is two in any minute, whatever happens at whatever times', () => {
    const step = fc.record({
      afterMs: fc.integer({ min: 0, max: 40_000 }),
      unknownKid: fc.boolean(),
      fails: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { minLength: 5, maxLength: 200 }), (steps) => {
        const ration = new FetchRation(jwks, true);
        const fetchedAt: number[] = [];
        let now = 1_000;
        for (const { afterMs, unknownKid, fails } of steps) {
          now += afterMs;
          const allowed = unknownKid ? ration.takeForUnknownKid(now) : now >= ration.nextAt;
          if (!allowed) continue;
          ration.onStart(now);
          if (fails) ration.onFailure(now);
          else ration.onSuccess();
          fetchedAt.push(now);
        }
        for (const [index, time] of fetchedAt.entries()) {
          const third = fetchedAt[index + 2];
          if (third !== undefined) expect(third - time).toBeGreaterThanOrEqual(60_000);
        }
      }),
    );
  });

  test('is one in thirty seconds for unknown kids, of which a failure is none the less one', () => {
    const ration = new FetchRation(jwks, true);

    expect(ration.takeForUnknownKid(0)).toBe(true);
    ration.onStart(0);
    ration.onFailure(0);
    expect(ration.takeForUnknownKid(29_999)).toBe(false);
    expect(ration.takeForUnknownKid(30_000)).toBe(true);
  });

  test('is not used up by being refused', () => {
    const ration = new FetchRation(jwks, true);
    ration.onStart(0);
    ration.onStart(1);

    expect(ration.takeForUnknownKid(59_999)).toBe(false);
    expect(ration.takeForUnknownKid(60_000)).toBe(true);
  });

  test('pauses twice as long after each failure, at most a minute and a quarter, and forgets them', () => {
    const ration = new FetchRation({ ...jwks, cooldownMs: 0 }, true);
    const pauses: number[] = [];
    for (let now = 0, failure = 0; failure < 40; failure += 1) {
      ration.onStart(now);
      ration.onFailure(now);
      pauses.push(ration.nextAt - now);
      now = ration.nextAt;
    }
    for (const [failures, pause] of pauses.entries()) {
      const least = Math.min(1_000 * 2 ** failures, 60_000);
      expect(pause).toBeGreaterThanOrEqual(least);
      expect(pause).toBeLessThan(least * 1.25 + 0.001);
    }
    // Whoever retries at the same moment as everybody else is part of the outage.
    expect(new Set(pauses.slice(10)).size).toBeGreaterThan(20);
    const now = ration.nextAt;
    ration.onSuccess();
    ration.onFailure(now);
    expect(ration.nextAt - now).toBeLessThan(1_250);
  });

  test('of a file is a second, however often it fails', () => {
    const ration = new FetchRation(jwks, false);
    for (let failure = 0; failure < 10; failure += 1) {
      ration.onStart(0);
      ration.onFailure(0);
    }

    expect(ration.nextAt).toBeGreaterThanOrEqual(1_000);
    expect(ration.nextAt).toBeLessThan(1_250);
  });
});

describe('the kids that an issuer does not have', () => {
  test('are left alone for twice as long every time, up to five minutes', () => {
    const unknown = new UnknownKids(jwks);
    const pauses: number[] = [];
    for (let now = 0; pauses.length < 7; ) {
      unknown.remember('old', now);
      const from = now;
      while (unknown.has('old', now)) now += 10_000;
      pauses.push((now - from) / 1_000);
    }

    expect(pauses).toEqual([30, 60, 120, 240, 300, 300, 300]);
    expect(unknown.has('another', 0)).toBe(false);
  });

  test('are at most so many, and those asked for longest ago go first', () => {
    const unknown = new UnknownKids({ ...jwks, maxUnknownKids: 3 });

    for (const kid of ['a', 'b', 'c', 'a', 'd']) unknown.remember(kid, 0);

    expect(['a', 'b', 'c', 'd'].map((kid) => unknown.has(kid, 1))).toEqual([
      true,
      false,
      true,
      true,
    ]);
  });

  test('can be none at all', () => {
    const unknown = new UnknownKids({ ...jwks, maxUnknownKids: 0 });

    unknown.remember('a', 0);

    expect(unknown.has('a', 0)).toBe(false);
  });
});
