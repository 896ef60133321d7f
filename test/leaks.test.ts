/** The search for secrets at the end of every run finds what it should, and cannot pass by not searching. */
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LeakSearch, type Secret } from './support/leaks.ts';
import type { Source } from './support/record.ts';
import { startRecords, type Records } from './support/records.ts';

const TEST_FOLDER = import.meta.dirname;

const SECRET = 'a "secret" of an upstream/with 40 bytes+';
const KEY = randomBytes(32);
const SIGNATURE = randomBytes(256).toString('base64url');
const secrets: Secret[] = [
  { kind: 'text', bytes: Buffer.from(SECRET) },
  { kind: 'key', bytes: KEY },
  { kind: 'signature', bytes: Buffer.from(SIGNATURE) },
];
const searching = new LeakSearch(secrets);
const kindsIn = (said: string) => searching.search(Buffer.from(said)).map(({ kind }) => kind);

describe('a secret is found', () => {
  const bytes = Buffer.from(SECRET);
  const signature = Buffer.from(SIGNATURE);
  const CASES: [how: string, kind: string, said: string][] = [
    ['as it is', 'text', `password=${SECRET} host=x`],
    ['at the very beginning', 'text', SECRET],
    ['in a line of JSON', 'text', JSON.stringify({ token: SECRET })],
    ['in JSON in JSON', 'text', JSON.stringify(JSON.stringify({ token: SECRET }))],
    ['in a URL', 'text', `http://x/?token=${encodeURIComponent(SECRET)}`],
    ['in base64', 'text', bytes.toString('base64')],
    ['in base64url', 'text', bytes.toString('base64url')],
    ...['', 'u', 'us', 'use', 'user'].map((user): [string, string, string] => [
      `in the base64 of ${user.length + 1} bytes and itself`,
      'text',
      Buffer.from(`${user}:${SECRET}:x`).toString('base64'),
    ]),
    ['in hex', 'text', bytes.toString('hex')],
    ['in upper hex, as bytea in some clients', 'text', bytes.toString('hex').toUpperCase()],
    ['in a Buffer as JSON', 'text', JSON.stringify({ message: bytes })],
    ['in a Buffer that is inspected', 'text', inspect(bytes)],
    ['by 23 bytes of it', 'signature', `cut off: ${SIGNATURE.slice(20, 43)}…`],
    ['by 31 bytes far into it', 'signature', SIGNATURE.slice(150, 181)],
    ['by its end', 'signature', SIGNATURE.slice(-16)],
    ['as a key in hex', 'key', KEY.toString('hex')],
    ['as a key in a JWK', 'key', JSON.stringify({ k: KEY.toString('base64url') })],
    ['in a message of the protocol', 'signature', inspect({ body: signature })],
  ];

  it.each(CASES)('%s', (_, kind, said) => {
    expect(kindsIn(`{"level":20}\n${said}\n{"level":30}`)).toEqual([kind]);
    expect(kindsIn(said)).toEqual([kind]);
  });

  it('by its looks where nobody has recorded it', () => {
    const part = (text: string) => Buffer.from(text).toString('base64url');
    const jwt = `${part('{"alg":"ES256"}')}.${part('{"sub":"alice"}')}.${part('x'.repeat(64))}`;
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

    expect(kindsIn(`token ${jwt}`)).toEqual(['a token that nobody has recorded']);
    expect(kindsIn(JSON.stringify(privateKey.export({ format: 'jwk' })))).toEqual([
      'a private JWK',
    ]);
    expect(
      kindsIn(JSON.stringify({ key: privateKey.export({ format: 'pem', type: 'pkcs8' }) })),
    ).toEqual(['a private key in PEM']);
    expect(kindsIn(`SCRAM-SHA-256$4096:${part('sixteen bytes ok')}$x:y`)).toEqual([
      'a SCRAM verifier',
    ]);
  });
});

it('shows where a secret is, but neither it nor what stands beside it', () => {
  const other = randomBytes(30).toString('base64url');
  const said = `first\n{"event":"login","token":"eyJhbGciOi.${SIGNATURE}","other":"${other}"}\nlast`;

  const [leak] = searching.search(Buffer.from(said));

  expect(leak?.context).toBe('{"event":"login","token":"[signature]","other":"…"}');
});

