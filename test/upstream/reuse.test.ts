/**
 * Who may have whose session: the same issuer, subject and settings, and what was in the StartupMessage just so.
 */
import { describe, expect, test } from 'vitest';
import { createReuse, isSameIdentity } from '../../src/upstream/reuse.ts';
import type { Session, SessionIdentity, SessionMode } from '../../src/upstream/session.ts';

const mode = (adopts: boolean, reusable = true): SessionMode => ({
  adopts,
  reusable,
  startupParameters: async () => [],
  greet: () => Promise.reject(new Error('not asked for')),
  install: async () => {},
});
const alice: SessionIdentity = {
  role: 'authenticated',
  issuer: 'https://one.example',
  subject: 'alice',
  claims: { claims: { sub: 'alice' }, lookup: undefined },
  expiresAt: 1_000,
};
const nobody = { ...alice, issuer: undefined, subject: undefined };
const kept = (identity: SessionIdentity | undefined, settings = '[]') =>
  ({ identity, settings }) as Session;

const OTHERS: Readonly<Record<string, SessionIdentity>> = {
  'the same subject of another issuer': { ...alice, issuer: 'https://two.example' },
  'another subject': { ...alice, subject: 'bob' },
  'issuer and subject that read the same in a row': {
    ...alice,
    issuer: 'https://one.example","alice',
    subject: '',
  },
  nobody,
};

describe('same-identity', () => {
  const reuse = createReuse('same-identity', mode(true));

  test.each(Object.entries(OTHERS))('keeps nothing of a user for %s', (_, other) => {
    expect(reuse.keysFor(other, '[]')).not.toContain(reuse.keyToKeep(kept(alice)));
    expect(isSameIdentity(alice, other)).toBe(false);
  });

  test('keeps a session for its user with another token, who is not the same until that is installed', () => {
    const renewed = { ...alice, expiresAt: 2_000 };

    expect(reuse.keysFor(renewed, '[]')).toContain(reuse.keyToKeep(kept(alice)));
    expect(isSameIdentity(alice, renewed)).toBe(false);
    expect(isSameIdentity(alice, { ...alice })).toBe(true);
  });

  test('keeps none of nobody, none whose identity is uncertain, and none for other settings', () => {
    expect(reuse.keyToKeep(kept(nobody))).toBeUndefined();
    expect(reuse.keyToKeep(kept(undefined))).toBeUndefined();
    expect(reuse.keysFor(alice, '[["a","b"]]')).not.toContain(reuse.keyToKeep(kept(alice)));
  });

  test('wants just the same token where the identity is part of the login', () => {
    const exact = createReuse('same-identity', mode(false));
    const key = exact.keyToKeep(kept(alice));

    expect(exact.keysFor(alice, '[]')).toEqual([key]);
    expect(exact.keysFor({ ...alice, expiresAt: 2_000 }, '[]')).not.toContain(key);
    const claims = { ...alice.claims, claims: { sub: 'alice', org: 'two' } };
    expect(exact.keysFor({ ...alice, claims }, '[]')).not.toContain(key);
  });
});

test('never, and a mode in which nothing is used again, keep nothing', () => {
  expect(createReuse('never', mode(true)).keyToKeep(kept(alice))).toBeUndefined();
  expect(createReuse('any', mode(true, false)).keyToKeep(kept(alice))).toBeUndefined();
});

test('any keeps a session for everybody with the same settings, but not where the identity is part of the login', () => {
  const any = createReuse('any', mode(true));
  expect(any.keysFor(nobody, '[]')).toContain(any.keyToKeep(kept(alice)));

  const exact = createReuse('any', mode(false));
  expect(exact.forAnybody).toBe(false);
  expect(exact.keysFor({ ...alice, subject: 'bob' }, '[]')).not.toContain(
    exact.keyToKeep(kept(alice)),
  );
});
