/**
 * The control connection: the one login that may lease slots and say whose session a backend is.
 *
 * One for each upstream and process, opened when first needed and again after a loss. Leases live
 * exactly as long as the connection that took them, so losing it is told to whoever counts them.
 * One question at a time, so what a dead network costs the first it must not cost each of those behind it.
 * Values travel as bind parameters: `pg_stat_activity` and the server's log show `$1`.
 */
import { Socket } from 'node:net';
import pg from 'pg';
import type { UpstreamConfig } from '../config.ts';
import { isExhausted, ProxyError } from '../errors.ts';
import { upstreamTlsMode } from '../exposure.ts';
import { CONTROL_ROLE, derivePassword } from '../session-sql/credentials.ts';
import { encodeErrorFields } from '../wire/backend.ts';
import { inBatches } from './batch.ts';
import { KEEPALIVES, upstreamTlsOptions } from './dial.ts';
import { demandProof } from './proof.ts';
import type { Secrets } from './secrets.ts';
import { leadsElsewhere } from './whereabouts.ts';

/** A backend of ours: its process id, and when it started in microseconds since the epoch, as PostgreSQL wrote it. */
export interface Backend {
  readonly pid: number;
  readonly start: string;
}

/** What there is to know of a backend before it becomes somebody's. */
export interface Hello extends Backend {
  /** Its login role has settings of its own: its last user changed it (attack E11). */
  readonly dirty: boolean;
  /** It belongs to a standby. */
  readonly inRecovery: boolean;
  /** The session mode that `pgjot setup` has prepared its database for; `portable` is `replica` on a standby. */
  readonly preparedFor: string;
}

/**
 * What the proxy asks of the database on its own behalf.
 *
 * Each throws `upstream_unreachable`, `upstream_login_rejected` or `upstream_rejected` when it could
 * not be asked or would not answer.
 */
export interface Control {
  /** Up to `count` slots of `role` that nobody else uses, now leased to this connection. */
  lease(role: string, count: number): Promise<string[]>;
  /** Gives leases of this connection back, for other proxies to take. */
  giveBack(slots: readonly string[]): Promise<void>;
  /** What a backend is that has this process id; undefined where none that is logged in with this slot has it. */
  greet(pid: number, slot: string): Promise<Hello | undefined>;
  /** Puts the claims, which are JSON text, on a backend; `expiresAt` in ms since the epoch. */
  bind(backend: Backend, claims: string, expiresAt: number): Promise<void>;
  /** Takes the claims off a backend; resolves with whether the backend still lives. */
  unbind(backend: Backend): Promise<boolean>;
  /** Ends a backend that nobody listens to any more and that no cancel ends. */
  terminate(backend: Backend): Promise<void>;
  /** Whether a slot's role has settings of its own, which hold for whoever logs in with it next, or attributes that keep everybody out. */
  isSpoilt(slot: string): Promise<boolean>;
  /** Connects, unless there is a connection, and has it answer. */
  ping(): Promise<void>;
  /** Removes what dead backends left behind. */
  sweep(): Promise<void>;
  /** Gives this connection, and those after it, another name in pg_stat_activity. */
  rename(name: string): Promise<void>;
  /** Ends this connection, behind the questions under way, if it leads to none of these addresses. Whether it did so. */
  leaveUnlessAt(addresses: ReadonlySet<string>): Promise<boolean>;
  /** The names of the other control connections of this database, while there is one of ours. */
  neighbours(): Promise<string[]>;
  /** Refuses further questions (`draining`), waits a while for those under way, and disconnects. Never throws. */
  close(): Promise<void>;
}

const GOODBYE_MS = 2_000;

/** What a control connection is called in pg_stat_activity, at the beginning. */
const CONTROL_NAME = 'pgjot control';

/** What a control connection is called whose proxy has these secrets and has this to say to others. */
export function controlName(secrets: Secrets, words: readonly string[]): string {
  return [CONTROL_NAME, secrets.sign, ...words].filter(Boolean).join(' ');
}

