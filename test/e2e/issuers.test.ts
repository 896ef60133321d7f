/**
 * Issuers seen from a client: two that must not be mixed up, one that fails in every way, and tokens that ask for a role.
 *
 * Real sockets on all three sides. How often a failing issuer is asked is tested in `test/identity`, where time can be turned.
 */
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createProxy, parseConfig, type ConfigInput, type Proxy } from '../../src/proxy.ts';
import { createIssuerKey, startIssuer, type Fault, type Issuer } from '../support/issuer.ts';
import { recordedLogger } from '../support/logger.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

let stack: Stack;
let first: Issuer;
let second: Issuer;
const proxies: Proxy[] = [];
const logs: string[] = [];

beforeAll(async () => {
  // Each proxy leases slots of its own, and nine of them run at once.
  stack = await startStack({
    slots: 200,
    roles: { analyst: { slots: 5 } },
    // What is held against an address is another suite's matter; here each token is to be looked at.
    limits: { failedLogins: { allowed: 1_000 } },
  });
});

beforeEach(async () => {
  first = await startIssuer({ algorithms: ['ES256'] });
  second = await startIssuer({ algorithms: ['ES256'] });
});

afterEach(async () => {
  await Promise.all(proxies.splice(0).map((proxy) => proxy.close()));
  await first.close();
  await second.close();
  logs.length = 0;
});

afterAll(() => stack.close());

type Providers = ConfigInput['providers'];

const configOf = (providers: Providers, jwks: ConfigInput['jwks'] = {}) =>
  parseConfig({ ...stack.config, providers, jwks });

/** Starts a proxy of the stack's database for these providers; returns it with its port. */
async function open(providers: Providers, jwks: ConfigInput['jwks'] = {}) {
  const proxy = createProxy(configOf(providers, jwks), {
    logger: recordedLogger((line) => void logs.push(line)),
  });
  proxies.push(proxy);
  return { proxy, port: (await proxy.start()).port };
}

/** Who the database says one is with this token, or the SQLSTATE, message and DETAIL of the refusal. */
async function whoIs(port: number, password: string, user = 'authenticated'): Promise<string> {
  const client = new pg.Client({ host: '127.0.0.1', port, database: 'app', user, password });
  client.on('error', () => {});
  try {
    await client.connect();
    const { rows } = await client.query<{ who: string }>(
      `select auth.user_id() || ' as ' || current_user as who`,
    );
    return rows[0]?.who ?? 'nobody';
  } catch (error) {
    const { code, message, detail } = error as pg.DatabaseError;
    return [code, message, detail].filter((part) => part !== undefined).join('; ');
  } finally {
    await client.end();
  }
}

const REFUSED = '28P01; password authentication failed for user "authenticated"';
const WRONG_AUDIENCE = `${REFUSED}; The claim "aud" is missing or names another audience.`;

