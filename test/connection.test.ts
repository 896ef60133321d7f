/**
 * Whole lives of one client, on real sockets, with every exit in the drawing of `connection.ts`.
 *
 * The house around it is played by the test: what it is asked, in which order, and that whatever was
 * taken is given back exactly once.
 */
import type { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  serve,
  type ConnectionContext,
  type ConnectionLog,
  type Endable,
} from '../src/connection.ts';
import { SessionClock } from '../src/deadline.ts';
import { ProxyError } from '../src/errors.ts';
import type { Identity } from '../src/identity/policy.ts';
import type { Admission } from '../src/limits/ledger.ts';
import type { Outcome } from '../src/splice/splice.ts';
import { createCancels } from '../src/upstream/cancel.ts';
import {
  AuthenticationCleartextPassword,
  AuthenticationOk,
  decodeErrorFields,
  encodeErrorFields,
  encodeReadyForQuery,
} from '../src/wire/backend.ts';
import { encodeFrame } from '../src/wire/frame.ts';
import { Terminate, encodePasswordMessage, encodeQuery } from '../src/wire/frontend.ts';
import {
  encodeCancelRequest,
  encodeStartupMessage,
  readStartupPacket,
} from '../src/wire/startup.ts';
import * as fake from './support/fake-postgres.ts';
import { makePairs, nothingLeaked, openResources, type PairMaker } from './support/sockets.ts';
import { until } from './support/stack.ts';

const STARTUP = encodeStartupMessage([
  ['user', 'authenticated'],
  ['database', 'app'],
  ['search_path', 'app'],
]);
const PASSWORD = encodePasswordMessage('a.b.c');
const QUERY = encodeQuery('select 1');
const READY = encodeReadyForQuery('I');
const GREETING = encodeFrame('S', Buffer.from('TimeZone\0UTC\0'));
const WELCOME_BYTES = AuthenticationOk.length + GREETING.length + 13 + READY.length;

let pairs: PairMaker;
let before: ReturnType<typeof openResources>;
beforeEach(async () => {
  before = openResources();
  pairs = await makePairs();
});
afterEach(async () => {
  await pairs[Symbol.asyncDispose]();
  await nothingLeaked(before);
});

const IDENTITY: Identity = {
  provider: 'own',
  issuer: 'https://id.example.com',
  subject: 'alice',
  kid: 'k1',
  role: 'authenticated',
  upstream: 'main',
  claims: { sub: 'alice' },
  expiresAt: Date.now() + 3_600_000,
};

type House = { -readonly [Key in keyof ConnectionContext]: ConnectionContext[Key] };

