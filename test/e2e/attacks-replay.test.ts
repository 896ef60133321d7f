/**
 * What a client can try with identities that were given to somebody: attack E6, in every session mode.
 *
 * Where an identity is a signed setting, its owner can read it, so let Bob's have leaked to Alice. The proxy's key has not.
 * What is tried where is in `attack-scene.ts`.
 */
import { createHmac, generateKeyPairSync, sign } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  CONTROL_ROLE,
  deriveIdentityKey,
  derivePassword,
} from '../../src/session-sql/credentials.ts';
import { SECRET, startStack, until } from '../support/stack.ts';
import {
  answers,
  type Attack,
  expectAlice,
  GROUND,
  grounds,
  notTried,
  pidOf,
  refusal,
  Scene,
  slotOf,
  value,
} from './attack-scene.ts';

// A test that starts a stack of its own.
const OWN_SERVER = { timeout: 60_000 };

describe.each(grounds())(GROUND, (ground) => {
  const { session } = ground;
  const without = (attack: Attack) => notTried(ground, attack);
  const carrier = session === 'replica' ? 'pgjot.identity' : 'pg_session_jwt.jwt';
  // The extension says what it does not believe; our own reader makes it nobody's session.
  const disbelief = session === 'replica' ? ['null'] : ['23514', '42804'];
  let scene: Scene;
  let eve: pg.Client;

  beforeAll(async () => {
    scene = await Scene.open(ground);
    eve = await scene.stack.connect('alice');
  });

  afterAll(async () => {
    await eve?.end();
    await scene?.close();
  });

  const carriedBy = async (client: pg.Client) =>
    String(await value(client, `select pg_catalog.current_setting('${carrier}')`));

  /** Expects that an identity is worth nothing in Eve's session, however it is set, and that her own is not lost. */
  async function expectWorthless(identity: string, what: string): Promise<void> {
    const literal = pg.escapeLiteral(identity);
    for (const [how, undo] of [
      [`set ${carrier} = ${literal}`, 'reset all'],
      [`set session ${carrier} to ${literal}`, `reset ${carrier}`],
      [`begin; set local ${carrier} = ${literal}`, 'rollback'],
      [`begin; set ${carrier} = ${literal}`, 'rollback'],
      [`select pg_catalog.set_config('${carrier}', ${literal}, false)`, 'discard all'],
    ] as const) {
      await eve.query(how);
      const said = how.startsWith('begin') ? [await oneAnswer(eve)] : await answers(eve);
      expect(
        said.filter((one) => !disbelief.includes(one)),
        `${what}: ${how}`,
      ).toEqual([]);
      await eve.query(undo);
      await expectAlice(eve, `${what}: ${undo}`);
    }
  }

  /** In a transaction the first error is the last answer. */
  async function oneAnswer(client: pg.Client): Promise<string> {
    const asked = value(client, 'select auth.user_id()');
    return asked.then(String, (error: pg.DatabaseError) => error.code ?? String(error));
  }

  it.skipIf(without('keeping a token'))(
    'E6: nothing of a token is left in the session',
    async () => {
      const token = await scene.stack.token('alice');
      const client = await scene.stack.connect('alice', { password: token });
      const { rows } = await client.query("select name || '=' || setting as pair from pg_settings");
      const pid = await pidOf(client);
      const carried = session === 'portable' ? '' : await carriedBy(client);
      await client.end();

      const parts = token.split('.').slice(1);
      const kept = [...rows.map(({ pair }) => String(pair)), carried];
      expect(kept.filter((text) => parts.some((part) => text.includes(part)))).toEqual([]);
      if (session === 'replica') return;
      await until(async () => {
        const left = await scene.admin.query('select from pgjot.session where pid = $1', [pid]);
        return left.rowCount === 0;
      });
    },
  );

  it.skipIf(without('replaying a signed identity'))(
    'E6: the identity of another session is worth nothing',
    async () => {
      await expectWorthless(await carriedBy(scene.bob), 'Bob’s');
    },
  );

  it.skipIf(without('replaying a signed identity'))(
    'E6: nor is one’s own from another session',
    async () => {
      const older = await carriedBy(scene.alice);
      expect(await carriedBy(eve)).not.toBe(older);

      await expectWorthless(older, 'her own older one');
    },
  );

  it.skipIf(without('replaying a signed identity'))(
    'E6: no identity can be brought along in the StartupMessage',
    async () => {
      const identity = await carriedBy(scene.bob);
      for (const options of [`-c ${carrier}=${identity}`, `--${carrier}=${identity}`]) {
        await expect(scene.stack.connect('alice', { options })).rejects.toMatchObject({
          code: '42501',
          message: `permission denied to set parameter "${carrier}"`,
        });
      }
    },
  );

  it.skipIf(without('replaying a signed identity'))(
    'E6: nor left in a setting of a role or a function',
    async () => {
      const literal = pg.escapeLiteral(await carriedBy(scene.bob));
      const slot = await slotOf(scene.alice);
      // As the slot's user could on a primary; what the StartupMessage says is stronger.
      await scene.stack.change(`
      alter role ${slot} set ${carrier} = ${literal}; alter role authenticated set ${carrier} = ${literal};
      create function public.as_bob() returns text language sql stable set ${carrier} = ${literal} as 'select auth.user_id()';
      grant execute on function public.as_bob() to authenticated`);
      await scene.alice.query('discard all');

      await expectAlice(scene.alice, 'ALTER ROLE … SET');
      expect(disbelief).toContain(
        await value(scene.alice, 'select public.as_bob()').then(
          String,
          (error: pg.DatabaseError) => error.code,
        ),
      );
      await scene.stack.change(`
      alter role ${slot} reset all; alter role authenticated reset all; drop function public.as_bob()`);
    },
  );

  it.skipIf(without('signing an identity') || session !== 'replica')(
    'E6: an identity is signed with the proxy’s key, for this very backend, or worth nothing',
    async () => {
      const own = JSON.parse(
        Buffer.from((await carriedBy(eve)).split('.')[0] ?? '', 'base64').toString(),
      ) as Record<string, unknown>;
      const bobs = { ...own, claims: { sub: 'bob' } };
      const key = deriveIdentityKey(SECRET);
      const [minute, now] = [60_000, Date.now()];
      const started = String(await value(eve, 'select backend_start::text from pgjot.hello()'));
      // The other form, for a server that sees another port than the proxy has.
      const backend = (wrong: object) => {
        const { db, slot, exp, claims } = { ...own, ...bobs } as Record<string, unknown>;
        return signed({ db, slot, pid: ownPid, start: started, exp, claims, ...wrong }, key);
      };
      const ownPid = await pidOf(eve);

      const forged: [string, string][] = [
        ['of no signature', signed(bobs, key).replace(/\..*/, '')],
        ['of an empty signature', signed(bobs, key).replace(/\..*/, '.')],
        [
          'with the signature of hers',
          `${signed(bobs, key).split('.')[0]}.${(await carriedBy(eve)).split('.')[1]}`,
        ],
        ['with half a signature', signed(bobs, key).slice(0, -22)],
        [
          'with one bit turned',
          signed(bobs, key).replace(/[.]./, (text) => (text === '.A' ? '.B' : '.A')),
        ],
        [
          'in the other alphabet',
          signed(bobs, key).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', ''),
        ],
        ['with a line break', `${signed(bobs, key)}\n`],
        ['by no key', signed(bobs, Buffer.alloc(0))],
        ['by a key of zeroes', signed(bobs, Buffer.alloc(64))],
        ['by the upstream’s secret', signed(bobs, Buffer.from(SECRET))],
        [
          'by the password of her slot',
          signed(bobs, Buffer.from(derivePassword(SECRET, await slotOf(eve)))),
        ],
        [
          'by the password of control',
          signed(bobs, Buffer.from(derivePassword(SECRET, CONTROL_ROLE))),
        ],
        // From here on, what the proxy would sign only for others: its key is right, the rest is not.
        ['for another slot', signed({ ...bobs, slot: await slotOf(scene.bob) }, key)],
        [
          'for another port',
          signed({ ...bobs, port: await value(scene.bob, 'select inet_client_port()') }, key),
        ],
        ['for no port', signed({ ...bobs, port: null }, key)],
        [
          'for a backend of a minute ago',
          signed({ ...bobs, iat: Number(own['iat']) - minute - 2_000 }, key),
        ],
        [
          'for a backend of the next minute',
          signed({ ...bobs, iat: Number(own['iat']) + minute + 2_000 }, key),
        ],
        ['for no time', signed({ ...bobs, iat: undefined }, key)],
        ['until now', signed({ ...bobs, exp: now - 1 }, key)],
        ['until no time', signed({ ...bobs, exp: undefined }, key)],
        ['in another database', signed({ ...bobs, db: 'postgres' }, key)],
        ['for the backend of another', backend({ pid: await pidOf(scene.bob) })],
        ['for an earlier backend', backend({ start: `${BigInt(started) - 1n}` })],
        ['for a backend of no pid', backend({ pid: null })],
        ['for a backend of no start', backend({ start: null })],
        ['for the backend in another slot', backend({ slot: await slotOf(scene.bob) })],
        ['for the backend until now', backend({ exp: now - 1 })],
        ['for nobody', signed({ ...bobs, claims: undefined }, key)],
      ];
      for (const [what, identity] of forged) await expectWorthless(identity, what);

      // That all these were near enough: with the key, and for her backend, she would be anybody.
      for (const right of [signed(bobs, key), backend({})]) {
        await eve.query(`set ${carrier} = ${pg.escapeLiteral(right)}`);
        expect(await value(eve, 'select auth.user_id()')).toBe('bob');
        await eve.query('reset all');
      }
    },
  );

  it.skipIf(without('signing an identity') || session !== 'pg_session_jwt')(
    'E6: a token of one’s own key is worth nothing, and the key stays',
    async () => {
      const { publicKey, privateKey } = generateKeyPairSync('ed25519');
      const jwk = publicKey.export({ format: 'jwk' });
      const payload = { sub: 'bob', jti: 4_000_000_000, exp: Math.floor(Date.now() / 1000) + 600 };
      const [, , signature] = (await carriedBy(eve)).split('.');
      const input = (header: object) => [header, payload].map(encoded).join('.');
      const ours = String(await value(eve, "select current_setting('pg_session_jwt.jwk')"));
      const publicBytes = Buffer.from((JSON.parse(ours) as { x: string }).x, 'base64url');

      const forged: [string, string][] = [
        [
          'by a key of hers',
          `${input({ alg: 'EdDSA' })}.${sign(null, Buffer.from(input({ alg: 'EdDSA' })), privateKey).toString('base64url')}`,
        ],
        [
          'by a key in its header',
          `${input({ alg: 'EdDSA', jwk })}.${sign(null, Buffer.from(input({ alg: 'EdDSA', jwk })), privateKey).toString('base64url')}`,
        ],
        ['unsigned', `${input({ alg: 'none' })}.`],
        [
          'by the public key as a secret',
          `${input({ alg: 'HS256' })}.${createHmac('sha256', publicBytes)
            .update(input({ alg: 'HS256' }))
            .digest('base64url')}`,
        ],
        ['with the signature of hers', `${input({ alg: 'EdDSA' })}.${signature}`],
        [
          'a signature of zeroes',
          `${input({ alg: 'EdDSA' })}.${Buffer.alloc(64).toString('base64url')}`,
        ],
        ['no token', 'bob'],
      ];
      for (const [what, token] of forged) {
        await expectWorthless(token, what);
        expect(
          await refusal(eve, `select auth.jwt_session_init(${pg.escapeLiteral(token)})`),
        ).toMatch(/23514|42804/);
        await expectAlice(eve, `auth.jwt_session_init: ${what}`);
      }
      for (const sql of [
        `set pg_session_jwt.jwk = ${pg.escapeLiteral(JSON.stringify(jwk))}`,
        `set pg_session_jwt.jwk = ''`,
        'reset pg_session_jwt.jwk',
        `update pg_settings set setting = '' where name = 'pg_session_jwt.jwk'`,
      ]) {
        expect(await refusal(eve, sql)).toBe('55P02');
        await expectAlice(eve, sql);
      }
    },
  );

  // Where the library is loaded in such a place first, it loses key and token and believes a setting from then on.
  it.skipIf(without('signing an identity') || session !== 'pg_session_jwt')(
    'E6: a SECURITY DEFINER function and an index take the key from nobody',
    async () => {
      const client = await scene.stack.connect('alice');
      await client.query(`
      set request.jwt.claims = '{"sub":"bob"}';
      create function pg_temp.definer() returns text language plpgsql security definer as $$ begin return auth.user_id(); end $$;
      create function pg_temp.indexed(int) returns text language plpgsql immutable as $$ begin return auth.user_id(); end $$;
      create temp table t (n int); insert into t values (1)`);

      expect(await value(client, 'select pg_temp.definer()')).toBe('alice');
      await client.query('create index on t (pg_temp.indexed(n))');
      await expectAlice(client, 'a function and an index');
      await client.end();
    },
  );

  it.skipIf(without('reusing a slot'))(
    'E8: who comes next on a slot finds nothing of who was there before',
    OWN_SERVER,
    async () => {
      await using single = await startStack({ ...ground, upstreamTls: ground.tls, slots: 1 });
      const bob = await single.connect('bob');
      const [slot, identity] = [
        await slotOf(bob),
        session === 'portable' ? '' : await carriedBy(bob),
      ];
      await bob.query('set plan_cache_mode = force_generic_plan; set search_path = nowhere');
      await bob.query('prepare mine as select user_id from public.todos');
      await bob.query('execute mine');
      await bob.query('declare held cursor with hold for select user_id from public.todos');
      await bob.query('select pg_advisory_lock(1)');
      await bob.end();

      const alice = await single.connect('alice');
      expect(await slotOf(alice)).toBe(slot);
      expect([
        await refusal(alice, 'execute mine'),
        await refusal(alice, 'fetch all from held'),
      ]).toEqual(['26000', '34000']);
      expect(await value(alice, 'show search_path')).toBe('"$user", public');
      expect(
        await value(alice, "select count(*)::int from pg_locks where locktype = 'advisory'"),
      ).toBe(0);
      if (identity !== '') {
        await alice.query(`set ${carrier} = ${pg.escapeLiteral(identity)}`);
        expect(disbelief).toContain(await oneAnswer(alice));
        await alice.query('reset all');
      }
      await expectAlice(alice, 'Bob was here');
      await alice.end();
    },
  );

  it.skipIf(without('reusing a pid'))(
    'E6: the row of an earlier backend with this pid is nobody’s',
    OWN_SERVER,
    async () => {
      await using stack = await startStack({
        ...ground,
        upstreamTls: ground.tls,
        roles: { anonymous: { slots: 2 } },
        anonymous: { enabled: true },
      });
      const admin = new pg.Client(stack.admin);
      await admin.connect();
      const bob = await stack.connect('bob');
      const clients = [
        await stack.connect('alice'),
        await stack.connect('', { user: 'anonymous', password: '' }),
      ];
      for (const client of clients) {
        const pid = await pidOf(client);
        // As if Bob's backend had had it, and nobody had swept since.
        await admin.query('delete from pgjot.session where pid = $1', [pid]);
        await admin.query(
          `insert into pgjot.session select $1, backend_start, client_addr, client_port, epoch, claims, expires_at, bound_at
           from pgjot.session where pid = $2`,
          [pid, await pidOf(bob)],
        );

        expect(await oneAnswer(client)).toBe('null');
        await client.end();
      }
      await bob.end();
      await admin.end();
    },
  );
});

/** An identity as the proxy writes it for a standby. */
function signed(about: object, key: Buffer): string {
  const text = Buffer.from(JSON.stringify(about)).toString('base64');
  return `${text}.${createHmac('sha256', key).update(text).digest('base64')}`;
}

function encoded(part: object): string {
  return Buffer.from(JSON.stringify(part)).toString('base64url');
}