describe('two issuers', () => {
  it('with the same kid verify their own tokens and no other (C18)', async () => {
    const keys = [createIssuerKey('ES256', 'same'), createIssuerKey('ES256', 'same')] as const;
    first.publish([keys[0].jwk]);
    second.publish([keys[1].jwk]);
    const { port } = await open({
      first: first.provider({ roles: ['authenticated'] }),
      second: second.provider({ roles: ['authenticated'] }),
    });

    const outcomes: string[] = [];
    for (const issuer of [first, second]) {
      for (const key of keys) {
        outcomes.push(await whoIs(port, issuer.mint({ sub: 'alice' }, { key })));
      }
    }

    const alice = 'alice as authenticated';
    expect(outcomes).toEqual([alice, REFUSED, REFUSED, alice]);
  });

  it('with one key set between them are told apart by audience (C19)', async () => {
    const shared = { jwksUri: first.jwksUri, roles: ['authenticated'] };
    const { port } = await open({
      mine: { ...shared, issuer: 'https://tokens.example/mine', audience: 'mine' },
      yours: { ...shared, issuer: 'https://tokens.example/yours', audience: 'yours' },
    });
    const mint = (project: string, aud: unknown) =>
      first.mint({ sub: 'alice', iss: `https://tokens.example/${project}`, aud });

    expect(await whoIs(port, mint('mine', 'mine'))).toBe('alice as authenticated');
    expect(await whoIs(port, mint('mine', ['x', 'mine']))).toBe('alice as authenticated');
    expect(await whoIs(port, mint('mine', 'yours'))).toBe(WRONG_AUDIENCE);
    expect(await whoIs(port, mint('yours', 'mine'))).toBe(WRONG_AUDIENCE);
    expect(await whoIs(port, mint('others', 'mine'))).toBe(REFUSED);
  });

  it('grant each their own roles, whatever a token of the other says (C17)', async () => {
    const { port } = await open({
      first: first.provider({ roles: ['authenticated'] }),
      second: second.provider({ roles: ['analyst'], roleClaim: '/app/role' }),
    });
    const forbidden = '28000; role "analyst" is not permitted to log in';
    const analystOf = (claims: object) =>
      whoIs(port, second.mint({ sub: 'eve', ...claims }), 'analyst');

    expect(await whoIs(port, first.mint({ sub: 'eve', app: { role: 'analyst' } }), 'analyst')).toBe(
      forbidden,
    );
    expect(await analystOf({ app: { role: 'analyst' } })).toBe('eve as analyst');
    expect(await analystOf({ app: { role: ['x', 'analyst'] } })).toBe('eve as analyst');
    for (const claims of [
      {},
      { role: 'analyst' },
      { 'app/role': 'analyst' },
      { '/app/role': 'analyst' },
      { app: 'analyst' },
      { app: { role: 'analyst ' } },
      { app: { role: 'ANALYST' } },
      { app: { role: 'analyst,postgres' } },
      { app: { role: { analyst: true } } },
      { app: { role: [['analyst']] } },
      { app: { role: true } },
      { app: [{ role: 'analyst' }] },
    ]) {
      expect([claims, await analystOf(claims)]).toEqual([claims, forbidden]);
    }
  });

  it.each([
    'postgres',
    'pgjot_control',
    'pgjot_owner',
    'pgjot_authenticated_1',
    'AUTHENTICATED',
    'constructor',
    'authenticated,analyst',
  ])('grant no role %s, although a claim names it (C17)', async (role) => {
    const { port } = await open({
      first: first.provider({ roles: ['authenticated'], roleClaim: '/role' }),
    });

    const said = await whoIs(port, first.mint({ sub: 'eve', role: [role, 'authenticated'] }), role);

    expect(said).toBe(`28000; role "${role}" is not permitted to log in`);
  });
});