/** A client that has arrived, and what has happened to it. */
async function arrive(change: (house: House) => void = () => {}) {
  const { accepted, connected } = await pairs.plain();
  const inside = await pairs.plain();
  const events: string[] = [];
  /** What the ledger has been told of the admitted client. */
  const ledger: string[] = [];
  const seen: {
    refusal?: ProxyError;
    outcome?: Outcome;
    /** How to end its session. */
    finish?: Endable['end'];
    abandon?: () => void;
    /** How to end its login. */
    refuse?: Endable['end'];
  } = {};
  const peer = { stream: inside.connected as Duplex };
  const house: House = {
    handshake: { tlsMode: 'allow', secureContext: undefined, allowParameters: [] },
    verifier: {
      verify: async (token, _, attempt) => {
        attempt?.('own');
        events.push(`verify ${token}`);
        return { subject: 'alice', issuer: 'own' } as never;
      },
      warm: () => {},
      keyStates: () => [],
      close: () => {},
    },
    cancels: createCancels(),
    maxTokenBytes: 1_000,
    loginTimeoutMs: 5_000,
    sessions: {
      onTokenExpiry: 'drain',
      graceMs: 5_000,
      noticeMs: 0,
      maxLifetimeMs: 0,
      drainTimeoutMs: 5_000,
    },
    admit: async () => {
      events.push('admit');
      return {
        attempt: (issuer) => ledger.push(`attempt ${issuer}`),
        failed: ({ code }) => ledger.push(`failed ${code}`),
        succeeded: (issuer) => ledger.push(`succeeded ${issuer}`),
        claim: async ({ subject }) => void ledger.push(`claim ${subject}`),
        onLeave: () => {},
        leave: () => events.push('leave'),
      };
    },
    cancel: async (key) => void (await house.cancels.forward(key)),
    current: () => house,
    anonymous: () => undefined,
    discovery: () => undefined,
    authorize: ({ user }) => {
      events.push(`authorize ${user}`);
      return IDENTITY;
    },
    acquire: async ({ subject }, parameters) => {
      events.push(`acquire ${subject} ${[...parameters].join()}`);
      return {
        peer,
        greeting: [GREETING],
        slot: 'pgjot_authenticated_1',
        cancelTarget: { upstream: fake.upstreamAt(1), processId: 9, secretKey: Buffer.alloc(4) },
        renew: undefined,
        disown: async () => void events.push('disown'),
        release: async ({ busy }) => {
          events.push(`release ${busy ? 'busy' : 'idle'}`);
          peer.stream.destroy();
          await turn();
        },
      };
    },
  };
  change(house);
  const witness: ConnectionLog = {
    session: 'session-id',
    onArrival: (login) => {
      seen.refuse = (...why) => login.end(...why);
      seen.abandon = () => login.end(new ProxyError('shutdown'), 0);
    },
    onLocated: (address) => {
      expect(address).toBe('192.0.2.1');
    },
    onStartup: ({ database }) => events.push(`startup ${database}`),
    onToken: () => events.push('token'),
    onIdentity: () => events.push('identity'),
    onLease: () => events.push('lease'),
    onWelcome: (_, session) => {
      seen.finish = (...why) => session.end(...why);
      events.push('welcome');
    },
    onRenewal: () => events.push('renewal'),
    onRenewalRefused: (error) => events.push(`renewal refused ${error.code}`),
    onRefusal: (error) => {
      seen.refusal = error;
      events.push(`refused ${error.code}`);
    },
    onEnd: (outcome) => {
      seen.outcome = outcome;
      events.push(`end by ${outcome.endedBy}`);
    },
  };
  const heard: Buffer[] = [];
  connected.on('data', (chunk: Buffer) => heard.push(chunk));
  let ended = false;
  connected.on('end', () => {
    ended = true;
    connected.end();
  });
  const served = serve(accepted, { locate: async () => '192.0.2.1' }, house, witness);
  return {
    client: connected,
    ledger,
    backend: inside.accepted,
    house,
    events,
    seen,
    served,
    heard: () => Buffer.concat(heard),
    ended: () => ended,
  };
}

type Arrival = Awaited<ReturnType<typeof arrive>>;

/** Logs in, until ReadyForQuery has come. */
async function logIn(one: Arrival): Promise<void> {
  one.client.write(STARTUP);
  await until(() => one.heard().length === AuthenticationCleartextPassword.length);
  one.client.write(PASSWORD);
  await until(() => one.heard().length === AuthenticationCleartextPassword.length + WELCOME_BYTES);
  await until(() => one.seen.finish !== undefined);
}

/** The fields of the last message, an ErrorResponse, behind `skip` bytes. */
function lastWords(one: Arrival, skip: number): Record<string, string> {
  const bytes = one.heard().subarray(skip);
  expect(String.fromCharCode(bytes[0] ?? 0)).toBe('E');
  expect(bytes).toHaveLength(bytes.readInt32BE(1) + 1);
  return Object.fromEntries(decodeErrorFields(bytes.subarray(5)));
}

const ASKED = AuthenticationCleartextPassword.length;
const LOGIN_EVENTS = [
  'startup app',
  'admit',
  'token',
  'verify a.b.c',
  'authorize authenticated',
  'identity',
  'acquire alice search_path,app',
  'lease',
  'welcome',
];

