/** The key set: the attacks D1 to D10 on it, each by its name, on a clock of its own. */
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import type { LookupFunction } from 'node:net';
import { gzipSync } from 'node:zlib';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { ConfigInput, JwksConfig } from '../../src/config.ts';
import { KeySet } from '../../src/identity/jwks.ts';
import { createIssuerKey, type Fault, type Issuer, startIssuer } from '../support/issuer.ts';
import { configWith, eventually, reasonOf, refusalOf } from './rig.ts';

interface Rig extends AsyncDisposable {
  readonly issuer: Issuer;
  readonly keySet: KeySet;
  readonly clock: { ms: number };
  readonly problems: string[];
  /** Whether the issuer's present key is found. */
  knows(kid?: string): Promise<boolean>;
}

async function startRig(
  jwks: Partial<JwksConfig> = {},
  provider: Partial<ConfigInput['providers'][string]> = {},
): Promise<Rig> {
  const issuer = await startIssuer({ algorithms: ['ES256'] });
  const config = configWith(
    { dev: issuer.provider({ roles: ['authenticated'], ...provider }) },
    { jwks },
  );
  const clock = { ms: 1_000_000 };
  const problems: string[] = [];
  const keySet = new KeySet('dev', config.providers['dev']!, config.jwks, {
    monotonicNow: () => clock.ms,
    onKeyProblem: (id, problem) => problems.push(`${id}: ${problem}`),
  });
  return {
    issuer,
    keySet,
    clock,
    problems,
    knows: async (kid = issuer.key().kid) =>
      (await keySet.find(kid, 'ES256')).candidates.length > 0,
    async [Symbol.asyncDispose]() {
      keySet.close();
      await issuer.close();
    },
  };
}