/** A control connection; `onLoss` is called once for each connection that was lost, with its leases. */
export function createControl(
  upstream: UpstreamConfig,
  secrets: Secrets,
  onLoss: () => void,
): Control {
  let opening: Promise<pg.Client> | undefined;
  let current: pg.Client | undefined;
  // Refuses further questions; then even those in the queue.
  let closed = false;
  let ended = false;
  // Why no connection could be opened, and how many questions had been asked by then.
  let outage = { error: undefined as ProxyError | undefined, asked: 0 };
  let asked = 0;
  const sockets = new WeakMap<pg.Client, Socket>();
  let name = controlName(secrets, []);

  const lost = (client: pg.Client) => {
    if (current !== client) return;
    current = undefined;
    opening = undefined;
    if (!closed) onLoss();
  };

  const open = () => secrets.try(openWith);

  const openWith = async (secret: string): Promise<pg.Client> => {
    const socket = new Socket();
    const client = new pg.Client({
      host: upstream.host,
      port: upstream.port,
      database: upstream.database,
      user: CONTROL_ROLE,
      password: derivePassword(secret, CONTROL_ROLE),
      ssl: upstreamTlsMode(upstream) === 'disable' ? false : upstreamTlsOptions(upstream),
      stream: () => socket,
      application_name: name,
      options: startupOptions(upstream.connectTimeoutMs),
      keepAlive: true,
      connectionTimeoutMillis: upstream.connectTimeoutMs,
      // A dead network must not hold every login up: past this the connection counts as lost.
      query_timeout: upstream.connectTimeoutMs,
    });
    sockets.set(client, socket);
    demandProof(client, upstream);
    client.on('error', () => lost(client));
    client.on('end', () => lost(client));
    await client.connect();
    current = client;
    // What died with the last connection, or with the server: leases, and the identities of its backends.
    query(SWEEP, []).catch(() => {});
    return client;
  };

  /** Says goodbye; a peer that does not answer is left all the same. */
  const end = async (client: pg.Client): Promise<void> => {
    await within(GOODBYE_MS, client.end());
    sockets.get(client)?.destroy();
  };

  const ask = async (
    statement: Statement,
    values: unknown[],
    number: number,
  ): Promise<pg.QueryResult> => {
    if (ended) throw new ProxyError('draining');
    // Asked while that attempt was under way: another one for each would make them wait for each other.
    if (outage.error !== undefined && number <= outage.asked) throw outage.error;
    const attempt = (opening ??= open());
    let client: pg.Client | undefined;
    try {
      client = await attempt;
      return await client.query({ ...statement, values });
    } catch (cause) {
      const error = asProxyError(cause);
      if (client === undefined) {
        if (opening === attempt) opening = undefined;
        outage = { error, asked };
      } else if (!(cause instanceof pg.DatabaseError)) {
        // An SQLSTATE means that the server answered; anything else, that this connection is no good.
        lost(client);
        void end(client);
      }
      throw error;
    }
  };

  // One question at a time: `pg` no longer keeps a queue of its own.
  let last: Promise<unknown> = Promise.resolve();
  const query = (statement: Statement, values: unknown[]): Promise<pg.QueryResult> => {
    if (closed) return Promise.reject(new ProxyError('draining'));
    const number = ++asked;
    const answer = last.then(() => ask(statement, values, number));
    last = answer.catch(() => {});
    return answer;
  };

  const greet = inBatches((columns) => query(GREET, columns), isAnswer);
  const bind = inBatches((columns) => query(BIND, columns), isAnswer);
  const unbind = inBatches((columns) => query(UNBIND, columns), isAnswer);

  return {
    async lease(role, count) {
      const result = await query(LEASE, [role, count]);
      return result.rows.map((row: { slot: string }) => row.slot);
    },
    async giveBack(slots) {
      if (slots.length > 0) await query(GIVE_BACK, [slots]);
    },
    async greet(pid, slot) {
      const { start, dirty, ...said } = (await greet([pid, slot])) as unknown as Greeting;
      if (dirty === null) return undefined;
      return { pid, start: start ?? '', dirty: dirty || start === null, ...said };
    },
    bind: ({ pid, start }, claims, expiresAt) =>
      bind([pid, start, claims, Math.floor(expiresAt)]).then(() => {}),
    unbind: ({ pid, start }) => unbind([pid, start]).then(({ alive }) => alive as boolean),
    async terminate({ pid, start }) {
      await query(TERMINATE, [pid, start]);
    },
    async isSpoilt(slot) {
      const result = await query(IS_SPOILT, [slot]);
      return (result.rows[0] as { spoilt: boolean }).spoilt;
    },
    async ping() {
      await query(PING, []);
    },
    async sweep() {
      // Only for housekeeping: it must not be the reason to connect.
      if (current !== undefined) await query(SWEEP, []);
    },
    async rename(next) {
      name = next;
      if (current !== undefined) await query(RENAME, [next]);
    },
    async neighbours() {
      if (current === undefined) return [];
      const result = await query(NEIGHBOURS, []);
      return result.rows.map((row: { name: string }) => row.name);
    },
    async leaveUnlessAt(addresses) {
      const client = current;
      const socket = client && sockets.get(client);
      if (client === undefined || !leadsElsewhere(socket, addresses)) return false;
      last = last.then(() => {
        lost(client);
        void end(client);
      });
      await last;
      return true;
    },
    async close() {
      closed = true;
      await within(GOODBYE_MS, last);
      ended = true;
      const client = await within(upstream.connectTimeoutMs, opening);
      if (client !== undefined) await end(client);
    },
  };
}

/**
 * A client may queue for a lock on a table of ours, which it will not get, and have everybody queue behind it: better
 * an error in time than a backend that is left waiting for each question.
 */
function startupOptions(queryTimeoutMs: number): string {
  const lockTimeout = ['lock_timeout', String(Math.max(queryTimeoutMs - 500, 100))] as const;
  return [lockTimeout, ...KEEPALIVES].map(([name, value]) => `-c ${name}=${value}`).join(' ');
}

