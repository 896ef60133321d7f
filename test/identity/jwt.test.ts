/** The verifier: what it returns, the tokens it remembers, and what it says to those whose token was cut off. */
import { describe, expect, test, vi } from 'vitest';
import { createVerifier, type Verifier, type VerifierOptions } from '../../src/identity/jwt.ts';
import type { ConfigInput } from '../../src/config.ts';
import {
  createIssuerKey,
  type Issuer,
  type IssuerOptions,
  startIssuer,
} from '../support/issuer.ts';
import { configWith, eventually, expectNoLeak, reasonOf, refusalOf, sentToClient } from './rig.ts';

interface Rig extends AsyncDisposable {
  readonly issuer: Issuer;
  /** Wall clock and monotonic clock; both stand still until moved. */
  readonly clock: { wallMs: number; monotonicMs: number };
  verify(token: string): ReturnType<ReturnType<typeof createVerifier>['verify']>;
  close(): void;
}

async function startRig(
  settings: {
    issuer?: IssuerOptions;
    provider?: Partial<ConfigInput['providers'][string]>;
    config?: Partial<ConfigInput>;
    options?: VerifierOptions;
  } = {},
): Promise<Rig> {
  const issuer = await startIssuer({ algorithms: ['ES256'], ...settings.issuer });
  const clock = { wallMs: Date.UTC(2026, 0, 1), monotonicMs: 0 };
  const dev = issuer.provider({ roles: ['authenticated'], ...settings.provider });
  const verifier = createVerifier(configWith({ dev }, settings.config), {
    now: () => clock.wallMs,
    monotonicNow: () => clock.monotonicMs,
    ...settings.options,
  });
  return {
    issuer,
    clock,
    verify: (token) => verifier.verify(token, 'alice'),
    close: () => verifier.close(),
    async [Symbol.asyncDispose]() {
      verifier.close();
      await issuer.close();
    },
  };
}

const mintAt = ({ issuer, clock }: Rig, claims = {}, expiresIn = 3600) =>
  issuer.mint({ sub: 'alice', ...claims }, { now: clock.wallMs, expiresIn });