describe('a life', () => {
  test('from the first byte to Terminate, everything given back once and in order', async () => {
    const one = await arrive();
    await logIn(one);
    one.backend.once('data', () => one.backend.write(READY));
    one.client.write(QUERY);
    await until(() => one.heard().length === ASKED + WELCOME_BYTES + READY.length);

    one.client.write(Terminate);
    one.backend.on('data', () => one.backend.end());
    await one.served;

    expect(one.events).toEqual([...LOGIN_EVENTS, 'end by client', 'release idle', 'leave']);
    expect(one.seen.outcome?.error).toBeUndefined();
    await until(one.ended);
  });

  test('hears one ReadyForQuery, and a cancel key that is not the upstream’s', async () => {
    const one = await arrive();
    await logIn(one);
    const welcome = one.heard().subarray(ASKED);

    expect(welcome.subarray(0, 9)).toEqual(AuthenticationOk);
    expect(welcome.subarray(9, 9 + GREETING.length)).toEqual(GREETING);
    expect(welcome.readInt32BE(9 + GREETING.length + 5)).not.toBe(9);
    expect(welcome.subarray(-READY.length)).toEqual(READY);
    one.client.resetAndDestroy();
    await one.served;
  });

  test('keeps what a hasty client sent with its password for the session', async () => {
    const one = await arrive();
    const got: Buffer[] = [];
    one.backend.on('data', (chunk: Buffer) => got.push(chunk));

    one.client.write(Buffer.concat([STARTUP, PASSWORD, QUERY]));

    await until(() => Buffer.concat(got).equals(QUERY));
    one.client.resetAndDestroy();
    await one.served;
    expect(one.events.slice(-2)).toEqual(['release busy', 'leave']);
  });

  test('that ends without Terminate in a query gives the session back as busy', async () => {
    const one = await arrive();
    await logIn(one);
    one.client.write(QUERY);
    await until(() => one.backend.bytesRead > 0);

    one.client.resetAndDestroy();
    await one.served;

    expect(one.seen.outcome).toMatchObject({ endedBy: 'client', busy: true });
    expect(one.events.slice(-3)).toEqual(['end by client', 'release busy', 'leave']);
  });

  test('whose PostgreSQL crashes hears FATAL 08006', async () => {
    const one = await arrive();
    await logIn(one);

    one.backend.resetAndDestroy();
    await one.served;

    expect(lastWords(one, ASKED + WELCOME_BYTES)).toMatchObject({ S: 'FATAL', C: '08006' });
    expect(one.events.slice(-3)).toEqual(['end by upstream', 'release idle', 'leave']);
  });

  test('whose token expires hears FATAL 57P01 with a hint when it is idle', async () => {
    const one = await arrive((house) => {
      house.authorize = () => ({ ...IDENTITY, expiresAt: Date.now() + 150 });
    });
    await logIn(one);

    await one.served;

    expect(lastWords(one, ASKED + WELCOME_BYTES)).toMatchObject({
      C: '57P01',
      M: 'terminating connection because the token expired',
      H: 'Reconnect with a fresh token.',
    });
    expect(one.seen.outcome?.endedBy).toBe('proxy');
  });

  test('whose token expires in a thousand years goes on', async () => {
    const one = await arrive((house) => {
      house.authorize = () => ({ ...IDENTITY, expiresAt: Date.now() + 31_536_000_000_000 });
    });
    await logIn(one);

    one.client.write(QUERY);
    await until(() => one.backend.bytesRead > 0);

    expect(one.seen.outcome).toBeUndefined();
    one.client.resetAndDestroy();
    await one.served;
  });

  test('is ended by the house in the same way', async () => {
    const one = await arrive();
    await logIn(one);

    one.seen.finish?.(new ProxyError('shutdown'), 0);
    await one.served;

    expect(lastWords(one, ASKED + WELCOME_BYTES)).toMatchObject({ C: '57P01' });
  });

  test('that is revoked gives its identity back first, and sends nothing on that comes after that', async () => {
    const one = await arrive();
    await logIn(one);
    one.client.write(QUERY);
    await until(() => one.backend.bytesRead === QUERY.length);

    // Read by us in the same turn as the revocation, and behind it.
    one.client.write(QUERY);
    one.seen.finish?.(REVOKED, 0);
    await one.served;

    expect(lastWords(one, ASKED + WELCOME_BYTES)).toMatchObject({
      C: '57P01',
      M: 'terminating connection because its token is accepted no more',
    });
    expect(one.events.slice(-4)).toEqual(['disown', 'end by proxy', 'release busy', 'leave']);
    expect(one.backend.bytesRead).toBe(QUERY.length);
  });
});

const REVOKED = new ProxyError(
  'token_revoked',
  { user: 'authenticated' },
  { cause: new Error('revoked') },
);

