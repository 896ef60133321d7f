/**
 * Issuers that fail for a long time, and strangers who would make it worse: real HTTP, and a clock that the test turns.
 *
 * Everything that waits for time waits for ever here unless the test lets time pass.
 */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import type { ProxyError } from '../../src/errors.ts';
import { createVerifier, type Verifier } from '../../src/identity/jwt.ts';
import { type Fault, type Issuer, startIssuer } from '../support/issuer.ts';
import { configWith, refusalOf } from './rig.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance', 'Date'] });
});

afterEach(() => {
  vi.useRealTimers();
});

interface Rig extends AsyncDisposable {
  readonly issuer: Issuer;
  readonly verifier: Verifier;
  readonly problems: string[];
  /** When each fetch came, in seconds. */
  readonly fetchedAt: number[];
  /** Lets seconds pass, one by one; what they set off has time to come to an end in each. */
  pass(seconds: number, each?: (second: number) => Promise<unknown>): Promise<void>;
  login(): Promise<string>;
}

async function startRig(
  jwks: ConfigInput['jwks'] = {},
  limits: ConfigInput['limits'] = {},
): Promise<Rig> {
  const issuer = await startIssuer({ algorithms: ['ES256'] });
  const problems: string[] = [];
  const fetchedAt: number[] = [];
  const verifier = createVerifier(
    configWith({ dev: issuer.provider({ roles: ['authenticated'] }) }, { jwks, limits }),
    { onKeyProblem: (_, problem) => problems.push(problem) },
  );
  const note = () => {
    while (fetchedAt.length < issuer.fetches) fetchedAt.push(performance.now() / 1_000);
  };
  return {
    issuer,
    verifier,
    problems,
    fetchedAt,
    async pass(seconds, each) {
      for (let second = 0; second < seconds; second += 1) {
        await vi.advanceTimersByTimeAsync(1_000);
        await settle(issuer);
        note();
        await each?.(second);
        note();
      }
    },
    async login() {
      const token = issuer.mint({ sub: 'alice' }, { now: Date.now() });
      const outcome = verifier.verify(token, 'alice').then(
        ({ subject }) => subject,
        (error: Error) => error.message,
      );
      const said = await outcome;
      note();
      return said;
    },
    async [Symbol.asyncDispose]() {
      verifier.close();
      await issuer.close();
    },
  };
}

