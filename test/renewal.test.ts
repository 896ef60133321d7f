/**
 * New tokens in the middle of a session, as their judge sees them: what is asked in which order, how often, and what a refusal
 * is called. The house around it is played by the test; through real PostgreSQL it is in `test/e2e/renewal.test.ts`.
 */
import { beforeEach, describe, expect, test } from 'vitest';
import { SessionClock } from '../src/deadline.ts';
import { type ErrorCode, ERRORS, ProxyError } from '../src/errors.ts';
import type { Identity } from '../src/identity/policy.ts';
import { createRenewal, type RenewalContext, type RenewedSession } from '../src/renewal.ts';

const IDENTITY: Identity = {
  provider: 'own',
  issuer: 'https://id.example.com',
  subject: 'alice',
  kid: 'k1',
  role: 'authenticated',
  upstream: 'main',
  claims: { sub: 'alice', jti: '0' },
  expiresAt: 1_000_000,
};
const TOO_LATE = 'it came too late: the session is ending';
const NOT_GOOD = 'its signature, issuer or claims are not good';
const NOT_NOW = 'it cannot be checked at the moment';

let events: string[];
let session: { -readonly [Key in keyof RenewedSession]: RenewedSession[Key] };
let context: { -readonly [Key in keyof RenewalContext]: RenewalContext[Key] };
const judge = () => createRenewal(session, () => context);

beforeEach(() => {
  events = [];
  session = {
    asking: { user: 'authenticated', database: 'app', sni: undefined },
    identity: IDENTITY,
    bind: async ({ claims, expiresAt }, _, assertGood) => {
      assertGood();
      events.push(`bind ${String(claims['jti'])} until ${expiresAt}`);
    },
    ending: undefined,
    believedUntil: (expiresAt) => expiresAt + 5,
    onRenewal: ({ claims }) => events.push(`renewed ${String(claims['jti'])}`),
    onRefusal: ({ code }) => events.push(`refused ${code}`),
  };
  context = {
    verifier: {
      verify: async (token) => ({ jti: token }) as never,
      warm: () => {},
      keyStates: () => [],
      close: () => {},
    },
    loginTimeoutMs: 5_000,
    authorize: (_, token) => ({
      ...IDENTITY,
      claims: { sub: 'alice', jti: (token as unknown as { jti: string }).jti },
    }),
  };
});

const refuse = (error: Error) => () => {
  throw error;
};

describe('a new token', () => {
  test('is believed for as long as its session says', async () => {
    expect(await judge()('1')).toBeUndefined();

    expect(events).toEqual(['bind 1 until 1000005', 'renewed 1']);
  });

  test('that says what the last one said does nothing, but must be good', async () => {
    const one = judge();
    expect(await one('0')).toBeUndefined();
    await one('1');
    expect(await one('1')).toBeUndefined();
    context.authorize = refuse(new ProxyError('token_revoked', { user: 'authenticated' }));

    expect(await one('1')).toBe('it was revoked');
    expect(events).toEqual(['bind 1 until 1000005', 'renewed 1', 'refused token_revoked']);
  });

  test('has to wait where the last one was taken less than a second ago', async () => {
    const one = judge();
    await one('1');
    const startedAt = performance.now();

    expect(await one('2')).toBeUndefined();

    expect(performance.now() - startedAt).toBeGreaterThan(950);
    expect(events.filter((event) => event.startsWith('bind'))).toHaveLength(2);
  });

  test('that is revoked while its user is looked up is not put on the session', async () => {
    const { bind } = session;
    session.bind = async (...given) => {
      context.authorize = refuse(new ProxyError('token_revoked', { user: 'authenticated' }));
      await bind?.(...given);
    };

    expect(await judge()('1')).toBe('it was revoked');
    expect(events).toEqual(['refused token_revoked']);
  });

  test('is not put on a session that begins to end meanwhile', async () => {
    const { bind } = session;
    session.bind = async (...given) => {
      session.ending = new ProxyError('lifetime_over');
      await bind?.(...given);
    };

    expect(await judge()('1')).toBe(TOO_LATE);
    expect(events).toEqual(['refused lifetime_over']);
  });

  test.each<[ErrorCode, string]>([
    ['token_missing', NOT_GOOD],
    ['token_rejected', NOT_GOOD],
    ['claims_rejected', NOT_GOOD],
    ['token_expired', 'it has expired'],
    ['role_forbidden', 'it is for another user, role or database'],
    ['session_expired', TOO_LATE],
    ['shutdown', TOO_LATE],
    ['upstream_login_rejected', NOT_NOW],
    ['upstream_rejected', NOT_NOW],
    ['upstream_unreachable', NOT_NOW],
    ['draining', NOT_NOW],
    ['keys_unavailable', NOT_NOW],
    ['lookup_failed', NOT_NOW],
    ['internal', NOT_NOW],
  ])('is refused for %s as: %s', async (code, why) => {
    const values = Object.fromEntries(
      [...ERRORS[code].message.matchAll(/\{(\w+)\}/g)].map(([, name]) => [name, 'x']),
    );
    session.bind = refuse(new (ProxyError as new (...given: unknown[]) => Error)(code, values));

    expect(await judge()('1')).toBe(why);
    expect(events).toEqual([`refused ${code}`]);
  });
});

test('a token is believed by the rules that its session began with, and no longer than the session may last', () => {
  const startedAt = Date.now();
  const clockOf = (rules: object) =>
    new SessionClock(
      {
        onTokenExpiry: 'drain',
        graceMs: 1_000,
        noticeMs: 0,
        maxLifetimeMs: 0,
        drainTimeoutMs: 0,
        ...rules,
      },
      Infinity,
      { onNotice() {}, onEnd() {} },
    );
  const [draining, strict, short] = [{}, { onTokenExpiry: 'terminate' }, { maxLifetimeMs: 60_000 }]
    .map(clockOf)
    .map((clock) => {
      clock.cancel();
      return clock.believedUntil(startedAt + 3_600_000) - startedAt;
    });

  expect([draining, strict]).toEqual([3_601_000, 3_600_000]);
  expect(short).toBeGreaterThanOrEqual(61_000);
  expect(short).toBeLessThan(61_500);
});
