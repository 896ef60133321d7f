/**
 * Signing in by OAUTHBEARER, as it is on the wire: what is offered to whom, what each answer to it gets, and what nobody hears.
 *
 * Every refusal is seen to dial nothing and to leave no token behind. What libpq makes of it all is in
 * `test/clients/oauth.test.ts`.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { olderPostgres } from '../support/postgres.ts';
import { startStack, until, type Stack, type StackOptions } from '../support/stack.ts';
import { cstring, frame, int32, passwordMessage, query, startup } from './parity/bytes.ts';
import { RawClient, type Destination, type Heard } from './raw-client.ts';
import { Relay } from './relay.ts';

// Stands in every token's claims, so that a piece of one is found wherever it turns up.
const MARK = 'marked-claim-8675309';
const SAID = 'OAuth bearer authentication failed for user "authenticated"';

/** SASLInitialResponse with this response, in which `^` stands for the separator. */
function initial(response: string, mechanism = 'OAUTHBEARER'): Buffer {
  const bytes = Buffer.from(response.replaceAll('^', '\x01'), 'latin1');
  return frame('p', Buffer.concat([cstring(mechanism), int32(bytes.length), bytes]));
}

const bearer = (token: string) => initial(`n,,^auth=Bearer ${token}^^`);
const DISCOVER = initial('n,,^auth=^^');
const KVSEP = frame('p', '\x01');

const asking = (user = 'authenticated', database = 'app') =>
  startup([
    ['user', user],
    ['database', database],
  ]);

/** What an Authentication message asks for, and what it brings along. */
function authentication({ type, body }: Heard): [kind: number, rest: string] {
  expect(type).toBe('R');
  return [body.readInt32BE(0), body.subarray(4).toString()];
}

const SASL_OFFER: [number, string] = [10, 'OAUTHBEARER\0\0'];
const CLEARTEXT: [number, string] = [3, ''];

/** Everything that is said to a client that sends all of this, and that the server then closes. */
async function conversation(to: Destination, ...bytes: Buffer[]): Promise<RawClient> {
  const client = await RawClient.open(to);
  client.send(...bytes);
  await client.end();
  client.destroy();
  expect(client.rest).toHaveLength(0);
  return client;
}

/** The fields of the ErrorResponse that ended a conversation. */
function lastWords({ heard }: RawClient): Record<string, string> {
  const reply = heard.at(-1)?.reply;
  return reply?.kind === 'error' ? Object.fromEntries(reply.fields) : {};
}

/** Everybody who asks is to sign in by OAUTHBEARER. */
const OAUTH: StackOptions = { listen: { authentication: 'oauth' } };