/** Until the issuer has answered whatever it was asked, and we have read it: sockets live in real time. */
async function settle(issuer: Issuer): Promise<void> {
  for (let quiet = 0; quiet < 10; quiet += 1) {
    if (issuer.busy) quiet = 0;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A token with this kid, which nobody has. No honest signature is needed: none is looked at. */
function tokenWith(kid: string, { issuer, audience }: Issuer): string {
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const claims = { iss: issuer, aud: audience, sub: 'eve', exp: Date.now() / 1_000 + 60 };
  return `${encode({ alg: 'ES256', kid })}.${encode(claims)}.${'A'.repeat(86)}`;
}

/** The most that came within any minute. */
function mostInAMinute(times: readonly number[]): number {
  return Math.max(...times.map((from) => times.filter((t) => t >= from && t < from + 60).length));
}

const OUTAGES: readonly (readonly [string, Fault])[] = [
  ['errors', { kind: 'status', status: 503 }],
  ['resets', { kind: 'drop' }],
  ['garbage', { kind: 'body', body: '<!doctype html>' }],
  ['an empty set', { kind: 'body', body: '{"keys":[]}' }],
];

describe('an hour without the issuer', () => {
  test.each(OUTAGES)('of %s: every login by a known key succeeds', async (_, fault) => {
    await using rig = await startRig({}, { tokenCacheEntries: 0 });
    expect(await rig.login()).toBe('alice');
    // The worst moment: just before the keys would have been refreshed.
    await rig.pass(149);
    rig.issuer.breakDown(fault);
    const before = rig.issuer.fetches;
    const outcomes = new Map<string, number>();

    await rig.pass(3_600, async () => {
      const said = await rig.login();
      outcomes.set(said, (outcomes.get(said) ?? 0) + 1);
    });

    expect([...outcomes]).toEqual([['alice', 3_600]]);
    const fetches = rig.issuer.fetches - before;
    // One a minute, with the jitter, and a few more at first.
    expect(fetches).toBeGreaterThanOrEqual(54);
    expect(fetches).toBeLessThanOrEqual(61);
    expect(mostInAMinute(rig.fetchedAt)).toBe(2);
    expect(rig.problems).toHaveLength(fetches);
  });

  test('of silence: every login by a known key succeeds and none waits', async () => {
    await using rig = await startRig({}, { tokenCacheEntries: 0 });
    await rig.login();
    rig.issuer.breakDown({ kind: 'hang' });
    let logins = 0;

    // No time passes during a login, so one that waited for the issuer would never end.
    await rig.pass(3_600, async () => {
      expect(await rig.login()).toBe('alice');
      logins += 1;
    });

    expect(logins).toBe(3_600);
    expect(rig.issuer.fetches).toBeLessThanOrEqual(66);
    expect(mostInAMinute(rig.fetchedAt)).toBeLessThanOrEqual(2);
  });

  test('ends for them when the keys are older than freshMs and staleMs, and begins again at once', async () => {
    await using rig = await startRig();
    await rig.login();
    rig.issuer.breakDown({ kind: 'status', status: 503 });
    await rig.pass(3_899);
    expect(await rig.login()).toBe('alice');
    await rig.pass(1);
    expect(await rig.login()).toBe('cannot verify tokens at the moment');

    rig.issuer.breakDown(undefined);
    await rig.pass(75);

    expect(await rig.login()).toBe('alice');
  });

  test('is no reason to take an unknown key, nor to ask more often', async () => {
    await using rig = await startRig();
    await rig.login();
    rig.issuer.breakDown({ kind: 'status', status: 503 });
    const outcomes = new Set<string>();

    await rig.pass(600, async (second) => {
      const error = await refusalOf(
        rig.verifier.verify(tokenWith(`random-${second}`, rig.issuer), 'alice'),
      );
      outcomes.add(error.code);
    });

    expect([...outcomes]).toEqual(['token_rejected']);
    expect(mostInAMinute(rig.fetchedAt)).toBeLessThanOrEqual(2);
    expect(await rig.login()).toBe('alice');
  });
});

describe('a thousand logins a second with random kids, or a hundred', () => {
  test.each([
    ['a healthy issuer', undefined, true, 1_000],
    ['an issuer that went down', { kind: 'status', status: 503 }, true, 100],
    ['an issuer that hangs', { kind: 'hang' }, true, 100],
    ['an issuer that was never up', { kind: 'drop' }, false, 100],
  ] as const)('are at most two fetches a minute at %s', async (_, fault, warm, perSecond) => {
    await using rig = await startRig();
    if (warm) expect(await rig.login()).toBe('alice');
    rig.issuer.breakDown(fault);
    let kid = 0;
    const pending: Promise<string>[] = [];
    const codeOf = ({ code }: ProxyError) => code;

    await rig.pass(65, async (second) => {
      // All of them when a fetch may be allowed again, a few in between: it is the seconds that make this test long.
      const logins = second % 30 < 4 ? perSecond : 20;
      for (let login = 0; login < logins; login += 1) {
        kid += 1;
        const token = tokenWith(`random-${kid}`, rig.issuer);
        pending.push(rig.verifier.verify(token, 'u').then(() => 'accepted', codeOf));
      }
      await settle(rig.issuer);
      if (warm) expect(await rig.login()).toBe('alice');
    });
    rig.verifier.close();

    const refused = warm ? 'token_rejected' : 'keys_unavailable';
    expect(new Set(await Promise.all(pending))).toEqual(new Set([refused]));
    expect(rig.fetchedAt.length).toBeGreaterThanOrEqual(2);
    expect(mostInAMinute(rig.fetchedAt)).toBeLessThanOrEqual(2);
  });

  test('do not keep a new key out for longer than a minute', async () => {
    await using rig = await startRig();
    await rig.login();
    let second = 0;
    const storm = async () => {
      for (let n = 0; n < 10; n += 1) {
        await refusalOf(rig.verifier.verify(tokenWith(`${second}-${n}`, rig.issuer), 'u'));
      }
    };
    await rig.pass(45, storm);
    rig.issuer.rotate();

    let waited = 0;
    while ((await rig.login()) !== 'alice') {
      waited += 1;
      second += 1;
      await rig.pass(1, storm);
    }

    expect(waited).toBeLessThanOrEqual(60);
  });
});

test('one client with a key long gone does not use up the fetches that a new key needs', async () => {
  await using rig = await startRig();
  await rig.login();
  const gone = tokenWith('gone', rig.issuer);
  const fetchesIn = async (seconds: number) => {
    const before = rig.issuer.fetches;
    await rig.pass(seconds, () => refusalOf(rig.verifier.verify(gone, 'u')));
    return rig.issuer.fetches - before;
  };

  const fetches = [await fetchesIn(600), await fetchesIn(600), await fetchesIn(600)];

  // By itself the proxy asks every 150 s: four times in ten minutes. Without a memory for kids it would be twenty.
  expect(fetches[0]).toBeLessThanOrEqual(8);
  expect(fetches[2]).toBeLessThanOrEqual(6);
  rig.issuer.rotate();
  expect(await rig.login()).toBe('alice');
});

describe('keys that nobody asks for', () => {
  test('are refreshed at half of their time, so no login ever waits for them', async () => {
    await using rig = await startRig();
    rig.verifier.warm();
    await rig.pass(1);
    expect(rig.issuer.fetches).toBe(1);

    await rig.pass(900);

    expect(rig.issuer.fetches).toBe(7);
    const gaps = rig.fetchedAt.slice(1).map((time, n) => time - (rig.fetchedAt[n] ?? 0));
    expect(gaps.every((gap) => gap >= 149 && gap <= 151)).toBe(true);
    // Nobody has logged in yet, and the issuer says nothing any more: the first one does not even notice.
    rig.issuer.breakDown({ kind: 'hang' });
    expect(await rig.login()).toBe('alice');
  });

  test('are gone when they were withdrawn although nobody logged in, D8', async () => {
    await using rig = await startRig();
    await rig.login();
    const stolen = rig.issuer.mint({ sub: 'eve' }, { now: Date.now(), expiresIn: 86_400 });
    rig.issuer.rotate();
    await rig.pass(151);

    expect((await refusalOf(rig.verifier.verify(stolen, 'eve'))).code).toBe('token_rejected');
  });

  test('of an issuer that says no-store are asked for twice a minute and no more often', async () => {
    await using rig = await startRig();
    rig.issuer.headers = { 'cache-control': 'no-store' };
    await rig.login();

    await rig.pass(600, () => rig.login());

    expect(mostInAMinute(rig.fetchedAt)).toBe(2);
    expect(rig.issuer.fetches).toBeLessThanOrEqual(21);
  });

  test('are tried again before they are stale when a refresh fails', async () => {
    await using rig = await startRig();
    await rig.login();
    rig.issuer.breakDown({ kind: 'drop' });
    await rig.pass(151);
    const failed = rig.issuer.fetches;
    expect(failed).toBeGreaterThan(1);
    rig.issuer.breakDown(undefined);
    rig.issuer.rotate();

    await rig.pass(90);

    // The new key is known already: it is no reason for a fetch.
    const fetches = rig.issuer.fetches;
    expect(await rig.login()).toBe('alice');
    expect(rig.issuer.fetches).toBe(fetches);
  });

  test('are refreshed for the verifier that follows when the one before it is closed', async () => {
    await using rig = await startRig();
    await rig.login();
    const config = configWith({ dev: rig.issuer.provider({ roles: ['authenticated'] }) });
    const follower = createVerifier(config, { predecessor: rig.verifier });
    rig.verifier.close();
    rig.issuer.rotate();

    await rig.pass(151);

    expect(rig.issuer.fetches).toBe(2);
    const token = rig.issuer.mint({ sub: 'alice' }, { now: Date.now() });
    expect((await follower.verify(token, 'u')).subject).toBe('alice');
    expect(rig.issuer.fetches).toBe(2);
    follower.close();
    expect(vi.getTimerCount()).toBe(0);
  });

  test('are waited for no longer than a timer can wait, whatever is configured', async () => {
    await using rig = await startRig({ retryMs: 2 ** 31 - 1, maxRetryMs: 2 ** 31 - 1 });
    const timers = vi.spyOn(globalThis, 'setTimeout');
    rig.issuer.breakDown({ kind: 'drop' });
    await rig.login();
    await rig.pass(2);

    const delays = timers.mock.calls.map(([, delay = 0]) => delay);
    timers.mockRestore();
    expect(delays).toContain(2 ** 31 - 1);
    expect(Math.max(...delays)).toBe(2 ** 31 - 1);
  });

  test('leave no timer behind', async () => {
    const before = vi.getTimerCount();
    const rig = await startRig();
    await rig.login();
    expect(vi.getTimerCount()).toBeGreaterThan(before);

    await rig[Symbol.asyncDispose]();

    expect(vi.getTimerCount()).toBe(before);
  });
});

test('a slow issuer adds nothing to the logins of another', async () => {
  await using slow = await startIssuer({ algorithms: ['ES256'] });
  await using quick = await startIssuer({ algorithms: ['ES256'] });
  slow.breakDown({ kind: 'hang' });
  const verifier = createVerifier(
    configWith({
      slow: slow.provider({ roles: ['authenticated'] }),
      quick: quick.provider({ roles: ['authenticated'] }),
    }),
  );
  const login = (issuer: Issuer, sub: string) =>
    verifier.verify(issuer.mint({ sub }, { now: Date.now() }), 'u');
  let over = 0;
  const waiting = Array.from({ length: 500 }, async (_, n) => {
    const error = await refusalOf(login(slow, `s${n}`));
    over += 1;
    return error.code;
  });
  await slow.fetched(1);

  // Time stands still: whoever waits for the slow issuer waits for ever. Cold, warm, and in a storm of unknown kids.
  for (let n = 0; n < 200; n += 1) expect((await login(quick, `q${n}`)).subject).toBe(`q${n}`);
  await refusalOf(verifier.verify(tokenWith('nobody', quick), 'u'));

  expect(over).toBe(0);
  await vi.advanceTimersByTimeAsync(5_000);
  expect(new Set(await Promise.all(waiting))).toEqual(new Set(['keys_unavailable']));
  expect([slow.fetches, quick.fetches]).toEqual([1, 2]);
  verifier.close();
});