/** Long enough for a request that was made to arrive. */
async function later(): Promise<void> {
  for (let turn = 0; turn < 50; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** As many logins at once, each with a kid that nobody has. */
const storm = ({ keySet }: Rig, count: number) =>
  Promise.allSettled(Array.from({ length: count }, (_, n) => keySet.find(`random-${n}`, 'ES256')));

describe('D1 unknown kids and outages', () => {
  test('a thousand logins at once with a cold cache are one fetch', async () => {
    await using rig = await startRig();

    const found = await Promise.all(Array.from({ length: 1000 }, () => rig.knows()));

    expect(found.every(Boolean)).toBe(true);
    expect(rig.issuer.fetches).toBe(1);
  });

  test('a thousand unknown kids in ten seconds are at most two fetches, cold or warm', async () => {
    await using rig = await startRig();

    for (let round = 0; round < 10; round += 1) {
      const outcomes = await storm(rig, 100);
      expect(outcomes.every(({ status }) => status === 'fulfilled')).toBe(true);
      rig.clock.ms += 1_000;
    }

    expect(rig.issuer.fetches).toBe(2);
  });

  test('an unknown kid on a cold cache is one fetch: the keys are as new as they get', async () => {
    await using rig = await startRig();

    expect(await rig.knows('nobody')).toBe(false);
    expect(rig.issuer.fetches).toBe(1);
  });

  test('a kid that was asked for twice in vain waits for a minute, after an outage too', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.issuer.breakDown({ kind: 'drop' });
    rig.clock.ms += 150_000;
    await rig.keySet.current();
    await eventually(() => expect(rig.problems).toHaveLength(1));
    rig.issuer.breakDown(undefined);
    rig.clock.ms += 60_000;
    const fetchesBy = async (kid: string) => {
      const before = rig.issuer.fetches;
      expect(await rig.knows(kid)).toBe(false);
      return rig.issuer.fetches - before;
    };
    await rig.keySet.current();
    await rig.issuer.fetched(3);
    await eventually(async () => expect(await fetchesBy('old')).toBe(1));

    const fetches: number[] = [];
    for (let half = 0; half < 4; half += 1) {
      rig.clock.ms += 30_000;
      fetches.push(await fetchesBy('old'));
    }

    // The first is beyond the ration. The second was in vain, so the third is not allowed and the fourth is.
    expect(fetches).toEqual([0, 1, 0, 1]);
  });

  test('one more fetch is allowed when the cooldown is over', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.clock.ms += 60_000;

    await storm(rig, 10);
    rig.clock.ms += 29_999;
    await storm(rig, 10);
    expect(rig.issuer.fetches).toBe(2);
    rig.clock.ms += 1;
    await storm(rig, 10);

    expect(rig.issuer.fetches).toBe(3);
  });

  test('no more than two fetches begin in any minute, whatever for', async () => {
    await using rig = await startRig();
    // One for the first login, one at once for an unknown kid: that is the ration.
    await rig.knows();
    await storm(rig, 1);

    rig.clock.ms += 59_999;
    await storm(rig, 10);
    expect(rig.issuer.fetches).toBe(2);
    rig.clock.ms += 1;
    await storm(rig, 10);

    expect(rig.issuer.fetches).toBe(3);
  });

  test('two hundred logins in an outage are at most two fetches, warm or cold', async () => {
    for (const warm of [true, false]) {
      await using rig = await startRig();
      if (warm) await rig.knows();
      rig.issuer.breakDown({ kind: 'status', status: 500 });
      const before = rig.issuer.fetches;

      for (let login = 0; login < 200; login += 1) await storm(rig, 1);

      expect(rig.issuer.fetches - before).toBeLessThanOrEqual(2);
    }
  });

  test('the cooldown is armed before the fetch, so a failing one does not disarm it', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.issuer.breakDown({ kind: 'drop' });
    await storm(rig, 1);
    const before = rig.issuer.fetches;

    // Beyond the backoff of the failure, within the cooldown.
    rig.clock.ms += 10_000;
    await storm(rig, 100);

    expect(rig.issuer.fetches).toBe(before);
  });

  test('failures back off from 1 s to 60 s', async () => {
    // So short a cooldown that the ration does not show.
    await using rig = await startRig({ cooldownMs: 1_000 });
    rig.issuer.breakDown({ kind: 'status', status: 500 });
    const pauses: number[] = [];

    for (let attempt = 1; attempt <= 9; attempt += 1) {
      await refusalOf(rig.keySet.current());
      expect(rig.issuer.fetches).toBe(attempt);
      const failedAt = rig.clock.ms;
      while (rig.issuer.fetches === attempt) {
        rig.clock.ms += 250;
        await refusalOf(rig.keySet.current());
        if (rig.issuer.fetches > attempt) pauses.push(rig.clock.ms - failedAt);
      }
      // The loop above made the next attempt already.
      attempt = rig.issuer.fetches - 1;
    }

    for (const [index, pause] of pauses.entries()) {
      const expected = Math.min(1_000 * 2 ** index, 60_000);
      expect(pause).toBeGreaterThanOrEqual(expected);
      expect(pause).toBeLessThanOrEqual(expected * 1.25 + 250);
    }
    expect(pauses.at(-1)).toBeGreaterThanOrEqual(60_000);
  });

  test('the first login after the backoff brings the keys back', async () => {
    await using rig = await startRig();
    rig.issuer.breakDown({ kind: 'drop' });
    await refusalOf(rig.keySet.current());
    rig.issuer.breakDown(undefined);

    expect(reasonOf(await refusalOf(rig.keySet.current()))).toMatch(/ECONNRESET|other side closed/);
    rig.clock.ms += 1_250;

    expect(await rig.knows()).toBe(true);
  });

  test('a new key is found at once, by one fetch', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.issuer.rotate({ keepOld: true });

    expect(await rig.knows()).toBe(true);
    expect(rig.issuer.fetches).toBe(2);
  });

  test('a new key is found by the refresh that was going on anyway', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.issuer.rotate();
    rig.clock.ms += 300_000;

    expect(await rig.knows()).toBe(true);
    expect(rig.issuer.fetches).toBe(2);
  });

  test('a new key is found although the refresh that is going on began before it was published', async () => {
    await using rig = await startRig();
    const old = rig.issuer.jwks;
    await rig.knows();
    // The answer on its way is the old one, and the new key is there before it has arrived.
    rig.issuer.breakDown({ kind: 'body', body: JSON.stringify(old) });
    rig.clock.ms += 300_000;
    await rig.keySet.current();
    await rig.issuer.fetched(2);
    rig.issuer.breakDown(undefined);
    rig.issuer.rotate();

    const found = await Promise.all([rig.knows(), rig.knows(), rig.knows()]);

    expect(found).toEqual([true, true, true]);
    expect(rig.issuer.fetches).toBe(3);
  });

  test('an unknown kid does not go round in circles where keys are stale on arrival', async () => {
    await using rig = await startRig({ freshMs: 1_000, cooldownMs: 1_000 });
    const hurry = setInterval(() => (rig.clock.ms += 5_000), 1);

    const found = await rig.knows('nobody');

    clearInterval(hurry);
    expect(found).toBe(false);
    expect(rig.issuer.fetches).toBeLessThanOrEqual(4);
  });
});

