/**
 * SCRAM-SHA-256 from the client's side: the example of RFC 7677, what binds to a channel, keys that are derived once, and
 * servers that say anything else.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import {
  deriveKeys,
  KeyRing,
  ScramExchange,
  type Salting,
  type ScramTerms,
} from '../../src/upstream/scram.ts';
import { anyBytes } from '../support/splits.ts';

const PASSWORD = 'pencil';
const SALT = 'W22ZaJ0SNY7soEsUEjb6gQ==';
const SALTING: Salting = { salt: SALT, iterations: 4_096 };
const END_POINT = createHash('sha256').update('a certificate').digest();

const latin1 = (text: string) => Buffer.from(text, 'latin1');
const mac = (key: Buffer, text: string) =>
  createHmac('sha256', key).update(text, 'latin1').digest();

/** An exchange with a server that offers both, over nothing that could be bound to, unless told otherwise. */
function begin(terms: Partial<ScramTerms> = {}): ScramExchange {
  return new ScramExchange({
    mechanisms: ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256'],
    binding: undefined,
    keys: (salting) => deriveKeys(PASSWORD, salting),
    ...terms,
  });
}

const nonceOf = ({ clientFirst }: ScramExchange) =>
  clientFirst.slice(clientFirst.indexOf('r=') + 2);

/** What a good server says first. */
const serverFirst = (exchange: ScramExchange, { salt, iterations }: Salting = SALTING) =>
  `r=${nonceOf(exchange)}srv,s=${salt},i=${iterations}`;

/** What a server that knows the password says last, having checked the proof. */
function serverFinal(exchange: ScramExchange, first: string, clientFinal: string): string {
  const [, salt = '', iterations = ''] = /s=([^,]+),i=(\d+)/.exec(first) ?? [];
  const salted = pbkdf2Sync(
    PASSWORD,
    Buffer.from(salt, 'base64'),
    Number(iterations),
    32,
    'sha256',
  );
  const [withoutProof, proof] = clientFinal.split(',p=') as [string, string];
  const bare = exchange.clientFirst.slice(exchange.clientFirst.indexOf('n='));
  const signed = `${bare},${first},${withoutProof}`;
  const clientKey = mac(salted, 'Client Key');
  const signature = mac(createHash('sha256').update(clientKey).digest(), signed);
  const expected = Buffer.from(clientKey.map((byte, at) => byte ^ (signature[at] as number)));
  if (expected.toString('base64') !== proof) throw new Error('the proof is wrong');
  return `v=${mac(mac(salted, 'Server Key'), signed).toString('base64')}`;
}

describe('the example of RFC 7677 §3', () => {
  const example = () =>
    begin({ mechanisms: ['SCRAM-SHA-256'], user: 'user', nonce: 'rOprNGfwEbeRWgbNEkqO' });
  const first =
    'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096';
  const final = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

  test('is said word for word', async () => {
    const exchange = example();

    expect(exchange.clientFirst).toBe('n,,n=user,r=rOprNGfwEbeRWgbNEkqO');
    expect(await exchange.respond(latin1(first))).toBe(
      'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
    );
    expect(() => exchange.assertProof(latin1(final))).not.toThrow();
  });

  test('has a proof of which no byte may be another', async () => {
    const proof = Buffer.from(final.slice(2), 'base64');
    for (let at = 0; at < proof.length; at++) {
      const exchange = example();
      await exchange.respond(latin1(first));
      const forged = Buffer.from(proof);
      forged[at] = (forged[at] as number) ^ 1;

      expect(() => exchange.assertProof(latin1(`v=${forged.toString('base64')}`))).toThrow(
        expect.objectContaining({ code: 'upstream_protocol' }) as Error,
      );
    }
  });
});