describe('a good token', () => {
  test.each([
    'RS256',
    'RS384',
    'RS512',
    'PS256',
    'PS384',
    'PS512',
    'ES256',
    'ES384',
    'ES512',
    'EdDSA',
  ] as const)('verifies under %s', async (alg) => {
    await using rig = await startRig({
      issuer: { algorithms: [alg] },
      provider: { algorithms: [alg] },
    });

    const verified = await rig.verify(mintAt(rig));

    expect(verified.alg).toBe(alg);
  });

  test('yields its provider, its subject, its key and its claims', async () => {
    await using rig = await startRig();

    const verified = await rig.verify(mintAt(rig, { email: 'alice@example.com' }, 60.7));

    expect(verified).toEqual({
      provider: 'dev',
      issuer: rig.issuer.issuer,
      subject: 'alice',
      kid: rig.issuer.key().kid,
      alg: 'ES256',
      claims: {
        iss: rig.issuer.issuer,
        aud: 'pgjot-tests',
        sub: 'alice',
        iat: rig.clock.wallMs / 1000,
        exp: rig.clock.wallMs / 1000 + 60.7,
        email: 'alice@example.com',
      },
      expiresAt: rig.clock.wallMs + 60_700,
      toleranceMs: 30_000,
    });
    expect(Object.isFrozen(verified)).toBe(true);
  });

  test('needs no kid where one key alone fits its alg', async () => {
    await using rig = await startRig({ issuer: { algorithms: ['RS256', 'ES256'] } });

    const token = rig.issuer.mint(
      { sub: 'alice' },
      { alg: 'ES256', kid: null, now: rig.clock.wallMs },
    );

    expect((await rig.verify(token)).kid).toBeUndefined();
  });

  test('needs no kid where up to four keys fit its alg: each is tried', async () => {
    await using rig = await startRig({ issuer: { algorithms: Array(4).fill('ES256') } });
    const tokens = rig.issuer.keys.map((key) =>
      rig.issuer.mint({ sub: 'alice' }, { key, kid: null, now: rig.clock.wallMs }),
    );

    for (const token of tokens) expect((await rig.verify(token)).subject).toBe('alice');
  });

  test('needs a kid where more keys fit its alg than may be tried', async () => {
    await using rig = await startRig({ issuer: { algorithms: Array(5).fill('ES256') } });

    const token = rig.issuer.mint({ sub: 'alice' }, { kid: null, now: rig.clock.wallMs });

    expect(reasonOf(await refusalOf(rig.verify(token)))).toMatch(
      /^no kid, and none or too many keys for alg "ES256" at issuer "/,
    );
    expect(rig.issuer.fetches).toBe(1);
  });

  test('needs a kid always where the configuration says so', async () => {
    await using rig = await startRig({
      issuer: { algorithms: ['ES256'] },
      config: { jwks: { maxKeysTried: 0 } },
    });

    const token = rig.issuer.mint({ sub: 'alice' }, { kid: null, now: rig.clock.wallMs });

    expect(reasonOf(await refusalOf(rig.verify(token)))).toMatch(/^no kid, and none or too many/);
  });

  test('without a kid is refused where none of the keys that fit has signed it', async () => {
    await using rig = await startRig({ issuer: { algorithms: ['ES256', 'ES256'] } });
    const key = createIssuerKey('ES256');

    const token = rig.issuer.mint({ sub: 'alice' }, { key, kid: null, now: rig.clock.wallMs });

    const error = await refusalOf(rig.verify(token));
    expect([error.code, reasonOf(error)]).toEqual([
      'token_rejected',
      'the signature does not verify',
    ]);
  });
});

describe('the rules of a provider', () => {
  test('an audience is not asked for where any will do', async () => {
    await using rig = await startRig({ provider: { anyAudience: true } });

    expect((await rig.verify(mintAt(rig, { aud: undefined }))).subject).toBe('alice');
  });

  test('one of several audiences is enough', async () => {
    await using rig = await startRig({ provider: { audience: ['one', 'two'] } });

    expect((await rig.verify(mintAt(rig, { aud: ['two', 'x'] }))).subject).toBe('alice');
    expect((await refusalOf(rig.verify(mintAt(rig)))).code).toBe('claims_rejected');
  });

  test.each([
    ['is missing', {}],
    ['is null', { scope: null, constructor: null }],
  ])('a required claim that %s is named, whatever it is called', async (_, claims) => {
    await using rig = await startRig({ provider: { requiredClaims: ['scope'] } });
    await using strange = await startRig({ provider: { requiredClaims: ['constructor'] } });

    expect((await refusalOf(rig.verify(mintAt(rig, claims)))).detail).toBe(
      'The claim "scope" is missing.',
    );
    expect((await refusalOf(strange.verify(mintAt(strange, claims)))).detail).toBe(
      'The claim "constructor" is missing.',
    );
    expect((await rig.verify(mintAt(rig, { scope: '' }))).subject).toBe('alice');
  });

  test('a token older than maxTokenAgeMs is refused, tolerance added', async () => {
    await using rig = await startRig({ provider: { maxTokenAgeMs: 60_000 } });
    const seconds = rig.clock.wallMs / 1000;

    expect((await rig.verify(mintAt(rig, { iat: seconds - 90 }))).subject).toBe('alice');
    const tooOld = await refusalOf(rig.verify(mintAt(rig, { iat: seconds - 91 })));
    expect([tooOld.code, tooOld.detail]).toEqual(['token_expired', 'The token is too old.']);
    const ageless = await refusalOf(rig.verify(mintAt(rig, { iat: undefined })));
    expect([ageless.code, ageless.detail]).toEqual([
      'claims_rejected',
      'The claim "iat" is missing.',
    ]);
  });
});