describe('D1 an issuer that renames or exchanges its keys', () => {
  const ec = createIssuerKey('ES256', 'first');

  test('a key under a new kid is found by it at once, and no more by the old one', async () => {
    await using rig = await startRig();
    rig.issuer.publish([ec.jwk]);
    await rig.knows('first');
    rig.issuer.publish([{ ...ec.jwk, kid: 'second' }]);

    expect(await rig.knows('second')).toBe(true);
    expect(await rig.knows('first')).toBe(false);
    expect(rig.issuer.fetches).toBe(2);
  });

  test('another key under an old kid takes its place at the next refresh', async () => {
    await using rig = await startRig();
    rig.issuer.publish([ec.jwk]);
    const before = await rig.keySet.current();
    rig.issuer.publish([createIssuerKey('ES256', 'first').jwk]);
    rig.clock.ms += 150_000;
    await rig.keySet.current();

    await eventually(async () => expect(await rig.keySet.current()).not.toBe(before));

    expect(await rig.knows('first')).toBe(true);
  });

  test('a kid that both have at once for different keys is good for neither', async () => {
    await using rig = await startRig();
    rig.issuer.publish([ec.jwk, createIssuerKey('ES256', 'first').jwk, rig.issuer.key().jwk]);

    expect(await rig.knows('first')).toBe(false);
    expect(rig.problems).toEqual(['dev: kid "first" names different keys: none of them is used']);
  });

  test('a token without kid is no reason to ask, however many come', async () => {
    await using rig = await startRig();
    await rig.knows();
    rig.issuer.rotate({ algorithms: ['RS256'] });

    for (let login = 0; login < 100; login += 1) {
      expect((await rig.keySet.find(undefined, 'RS256')).candidates).toEqual([]);
    }

    expect(rig.issuer.fetches).toBe(1);
  });
});

test('D3 a jwksUri whose name leads inside is asked for nothing', async () => {
  const lookup: LookupFunction = (_, __, callback) =>
    callback(null, [{ address: '169.254.169.254', family: 4 }]);
  const config = configWith({
    dev: {
      issuer: 'https://id.example',
      jwksUri: 'https://id.example/jwks.json',
      audience: 'a',
      roles: ['analyst'],
    },
  });
  const keySet = new KeySet('dev', config.providers['dev']!, config.jwks, { lookup });

  const error = await refusalOf(keySet.current());

  keySet.close();
  expect([error.code, error.spec.sqlstate]).toEqual(['keys_unavailable', '57P03']);
  expect(reasonOf(error)).toMatch(
    /"id\.example" has the address 169\.254\.169\.254, which is not on/,
  );
  expect(JSON.stringify([error.message, error.detail, error.hint])).not.toMatch(/169|example/);
});

