/**
 * Where the attacks on the identity are tried, and the scene of each: Alice attacks, Bob is at work beside her.
 *
 * The grounds are every session mode on every PostgreSQL of the run, in clear and with TLS on both sides of the proxy. Mode
 * `pg_session_jwt` is tried where a server has the extension. `npm run test:versions` goes over all of them; `npm test`, to be
 * short, has mode `replica` on the newest version alone, and both ways of travelling for mode `portable` on that one alone.
 * All attacks are tried on all grounds, but for what ATTACKS says.
 */
import pg from 'pg';
import { expect } from 'vitest';
import { hasExtension, isVersionsRun, postgresVersions } from '../support/postgres.ts';
import { startStack, type SessionMode, type Stack, type StackOptions } from '../support/stack.ts';

const ONE_SERVER = 'there is no standby';

/** The attacks, by file; and in which modes one is not tried, and why. */
export const ATTACKS = {
  /** `attacks-startup.test.ts` */
  'forging at startup': {},
  /** `attacks-session.test.ts` */
  forging: {},
  resetting: {},
  'becoming another role': {},
  'reaching the machinery': {},
  'shadowing by search_path': {},
  'shadowing by temporary objects': { replica: 'a standby makes no objects' },
  'plan caching': {},
  'parallel workers': {},
  /** `attacks-replay.test.ts` */
  'keeping a token': {},
  'replaying a signed identity': { portable: 'nothing that is signed reaches the session' },
  'signing an identity': { portable: 'nothing that is signed reaches the session' },
  'reusing a slot': {},
  'reusing a pid': {
    replica: 'a pid does not count without its start, which is tried among the signed identities',
    pg_session_jwt: 'the identity is in the StartupMessage of the backend and knows no pid',
  },
  /** `attacks-expiry.test.ts` */
  'outliving the token': {},
  /** `attacks-neighbours.test.ts` */
  'reading the neighbours': {},
  'ending the neighbours': {},
  'cancelling the neighbours': {},
  'spoiling a slot': { replica: 'a standby takes no ALTER ROLE' },
  'spoiling a slot on the primary': { portable: ONE_SERVER, pg_session_jwt: ONE_SERVER },
  'granting a slot away': { replica: 'a standby takes no GRANT' },
  'locking the others out': {},
  'guessing a password': {},
  /** `attacks-cancel.test.ts` */
  cancelling: {},
  /** `attacks-upheaval.test.ts` */
  restart: {},
  crash: {},
  'standby promotion': { portable: ONE_SERVER, pg_session_jwt: ONE_SERVER },
} as const satisfies Record<string, Partial<Record<SessionMode, string>>>;

/** The name of an attack. */
export type Attack = keyof typeof ATTACKS;

/** A place where attacks are tried. */
export interface Ground {
  readonly version: number;
  readonly session: SessionMode;
  readonly tls: boolean;
}

/** Every ground of this run: `describe.each(grounds())(GROUND, …)`. */
export function grounds(): Ground[] {
  return postgresVersions().flatMap((version) =>
    sessionModes(version).flatMap((session) =>
      transports(version, session).map((tls) => ({ version, session, tls })),
    ),
  );
}

function transports(version: number, session: SessionMode): boolean[] {
  const isNewest = version === postgresVersions()[0];
  return isVersionsRun() || (isNewest && session === 'portable') ? [false, true] : [isNewest];
}

/** The title of a ground. */
export const GROUND = 'on PostgreSQL $version, mode $session (tls: $tls)';

/** The modes that this run tries on a version. */
export function sessionModes(version: number): SessionMode[] {
  const modes: SessionMode[] = ['portable'];
  if (isVersionsRun() || version === postgresVersions()[0]) modes.push('replica');
  if (hasExtension(version, 'pg_session_jwt')) modes.push('pg_session_jwt');
  return modes;
}

const said = new Set<string>();

/** Whether an attack is left out on a ground, which it says with the reason: `it.skipIf(notTried(ground, 'crash'))(…)`. */
export function notTried({ session }: Ground, attack: Attack): boolean {
  const reasons: Partial<Record<SessionMode, string>> = ATTACKS[attack];
  const reason = reasons[session];
  if (reason === undefined) return false;
  const line = `not tried in mode ${session}: ${attack}, for ${reason}`;
  if (!said.has(line)) console.error(line);
  said.add(line);
  return true;
}

/** A stack on a ground, and who is there. Close it, or keep it with `await using`. */
export class Scene implements AsyncDisposable {
  readonly ground: Ground;
  readonly stack: Stack;
  readonly alice: pg.Client;
  readonly bob: pg.Client;
  /** A superuser on the server that the clients are on. */
  readonly admin: pg.Client;
  /** What the servers have logged. */
  readonly serverLog: readonly string[];
  readonly #slots: number;

