/**
 * Tokens that must not be taken: each gets its documented answer, the log says why, nothing is dialled, and no output holds the token.
 *
 * Why each is refused is tested in `test/identity`; here it is what everybody sees of it, through real sockets.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ANY_TOKEN, createIssuerKey, startIssuer, type Issuer } from '../support/issuer.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { passwordMessage, startup } from './parity/bytes.ts';
import { RawClient } from './raw-client.ts';
import { Relay } from './relay.ts';

const run = promisify(execFile);

const hasPsql = await run('psql', ['--version']).then(
  () => true,
  () => false,
);
if (!hasPsql) console.error('there is no psql here, so what it prints of a refusal is not tested');

const SAID = 'password authentication failed for user "authenticated"';
// Stands in every token's claims, so that a piece of one is found wherever it turns up.
const MARK = 'marked-claim-8675309';

/** A token, and all that may be said of it. */
interface Case {
  readonly name: string;
  readonly token: (stack: Stack, stranger: Issuer) => string;
  /** The log's `reason`. */
  readonly reason: string;
  /** What the log's `cause` must say, where the reason alone does not say it all. */
  readonly cause?: RegExp;
  /** Only after the signature verified. */
  readonly detail?: string;
  /** Only where the client's own bytes suggest it. */
  readonly hint?: RegExp;
}

const claims = { sub: 'alice', note: MARK };