describe('D2, D3, D7 answers that are no keys', () => {
  const html = '<!doctype html><title>Maintenance</title>';
  const faults: (readonly [string, Fault, RegExp])[] = [
    ['status 500', { kind: 'status', status: 500 }, /^the answer has status 500$/],
    ['status 404', { kind: 'status', status: 404 }, /^the answer has status 404$/],
    ['status 204', { kind: 'status', status: 204 }, /^the answer has status 204$/],
    ['HTML', { kind: 'body', body: html }, /^the answer is not JSON$/],
    ['nothing', { kind: 'body', body: '' }, /^the answer is not JSON$/],
    ['null', { kind: 'body', body: 'null' }, /^the answer is not a JWK Set$/],
    ['an array', { kind: 'body', body: '[]' }, /^the answer is not a JWK Set$/],
    ['an object without keys', { kind: 'body', body: '{}' }, /^the answer is not a JWK Set$/],
    [
      'keys that are no list',
      { kind: 'body', body: '{"keys":{}}' },
      /^the answer is not a JWK Set$/,
    ],
    ['no keys', { kind: 'body', body: '{"keys":[]}' }, /^no key in the JWK Set is fit$/],
    [
      'no fit keys',
      { kind: 'body', body: '{"keys":[1,null]}' },
      /key number 2 is not used: it is not/,
    ],
    [
      '101 keys',
      { kind: 'body', body: `{"keys":[${Array(101).fill('{}').join()}]}` },
      /has 101 keys, more than/,
    ],
    [
      '300 KB',
      { kind: 'body', body: ' '.repeat(300_000) },
      /^the answer is longer than jwks.maxBytes/,
    ],
    [
      'an endless body',
      { kind: 'endless' },
      /^the answer is longer than jwks.maxBytes \(262144\)$/,
    ],
    [
      'a gzip bomb',
      {
        kind: 'body',
        body: gzipSync(' '.repeat(5_000_000)),
        headers: { 'content-encoding': 'gzip' },
      },
      /^the answer is encoded although none was asked for$/,
    ],
    ['a redirect', { kind: 'redirect', location: 'http://127.0.0.1:1/' }, /redirect/],
    ['a redirect to a file', { kind: 'redirect', location: 'file:///etc/passwd' }, /redirect/],
    ['a reset', { kind: 'drop' }, /ECONNRESET|other side closed/],
    ['silence', { kind: 'hang' }, /^no answer within 300 ms$/],
    ['silence after the headers', { kind: 'hang-in-body' }, /^no answer within 300 ms$/],
  ];

  test.each(faults)('%s is a failed refresh, cold', async (_, fault, reason) => {
    await using rig = await startRig({ timeoutMs: fault.kind.startsWith('hang') ? 300 : 5_000 });
    rig.issuer.breakDown(fault);

    const error = await refusalOf(rig.keySet.current());

    expect(error.code).toBe('keys_unavailable');
    const [, why = ''] = /^no usable keys of provider "dev": (.*)$/.exec(reasonOf(error)) ?? [];
    expect(why).toMatch(reason);
    expect(rig.problems).toEqual([`dev: refresh failed: ${why}`]);
  });

  test.each(faults)('%s leaves the last good keys as they were', async (_, fault) => {
    await using rig = await startRig({ timeoutMs: fault.kind.startsWith('hang') ? 300 : 5_000 });
    const good = await rig.keySet.current();
    rig.issuer.breakDown(fault);

    rig.clock.ms += 300_000;
    expect(await rig.keySet.current()).toBe(good);
    await eventually(() => expect(rig.problems).toHaveLength(1));

    expect(await rig.keySet.current()).toBe(good);
  });

  test('a redirect is not followed', async () => {
    await using rig = await startRig();
    await using inside = await startIssuer({ algorithms: ['ES256'] });
    rig.issuer.breakDown({ kind: 'redirect', location: inside.jwksUri });

    await refusalOf(rig.keySet.current());

    expect(inside.fetches).toBe(0);
  });

  test('no compression is asked for', async () => {
    await using rig = await startRig();
    await rig.knows();

    expect(rig.issuer.requests[0]).toMatchObject({
      'accept-encoding': 'identity',
      accept: 'application/jwk-set+json, application/json',
    });
  });
});