describe('a listener that asks for OAUTHBEARER', () => {
  let relay: Relay;
  let stack: Stack;
  const sent: string[] = [];

  beforeAll(async () => {
    relay = await Relay.open();
    stack = await startStack({ ...OAUTH, upstream: { port: relay.port } });
    relay.toward(stack.postgres.port);
  });
  afterAll(async () => {
    await stack.close();
    await relay[Symbol.asyncDispose]();
  });

  const remember = (token: string): string => {
    sent.push(token);
    return token;
  };
  const good = async (sub = 'alice') => remember(await stack.token(sub, { note: MARK }));
  /** The line of the login that was logged first from here on. */
  const loginAfter = async (logged: number) =>
    JSON.parse(
      await until(() => stack.logs.slice(logged).find((line) => line.includes('"event":"login"'))),
    ) as Record<string, unknown>;
  const challenge = () => ({
    status: 'invalid_token',
    'openid-configuration': `${stack.issuer.issuer}/.well-known/openid-configuration`,
    scope: 'openid',
  });

  it('offers nothing else, and lets a good token in without another word of SASL', async () => {
    using client = await RawClient.open(stack);
    client.send(asking());
    const offer = await client.next('R');
    client.send(bearer(await good()));
    await client.next('Z');

    expect(authentication(offer)).toEqual(SASL_OFFER);
    const spoken = client.heard.filter(({ type }) => type === 'R').map(authentication);
    expect(spoken).toEqual([SASL_OFFER, [0, '']]);
    expect(await client.ask('select auth.user_id(), current_user')).toEqual({
      rows: [['alice', 'authenticated']],
      sqlstate: undefined,
    });
  });

  it('takes the response behind an empty challenge, byte by byte', async () => {
    using client = await RawClient.open(stack);
    const response = `n,,\x01host=db\x01auth=bEaReR   ${await good()}\x01\x01`;
    client.send(asking(), frame('p', Buffer.concat([cstring('OAUTHBEARER'), int32(-1)])));
    await client.next('R');
    expect(authentication(await client.next('R'))).toEqual([11, '']);
    for (const byte of frame('p', response)) client.send(Buffer.of(byte));
    await client.next('Z');

    expect((await client.ask('select auth.user_id()')).rows).toEqual([['alice']]);
  });

  it('runs what a hasty client has sent behind its token', async () => {
    using client = await RawClient.open(stack);
    client.send(asking(), bearer(await good('bob')), query('select auth.user_id()'));
    await client.next('Z');
    await client.next('Z');

    expect(
      client.heard.flatMap(({ reply }) => (reply.kind === 'row' ? [reply.values] : [])),
    ).toEqual([['bob']]);
  });

  it('says where to get a token, which is no failed login', async () => {
    const [dialled, logged] = [relay.accepted, stack.logs.length];

    const client = await conversation(stack, asking(), DISCOVER, KVSEP);

    const [offer, failure, ...rest] = client.heard;
    expect(authentication(offer as Heard)).toEqual(SASL_OFFER);
    const [kind, json] = authentication(failure as Heard);
    expect([kind, JSON.parse(json)]).toEqual([11, challenge()]);
    expect(rest).toHaveLength(1);
    expect(lastWords(client)).toEqual({ S: 'FATAL', V: 'FATAL', C: '28000', M: SAID });
    expect(await loginAfter(logged)).toMatchObject({
      level: 30,
      outcome: 'discovery',
      reason: 'oauth_discovery',
      user: 'authenticated',
    });
    expect(relay.accepted).toBe(dialled);
  });

  it('counts a client as no worse that goes once it knows, and keeps nothing of it', async () => {
    const logged = stack.logs.length;
    using client = await RawClient.open(stack);
    client.send(asking(), DISCOVER);
    await client.next('R');
    await client.next('R');
    client.destroy();

    expect(await loginAfter(logged)).toMatchObject({ level: 30, outcome: 'discovery' });
    await until(() => stack.proxy.counts().connections === 0);
  });

  /** Every token that is not to be taken, and the log's reason. */
  const refusals: [name: string, reason: string, response: (stack: Stack) => string][] = [
    ['no scheme', 'token_rejected', ({ issuer }) => issuer.mint({ sub: 'alice', note: MARK })],
    ['a Basic scheme', 'token_rejected', () => `Basic ${MARK}`],
    ['no token', 'token_missing', () => 'Bearer '],
    ['no JWT', 'token_rejected', () => `Bearer ${MARK}`],
    [
      'a JWT with a space behind it',
      'token_rejected',
      ({ issuer }) => `Bearer ${issuer.mint({ sub: 'alice', note: MARK })} `,
    ],
    [
      'a JWT in percent-encoding',
      'token_rejected',
      ({ issuer }) => `Bearer ${issuer.mint({ sub: 'alice' }).replaceAll('.', '%2E')}`,
    ],
    [
      'a signature that was changed',
      'token_rejected',
      ({ issuer }) => {
        const [header, payload, signature] = issuer.mint({ sub: 'alice', note: MARK }).split('.');
        return `Bearer ${header}.${payload}.${Array.from(signature ?? '')
          .toReversed()
          .join('')}`;
      },
    ],
    [
      'an unknown key',
      'token_rejected',
      ({ issuer }) => `Bearer ${issuer.mint({ sub: 'alice', note: MARK }, { kid: 'nobody' })}`,
    ],
    [
      'more bytes than are allowed',
      'token_rejected',
      ({ issuer }) => `Bearer ${issuer.mint({ sub: 'alice', note: MARK.repeat(2_000) })}`,
    ],
  ];

  it.each(refusals)('refuses %s in the same words as any other', async (_, reason, response) => {
    const logged = stack.logs.length;
    const dialled = relay.accepted;
    const auth = remember(response(stack));

    const client = await conversation(stack, asking(), initial(`n,,^auth=${auth}^^`), KVSEP);
    const discovery = await conversation(stack, asking(), DISCOVER, KVSEP);

    const bytes = ({ heard }: RawClient) => Buffer.concat(heard.map(({ body }) => body));
    expect(bytes(client)).toEqual(bytes(discovery));
    expect(await loginAfter(logged)).toMatchObject({
      level: 30,
      outcome: 'refused',
      reason,
      sqlstate: '28000',
    });
    expect(relay.accepted).toBe(dialled);
  });

  it('says of a token that somebody has signed what is wrong with it', async () => {
    const expired = remember(
      stack.issuer.mint({ sub: 'alice', note: MARK }, { expiresIn: -3_600 }),
    );
    const stray = remember(stack.issuer.mint({ sub: 'alice', note: MARK, aud: 'somebody-else' }));

    const ofExpired = await conversation(stack, asking(), bearer(expired), KVSEP);
    const ofStray = await conversation(stack, asking(), bearer(stray), KVSEP);

    expect(lastWords(ofExpired)).toMatchObject({
      C: '28000',
      M: SAID,
      D: 'The token has expired.',
    });
    expect(lastWords(ofStray)).toMatchObject({ C: '28000', M: SAID });
    expect(lastWords(ofStray)['D']).toContain('aud');
  });

  it('refuses a token that was revoked as it refuses a bad one', async () => {
    const logged = stack.logs.length;
    stack.proxy.revoke({ sub: 'mallory' });

    const client = await conversation(stack, asking(), bearer(await good('mallory')), KVSEP);

    expect(client.heard.map(({ type }) => type).join('')).toBe('RRE');
    expect(lastWords(client)).toEqual({ S: 'FATAL', V: 'FATAL', C: '28000', M: SAID });
    expect(await loginAfter(logged)).toMatchObject({ outcome: 'refused', reason: 'token_revoked' });
  });

  it('attack: logs a refusal as one, whatever its client then does', async () => {
    for (const after of [[], [frame('p', 'x')], [query('select 1')], [bearer(MARK)]]) {
      const logged = stack.logs.length;
      using client = await RawClient.open(stack);
      client.send(asking(), bearer(MARK), ...after);
      await client.next('R');
      await client.next('R');
      client.socket.end();

      expect(await loginAfter(logged)).toMatchObject({
        outcome: 'refused',
        reason: 'token_rejected',
      });
    }
  });

  it('lets nobody try a second token', async () => {
    const logged = stack.logs.length;

    const client = await conversation(stack, asking(), bearer(MARK), bearer(await good()));

    expect(client.heard.map(({ type }) => type).join('')).toBe('RRE');
    expect(lastWords(client)).toMatchObject({ C: '28000', M: SAID });
    expect((await loginAfter(logged))['outcome']).toBe('refused');
  });

  const MALFORMED = 'malformed OAUTHBEARER message';
  const MECHANISM = 'client selected an invalid SASL authentication mechanism';
  it.each<[string, Buffer, Record<string, string>]>([
    ['a password message', passwordMessage(`eyJ.${MARK}.x`), { M: MECHANISM }],
    ['SCRAM', initial('n,,n=,r=abc', 'SCRAM-SHA-256'), { M: MECHANISM }],
    ['the mechanism with -PLUS', initial('n,,^^', 'OAUTHBEARER-PLUS'), { M: MECHANISM }],
    ['the mechanism in lower case', initial('n,,^^', 'oauthbearer'), { M: MECHANISM }],
    [
      'a channel that is bound',
      initial(`p=tls-server-end-point,,^auth=Bearer ${MARK}^^`),
      {
        M: MALFORMED,
        D: 'The server does not support channel binding for OAuth, but the client message includes channel binding data.',
      },
    ],
    [
      'an authorization identity',
      initial(`n,a=postgres,^auth=Bearer ${MARK}^^`),
      { C: '0A000', M: 'client uses authorization identity, but it is not supported' },
    ],
    [
      'no separator',
      initial(`n,,auth=Bearer ${MARK}^^`),
      { M: MALFORMED, D: `Key-value separator expected, but found character "'a'".` },
    ],
    [
      'two auths',
      initial(`n,,^auth=Bearer a^auth=Bearer ${MARK}^^`),
      { M: MALFORMED, D: 'Message contains multiple auth values.' },
    ],
    [
      'a NUL in the token',
      initial(`n,,^auth=Bearer a\0${MARK}^^`),
      { M: MALFORMED, D: 'Message length does not match input length.' },
    ],
    [
      'no end',
      initial(`n,,^auth=Bearer ${MARK}`),
      { M: MALFORMED, D: 'Message contains an unterminated key/value pair.' },
    ],
    ['an empty response', initial(''), { M: MALFORMED, D: 'The message is empty.' }],
    [
      'a response that is longer than its frame',
      frame('p', Buffer.concat([cstring('OAUTHBEARER'), int32(99), Buffer.from('n,,')])),
      { M: 'insufficient data left in message' },
    ],
    ['a frame of 64 KiB', frame('p', '', 65_536), { M: 'invalid message length' }],
    ['a query', query('select 1'), { M: 'expected SASL response, got message type 81' }],
  ])('refuses %s with PostgreSQL’s words', async (_, bytes, said) => {
    const dialled = relay.accepted;

    const client = await conversation(stack, asking(), bytes);

    expect(client.heard.map(({ type }) => type).join('')).toBe('RE');
    expect(lastWords(client)).toEqual({ S: 'FATAL', V: 'FATAL', C: '08P01', ...said });
    expect(relay.accepted).toBe(dialled);
  });

  it('refuses what follows a failure and is no separator', async () => {
    const client = await conversation(stack, asking(), DISCOVER, frame('p', 'x'));

    expect(lastWords(client)).toMatchObject({
      C: '08P01',
      M: MALFORMED,
      D: 'Client did not send a kvsep response.',
    });
  });

  it('grants no role and no database that the token does not', async () => {
    for (const to of [
      asking('postgres'),
      asking('authenticated', 'postgres'),
      asking('__proto__'),
    ]) {
      const client = await conversation(stack, to, bearer(await good()));

      expect(client.heard.map(({ type }) => type).join('')).toBe('RE');
      expect(lastWords(client)['C']).toBe('28000');
      expect(lastWords(client)['M']).toMatch(/is not permitted to log in$/);
    }
  });

  it('is not told to a client that knows only passwords, whose driver says so', async () => {
    const client = new pg.Client(stack.as('alice'));

    await expect(client.connect()).rejects.toThrow(/SASL/);
    await client.end();
  });

  it('leaves no token in any line of the log, whole or in part', () => {
    const text = stack.logs.join('\n');

    expect(sent.length).toBeGreaterThan(10);
    expect(text).not.toContain(MARK);
    expect(text).not.toContain('eyJ');
    for (const token of sent) {
      for (const part of token.split('.').filter(({ length }) => length > 20)) {
        expect(text).not.toContain(part.slice(0, 40));
        expect(text).not.toContain(part.slice(-40));
      }
    }
  });
});