describe('a token that is revoked while its session is on its way', () => {
  test.each<[string, (one: { seen: Arrival['seen'] }) => (house: House) => void]>([
    [
      'as it is found',
      (one) => (house) => {
        const { acquire } = house;
        house.acquire = async (...given) => {
          const lease = await acquire(...given);
          one.seen.refuse?.(REVOKED, 0);
          return lease;
        };
      },
    ],
    [
      'as the client is welcomed',
      (one) => (house) => {
        const { cancels } = house;
        house.cancels = {
          ...cancels,
          register(...given) {
            queueMicrotask(() => one.seen.refuse?.(REVOKED, 0));
            return cancels.register(...given);
          },
        };
      },
    ],
  ])('%s is refused, and no statement behind the password runs', async (_, interfering) => {
    const later: { seen: Arrival['seen'] } = { seen: {} };
    const one = await arrive(interfering(later));
    later.seen = one.seen;

    one.client.write(Buffer.concat([STARTUP, PASSWORD, QUERY]));
    await one.served;

    expect(one.seen.refusal?.code).toBe('token_revoked');
    expect(one.events).not.toContain('welcome');
    expect(one.events.slice(-3)).toEqual(['release busy', 'refused token_revoked', 'leave']);
    expect(one.backend.bytesRead).toBe(0);
    await until(one.ended);
    expect(one.heard().toString('latin1')).toContain('C28P01\0');
  });
});

describe('the ledger', () => {
  test('hears of the token, its issuer and its subject, each before the work that it may spare', async () => {
    const one = await arrive();
    await logIn(one);
    one.client.write(Terminate);
    one.backend.on('data', () => one.backend.end());
    await one.served;

    expect(one.ledger).toEqual(['attempt own', 'succeeded own', 'claim alice']);
  });

  test('may refuse a token before it is verified, and a subject before anything is dialled', async () => {
    const refusing = async (change: (admission: Admission) => void) => {
      const one = await arrive((house) => {
        const { admit } = house;
        house.admit = async (...given) => {
          const admission = await admit(...given);
          change(admission);
          return admission;
        };
      });
      one.client.write(Buffer.concat([STARTUP, PASSWORD]));
      await one.served;
      return one;
    };
    const refuse = (code: 'too_many_attempts' | 'too_many_clients') => () => {
      throw new ProxyError(code);
    };

    const early = await refusing((admission) => {
      admission.attempt = refuse('too_many_attempts');
    });
    const late = await refusing((admission) => {
      admission.claim = refuse('too_many_clients');
    });

    expect(early.events).toEqual([
      'startup app',
      'admit',
      'token',
      'refused too_many_attempts',
      'leave',
    ]);
    expect(early.ledger).toEqual(['failed too_many_attempts']);
    expect(late.events.slice(-3)).toEqual(['identity', 'refused too_many_clients', 'leave']);
  });
});