describe('an exchange', () => {
  test.each<[string, Partial<ScramTerms>, string, string]>([
    ['without TLS says n', {}, 'SCRAM-SHA-256', 'n,,'],
    [
      'over TLS binds to it',
      { binding: END_POINT },
      'SCRAM-SHA-256-PLUS',
      'p=tls-server-end-point,,',
    ],
    [
      'over TLS with a server that does not bind says y, by which one that does learns of it',
      { binding: END_POINT, mechanisms: ['SCRAM-SHA-256'] },
      'SCRAM-SHA-256',
      'y,,',
    ],
    [
      'says y, too, where it should be bound and cannot be',
      { binding: 'impossible', mechanisms: ['SCRAM-SHA-256'] },
      'SCRAM-SHA-256',
      'y,,',
    ],
  ])('%s', async (_, terms, mechanism, header) => {
    const exchange = begin(terms);
    const first = serverFirst(exchange);

    expect(exchange.mechanism).toBe(mechanism);
    expect(exchange.clientFirst).toMatch(/^(n|y|p=tls-server-end-point),,n=\*,r=[\w+/=]{24}$/);
    expect(exchange.clientFirst.startsWith(header)).toBe(true);

    const final = await exchange.respond(latin1(first));
    const channel = Buffer.from(/^c=([^,]+),/.exec(final)?.[1] ?? '', 'base64');
    const data = mechanism === 'SCRAM-SHA-256-PLUS' ? END_POINT : Buffer.alloc(0);
    expect(channel).toEqual(Buffer.concat([Buffer.from(header), data]));
    exchange.assertProof(latin1(serverFinal(exchange, first, final)));
  });

  test.each<[string, Partial<ScramTerms>]>([
    ['no mechanism', { mechanisms: [] }],
    ['none that we know', { mechanisms: ['OAUTHBEARER', 'scram-sha-256', 'SCRAM-SHA-1'] }],
    ['-PLUS alone without TLS', { mechanisms: ['SCRAM-SHA-256-PLUS'] }],
    ['-PLUS where it cannot be bound', { binding: 'impossible' }],
  ])('does not begin with %s', (_, terms) => {
    expect(() => begin(terms)).toThrow(
      expect.objectContaining({ code: 'upstream_login_rejected' }) as Error,
    );
  });

  test('has a nonce that nobody has had before', () => {
    expect(new Set(Array.from({ length: 100 }, () => nonceOf(begin()))).size).toBe(100);
  });

  test('signs what the server said as it came: extensions that nobody knows, in any bytes', async () => {
    const exchange = begin();
    const first = `${serverFirst(exchange)},x=\xe4\xff,y=`;

    const final = await exchange.respond(latin1(first));

    exchange.assertProof(latin1(`${serverFinal(exchange, first, final)},x=ignored`));
  });

  test('is not gone through twice, nor out of turn', async () => {
    const refused = expect.objectContaining({ code: 'upstream_protocol' }) as Error;
    const exchange = begin();
    const first = serverFirst(exchange);

    expect(() => exchange.assertProof(latin1('v=eA=='))).toThrow(refused);
    const responding = exchange.respond(latin1(first));
    await expect(exchange.respond(latin1(first))).rejects.toEqual(refused);
    expect(() => exchange.assertProof(latin1('v=eA=='))).toThrow(refused);
    const final = serverFinal(exchange, first, await responding);
    await expect(exchange.respond(latin1(first))).rejects.toEqual(refused);
    exchange.assertProof(latin1(final));
    expect(() => exchange.assertProof(latin1(final))).toThrow(refused);
  });
});

describe('a server that first says', () => {
  const saying: [string, (nonce: string) => string][] = [
    ['nothing', () => ''],
    ['a mandatory extension', (nonce) => `m=x,r=${nonce}srv,s=${SALT},i=4096`],
    ['a nonce of its own', () => `r=srvsrvsrv,s=${SALT},i=4096`],
    ['our nonce and nothing of its own', (nonce) => `r=${nonce},s=${SALT},i=4096`],
    ['our nonce behind its own', (nonce) => `r=srv${nonce},s=${SALT},i=4096`],
    ['a nonce with a space', (nonce) => `r=${nonce} srv,s=${SALT},i=4096`],
    ['a nonce with a byte beyond ASCII', (nonce) => `r=${nonce}\xff,s=${SALT},i=4096`],
    ['a NUL', (nonce) => `r=${nonce}srv,s=${SALT},i=4096,x=\0`],
    ['no salt', (nonce) => `r=${nonce}srv,s=,i=4096`],
    ['a salt that is no base64', (nonce) => `r=${nonce}srv,s=!!!!,i=4096`],
    ['a salt that is cut off', (nonce) => `r=${nonce}srv,s=${SALT.slice(0, -1)},i=4096`],
    ['no count', (nonce) => `r=${nonce}srv,s=${SALT}`],
    ['another order', (nonce) => `s=${SALT},r=${nonce}srv,i=4096`],
    ['a field twice', (nonce) => `r=${nonce}srv,s=${SALT},s=${SALT},i=4096`],
    ['2 KiB of salt', (nonce) => `r=${nonce}srv,s=${'AAAA'.repeat(512)},i=4096`],
    ...[
      '0',
      '1',
      '4095',
      '04096',
      '1000001',
      '2147483648',
      '99999999999999999999',
      '1e4',
      '-4096',
      '+4096',
      '4096.0',
      '0x1000',
      ' 4096',
      '',
    ].map((count): [string, (nonce: string) => string] => [
      `${count || 'no'} iterations`,
      (nonce) => `r=${nonce}srv,s=${SALT},i=${count}`,
    ]),
  ];

  test.each(saying)('%s is not answered, and no key is derived', async (_, say) => {
    let derived = 0;
    const exchange = begin({
      keys: (salting) => {
        derived++;
        return deriveKeys(PASSWORD, salting);
      },
    });

    const error = await exchange
      .respond(latin1(say(nonceOf(exchange))))
      .catch((failure: unknown) => failure);

    expect(error).toMatchObject({ code: 'upstream_protocol' });
    expect(derived).toBe(0);
  });

  test('anything at all is answered, or refused with an error of ours', async () => {
    const parts = fc.constantFrom('r=', 'NONCE', 'srv', ',', 's=', SALT, 'i=', '4096', 'm=', '\0');
    const message = fc.oneof(
      anyBytes(100),
      fc.array(parts, { maxLength: 12 }).map((all) => latin1(all.join(''))),
    );
    await fc.assert(
      fc.asyncProperty(message, async (bytes) => {
        const exchange = begin({ nonce: 'NONCE' });
        const error = await exchange.respond(bytes).catch((failure: unknown) => failure);

        if (typeof error === 'string') expect(error).toContain('r=NONCE');
        else expect((error as ProxyError).code).toBe('upstream_protocol');
      }),
    );
  });
});