const cases: Case[] = [
  {
    name: 'C9 expired',
    token: ({ issuer }) => issuer.mint(claims, { expiresIn: -3_600 }),
    reason: 'token_expired',
    cause: /exp/,
    detail: 'The token has expired.',
  },
  {
    name: 'C11 for another audience',
    token: ({ issuer }) => issuer.mint({ ...claims, aud: 'somebody-else' }),
    reason: 'claims_rejected',
    cause: /aud/,
    detail: 'aud',
  },
  {
    name: 'C12 from another issuer',
    token: (_, stranger) => stranger.mint(claims),
    reason: 'token_rejected',
    cause: /issuer/,
  },
  {
    name: 'C18 of another issuer that pretends to be ours',
    token: ({ issuer }, stranger) => stranger.mint({ ...claims, iss: issuer.issuer }),
    reason: 'token_rejected',
    cause: /no key with kid/,
  },
  {
    name: 'C18 signed by another key under a kid of ours',
    token: ({ issuer }) => {
      const kid = issuer.key('RS256').kid;
      return issuer.mint(claims, { alg: 'RS256', key: createIssuerKey('RS256', kid) });
    },
    reason: 'token_rejected',
    cause: /signature does not verify/,
  },
  {
    name: 'C1 with alg none',
    token: ({ issuer }) => issuer.mint(claims, { alg: 'none', key: issuer.key() }),
    reason: 'token_rejected',
    cause: /the signature is empty/,
    hint: /no third part/,
  },
  {
    name: 'C1 with alg none and somebody else’s signature',
    token: ({ issuer }) => {
      const { kid } = issuer.key('RS256');
      const [, payload, signature] = issuer.mint(claims, { alg: 'RS256' }).split('.');
      const header = Buffer.from(JSON.stringify({ alg: 'none', kid })).toString('base64url');
      return `${header}.${payload}.${signature}`;
    },
    reason: 'token_rejected',
    cause: /alg "none" is not allowed/,
  },
  {
    name: 'C2 with HS256 and the public key as the secret',
    token: ({ issuer }) => {
      const { kid, publicPem } = issuer.key('RS256');
      return issuer.mintRaw(
        JSON.stringify({ alg: 'HS256', typ: 'JWT', kid }),
        JSON.stringify({ iss: issuer.issuer, aud: issuer.audience, exp: 4_102_444_800, ...claims }),
        { alg: 'HS256', hmacSecret: publicPem },
      );
    },
    reason: 'token_rejected',
    cause: /alg "HS256" is not allowed/,
  },
  {
    name: 'with one bit of its claims changed',
    token: ({ issuer }) => {
      const [header, payload, signature] = issuer.mint(claims).split('.') as [
        string,
        string,
        string,
      ];
      const forged = Buffer.from(payload, 'base64url').toString().replace('"alice"', '"alicf"');
      return `${header}.${Buffer.from(forged).toString('base64url')}.${signature}`;
    },
    reason: 'token_rejected',
    cause: /signature does not verify/,
  },
  {
    name: 'cut off within its claims',
    token: ({ issuer }) => {
      const token = issuer.mint(claims);
      return token.slice(0, token.lastIndexOf('.') - 10);
    },
    reason: 'token_rejected',
    cause: /parts, not 3/,
    hint: /cut off/,
  },
  {
    name: 'cut off at 255 bytes',
    token: ({ issuer }) => issuer.mint(claims).slice(0, 255),
    reason: 'token_rejected',
    cause: /./,
    hint: /255 bytes/,
  },
  {
    name: 'C8 of 60 KB',
    token: ({ issuer }) => issuer.mint({ ...claims, long: MARK.repeat(2_200) }),
    reason: 'token_rejected',
    cause: /more than limits\.maxTokenBytes/,
  },
  {
    name: 'that is a password',
    token: () => `correct-horse-battery-staple-${MARK}`,
    reason: 'token_rejected',
    cause: /parts, not 3/,
  },
  { name: 'that is empty', token: () => '', reason: 'token_missing' },
  {
    name: 'C3 whose kid is a path',
    token: ({ issuer }) => issuer.mint(claims, { kid: '../../../../etc/passwd' }),
    reason: 'token_rejected',
    cause: /^TokenRefusal no key with kid "\.\.\/\.\.\/\.\.\/\.\.\/etc\/passwd" at issuer/,
  },
  {
    name: 'C3 whose kid is an object',
    token: ({ issuer }) => issuer.mint(claims, { header: { kid: { $ne: null } } }),
    reason: 'token_rejected',
    cause: /the kid is not a string/,
  },
  {
    name: 'C4 that brings its key along',
    token: ({ issuer }, stranger) =>
      issuer.mint(claims, { key: stranger.key(), header: { jwk: stranger.key().jwk } }),
    reason: 'token_rejected',
    cause: /the header has a member "jwk"/,
  },
  {
    name: 'C4 that says where its key is',
    token: ({ issuer }, stranger) =>
      issuer.mint(claims, { key: stranger.key(), header: { jku: stranger.jwksUri } }),
    reason: 'token_rejected',
    cause: /the header has a member "jku"/,
  },
  {
    name: 'C5 with a critical extension',
    token: ({ issuer }) => issuer.mint(claims, { header: { crit: ['b64'], b64: false } }),
    reason: 'token_rejected',
    cause: /the header has a member "crit"/,
  },
  {
    name: 'C6 with two subjects',
    token: ({ issuer }) =>
      issuer.mintRaw(goodHeader(issuer), `{"sub":"bob",${goodPayload(issuer).slice(1)}`),
    reason: 'token_rejected',
    cause: /the payload has two members "sub" in one object/,
  },
  {
    name: 'C6 with two algs',
    token: ({ issuer }) =>
      issuer.mintRaw(`{"alg":"none",${goodHeader(issuer).slice(1)}`, goodPayload(issuer)),
    reason: 'token_rejected',
    cause: /the header has two members "alg" in one object/,
  },
  {
    name: 'C7 with a claim __proto__',
    token: ({ issuer }) =>
      issuer.mintRaw(
        goodHeader(issuer),
        `{"__proto__":{"role":"service_role"},${goodPayload(issuer).slice(1)}`,
      ),
    reason: 'token_rejected',
    cause: /the payload has a member "__proto__"/,
  },
  {
    name: 'C8 nested 3,000 deep',
    token: ({ issuer }) =>
      issuer.mintRaw(
        goodHeader(issuer),
        `{"deep":${'['.repeat(3_000)}${']'.repeat(3_000)},${goodPayload(issuer).slice(1)}`,
      ),
    reason: 'token_rejected',
    cause: /nested more than 16 deep/,
  },
  {
    name: 'C9 without exp',
    token: ({ issuer }) => issuer.mint({ ...claims, exp: undefined }),
    reason: 'claims_rejected',
    detail: 'The claim "exp" is missing or not a time.',
  },
  {
    name: 'C9 that expires at infinity',
    token: ({ issuer }) =>
      issuer.mintRaw(goodHeader(issuer), goodPayload(issuer).replace(/"exp":\d+/, '"exp":1e999')),
    reason: 'claims_rejected',
    detail: 'The claim "exp" is missing or not a time.',
  },
  {
    name: 'C10 that is not valid yet',
    token: ({ issuer }) => issuer.mint({ ...claims, nbf: Math.floor(Date.now() / 1_000) + 60 }),
    reason: 'token_expired',
    cause: /^nbf is in \d+ ms/,
    detail: 'The token is not valid yet.',
  },
  {
    name: 'C10 issued in the future',
    token: ({ issuer }) => issuer.mint({ ...claims, iat: Math.floor(Date.now() / 1_000) + 60 }),
    reason: 'token_expired',
    cause: /^iat is in \d+ ms/,
    detail: 'The token was issued in the future.',
  },
  {
    name: 'C12 whose issuer has a slash more',
    token: ({ issuer }) => issuer.mint({ ...claims, iss: `${issuer.issuer}/` }),
    reason: 'token_rejected',
    cause: /is not that of any provider/,
  },
  {
    name: 'C13 that is a logout token by its type',
    token: ({ issuer }) => issuer.mint(claims, { header: { typ: 'logout+jwt' } }),
    reason: 'token_rejected',
    cause: /typ "logout\+jwt" is another kind of token/,
  },
  {
    name: 'C13 that is a logout token by its claims',
    token: ({ issuer }) =>
      issuer.mint({
        ...claims,
        events: { 'http://schemas.openid.net/event/backchannel-logout': {} },
      }),
    reason: 'claims_rejected',
    detail: 'The claim "events" makes it a security event, not a sign-in.',
  },
  {
    name: 'C14 with five parts',
    token: ({ issuer }) => `${issuer.mint(claims)}.AAAA.AAAA`,
    reason: 'token_rejected',
    cause: /more than 3 parts/,
  },
  {
    name: 'C15 with a line feed behind it',
    token: ({ issuer }) => `${issuer.mint(claims)}\n`,
    reason: 'token_rejected',
    cause: /the signature is empty or not base64url/,
  },
  {
    name: 'C15 with padding',
    token: ({ issuer }) => `${issuer.mint(claims)}==`,
    reason: 'token_rejected',
    cause: /the signature is empty or not base64url/,
  },
  {
    name: 'C16 whose subject has a NUL',
    token: ({ issuer }) => issuer.mint({ ...claims, sub: 'alice\0' }),
    reason: 'claims_rejected',
    detail: 'The claim "sub" is missing or not a fit subject.',
  },
  {
    name: 'C16 whose subject is a number',
    token: ({ issuer }) => issuer.mint({ ...claims, sub: 1 }),
    reason: 'claims_rejected',
    detail: 'The claim "sub" is missing or not a fit subject.',
  },
  {
    name: 'C16 with a claim that PostgreSQL cannot store',
    token: ({ issuer }) => issuer.mint({ ...claims, tenant: { name: 'a\0' } }),
    reason: 'claims_rejected',
    detail: 'The claim "tenant" holds something that PostgreSQL cannot store unchanged.',
  },
];