describe('a refusal', () => {
  test.each<[string, (house: House) => void, string, string, string[]]>([
    [
      'of the house',
      (house) =>
        (house.admit = () => {
          throw new ProxyError('too_many_clients');
        }),
      'too_many_clients',
      '53300',
      ['startup app', 'refused too_many_clients'],
    ],
    [
      'of the token',
      (house) =>
        (house.verifier.verify = () =>
          Promise.reject(
            new ProxyError(
              'token_expired',
              { user: 'authenticated' },
              { detail: 'The token has expired.' },
            ),
          )),
      'token_expired',
      '28P01',
      ['startup app', 'admit', 'token', 'refused token_expired', 'leave'],
    ],
    [
      'of the role',
      (house) =>
        (house.authorize = ({ user }) => {
          throw new ProxyError('role_forbidden', { role: user });
        }),
      'role_forbidden',
      '28000',
      ['startup app', 'admit', 'token', 'verify a.b.c', 'refused role_forbidden', 'leave'],
    ],
    [
      'of the pool',
      (house) => (house.acquire = () => Promise.reject(new ProxyError('pool_timeout'))),
      'pool_timeout',
      '53300',
      [...LOGIN_EVENTS.slice(0, 6), 'refused pool_timeout', 'leave'],
    ],
    [
      'by a bug of ours',
      (house) => (house.acquire = () => Promise.reject(new TypeError('x is not a function'))),
      'internal',
      'XX000',
      [...LOGIN_EVENTS.slice(0, 6), 'refused internal', 'leave'],
    ],
  ])('%s is one ErrorResponse and the end', async (_, change, code, sqlstate, events) => {
    const one = await arrive(change);
    one.client.write(Buffer.concat([STARTUP, PASSWORD]));

    await one.served;

    expect(one.seen.refusal?.code).toBe(code);
    const skip = code === 'too_many_clients' ? 0 : ASKED;
    expect(lastWords(one, skip)).toMatchObject({ S: 'FATAL', C: sqlstate });
    expect(one.events).toEqual(events);
    await until(one.ended);
  });

  test("of the upstream is passed on in PostgreSQL's own bytes", async () => {
    const frame = encodeErrorFields({
      severity: 'FATAL',
      sqlstate: '57P03',
      message: 'the database system is starting up',
    });
    const one = await arrive((house) => {
      house.acquire = () => Promise.reject(new ProxyError('upstream_rejected', { frame }));
    });

    one.client.write(Buffer.concat([STARTUP, PASSWORD]));
    await one.served;

    expect(one.heard().subarray(ASKED)).toEqual(frame);
  });

  test('of a bug says which connection it was, and nothing else of it', async () => {
    const one = await arrive((house) => {
      house.acquire = () => Promise.reject(new TypeError('x is not a function'));
    });

    one.client.write(Buffer.concat([STARTUP, PASSWORD]));
    await one.served;

    expect(lastWords(one, ASKED)).toMatchObject({
      M: 'internal error',
      D: 'connection session-id',
    });
  });

  test('of what is no startup packet is silence', async () => {
    const one = await arrive();

    one.client.write('GET / HTTP/1.1\r\n\r\n');
    await one.served;

    expect(one.heard()).toHaveLength(0);
    expect(one.events).toEqual(['refused malformed_startup']);
  });
});

describe('time', () => {
  const hasty = (house: House) => {
    house.loginTimeoutMs = 60;
  };

  test('that runs out before a StartupMessage ends in silence', async () => {
    const one = await arrive(hasty);

    await one.served;

    expect(one.heard()).toHaveLength(0);
    expect(one.events).toEqual(['refused login_timeout']);
  });

  test.each<[string, (house: House) => void, Buffer]>([
    ['while it waits for the password', () => {}, STARTUP],
    [
      'while it waits for keys',
      (house) => (house.verifier.verify = () => new Promise(() => {})),
      Buffer.concat([STARTUP, PASSWORD]),
    ],
    [
      'while it waits for a session',
      (house) =>
        (house.acquire = (_, __, signal) =>
          new Promise((___, reject) => {
            signal.addEventListener('abort', () => reject(signal.reason as Error));
          })),
      Buffer.concat([STARTUP, PASSWORD]),
    ],
  ])('that runs out %s is FATAL 57014', async (_, change, bytes) => {
    const one = await arrive((house) => {
      hasty(house);
      change(house);
    });

    one.client.write(bytes);
    await one.served;

    expect(lastWords(one, ASKED)).toMatchObject({ S: 'FATAL', C: '57014' });
    expect(one.events.at(-1)).toBe('leave');
  });

  test('that runs out after the welcome means nothing', async () => {
    const one = await arrive((house) => {
      house.loginTimeoutMs = 400;
    });
    await logIn(one);
    const since = performance.now();

    await until(() => performance.now() - since > 500);

    expect(one.seen.outcome).toBeUndefined();
    one.client.resetAndDestroy();
    await one.served;
  });
});

describe('a house that closes', () => {
  test('says nothing to who has not said who it is', async () => {
    const one = await arrive();

    one.seen.abandon?.();
    await one.served;

    expect(one.heard()).toHaveLength(0);
    expect(one.events).toEqual(['refused draining']);
  });

  test('tells a client that is logging in FATAL 57P03', async () => {
    const one = await arrive();
    one.client.write(STARTUP);
    await until(() => one.heard().length === ASKED);

    one.seen.abandon?.();
    await one.served;

    expect(lastWords(one, ASKED)).toMatchObject({ S: 'FATAL', C: '57P03' });
    expect(one.events).toEqual(['startup app', 'admit', 'refused draining', 'leave']);
  });
});

