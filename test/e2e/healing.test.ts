/** Slots that their users spoil, one after the other, and a proxy that may mend them: nobody notices but the log. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createProxy, parseConfig, type ConfigInput } from '../../src/proxy.ts';
import { install, type InstallOptions } from '../../src/session-sql/install.ts';
import { connectAsSuperuser, hasExtension, postgresVersions } from '../support/postgres.ts';
import { recordedLogger } from '../support/logger.ts';
import { recordUpstreamSecret } from '../support/record.ts';
import { SECRET, startStack, until, type Stack, type StackOptions } from '../support/stack.ts';

const ACQUIRE_TIMEOUT_MS = 4_000;

async function startHouse(options: StackOptions, setup: Partial<InstallOptions> = {}) {
  const upstream = { healSlots: true, acquireTimeoutMs: ACQUIRE_TIMEOUT_MS };
  const stack = await startStack({ ...options, upstream });
  await setUp(stack, { slots: options.slots ?? 1, ...setup });
  return stack;
}

async function setUp(
  stack: Stack,
  { slots, ...options }: Partial<InstallOptions> & { readonly slots: number },
): Promise<void> {
  const admin = await connectAsSuperuser(stack.primary, 'app');
  const roles = { authenticated: { slots } };
  try {
    await install(admin, { secret: SECRET, roles, healSlots: true, ...options });
  } finally {
    await admin.end();
  }
}

/** Signs in, does this to its own slot, and leaves. */
async function burn(stack: Stack, sub: string, ...changes: string[]): Promise<string> {
  const client = await stack.connect(sub);
  await client.query('set role none');
  const { rows } = await client.query<{ slot: string }>('select session_user as slot');
  const slot = rows[0]?.slot as string;
  for (const change of changes) await client.query(`alter role ${slot} ${change}`);
  await client.end();
  return slot;
}

async function whoAmI(stack: Stack, sub: string, port = stack.port): Promise<unknown> {
  const client = await stack.connect(sub, { port });
  const { rows } = await client.query('select auth.user_id() as who, current_setting($1) as path', [
    'search_path',
  ]);
  await client.end();
  return rows[0];
}

const counts = (stack: Stack) => stack.proxy.counts().upstreams['main']?.['authenticated'];
const events = (stack: Stack, event: string) =>
  stack.logs
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter((line) => line['event'] === event);

describe.each(postgresVersions())('with one slot and healSlots on PostgreSQL %i', (version) => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startHouse({ version, slots: 1 });
  });
  afterAll(() => stack.close());
  const bob = { who: 'bob', path: '"$user", public' };

  it.each([
    ['its password', [`password 'mine'`]],
    [
      'its settings',
      [
        'set search_path = evil',
        'set statement_timeout = 1',
        'in database app set row_security = off',
      ],
    ],
    ['a setting that lets nobody in', [`set local_preload_libraries = 'no-such-library'`]],
    [
      'settings that no function may reset',
      [`set role = 'none'`, `in database app set role = 'none'`],
    ],
    ['who it is', ['set session_authorization = pgjot_authenticated_1', 'set role = none']],
    ['everything', [`password 'mine'`, `set role = 'none'`, `set idle_session_timeout = 1`]],
  ])('a user changes %s, and the next login succeeds', async (_, changes) => {
    const before = events(stack, 'slot_healed').length;
    const slot = await burn(stack, 'alice', ...changes);

    expect(await whoAmI(stack, 'bob')).toEqual(bob);

    expect(events(stack, 'slot_healed').slice(before)).toEqual([
      expect.objectContaining({ level: 30, upstream: 'main', slot }),
    ]);
    expect(events(stack, 'slot_quarantined').at(-1)).toMatchObject({ slot });
    await until(() => counts(stack)?.busy === 0);
    expect(counts(stack)).toMatchObject({ quarantined: 0, waiting: 0 });
  });

  it.each([`valid until '2001-01-01'`, 'connection limit 0'])(
    'an administrator sets it to "%s", and the next login succeeds',
    async (change) => {
      expect(await whoAmI(stack, 'bob')).toEqual(bob);
      await until(() => counts(stack)?.busy === 0);
      await stack.change(`alter role pgjot_authenticated_1 ${change}`);

      expect(await whoAmI(stack, 'bob')).toEqual(bob);
    },
  );

  it('spoilt before the proxy has let anybody in, it is healed for the first who comes', async () => {
    await burn(stack, 'alice', `password 'mine'`);
    await until(() => counts(stack)?.busy === 0);
    // The lease of the first proxy would stand in the way.
    await until(async () => {
      const client = await connectAsSuperuser(stack.primary, 'app');
      const { rows } = await client.query(
        `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pgjot_control'`,
      );
      await client.end();
      return rows.length === 0;
    });
    const other = createProxy(parseConfig(stack.config), { logger: recordedLogger() });
    try {
      const { port } = await other.start();
      const began = performance.now();

      expect(await whoAmI(stack, 'bob', port)).toEqual(bob);

      expect(performance.now() - began).toBeLessThan(ACQUIRE_TIMEOUT_MS / 2);
    } finally {
      await other.close();
    }
  });

  it('is burnt again and again, and each time the next login succeeds', async () => {
    for (let round = 0; round < 8; round++) {
      await burn(stack, 'eve', `password 'mine'`);
      expect(await whoAmI(stack, 'bob')).toEqual(bob);
    }
  });
});