describe('a token seen before', () => {
  test('costs no signature check, and yields the same frozen object', async () => {
    await using rig = await startRig();
    const token = mintAt(rig);
    const verify = vi.spyOn(crypto.subtle, 'verify');

    const first = await rig.verify(token);
    const second = await rig.verify(token);

    expect(second).toBe(first);
    expect(verify).toHaveBeenCalledTimes(1);
    verify.mockRestore();
  });

  test('expires all the same', async () => {
    await using rig = await startRig();
    const token = mintAt(rig, {}, 60);
    await rig.verify(token);

    rig.clock.wallMs += 60_000 + 29_999;
    expect((await rig.verify(token)).subject).toBe('alice');
    rig.clock.wallMs += 1;

    const error = await refusalOf(rig.verify(token));
    expect([error.code, error.detail]).toEqual(['token_expired', 'The token has expired.']);
  });

  test('D9 is not valid yet again when the clock was set back', async () => {
    await using rig = await startRig();
    const token = mintAt(rig, { nbf: rig.clock.wallMs / 1000 });
    await rig.verify(token);

    rig.clock.wallMs -= 3_600_000;

    expect((await refusalOf(rig.verify(token))).detail).toBe('The token is not valid yet.');
  });

  test('is refused once its issuer has withdrawn the key', async () => {
    await using rig = await startRig();
    const token = mintAt(rig);
    await rig.verify(token);
    rig.issuer.rotate();

    rig.clock.monotonicMs += 300_000;
    await rig.verify(token);
    await eventually(async () => {
      const error = await refusalOf(rig.verify(token));
      expect(reasonOf(error)).toMatch(/^no key with kid/);
    });
  });

  test('stays good, after one more check, when the issuer adds a key', async () => {
    await using rig = await startRig();
    const token = mintAt(rig);
    const first = await rig.verify(token);
    rig.issuer.rotate({ keepOld: true });

    // A token of the new key makes the key set look again.
    await rig.verify(mintAt(rig));

    expect(await rig.verify(token)).toStrictEqual(first);
    expect(await rig.verify(token)).not.toBe(first);
  });

  test('is refused when the keys have been stale for too long', async () => {
    await using rig = await startRig({ config: { jwks: { staleMs: 1000 } } });
    const token = mintAt(rig);
    await rig.verify(token);
    rig.issuer.breakDown({ kind: 'status', status: 500 });

    rig.clock.monotonicMs += 301_000;

    expect((await refusalOf(rig.verify(token))).code).toBe('keys_unavailable');
  });

  test.each([0, 1, 3, 20])('is remembered within a limit of %i', async (tokenCacheEntries) => {
    await using rig = await startRig({ config: { limits: { tokenCacheEntries } } });
    const tokens = Array.from({ length: 10 }, (_, n) => mintAt(rig, { n }));
    const verify = vi.spyOn(crypto.subtle, 'verify');

    for (const token of tokens) await rig.verify(token);
    for (const token of tokens.toReversed()) await rig.verify(token);

    const remembered = 20 - verify.mock.calls.length;
    verify.mockRestore();
    expect(remembered).toBe(Math.min(tokenCacheEntries, 10));
  });

  test('is not remembered where it was refused', async () => {
    await using rig = await startRig();
    const token = mintAt(rig, { sub: '' });
    const verify = vi.spyOn(crypto.subtle, 'verify');

    await refusalOf(rig.verify(token));
    await refusalOf(rig.verify(token));

    expect(verify).toHaveBeenCalledTimes(2);
    verify.mockRestore();
  });
});