describe('an issuer that fails', () => {
  const faults: readonly (readonly [string, Fault])[] = [
    ['is down', { kind: 'drop' }],
    ['has an error', { kind: 'status', status: 500 }],
    ['stalls', { kind: 'hang' }],
    ['stalls in the middle', { kind: 'hang-in-body' }],
    ['answers without end', { kind: 'endless' }],
    ['answers 131 MB', { kind: 'body', body: Buffer.alloc(131_000_000, ' ') }],
    ['redirects inside', { kind: 'redirect', location: 'http://169.254.169.254/latest/meta-data' }],
    ['answers garbage', { kind: 'body', body: '<!doctype html>' }],
    ['answers with no keys', { kind: 'body', body: '{"keys":[]}' }],
  ];

  /** What alice meets from before the fault until after it, by the old key and by the new. */
  async function outage(name: string, fault: Fault): Promise<string[]> {
    await using issuer = await startIssuer({ algorithms: ['ES256'] });
    const { port } = await open(
      { [name]: issuer.provider({ roles: ['authenticated'] }) },
      { freshMs: 1_000, cooldownMs: 1_000, timeoutMs: 500 },
    );
    const old = issuer.key();
    const byOld = () => whoIs(port, issuer.mint({ sub: 'alice' }, { key: old }));
    const byNew = () => whoIs(port, issuer.mint({ sub: 'alice' }));
    const outcomes = [await byOld()];
    const before = issuer.fetches;
    issuer.breakDown(fault);
    await issuer.fetched(before + 2);
    issuer.rotate();
    outcomes.push(await byOld(), await byNew());
    issuer.breakDown(undefined);
    await until(async () => (await byNew()) !== REFUSED);
    return [...outcomes, await byNew(), await byOld()];
  }

  it('lets in whom it let in before, and nobody learns that it fails, however it does', async () => {
    const outcomes = await Promise.all(faults.map(([name, fault]) => outage(name, fault)));

    const alice = 'alice as authenticated';
    // Before; then by the old key, and by one that nobody can know yet, which is refused like any stranger's; afterwards.
    const expected = [alice, alice, REFUSED, alice, REFUSED];
    expect(outcomes).toEqual(faults.map(() => expected));
    for (const [name] of faults) {
      expect(logs.find((line) => line.includes(`"provider":"${name}","problem"`))).toContain(
        'key_problem',
      );
    }
  });

  it.each(faults)(
    'and %s from the start is a 57P03, and the other issuer is none the worse',
    async (_, fault) => {
      first.breakDown(fault);
      const { port } = await open(
        {
          first: first.provider({ roles: ['authenticated'] }),
          second: second.provider({ roles: ['authenticated'] }),
        },
        { timeoutMs: 1_000 },
      );

      const [refusal, welcome] = await Promise.all([
        whoIs(port, first.mint({ sub: 'alice' })),
        whoIs(port, second.mint({ sub: 'bob' })),
      ]);

      expect(refusal).toBe('57P03; cannot verify tokens at the moment');
      expect(welcome).toBe('bob as authenticated');
      const cause = logs.find((line) => line.includes('keys_unavailable')) ?? '';
      expect(cause).toContain('no usable keys of provider \\"first\\": ');
    },
  );

  it('has no secret of anybody in the log, whatever it publishes (D4)', async () => {
    const leaked = createIssuerKey('ES256', 'leaked');
    const { d } = leaked.privateKey.export({ format: 'jwk' });
    first.publish([first.key().jwk, { ...leaked.jwk, d }, { kty: 'oct', k: 'c2VjcmV0LWtleQ' }]);
    const { port } = await open({ first: first.provider({ roles: ['authenticated'] }) });

    expect(await whoIs(port, first.mint({ sub: 'alice' }))).toBe('alice as authenticated');
    expect(await whoIs(port, first.mint({ sub: 'eve' }, { key: leaked }))).toBe(REFUSED);

    const text = logs.join('\n');
    expect(text).toContain('key kid \\"leaked\\" is not used: it is a private or secret key');
    expect(text).not.toContain(d);
    expect(text).not.toContain('c2VjcmV0LWtleQ');
  });

  it('keeps its keys over a reload, and loses its logins when the reload removes it (D8)', async () => {
    const providers = {
      first: first.provider({ roles: ['authenticated'] }),
      second: second.provider({ roles: ['authenticated'] }),
    };
    const { proxy, port } = await open(providers);
    const token = first.mint({ sub: 'alice' });
    expect(await whoIs(port, token)).toBe('alice as authenticated');
    first.breakDown({ kind: 'drop' });

    proxy.reload(
      configOf({ ...providers, third: { ...providers.second, issuer: 'https://x.example' } }),
    );
    expect(await whoIs(port, token)).toBe('alice as authenticated');
    proxy.reload(configOf({ second: providers.second }));
    expect(await whoIs(port, token)).toBe(REFUSED);
  });
});

it('bad signatures by the hundred keep no good token out (C22)', async () => {
  const { port } = await open({ first: first.provider({ roles: ['authenticated'] }) });
  const good = first.mint({ sub: 'alice' });
  const forged = first.mint({ sub: 'alice' }, { key: createIssuerKey('ES256', first.key().kid) });

  const outcomes = await Promise.all(
    Array.from({ length: 220 }, (_, n) => whoIs(port, n % 22 === 0 ? good : forged)),
  );

  expect(outcomes.filter((said) => said === 'alice as authenticated')).toHaveLength(10);
  expect(outcomes.filter((said) => said === REFUSED)).toHaveLength(210);
  expect(first.fetches).toBe(1);
});