describe.each(postgresVersions().filter((version) => hasExtension(version, 'pg_session_jwt')))(
  'with one slot and healSlots in mode pg_session_jwt on PostgreSQL %i',
  (version) => {
    it.each([
      ['the token of later sessions', `set pg_session_jwt.jwt = 'mine'`],
      ['its password', `password 'mine'`],
    ])('a user changes %s, and the next login succeeds', async (_, change) => {
      const session = 'pg_session_jwt';
      await using stack = await startHouse({ version, session, slots: 1 }, { session });
      await burn(stack, 'alice', change);

      expect(await whoAmI(stack, 'bob')).toMatchObject({ who: 'bob' });

      expect(events(stack, 'slot_healed')).toHaveLength(1);
    });
  },
);

describe('healing that does not succeed', () => {
  it('for want of setup leaves slots in quarantine, and says why once', async () => {
    await using stack = await startHouse({ slots: 3 }, { healSlots: false });
    await whoAmI(stack, 'bob');
    const spoilt = [
      await burn(stack, 'eve', `password 'x'`),
      await burn(stack, 'eve', `password 'x'`),
    ];
    // In turn, so that each spoilt one is met.
    for (let login = 0; login < 3; login++) {
      expect(await whoAmI(stack, 'bob')).toMatchObject({ who: 'bob' });
      await until(() => counts(stack)?.busy === 0);
    }

    const line = await stack.logged(({ event }) => event === 'slot_not_healed');

    expect(line).toMatchObject({ level: 50, upstream: 'main', reason: 'upstream_login_rejected' });
    expect(line['cause']).toMatch(/function pgjot\.heal.* does not exist.*run pgjot setup/);
    await until(() => events(stack, 'slot_quarantined').length === 2);
    expect(counts(stack)).toMatchObject({ quarantined: spoilt.length });
    expect(events(stack, 'slot_not_healed')).toHaveLength(1);
    expect(events(stack, 'slot_healed')).toEqual([]);
  });

  it('with a secret that setup has replaced locks nobody out who has the new one', async () => {
    await using stack = await startHouse({ slots: 2 });
    await whoAmI(stack, 'bob');
    const secret = 'the secret of tomorrow, which is as long as it has to be';
    recordUpstreamSecret(secret, { authenticated: { slots: 2 } });
    await setUp(stack, { slots: 2, secret });

    await expect(whoAmI(stack, 'bob')).rejects.toMatchObject({ code: '08004' });

    // It is no slot's fault, so none is put aside or mended.
    expect(await stack.logged(({ event }) => event === 'secret_refused')).toMatchObject({
      level: 50,
      upstream: 'main',
    });
    for (const event of ['slot_quarantined', 'slot_healed', 'slot_not_healed']) {
      expect(events(stack, event)).toEqual([]);
    }
    process.env['PGJOT_TOMORROW'] = secret;
    await stack.proxy.close();
    const main = stack.config.upstreams['main'] as ConfigInput['upstreams'][string];
    const upstreams = { main: { ...main, secret: { env: 'PGJOT_TOMORROW' } } };
    const config = parseConfig({ ...stack.config, upstreams });
    const next = createProxy(config, { logger: recordedLogger() });
    try {
      const { port } = await next.start();
      expect(await whoAmI(stack, 'bob', port)).toMatchObject({ who: 'bob' });
    } finally {
      await next.close();
      delete process.env['PGJOT_TOMORROW'];
    }
  });

  it('of slots that are refused for another reason ends after one try each', async () => {
    await using stack = await startHouse({
      slots: 2,
      files: {
        'pg_hba.conf': [
          'host all postgres,pgjot_control all scram-sha-256',
          'host app all all reject\n',
        ].join('\n'),
      },
    });
    const began = performance.now();
    for (let login = 0; login < 4; login++) {
      await expect(whoAmI(stack, 'bob')).rejects.toMatchObject({ code: '08004' });
    }

    expect(performance.now() - began).toBeLessThan(2 * ACQUIRE_TIMEOUT_MS);
    expect(events(stack, 'slot_healed').length).toBeLessThanOrEqual(2);
  });
});
