/**
 * A database with the portable session objects, and connections to it as everybody who may have one.
 *
 * Everything is done as an ordinary administrator (CREATEROLE, owns the database), as on a managed
 * PostgreSQL; the superuser only makes that administrator.
 */
import pg from 'pg';
import { installDemo, install } from '../../src/session-sql/install.ts';
import { CONTROL_ROLE, derivePassword, slotName } from '../../src/session-sql/credentials.ts';
import { connectAsSuperuser, startTestPostgres } from '../support/postgres.ts';
import { recordUpstreamSecret } from '../support/record.ts';
import type { TestPostgresOptions } from '../support/postgres.ts';

export const SECRET = 'a secret of thirty-two characters';
const GROUP = 'authenticated';
const ADMIN = { user: 'admin', password: 'admin-password' };
const EXPIRES_IN_MS = 3_600_000;

/** A server of its own, an administrator, the database `app`, and every client that was opened on it. */
export class Database implements AsyncDisposable {
  readonly server;
  readonly #clients = new Set<pg.Client>();
  #watcher: Promise<pg.Client> | undefined;

  private constructor(server: Awaited<ReturnType<typeof startTestPostgres>>) {
    this.server = server;
  }

  /** Starts the server and makes the administrator; installs nothing. */
  static async start(options: TestPostgresOptions = {}): Promise<Database> {
    recordUpstreamSecret(SECRET, { [GROUP]: { slots: 10 } });
    const database = new Database(await startTestPostgres(options));
    const superuser = await database.superuser('postgres');
    await superuser.query(`CREATE ROLE admin LOGIN CREATEROLE PASSWORD '${ADMIN.password}'`);
    await superuser.query('CREATE DATABASE app OWNER admin');
    await database.end(superuser);
    return database;
  }

  /** Starts the server with `slots` slots of `authenticated`, the demo table and sessions unbound. */
  static async installed(slots = 4, options: TestPostgresOptions = {}): Promise<Database> {
    const database = await Database.start(options);
    const admin = await database.admin();
    await install(admin, { secret: SECRET, roles: { [GROUP]: { slots } } });
    await installDemo(admin);
    await database.end(admin);
    return database;
  }

  superuser(name = 'app'): Promise<pg.Client> {
    return this.#track(connectAsSuperuser(this.server, name));
  }

  admin(name = 'app'): Promise<pg.Client> {
    return this.connect({ ...ADMIN, database: name });
  }

  control(name = 'app'): Promise<pg.Client> {
    return this.login(CONTROL_ROLE, { database: name });
  }

  /** Slot number `index` as the proxy logs it in: with `role` in the StartupMessage. */
  slot(index: number, options: pg.ClientConfig = {}): Promise<pg.Client> {
    return this.login(slotName(GROUP, index), { options: `-c role=${GROUP}`, ...options });
  }

  /** Logs in as one of our roles, by the password that the secret gives it. */
  login(user: string, options: pg.ClientConfig = {}): Promise<pg.Client> {
    return this.connect({ user, password: derivePassword(SECRET, user), ...options });
  }

  connect(options: pg.ClientConfig): Promise<pg.Client> {
    const client = new pg.Client({
      host: this.server.host,
      port: this.server.port,
      database: 'app',
      ...options,
    });
    return this.#track(client.connect().then(() => client));
  }

  /** Ends a client and waits until the server has ended its backend too. */
  async end(client: pg.Client): Promise<void> {
    const { processID } = client as pg.Client & { readonly processID: number };
    this.#clients.delete(client);
    await client.end();
    this.#watcher ??= this.superuser('postgres');
    const watcher = await this.#watcher;
    await until(
      async () =>
        (await value(watcher, 'SELECT count(*) FROM pg_stat_activity WHERE pid = $1', [
          processID,
        ])) === '0',
    );
  }