describe('freshness', () => {
  const date = 'Thu, 01 Jan 2026 00:00:00 GMT';
  const in2Minutes = 'Thu, 01 Jan 2026 00:02:00 GMT';

  test.each([
    ['nothing', {}, 300_000],
    ['max-age=120', { 'cache-control': 'public, max-age=120' }, 120_000],
    ['Max-Age=120', { 'cache-control': 'Max-Age=120' }, 120_000],
    ['max-age="120"', { 'cache-control': 'max-age="120"' }, 120_000],
    ['max-age twice', { 'cache-control': 'max-age=120, max-age=240' }, 120_000],
    ['max-age and age', { 'cache-control': 'max-age=120', age: '20' }, 100_000],
    ['a strange age', { 'cache-control': 'max-age=120', age: 'old' }, 120_000],
    ['more age than max-age', { 'cache-control': 'max-age=120', age: '500' }, 60_000],
    ['a week', { 'cache-control': 'max-age=604800' }, 300_000],
    ['longer than there are numbers', { 'cache-control': `max-age=${'9'.repeat(400)}` }, 300_000],
    ['a second', { 'cache-control': 'max-age=1' }, 60_000],
    ['no-store', { 'cache-control': 'no-store' }, 60_000],
    ['no-cache', { 'cache-control': 'no-cache, max-age=120' }, 60_000],
    ['a directive of its own', { 'cache-control': 'x-max-age=120' }, 300_000],
    ['max-age inside a string', { 'cache-control': 'private="a, max-age=120"' }, 300_000],
    ['expires', { date, expires: in2Minutes }, 120_000],
    ['expires and age', { date, expires: in2Minutes, age: '20' }, 100_000],
    ['expires and max-age', { date, expires: in2Minutes, 'cache-control': 'max-age=90' }, 90_000],
    ['expires in the past', { date: in2Minutes, expires: date }, 60_000],
    ['expires 0', { date, expires: '0' }, 60_000],
    ['garbage', { 'cache-control': 'max-age=soon', expires: 'soon', date: 'now' }, 60_000],
    ['garbage without expires', { 'cache-control': 'max-age=soon' }, 300_000],
  ])('an issuer that says %s is asked again at half of its time', async (_, headers, freshMs) => {
    await using rig = await startRig();
    rig.issuer.headers = headers;
    await rig.keySet.current();

    rig.clock.ms += freshMs / 2 - 1;
    await rig.keySet.current();
    await later();
    expect(rig.issuer.fetches).toBe(1);
    rig.clock.ms += 1;
    await rig.keySet.current();

    await rig.issuer.fetched(2);
  });

  test('a refresh goes on behind the login and delays nobody', async () => {
    await using rig = await startRig();
    const good = await rig.keySet.current();
    rig.issuer.breakDown({ kind: 'hang' });
    rig.clock.ms += 300_000;

    // Would wait for the whole deadline of 5 s, and the fetch is still in flight afterwards.
    const started = performance.now();
    for (let login = 0; login < 100; login += 1) expect(await rig.keySet.current()).toBe(good);

    expect(performance.now() - started).toBeLessThan(2_000);
    await rig.issuer.fetched(2);
    expect(rig.issuer.fetches).toBe(2);
    expect(rig.problems).toEqual([]);
  });

  test('the same keys are the same object, new keys another', async () => {
    await using rig = await startRig();
    const first = await rig.keySet.current();
    rig.clock.ms += 300_000;
    await rig.keySet.current();
    await rig.issuer.fetched(2);
    expect(await rig.keySet.current()).toBe(first);

    rig.issuer.rotate();
    await rig.knows();

    expect(await rig.keySet.current()).not.toBe(first);
  });
});

test('D8 a known key serves an hour after its freshness ran out, and then no longer', async () => {
  await using rig = await startRig();
  await rig.knows();
  rig.issuer.breakDown({ kind: 'status', status: 500 });

  rig.clock.ms += 300_000 + 3_600_000 - 1;
  expect(await rig.knows()).toBe(true);
  await eventually(() => expect(rig.problems).toHaveLength(1));
  rig.clock.ms += 1;
  expect((await refusalOf(rig.keySet.current())).code).toBe('keys_unavailable');

  rig.issuer.breakDown(undefined);
  rig.clock.ms += 60_000;
  expect(await rig.knows()).toBe(true);
});

test('D8 the time that an answer takes to arrive counts as part of its age', async () => {
  await using issuer = await startIssuer({ algorithms: ['ES256'] });
  const jwksUri = issuer.jwksUri.replace('127.0.0.1', 'localhost');
  const config = configWith({ dev: issuer.provider({ roles: ['authenticated'], jwksUri }) });
  let now = 0;
  const lookup: LookupFunction = (_, __, callback) => {
    now += 100_000;
    callback(null, [{ address: '127.0.0.1', family: 4 }]);
  };
  const options = { lookup, monotonicNow: () => now };
  const keySet = new KeySet('dev', config.providers['dev']!, config.jwks, options);
  await keySet.current();
  issuer.breakDown({ kind: 'drop' });

  now = 300_000 + 3_600_000 - 100_001;
  await keySet.current();
  await issuer.fetched(2);
  now = 300_000 + 3_600_000;

  expect((await refusalOf(keySet.current())).code).toBe('keys_unavailable');
  keySet.close();
});