it('finds nothing in what only looks alike', () => {
  const said = Array.from({ length: 2_000 }, (_, n) =>
    createHash('sha512').update(`${n}`).digest('base64'),
  );

  expect(
    kindsIn(`${said.join('\n')} ${SECRET.slice(0, 15)} ${KEY.toString('hex').slice(0, 15)}`),
  ).toEqual([]);
});

it('takes one character, however often, for no secret', () => {
  const plain = new LeakSearch([{ kind: 'plain', bytes: Buffer.from('A'.repeat(40)) }]);

  expect(plain.search(Buffer.from('A'.repeat(100)))).toEqual([]);
});

describe('a run', () => {
  let records: Records;
  beforeEach(async () => {
    records = await startRecords();
  });
  afterEach(() => records.remove());

  const say = (said: string, source: Partial<Source> = {}, file = '1.said') => {
    const whole = { test: 'test/x.test.ts', program: 'log', detail: '', stream: 'log', ...source };
    writeFileSync(join(records.folder, file), `${JSON.stringify(whole)}\n${said}`);
  };
  const have = (...lines: string[]) =>
    writeFileSync(join(records.folder, '1.secrets'), lines.join('\n'));
  const secret = (text: string) => `a kind\t${Buffer.from(text).toString('base64url')}`;

  it('says what it has searched', async () => {
    say('x'.repeat(2_000_000));
    have('stack\t', secret(SECRET));

    expect(await records.search([])).toMatch(
      /^searched 2\.00 MB of output in 1 streams for 1 secrets, in \d+\.\d s: none found$/,
    );
  });

  it('fails where a secret was said, and says who said it', async () => {
    say(`{"token":"${SIGNATURE}"}`, {
      program: '/usr/bin/node',
      detail: 'main.js start',
      stream: 'stdout',
    });
    have('stack\t', secret(SIGNATURE));

    const error = await records.search([]).catch((thrown: unknown) => thrown);

    expect(error).toBeInstanceOf(Error);
    expect(String(error)).toContain('a kind in stdout of /usr/bin/node (test/x.test.ts)');
    expect(String(error)).toContain('stdout of /usr/bin/node main.js start');
    expect(String(error)).toContain('{"token":"[a kind]"}');
    expect(String(error)).not.toContain(SIGNATURE.slice(0, 16));
  });

  it('searches everything else for the tokens that an issuer prints for whoever asks', async () => {
    const part = (text: string) => Buffer.from(text).toString('base64url');
    const token = `${part('{"alg":"ES256"}')}.${part('{"sub":"alice"}')}.${SIGNATURE}`;
    say(token, {
      program: '/usr/bin/node',
      detail: '/x/cli/main.js token --sub a',
      stream: 'stdout',
    });
    await expect(records.search([])).resolves.toContain('for 2 secrets');

    say(`refused ${SIGNATURE}`, {}, '2.said');

    await expect(records.search([])).rejects.toThrow('signature of an issued token in log');
  });

  it('fails where proxies ran and said nothing, or had no secret', async () => {
    have('stack\t', secret(SECRET));
    await expect(records.search([])).rejects.toThrow('nothing has been recorded');

    say('x');
    have('stack\t');
    await expect(records.search([])).rejects.toThrow('nothing has been recorded');
  });

  it('passes where no proxy ran', async () => {
    expect(await records.search([])).toContain('none found');
  });
});

it('no test has a logger that is not recorded, but those whose log never meets a proxy', () => {
  const files = readdirSync(TEST_FOLDER, { recursive: true, encoding: 'utf8' });
  const own = files.filter(
    (file) =>
      file.endsWith('.ts') &&
      !file.includes('node_modules') &&
      /^import .* from 'pino'/m.test(readFileSync(join(TEST_FOLDER, file), 'utf8')),
  );

  expect(own.toSorted()).toEqual([
    'limits/log-ration.test.ts',
    'secrets.test.ts',
    'support/logger.ts',
  ]);
});