describe('a server that says at last', () => {
  const zeros = Buffer.alloc(32).toString('base64');

  test.each<[string, string, string]>([
    ['nothing', '', 'upstream_protocol'],
    ['a proof of zeros', `v=${zeros}`, 'upstream_protocol'],
    ['a proof that is too short', `v=${Buffer.alloc(31).toString('base64')}`, 'upstream_protocol'],
    ['a proof that is too long', `v=${Buffer.alloc(33).toString('base64')}`, 'upstream_protocol'],
    ['a proof that is no base64', `v=${'!'.repeat(43)}=`, 'upstream_protocol'],
    ['something else before its proof', `x=y,v=${zeros}`, 'upstream_protocol'],
    ['that our proof is wrong', 'e=invalid-proof', 'upstream_login_rejected'],
    ['3 KiB', `v=${zeros},x=${'x'.repeat(3_000)}`, 'upstream_protocol'],
  ])('%s has proven nothing', async (_, said, code) => {
    const exchange = begin();
    await exchange.respond(latin1(serverFirst(exchange)));

    let error: unknown;
    try {
      exchange.assertProof(latin1(said));
    } catch (thrown) {
      error = thrown;
    }

    expect(error).toBeInstanceOf(ProxyError);
    expect(error).toMatchObject({ code });
  });

  test('our own proof, sent back, has proven nothing', async () => {
    const exchange = begin();
    const final = await exchange.respond(latin1(serverFirst(exchange)));
    const ours = final.slice(final.indexOf(',p=') + 3);

    expect(() => exchange.assertProof(latin1(`v=${ours}`))).toThrow(ProxyError);
  });
});

describe('a key ring', () => {
  test('derives keys once for one password, salt and count, and again when any of them is another', async () => {
    const ring = new KeyRing(4);
    const keys = ring.keysOf('slot', PASSWORD, SALTING);

    expect(ring.keysOf('slot', PASSWORD, { ...SALTING })).toBe(keys);
    expect(await keys).toEqual(await deriveKeys(PASSWORD, SALTING));

    const others: [string, Salting][] = [
      ['rotated', SALTING],
      [PASSWORD, { ...SALTING, salt: randomBytes(16).toString('base64') }],
      [PASSWORD, { ...SALTING, iterations: 5_000 }],
    ];
    for (const [password, salting] of others) {
      const derived = ring.keysOf('slot', password, salting);
      expect(await derived).toEqual(await deriveKeys(password, salting));
      expect((await derived).clientKey).not.toEqual((await keys).clientKey);
    }
  });

  test('keeps one entry for each login, and forgets the salt of before', async () => {
    const ring = new KeyRing(4);
    const before = ring.keysOf('slot', PASSWORD, SALTING);
    await ring.keysOf('slot', PASSWORD, { ...SALTING, iterations: 5_000 });

    expect(ring.keysOf('slot', PASSWORD, SALTING)).not.toBe(before);
  });

  test('keeps no more entries than there are roles to log in as', async () => {
    const ring = new KeyRing(2);
    const first = ring.keysOf('first', PASSWORD, SALTING);
    const second = ring.keysOf('second', PASSWORD, SALTING);
    const third = ring.keysOf('third', PASSWORD, SALTING);

    expect(ring.keysOf('third', PASSWORD, SALTING)).toBe(third);
    expect(ring.keysOf('second', PASSWORD, SALTING)).toBe(second);
    expect(ring.keysOf('first', PASSWORD, SALTING)).not.toBe(first);
    await Promise.all([first, second, third]);
  });

  test('does not keep a failure', async () => {
    const ring = new KeyRing(2);
    // No checked count is 0: this is a derivation that fails.
    const impossible = { salt: SALT, iterations: 0 };
    const failed = ring.keysOf('slot', PASSWORD, impossible);
    await expect(failed).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });

    const again = ring.keysOf('slot', PASSWORD, impossible);

    expect(again).not.toBe(failed);
    await expect(again).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
  });

  test('never derives on the thread that serves everybody', async () => {
    const derivation = deriveKeys(PASSWORD, { salt: SALT, iterations: 1_000_000 });
    let turns = 0;
    const counting = setInterval(() => turns++, 1);
    await derivation;
    clearInterval(counting);

    expect(turns).toBeGreaterThan(10);
  });
});