/** The text of a good header, to be spoilt. */
function goodHeader(issuer: Issuer): string {
  const { alg, kid } = issuer.key();
  return JSON.stringify({ alg, kid });
}

/** The text of good claims, to be spoilt. */
function goodPayload({ issuer: iss, audience: aud }: Issuer): string {
  return JSON.stringify({ iss, aud, exp: Math.floor(Date.now() / 1_000) + 3_600, ...claims });
}

/** Whether a token's signature is good, so that a DETAIL may say what is not. */
const isSigned = ({ detail }: Case) => detail !== undefined;

describe('a token', () => {
  let relay: Relay;
  let stack: Stack;
  let stranger: Issuer;
  const serverLog: string[] = [];
  const sent: string[] = [];

  beforeAll(async () => {
    relay = await Relay.open();
    stack = await startStack({
      upstream: { port: relay.port },
      settings: { log_statement: 'all', log_connections: 'on', log_min_messages: 'debug1' },
      onLog: (line) => serverLog.push(line),
      // So that each of them is looked at, and none refused because others were.
      limits: { failedLogins: { allowed: 10_000 } },
    });
    relay.toward(stack.postgres.port);
    stranger = await startIssuer();
  });

  afterAll(async () => {
    await stack.close();
    await stranger.close();
    await relay[Symbol.asyncDispose]();
  });

  function remember(token: string): string {
    sent.push(token);
    return token;
  }

  /** The bytes with which this password is answered, behind the request for it. */
  async function answer(
    token: string,
  ): Promise<{ bytes: Buffer; fields: ReadonlyMap<string, string> }> {
    using client = await RawClient.open(stack);
    client.send(
      startup([
        ['user', 'authenticated'],
        ['database', 'app'],
      ]),
    );
    await client.next('R');
    client.send(passwordMessage(token));
    await client.end();
    const [, error, ...more] = client.heard;
    expect([error?.type, more.length, client.rest.length]).toEqual(['E', 0, 0]);
    const fields = error?.reply.kind === 'error' ? error.reply.fields : new Map<string, string>();
    return { bytes: error?.body ?? Buffer.alloc(0), fields };
  }

  /** The log line of the refusal that was logged last. */
  async function lastRefusal(after: number): Promise<Record<string, unknown>> {
    const line = await until(() =>
      stack.logs.slice(after).find((one) => one.includes('"outcome":"refused"')),
    );
    return JSON.parse(line) as Record<string, unknown>;
  }

  it.each(cases)('$name is refused, and the log says why', async (one) => {
    const token = remember(one.token(stack, stranger));
    const [dialled, logged] = [relay.accepted, stack.logs.length];
    const { fields } = await answer(token);
    const line = await lastRefusal(logged);

    expect(Object.fromEntries(fields)).toEqual({
      S: 'FATAL',
      V: 'FATAL',
      C: '28P01',
      M: SAID,
      ...(one.detail && { D: expect.stringContaining(one.detail) as string }),
      ...(one.hint && { H: expect.stringMatching(one.hint) as string }),
    });
    expect(line).toMatchObject({ event: 'login', reason: one.reason, sqlstate: '28P01' });
    if (one.cause !== undefined) expect(line['cause']).toMatch(one.cause);
    expect(relay.accepted).toBe(dialled);
  });

  it('is refused with the same bytes for every reason before its signature has verified', async () => {
    const unsigned = cases.filter((one) => !isSigned(one) && one.hint === undefined);
    const answers = new Set<string>();
    for (const one of unsigned) {
      answers.add((await answer(remember(one.token(stack, stranger)))).bytes.toString('hex'));
    }
    expect(unsigned.length).toBeGreaterThan(8);
    expect(answers.size).toBe(1);
  });

  it('of another user’s database or role is refused only after it was found good', async () => {
    const good = remember(await stack.token('alice', { note: MARK }));
    const logged = stack.logs.length;
    for (const [user, database] of [
      ['postgres', 'app'],
      ['authenticated', 'postgres'],
      ['authenticated', 'template1'],
      ['__proto__', 'app'],
      ['constructor', 'app'],
      ['authenticated', '__proto__'],
      ['authenticated', 'constructor'],
    ] as const) {
      using client = await RawClient.open(stack);
      client.send(
        startup([
          ['user', user],
          ['database', database],
        ]),
        passwordMessage(good),
      );
      await client.end();
      expect(client.heard.at(-1)?.reply).toMatchObject({ kind: 'error', sqlstate: '28000' });
    }
    expect((await lastRefusal(logged))['reason']).toBe('role_forbidden');
  });

  it.skipIf(!hasPsql).each(cases.filter(({ name }) => name !== 'that is empty'))(
    '$name: psql prints the refusal whole',
    async (one) => {
      const token = remember(one.token(stack, stranger));
      const failure: { code?: number; stderr?: string } = await run(
        'psql',
        ['-X', '-c', 'select 1'],
        {
          env: {
            PATH: process.env['PATH'],
            PGHOST: stack.host,
            PGPORT: String(stack.port),
            PGUSER: 'authenticated',
            PGDATABASE: 'app',
            PGPASSWORD: token,
          },
        },
      ).then(
        () => ({ code: 0 }),
        (error: { code: number; stderr: string }) => error,
      );

      expect(failure.code).toBe(2);
      expect(failure.stderr).toContain(`FATAL:  ${SAID}`);
      if (one.detail !== undefined)
        expect(failure.stderr).toMatch(new RegExp(`DETAIL:.*${one.detail}`));
      if (one.hint !== undefined)
        expect(failure.stderr).toMatch(new RegExp(`HINT:.*${one.hint.source}`));
      for (const part of token.split('.').filter(({ length }) => length > 20)) {
        expect(failure.stderr).not.toContain(part);
      }
    },
  );

  it('that is good is accepted between all of them', async () => {
    const token = remember(await stack.token('alice', { note: MARK }));
    using client = await RawClient.login(stack, token);

    expect(await client.ask('select auth.user_id()')).toEqual({
      rows: [['alice']],
      sqlstate: undefined,
    });
  });

  it('is in no line of our log, nor of PostgreSQL’s, whole or in part', async () => {
    using client = await RawClient.login(stack, remember(await stack.token('alice')));
    await client.ask("select 'the log has come so far'");
    await until(() => serverLog.some((line) => line.includes('the log has come so far')));

    const ours = stack.logs.join('\n');
    const theirs = serverLog.join('\n');
    expect(sent.length).toBeGreaterThan(cases.length);
    for (const token of sent) {
      // The header is the same for every token of a key, and no secret.
      const parts = token.split('.').slice(token.includes('.') ? 1 : 0);
      for (const part of parts.filter(({ length }) => length > 20)) {
        for (const piece of [part.slice(0, 40), part.slice(-40)]) {
          expect(ours).not.toContain(piece);
          expect(theirs).not.toContain(piece);
        }
      }
    }
    expect(ours).not.toContain(MARK);
    expect(ours).not.toMatch(ANY_TOKEN);
    expect(theirs).not.toMatch(ANY_TOKEN);
  });
});