describe('a client that goes away', () => {
  test.each([
    ['before a byte', Buffer.alloc(0), ['refused probe']],
    ['before its password', STARTUP, ['startup app', 'admit', 'refused client_lost', 'leave']],
  ])('%s costs nothing', async (_, bytes, events) => {
    const one = await arrive();

    one.client.end(bytes);
    await one.served;

    expect(one.events).toEqual(events);
  });

  test('while it waits for a session stops the waiting', async () => {
    let aborted: unknown;
    const one = await arrive((house) => {
      house.acquire = (_, __, signal) =>
        new Promise((___, reject) => {
          signal.addEventListener('abort', () => {
            aborted = signal.reason;
            reject(signal.reason as Error);
          });
        });
    });
    one.client.write(Buffer.concat([STARTUP, PASSWORD]));
    await until(() => one.events.includes('identity'));

    one.client.resetAndDestroy();
    await one.served;

    expect(aborted).toMatchObject({ code: 'client_lost' });
    expect(one.events.slice(-2)).toEqual(['refused client_lost', 'leave']);
  });

  test('just when the session is ready gives it back', async () => {
    const one: Arrival = await arrive((house) => {
      const { acquire } = house;
      house.acquire = async (...given) => {
        const lease = await acquire(...given);
        one.client.resetAndDestroy();
        await until(() => one.client.destroyed);
        return lease;
      };
    });
    one.client.write(Buffer.concat([STARTUP, PASSWORD]));

    await one.served;

    expect(one.events.filter((event) => event.startsWith('release'))).toHaveLength(1);
    expect(one.events.at(-1)).toBe('leave');
  });
});

describe('a CancelRequest', () => {
  test('is forwarded, answered by nothing but the end, and counts as no client', async () => {
    const got: Buffer[] = [];
    await using server = await fake.startFakePostgres([
      async ({ stream, signal }) => {
        got.push((await readStartupPacket(stream, signal)).body);
        stream.end();
      },
    ]);
    const one = await arrive();
    const secretKey = Buffer.from('c0ffee00', 'hex');
    const key = one.house.cancels.register(
      { upstream: fake.upstreamAt(server.port), processId: 4_711, secretKey },
      0,
    );

    one.client.write(encodeCancelRequest(key.processId, key.secretKey));
    await one.served;

    expect(got).toEqual([encodeCancelRequest(4_711, secretKey).subarray(8)]);
    expect(one.events).toEqual([]);
    expect(one.heard()).toHaveLength(0);
    await until(one.ended);
  });

  test('that matches nothing looks just the same', async () => {
    const one = await arrive();

    one.client.write(encodeCancelRequest(1, Buffer.alloc(4)));
    await one.served;

    expect(one.events).toEqual([]);
    expect(one.heard()).toHaveLength(0);
  });

  test('for a session that is over cancels nothing, though it did before', async () => {
    await using server = await fake.startFakePostgres([fake.hangUp]);
    const one = await arrive((house) => {
      const { acquire } = house;
      house.acquire = async (...given) => ({
        ...(await acquire(...given)),
        cancelTarget: {
          upstream: fake.upstreamAt(server.port),
          processId: 4_711,
          secretKey: Buffer.alloc(4),
        },
      });
    });
    await logIn(one);
    const said = one.heard().subarray(ASKED + AuthenticationOk.length + GREETING.length + 5);
    const key = { processId: said.readInt32BE(0), secretKey: Buffer.from(said.subarray(4, 8)) };
    await one.house.cancels.forward(key);
    expect(server.backends).toHaveLength(1);

    one.client.resetAndDestroy();
    await one.served;
    await one.house.cancels.forward(key);

    expect(server.backends).toHaveLength(1);
  });
});

test('a renewal that is answered when its session is gone leaves no alarm behind', () => {
  const rules = {
    onTokenExpiry: 'drain',
    graceMs: 0,
    noticeMs: 1_000,
    maxLifetimeMs: 60_000,
    drainTimeoutMs: 0,
  } as const;
  const timers = process.getActiveResourcesInfo().filter((one) => one === 'Timeout').length;
  const clock = new SessionClock(rules, Date.now() + 60_000, { onNotice() {}, onEnd() {} });

  clock.cancel();
  clock.renew(Date.now() + 3_600_000);

  expect(process.getActiveResourcesInfo().filter((one) => one === 'Timeout')).toHaveLength(timers);
});