  private constructor(
    ground: Ground,
    stack: Stack,
    slots: number,
    serverLog: readonly string[],
    clients: Record<'alice' | 'bob' | 'admin', pg.Client>,
  ) {
    this.ground = ground;
    this.stack = stack;
    this.#slots = slots;
    this.serverLog = serverLog;
    this.alice = clients.alice;
    this.bob = clients.bob;
    this.admin = clients.admin;
  }

  /** Starts the stack, with TLS everywhere where the ground says so; twelve slots unless told otherwise. */
  static async open(ground: Ground, options: StackOptions = {}): Promise<Scene> {
    const { version, session, tls } = ground;
    const slots = options.slots ?? 12;
    const serverLog: string[] = [];
    const stack = await startStack({
      version,
      session,
      tls,
      upstreamTls: tls,
      slots,
      onLog: (line) => serverLog.push(line),
      ...options,
    });
    try {
      const admin = new pg.Client(stack.admin);
      admin.on('error', () => {});
      await admin.connect();
      const [alice, bob] = [await stack.connect('alice'), await stack.connect('bob')];
      return new Scene(ground, stack, slots, serverLog, { alice, bob, admin });
    } catch (error) {
      await stack.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    for (const client of [this.alice, this.bob, this.admin]) await client.end().catch(() => {});
    await this.stack.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** How the slots of `authenticated` are. */
  slots(): { busy: number | undefined; quarantined: number | undefined; all: number } {
    const counts = this.stack.proxy.counts().upstreams['main']?.['authenticated'];
    return { busy: counts?.busy, quarantined: counts?.quarantined, all: this.#slots };
  }
}

/** The pid of a client's backend. */
export async function pidOf(client: pg.Client): Promise<number> {
  return Number(await value(client, 'select pg_catalog.pg_backend_pid()'));
}

/** The login role of a client's backend. */
export async function slotOf(client: pg.Client): Promise<string> {
  return String(await value(client, 'select session_user'));
}

/** The first column of the first row. */
export async function value(client: pg.Client, text: string): Promise<unknown> {
  const { rows } = await client.query<unknown[]>({ text, rowMode: 'array' });
  return rows[0]?.[0];
}

/** Expects that this session is Alice's and sees her rows and no others, whatever she has done to it. */
export async function expectAlice(client: pg.Client, after: string): Promise<void> {
  const { rows } = await client.query(
    'select pgjot.user_id() as a, auth.user_id() as b, auth.session() operator(pg_catalog.->>) $1 as c,' +
      ' (select pg_catalog.string_agg(distinct user_id, $2) from public.todos) as owners',
    ['sub', ','],
  );
  expect({ after, ...rows[0] }).toEqual({
    after,
    a: 'alice',
    b: 'alice',
    c: 'alice',
    owners: 'alice',
  });
}

// Everything that tells who one is, and the rows that hang on it.
const READERS = [
  'select auth.user_id()',
  `select auth.uid()::text`,
  `select auth.session() operator(pg_catalog.->>) 'sub'`,
  `select auth.jwt() operator(pg_catalog.->>) 'sub'`,
  'select pgjot.user_id()',
  'select pgjot.uid()::text',
  `select pgjot.session() operator(pg_catalog.->>) 'sub'`,
  `select pgjot.jwt() operator(pg_catalog.->>) 'sub'`,
  'select pg_catalog.string_agg(distinct user_id, $$,$$) from public.todos',
];

/**
 * What this session says of itself: each answer or SQLSTATE once, in order. A user may harm her own session; so NULL,
 * which sees no rows, and an error are as good as her own name.
 */
export async function answers(client: pg.Client): Promise<string[]> {
  const found = new Set<string>();
  for (const reader of READERS) {
    found.add(
      await value(client, reader).then(
        String,
        (error: pg.DatabaseError) => error.code ?? String(error),
      ),
    );
  }
  return [...found].toSorted();
}

/** Runs what must be refused, and says with which SQLSTATE it was. */
export async function refusal(client: pg.Client, sql: string): Promise<string> {
  try {
    await client.query(sql);
  } catch (error) {
    return (error as pg.DatabaseError).code ?? String(error);
  }
  return 'accepted';
}

/** Expects that each of these is refused with one of these SQLSTATEs, separated by blanks. */
export async function expectRefused(
  client: pg.Client,
  sqlstates: string,
  statements: readonly string[],
): Promise<void> {
  const outcomes: string[] = [];
  for (const sql of statements) outcomes.push(`${await refusal(client, sql)} ${sql}`);
  expect(outcomes.filter((one) => !sqlstates.includes(one.slice(0, 5)))).toEqual([]);
}