test('D8 a withdrawn key is gone after one refresh', async () => {
  await using rig = await startRig();
  const { kid } = rig.issuer.key();
  await rig.knows(kid);
  rig.issuer.rotate();
  rig.clock.ms += 300_000;
  expect(await rig.knows(kid)).toBe(true);

  await eventually(async () => expect(await rig.knows(kid)).toBe(false));
});

test('D10 providers with one and the same jwksUri keep their keys apart', async () => {
  await using issuer = await startIssuer({ algorithms: ['RS256', 'ES256'] });
  const config = configWith({
    rsa: issuer.provider({
      roles: ['analyst'],
      algorithms: ['RS256'],
      issuer: 'https://rsa.example',
    }),
    ec: issuer.provider({
      roles: ['analyst'],
      algorithms: ['ES256'],
      issuer: 'https://ec.example',
    }),
  });
  const sets = ['rsa', 'ec'].map((id) => new KeySet(id, config.providers[id]!, config.jwks));

  const found = await Promise.all(
    sets.map(async (set) =>
      Promise.all(
        issuer.keys.map(async ({ kid, alg }) => (await set.find(kid, alg)).candidates.length > 0),
      ),
    ),
  );

  for (const set of sets) set.close();
  expect(found).toEqual([
    [true, false],
    [false, true],
  ]);
});

test('what is wrong with a key is reported once, by kid', async () => {
  await using rig = await startRig();
  rig.issuer.publish([
    rig.issuer.key().jwk,
    { ...createIssuerKey('ES256', 'enc').jwk, use: 'enc' },
  ]);
  await rig.knows();
  rig.clock.ms += 300_000;
  await rig.knows();
  await rig.issuer.fetched(2);

  expect(rig.problems).toEqual(['dev: key kid "enc" is not used: its use is not "sig"']);
});

describe('keys in a file', () => {
  test('are read at first use and again when the file has changed', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-jwks-'));
    const file = join(folder, 'jwks.json');
    const [first, second] = [createIssuerKey('ES256'), createIssuerKey('ES256')] as const;
    const write = async (text: string) => {
      await writeFile(`${file}.new`, text);
      await rename(`${file}.new`, file);
    };
    await using rig = await startRig({ staleMs: 60_000 }, { jwksUri: undefined, jwksFile: file });

    const missing = await refusalOf(rig.keySet.current());
    expect(reasonOf(missing)).toMatch(/ENOENT/);

    await write(JSON.stringify({ keys: [first.jwk] }));
    rig.clock.ms += 1_250;
    expect(await rig.knows(first.kid)).toBe(true);

    // Not looked at more often than every second, and the change takes hold at the first login after that.
    await write(JSON.stringify({ keys: [second.jwk] }));
    rig.clock.ms += 999;
    expect(await rig.knows(first.kid)).toBe(true);
    rig.clock.ms += 1;
    expect(await rig.knows(first.kid)).toBe(false);
    expect(await rig.knows(second.kid)).toBe(true);

    const same = await rig.keySet.current();
    rig.clock.ms += 1_000;
    expect(await rig.keySet.current()).toBe(same);

    // What is no regular file, or too long a one, is not read.
    await write(' '.repeat(262_145));
    rig.clock.ms += 1_000;
    expect(await rig.keySet.current()).toBe(same);
    expect(rig.problems.at(-1)).toMatch(/jwks\.json is longer than jwks\.maxBytes \(262144\)$/);

    // Half a file changes nothing, for as long as keys may be stale.
    await write('{"keys":[');
    rig.clock.ms += 1_000;
    expect(await rig.keySet.current()).toBe(same);
    rig.clock.ms += 60_000;
    expect(reasonOf(await refusalOf(rig.keySet.current()))).toMatch(/not JSON$/);

    await rm(folder, { recursive: true });
  });

  test('that never ends is not read', async () => {
    await using rig = await startRig({}, { jwksUri: undefined, jwksFile: '/dev/zero' });

    expect(reasonOf(await refusalOf(rig.keySet.current()))).toMatch(/\/dev\/zero is not a file$/);
  });

  test('leave no timer behind, and are not read without a login', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-jwks-'));
    const file = join(folder, 'jwks.json');
    await writeFile(file, JSON.stringify({ keys: [createIssuerKey('ES256').jwk] }));
    await using rig = await startRig({}, { jwksUri: undefined, jwksFile: file });
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });

    await rig.keySet.current();

    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
    await rm(folder, { recursive: true });
  });
});