  /** Ends everybody who is logged in as a slot, so that the next test finds them free. */
  async endSlots(): Promise<void> {
    for (const client of this.#clients) {
      const { user } = client as pg.Client & { readonly user: string };
      if (/^pgjot_.*_\d+$/.test(user)) await this.end(client);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#clients].map((client) => client.end().catch(() => undefined)));
    await this.server.stop();
  }

  async #track(connecting: Promise<pg.Client>): Promise<pg.Client> {
    const client = await connecting;
    // A test that ends backends or the server ends these as well; their queries say so.
    client.on('error', () => undefined);
    this.#clients.add(client);
    return client;
  }
}

/** A backend as `hello` describes it; `start` in microseconds since 1970, as text for its 64 bits. */
export interface Hello {
  readonly pid: number;
  readonly start: string;
  readonly slot: string;
  readonly dirty: boolean;
  readonly in_recovery: boolean;
}

export async function hello(client: pg.Client): Promise<Hello> {
  const { rows } = await client.query(
    'SELECT pid, backend_start AS start, slot, dirty, in_recovery FROM pgjot.hello()',
  );
  return rows[0] as Hello;
}

/** What the control connection says of a backend: the same, but for its pid and slot. */
export async function greet(
  control: pg.Client,
  { pid, slot }: Pick<Hello, 'pid' | 'slot'>,
): Promise<{ start: string | null; dirty: boolean | null; in_recovery: boolean; mode: string }> {
  const { rows } = await control.query(
    'SELECT backend_start AS start, dirty, in_recovery, mode FROM pgjot.greet($1, $2)',
    [pid, slot],
  );
  return rows[0] as Awaited<ReturnType<typeof greet>>;
}

/** Binds `sub` (or these claims) to a backend; returns the epoch. */
export async function bind(
  control: pg.Client,
  { pid, start }: Pick<Hello, 'pid' | 'start'>,
  who: string | object,
  expiresAt: number | string = Date.now() + EXPIRES_IN_MS,
): Promise<number> {
  const claims = JSON.stringify(typeof who === 'string' ? { sub: who } : who);
  const epoch = await value(control, 'SELECT pgjot.bind($1, $2, $3, $4)', [
    pid,
    start,
    claims,
    expiresAt,
  ]);
  return Number(epoch);
}

export async function unbind(
  control: pg.Client,
  { pid, start }: Pick<Hello, 'pid' | 'start'>,
): Promise<boolean> {
  return (await value(control, 'SELECT pgjot.unbind($1, $2)', [pid, start])) as boolean;
}

export async function lease(control: pg.Client, count: number, role = GROUP): Promise<string[]> {
  const { rows } = await control.query('SELECT slot FROM pgjot.lease($1, $2) AS slot', [
    role,
    count,
  ]);
  return rows.map(({ slot }: { slot: string }) => slot);
}

/** Slot number `index`, logged in and bound to `sub`. */
export async function signIn(
  database: Database,
  control: pg.Client,
  index: number,
  sub: string | object,
): Promise<pg.Client & { readonly hello: Hello }> {
  const client = await database.slot(index);
  const said = await hello(client);
  await bind(control, said, sub);
  return Object.assign(client, { hello: said });
}

/** The first column of the first row. */
export async function value(
  client: pg.Client,
  text: string,
  values: unknown[] = [],
): Promise<unknown> {
  const { rows } = await client.query({ text, values, rowMode: 'array' });
  return (rows as unknown[][])[0]?.[0];
}

/** Who SQL on this connection says it is. */
export async function userId(client: pg.Client): Promise<unknown> {
  return value(client, 'SELECT auth.user_id()');
}

/** The SQLSTATE that a statement fails with; `00000` when it succeeds. */
export async function sqlstate(
  client: pg.Client,
  text: string,
  values: unknown[] = [],
): Promise<string> {
  return outcome(client.query(text, values));
}

/** The SQLSTATE of a promise, `00000` when it is fulfilled. */
export async function outcome(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return '00000';
  } catch (error) {
    if (error instanceof pg.DatabaseError) return error.code ?? '';
    throw error;
  }
}

/** Polls until `condition` holds; fails after ten seconds. */
export async function until(condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > deadline)
      throw new Error('the condition did not come true within ten seconds');
  }
}