describe('a token that is none', () => {
  test('an empty password is missing, not rejected', async () => {
    await using rig = await startRig();

    const error = await refusalOf(rig.verify(''));

    expect([error.code, reasonOf(error)]).toEqual(['token_missing', 'the password is empty']);
  });

  test('a cut token gets a hint and nothing else', async () => {
    await using rig = await startRig();
    const [header, payload] = mintAt(rig).split('.');

    const error = await refusalOf(rig.verify(`${header}.${payload?.slice(0, 40)}`));

    expect(sentToClient(error)).toMatchObject({ detail: undefined, sqlstate: '28P01' });
    expect(error.hint).toMatch(/^The token has no third part: .*4,095.*2,047.*PGPASSWORD/);
  });

  test.each([
    [99, /PostgreSQL 13's psql/],
    [255, /pgagroal/],
    [995, /PostgreSQL 13 or older/],
    [2047, /PgBouncer 1\.25 or older/],
    [4095, /terminal at psql's password prompt/],
  ])('a token cut at %i bytes is told by whom', async (length, culprit) => {
    await using rig = await startRig({ issuer: { algorithms: ['RS256'] } });
    const token = mintAt(rig, { pad: 'x'.repeat(4_000) }).slice(0, length);

    const error = await refusalOf(rig.verify(token));

    expect(error.code).toBe('token_rejected');
    expect(error.hint).toMatch(culprit);
    expectNoLeak(error, token);
  });

  test('a signature cut at 2,047 bytes gets the same hint as one with no signature', async () => {
    await using rig = await startRig();
    const long = mintAt(rig, { pad: 'x'.repeat(1_300) });
    const cut = long.slice(0, 2047).padEnd(2047, 'A');

    expect(cut.split('.')).toHaveLength(3);
    expect((await refusalOf(rig.verify(cut))).hint).toMatch(/PgBouncer/);
  });

  test.each(['hunter2', 'correct horse battery staple'])(
    'the password %s is not told that it was cut',
    async (password) => {
      await using rig = await startRig();

      expect((await refusalOf(rig.verify(password))).hint).toBeUndefined();
    },
  );

  test('C21 a token sent as the user name appears nowhere', async () => {
    await using rig = await startRig();
    const token = mintAt(rig);
    const verifier = createVerifier(
      configWith({ dev: rig.issuer.provider({ roles: ['analyst'] }) }),
    );

    const error = await refusalOf(verifier.verify('x', token));

    verifier.close();
    expect(error.message).toBe('password authentication failed for user "[token]"');
    expectNoLeak(error, token);
  });
});

test('what an unavailable issuer said is in the cause, and the client hears 57P03', async () => {
  await using rig = await startRig();
  rig.issuer.breakDown({ kind: 'status', status: 503 });

  const error = await refusalOf(rig.verify(mintAt(rig)));

  expect(sentToClient(error)).toMatchObject({
    message: 'cannot verify tokens at the moment',
    sqlstate: '57P03',
    detail: undefined,
    hint: undefined,
  });
  expect(reasonOf(error)).toBe('no usable keys of provider "dev": the answer has status 503');
});

test('a slow issuer does not delay the logins of another', async () => {
  await using slow = await startIssuer({ algorithms: ['ES256'] });
  await using quick = await startIssuer({ algorithms: ['ES256'] });
  slow.breakDown({ kind: 'hang' });
  const verifier = createVerifier(
    configWith({
      slow: slow.provider({ roles: ['authenticated'] }),
      quick: quick.provider({ roles: ['authenticated'] }),
    }),
  );
  const waiting = refusalOf(verifier.verify(slow.mint({ sub: 'tortoise' }), 'u'));
  await slow.fetched(1);

  expect((await verifier.verify(quick.mint({ sub: 'hare' }), 'u')).subject).toBe('hare');

  verifier.close();
  expect((await waiting).code).toBe('keys_unavailable');
});

test('closing aborts the fetch in flight and leaves no socket and no timer', async () => {
  const resources = () =>
    process.getActiveResourcesInfo().filter((name) => /^TCP|^Timeout/.test(name)).length;
  const settle = async (most: number) => {
    const deadline = performance.now() + 10_000;
    while (resources() > most && performance.now() < deadline) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    return resources();
  };
  expect(await settle(0)).toBe(0);
  // Longer than the test may take: nothing but the close can end the fetch.
  const rig = await startRig({ config: { jwks: { timeoutMs: 60_000 } } });
  rig.issuer.breakDown({ kind: 'hang' });
  const waiting = refusalOf(rig.verify(mintAt(rig)));
  await rig.issuer.fetched(1);

  rig.close();

  expect((await waiting).code).toBe('keys_unavailable');
  await rig[Symbol.asyncDispose]();
  expect(await settle(0)).toBe(0);
});

test('a closed verifier fetches nothing any more', async () => {
  await using rig = await startRig();
  rig.close();

  const error = await refusalOf(rig.verify(mintAt(rig)));

  expect(reasonOf(error)).toBe('no usable keys of provider "dev": the proxy is closing');
  expect(rig.issuer.fetches).toBe(0);
});

describe('a verifier that follows another', () => {
  const settings = (issuer: Issuer) => ({ dev: issuer.provider({ roles: ['authenticated'] }) });
  const subjectOf = async (verifier: Verifier, issuer: Issuer) =>
    (await verifier.verify(issuer.mint({ sub: 'alice' }), 'u')).subject;

  test('keeps the keys of an issuer that is down just now', async () => {
    await using issuer = await startIssuer({ algorithms: ['ES256'] });
    const first = createVerifier(configWith(settings(issuer)));
    await subjectOf(first, issuer);
    issuer.breakDown({ kind: 'drop' });

    const second = createVerifier(configWith(settings(issuer), { log: { level: 'debug' } }), {
      predecessor: first,
    });
    first.close();

    expect(await subjectOf(second, issuer)).toBe('alice');
    expect(issuer.fetches).toBe(1);
    second.close();
  });

  test('keeps no keys where anything they depend on has changed', async () => {
    await using issuer = await startIssuer({ algorithms: ['ES256'] });
    const first = createVerifier(configWith(settings(issuer)));
    await subjectOf(first, issuer);
    issuer.breakDown({ kind: 'drop' });
    const { dev } = settings(issuer);

    for (const config of [
      configWith({ other: dev }),
      configWith({ dev: { ...dev, algorithms: ['ES256'] } }),
      configWith({ dev: { ...dev, jwksUri: `${issuer.url}/jwks.json?` } }),
      configWith({ dev }, { jwks: { maxKeys: 99 } }),
    ]) {
      const second = createVerifier(config, { predecessor: first });
      expect((await refusalOf(subjectOf(second, issuer))).code).toBe('keys_unavailable');
      second.close();
    }
    first.close();
  });

  test('keeps no verdict: a token is judged by the new rules', async () => {
    await using issuer = await startIssuer({ algorithms: ['ES256'] });
    const { dev } = settings(issuer);
    const first = createVerifier(configWith({ dev }));
    const token = issuer.mint({ sub: 'alice' });
    await first.verify(token, 'u');

    const second = createVerifier(configWith({ dev: { ...dev, requiredClaims: ['email'] } }), {
      predecessor: first,
    });

    expect((await refusalOf(second.verify(token, 'u'))).code).toBe('claims_rejected');
    expect(issuer.fetches).toBe(1);
    first.close();
    second.close();
  });

  test('and the one before it must both be closed before nothing is fetched any more', async () => {
    await using issuer = await startIssuer({ algorithms: ['ES256'] });
    const first = createVerifier(configWith(settings(issuer)));
    const second = createVerifier(configWith(settings(issuer)), { predecessor: first });

    second.close();
    expect(await subjectOf(first, issuer)).toBe('alice');
    first.close();
    issuer.rotate();

    expect((await refusalOf(subjectOf(first, issuer))).code).toBe('token_rejected');
    expect(issuer.fetches).toBe(1);
  });
});