describe('rules for who is asked for what', () => {
  let stack: Stack;

  beforeAll(async () => {
    stack = await startStack({
      tls: true,
      roles: { analyst: { slots: 2 } },
      provider: { roles: ['authenticated', 'analyst'] },
      listen: {
        authenticationRules: [
          { sni: 'plain.example.com', method: 'password' },
          { sni: 'sso.example.com', database: 'app', method: 'oauth', scope: 'a b' },
          { user: 'analyst', method: 'oauth' },
          { database: 'reports', method: 'oauth' },
        ],
      },
    });
  });
  afterAll(() => stack.close());

  it.each<[string, [user: string, database: string, sni?: string], [number, string]]>([
    ['password where no rule matches', ['authenticated', 'app'], CLEARTEXT],
    ['OAuth by user', ['analyst', 'app'], SASL_OFFER],
    ['OAuth by database', ['authenticated', 'reports'], SASL_OFFER],
    ['OAuth by host name', ['authenticated', 'app', 'sso.example.com'], SASL_OFFER],
    ['OAuth by host name in any case', ['authenticated', 'app', 'SSO.Example.COM'], SASL_OFFER],
    ['password by half a rule', ['authenticated', 'other', 'sso.example.com'], CLEARTEXT],
    ['password by a name that is longer', ['authenticated', 'app', 'x.sso.example.com'], CLEARTEXT],
    ['password by the first rule that matches', ['analyst', 'app', 'plain.example.com'], CLEARTEXT],
    ['password by a user in other letters', ['Analyst', 'app'], CLEARTEXT],
  ])('%s', async (_, [user, database, sni], expected) => {
    const named = sni === undefined ? {} : { servername: sni };
    using client = await RawClient.open({ ...stack, tls: true, ...named });
    client.send(asking(user, database));

    expect(authentication(await client.next('R'))).toEqual(expected);
  });

  it('serve both kinds at the same time, as the same user', async () => {
    const token = await stack.token('alice');
    using oauth = await RawClient.open({ ...stack, tls: true, servername: 'sso.example.com' });
    oauth.send(asking(), bearer(token));
    using password = await RawClient.login({ ...stack, tls: true }, token);
    await oauth.next('Z');

    for (const client of [oauth, password]) {
      expect((await client.ask('select auth.user_id()')).rows).toEqual([['alice']]);
    }
  });

  it('have scopes of their own', async () => {
    const client = await conversation(
      { ...stack, tls: true, servername: 'sso.example.com' },
      asking(),
      DISCOVER,
      KVSEP,
    );

    const [, json] = authentication(client.heard[1] as Heard);
    expect(JSON.parse(json)).toMatchObject({ scope: 'a b' });
  });

  it('are those of the configuration that was read last', async () => {
    const askedOf = async () => {
      using client = await RawClient.open({ ...stack, tls: true });
      client.send(asking());
      return authentication(await client.next('R'));
    };
    const before = await askedOf();
    const listen = { ...stack.config.listen, authentication: 'oauth' as const };
    stack.proxy.reload(parseConfig({ ...stack.config, listen }));
    const after = await askedOf();
    stack.proxy.reload(parseConfig(stack.config));

    expect([before, after, await askedOf()]).toEqual([CLEARTEXT, SASL_OFFER, CLEARTEXT]);
  });

  it('ask a client in the clear for nothing at all', async () => {
    const client = await conversation(stack, asking('analyst'));

    expect(client.heard.map(({ type }) => type).join('')).toBe('E');
    expect(lastWords(client)).toMatchObject({ C: '28000', M: 'connection requires TLS' });
  });
});

describe.skipIf(olderPostgres() === undefined)('a PostgreSQL that knows nothing of OAuth', () => {
  it('is signed in to by OAUTHBEARER', async () => {
    await using stack = await startStack({ ...OAUTH, version: 'older' });
    using client = await RawClient.open(stack);
    client.send(asking(), bearer(await stack.token('alice')));
    await client.next('Z');

    const { rows } = await client.ask(
      `select auth.user_id(), current_setting('server_version_num')`,
    );
    expect(rows).toEqual([['alice', expect.stringMatching(/^1[4-7]/)]]);
  });
});