interface Statement {
  readonly name: string;
  readonly text: string;
}

const LEASE: Statement = {
  name: 'pgjot_lease',
  text: 'select slot from pgjot.lease($1, $2) as slot',
};
const GIVE_BACK: Statement = {
  name: 'pgjot_release',
  text: 'select pgjot.release(slot) from pg_catalog.unnest($1::name[]) as slot',
};
/** What the server answers; of a backend that there is not, NULL. */
type Greeting = Pick<Hello, 'inRecovery' | 'preparedFor'> & {
  readonly start: string | null;
  readonly dirty: boolean | null;
};
const GREET: Statement = {
  name: 'pgjot_greet',
  text:
    'select g.backend_start as start, g.dirty, g.in_recovery as "inRecovery", g.mode as "preparedFor"' +
    ' from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::name[])) with ordinality as b (pid, slot, number)' +
    ' cross join lateral pgjot.greet(b.pid, b.slot) as g order by b.number',
};
const BIND: Statement = {
  name: 'pgjot_bind',
  text:
    'select pgjot.bind(b.pid, b.start, b.claims::pg_catalog.jsonb, b.expires)' +
    ' from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::int8[]),' +
    ' pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::int8[])) as b (pid, start, claims, expires)',
};
const UNBIND: Statement = {
  name: 'pgjot_unbind',
  text:
    'select pgjot.unbind(b.pid, b.start) as alive' +
    ' from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::int8[])) as b (pid, start)',
};
const TERMINATE: Statement = { name: 'pgjot_terminate', text: 'select pgjot.terminate($1, $2)' };
const IS_SPOILT: Statement = {
  name: 'pgjot_is_spoilt',
  text:
    'select exists (select from pg_catalog.pg_roles r where r.rolname operator(pg_catalog.=) $1::pg_catalog.name' +
    ' and (r.rolconnlimit operator(pg_catalog.=) 0' +
    ' or r.rolvaliduntil operator(pg_catalog.<=) pg_catalog.now()' +
    ' or exists (select from pg_catalog.pg_db_role_setting s where s.setrole operator(pg_catalog.=) r.oid))) as spoilt',
};
const RENAME: Statement = {
  name: 'pgjot_rename',
  text: "select pg_catalog.set_config('application_name', $1, false)",
};
const NEIGHBOURS: Statement = {
  name: 'pgjot_neighbours',
  text:
    'select a.application_name as name from pg_catalog.pg_stat_activity a' +
    ' where a.usename operator(pg_catalog.=) session_user' +
    ' and a.datname operator(pg_catalog.=) pg_catalog.current_database()' +
    ' and a.pid operator(pg_catalog.<>) pg_catalog.pg_backend_pid()',
};
const PING: Statement = { name: 'pgjot_ping', text: 'select 1' };
const SWEEP: Statement = { name: 'pgjot_sweep', text: 'select pgjot.sweep()' };

/** What `promise` resolves with in this time; `undefined` when it fails or takes longer. Never throws. */
async function within<T>(ms: number, promise: Promise<T> | undefined): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  const settled = promise?.catch(() => undefined);
  return Promise.race([settled, timeout]).finally(() => clearTimeout(timer));
}

const ANSWERS = ['upstream_rejected', 'upstream_login_rejected', 'upstream_lost'] as const;

/** Whether a question failed because PostgreSQL said so, and not because it could not be asked. */
export function isAnswer(error: unknown): boolean {
  return ANSWERS.some((code) => ProxyError.is(error, code));
}

/** What an answer of the server to us, not to the client, means for the client that waits. */
function asProxyError(cause: unknown): ProxyError {
  if (cause instanceof ProxyError) return cause;
  if (isExhausted(cause)) return new ProxyError('too_many_clients', { cause });
  if (!(cause instanceof pg.DatabaseError))
    return new ProxyError('upstream_unreachable', { cause });
  const sqlstate = cause.code ?? '';
  // Out of resources, shutting down, starting, no such database: true for the client's session as well.
  if (/^(53|57P|3D)/.test(sqlstate)) {
    const frame = encodeErrorFields({ severity: 'FATAL', sqlstate, message: cause.message });
    return new ProxyError('upstream_rejected', { cause, frame });
  }
  // It knows no such backend, or may not write: it is not, or no more, the server that the client's session is on.
  if (sqlstate === '08003' || sqlstate === '55000' || sqlstate === '25006') {
    return new ProxyError('upstream_lost', { cause });
  }
  if (sqlstate === '28P01') {
    cause.message +=
      ' (has the secret been rotated? this proxy needs the one that the server has now)';
  }
  if (sqlstate === '42883' || sqlstate === '3F000') {
    cause.message += ' (pgjot is not installed in this database: run pgjot setup)';
  }
  return new ProxyError('upstream_login_rejected', { cause });
}
