/**
 * Runs the query of a lookup, over connections of its own that log in as `pgjot_lookup`.
 *
 * Never inside a client's session. Values travel as bind parameters, and no error that leaves here holds one: what
 * PostgreSQL says while it has them may quote them, so it is asked again without any. Caches nothing.
 */
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { LookupConfig, UpstreamConfig } from '../config.ts';
import { upstreamTlsMode } from '../exposure.ts';
import { derivePassword, LOOKUP_ROLE } from '../session-sql/credentials.ts';
import { KEEPALIVES, upstreamTlsOptions } from './dial.ts';
import { demandProof } from './proof.ts';
import type { Secrets } from './secrets.ts';

/** The query, ready to be run. Its errors are for the log alone. */
export interface LookupQuery {
  /** The JSON text of each row, of two at most; null for one of more than `MAX_ROW_BYTES`. */
  run(values: readonly (string | null)[]): Promise<(string | null)[]>;
  /** Has PostgreSQL parse, plan and authorize the query without running it. */
  check(): Promise<void>;
  /** Gives queries under way a while to end, then disconnects. Never throws. */
  close(): Promise<void>;
}

/** Of a row's JSON text: many times what policies can want, and 10,000 of them still fit in memory. */
export const MAX_ROW_BYTES = 32_768;

/** The query of this upstream; connects when first needed. `secrets` are the upstream's. */
export function createLookupQuery(
  upstream: UpstreamConfig,
  lookup: LookupConfig,
  secrets: Secrets,
): LookupQuery {
  const connections = createConnections(upstream, lookup, secrets);
  const text = wrap(lookup.sql);

  const check = async (client: pg.ClientBase): Promise<void> => {
    try {
      await parseAndPlan(client, text, lookup.params.length);
    } catch (error) {
      throw explainMistake(error, connections.intruder());
    }
  };

  const run = async (client: pg.ClientBase, values: readonly (string | null)[]) => {
    try {
      const { rows } = await client.query<[string | null]>({
        name: 'pgjot_lookup',
        text,
        values: [...values],
        rowMode: 'array',
      });
      return rows.map(([json]) => json);
    } catch (error) {
      const sqlstate = sqlstateOf(error);
      if (sqlstate === undefined) throw error;
      if (isOfServer(sqlstate)) throw inOwnWords(error as pg.DatabaseError);
      // Whatever is wrong with the query itself can be said; the rest is the values' fault, and cannot.
      await check(client);
      throw new Refusal(`what lookup.sql does with these claims (SQLSTATE ${sqlstate})`);
    }
  };

  return {
    run: (values) => connections.use((client) => run(client, values)),
    check: () => connections.use(check),
    close: () => connections.close(),
  };
}

/**
 * At most two rows as JSON text, in which a number keeps all its digits. `lookup.*` is the row even where a column is
 * named `lookup`; the line breaks end a comment; what is too large stays where it is.
 */
function wrap(sql: string): string {
  const query = sql.trim().replace(/;$/, '');
  return (
    `select case when pg_catalog.octet_length(found.json) operator(pg_catalog.<=) ${MAX_ROW_BYTES} then found.json end` +
    ` from (select pg_catalog.to_jsonb(lookup.*)::pg_catalog.text as json from (\n${query}\n) as lookup limit 2) as found`
  );
}

/**
 * Lets PostgreSQL find what is wrong with the query while it has no values. Only EXPLAIN looks at privileges.
 *
 * Under a name of the protocol, so that it is one statement whatever the configuration says.
 */
async function parseAndPlan(client: pg.ClientBase, text: string, given: number): Promise<void> {
  const name = 'pgjot_lookup_check';
  await client.query({ name: 'pgjot_lookup_prepare', text: `prepare ${name} as ${text}` });
  try {
    const { rows } = await client.query<[number]>({
      text: 'select pg_catalog.cardinality(parameter_types) from pg_catalog.pg_prepared_statements where name = $1',
      values: [name],
      rowMode: 'array',
    });
    const wanted = rows[0]?.[0];
    if (wanted !== given) {
      throw new Refusal(
        `lookup.sql: its parameters number ${wanted}, those in lookup.params ${given}`,
      );
    }
    const nulls = given === 0 ? '' : `(${Array.from({ length: given }, () => 'null').join()})`;
    await client.query(`explain execute ${name}${nulls}`);
  } finally {
    await client.query(`deallocate ${name}`);
  }
}

/** An answer of PostgreSQL's, after which the connection is as good as before. */
class Refusal extends Error {
  constructor(what: string) {
    super(`PostgreSQL refuses ${what}`);
  }
}

function explainMistake(error: unknown, intruder: string | undefined): unknown {
  const sqlstate = sqlstateOf(error);
  if (sqlstate === undefined || isOfServer(sqlstate)) return error;
  let advice = '';
  if (sqlstate === '42501') advice = `: grant ${LOOKUP_ROLE} what it needs`;
  if (/^(42P01|42883|42704)$/.test(sqlstate) && intruder !== undefined) {
    advice =
      `. Schema public is not searched, because clients of role "${intruder}" can create objects there,` +
      ' or have: revoke that, or name the schema';
  }
  return new Refusal(`lookup.sql: ${(error as Error).message}${advice}`);
}

function sqlstateOf(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? (error.code ?? '') : undefined;
}

/** Out of resources, canceled, shutting down: not the query's fault. */
function isOfServer(sqlstate: string): boolean {
  return /^(53|57)/.test(sqlstate);
}

/** What the server says of itself, but not what a function of somebody's says in its name, who may quote what it was given. */
function inOwnWords({ code, message, where }: pg.DatabaseError): Error {
  return new Error(where === undefined ? message : `PostgreSQL gave up (SQLSTATE ${code})`);
}

const MAX_CONNECTIONS = 4;
const IDLE_MS = 30_000;
// After that a connection is replaced: by then the upstream's name may lead to another server.
const LIFETIME_S = 5;
const GOODBYE_MS = 2_000;
// PostgreSQL itself ends a statement that takes too long; past this it does not answer at all any more.
const SILENCE_MS = 1_000;

/** Connections as `pgjot_lookup`, opened when they are needed and closed when they have not been for a while. */
function createConnections(
  upstream: UpstreamConfig,
  { timeoutMs }: LookupConfig,
  secrets: Secrets,
) {
  const sockets = new Set<Socket>();
  let ssl: ReturnType<typeof upstreamTlsOptions> | false = false;
  const prepared = new WeakSet<pg.ClientBase>();
  let intruder: string | undefined;

  class LookupClient extends pg.Client {
    constructor(options?: { readonly password?: string }) {
      const socket = new Socket();
      sockets.add(socket.once('close', () => sockets.delete(socket)));
      super({
        host: upstream.host,
        port: upstream.port,
        database: upstream.database,
        user: LOOKUP_ROLE,
        password: options?.password,
        ssl,
        stream: () => socket,
        application_name: 'pgjot lookup',
        options: startupOptions(timeoutMs),
        keepAlive: true,
        connectionTimeoutMillis: upstream.connectTimeoutMs,
        query_timeout: timeoutMs + SILENCE_MS,
      });
      // Whoever waits for an answer hears of it as well; without a listener it would end the process.
      this.on('error', () => {});
      demandProof(this, upstream);
    }
  }

  // One for each secret: connections live on when it is rotated, and those of another are closed when they have been idle.
  const pools = new Map(
    secrets.all.map((secret) => {
      const pool = new pg.Pool({
        Client: LookupClient,
        password: derivePassword(secret, LOOKUP_ROLE),
        max: MAX_CONNECTIONS,
        idleTimeoutMillis: IDLE_MS,
        maxLifetimeSeconds: LIFETIME_S,
        connectionTimeoutMillis: upstream.connectTimeoutMs,
      });
      return [secret, pool.on('error', () => {})];
    }),
  );

  const open = async (): Promise<pg.PoolClient> => {
    try {
      // For each new connection, because certificates are renewed; not in its constructor, where nobody would catch it.
      return await secrets.try((secret) => {
        const pool = pools.get(secret) as pg.Pool;
        if (pool.idleCount === 0 && upstreamTlsMode(upstream) !== 'disable') {
          ssl = upstreamTlsOptions(upstream);
        }
        return pool.connect();
      });
    } catch (cause) {
      const advice = sqlstateOf(cause)?.startsWith('28') ? ' (pgjot setup makes the role)' : '';
      throw new Error(`cannot connect as ${LOOKUP_ROLE}${advice}`, { cause });
    }
  };

  const prepare = async (client: pg.ClientBase): Promise<void> => {
    intruder = await findIntruder(client, Object.keys(upstream.roles));
    if (intruder === undefined) await client.query(SEARCH_PUBLIC);
    prepared.add(client);
  };

  return {
    /** The role of ours, if any, whose clients have a hand in schema public, which is not searched then. */
    intruder: () => intruder,
    /** Lends a connection to `work`. */
    async use<T>(work: (client: pg.ClientBase) => Promise<T>): Promise<T> {
      const client = await open();
      let broken = false;
      try {
        if (!prepared.has(client)) await prepare(client);
        return await work(client);
      } catch (error) {
        broken = !(error instanceof Refusal);
        throw error;
      } finally {
        client.release(broken);
      }
    },
    async close(): Promise<void> {
      const ended = Promise.allSettled([...pools.values()].map((pool) => pool.end()));
      await Promise.race([ended, delay(GOODBYE_MS, undefined, { ref: false })]);
      for (const socket of sockets) socket.destroy();
    },
  };
}

/**
 * Settings that hold before the first statement. The query may change nothing, and finds only what PostgreSQL itself
 * brings along: a client that can create objects in some other schema on the path could have the query, run as
 * `pgjot_lookup`, call an operator of his that fits its operands better than the right one (CVE-2018-1058).
 */
function startupOptions(timeoutMs: number): string {
  const settings = [
    ['default_transaction_read_only', 'on'],
    ['statement_timeout', timeoutMs],
    ['search_path', 'pg_catalog,pg_temp'],
    ...KEEPALIVES,
  ];
  return settings.map(([name, value]) => `-c ${name}=${value}`).join(' ');
}

// Schema public joins the path where none of our clients can have put anything in it that would be called.
const SEARCH_PUBLIC = 'set search_path = pg_catalog, public, pg_temp';

/**
 * The first of these roles that can create objects in schema public, or owns a function or operator there, be it by way
 * of another role that it can become; or the slot that owns one: a client can be its slot as well.
 */
async function findIntruder(
  client: pg.ClientBase,
  roles: readonly string[],
): Promise<string | undefined> {
  const { rows } = await client.query<[string | null]>({
    text: `
      with public as (
        select oid, coalesce(nspacl, acldefault('n', nspowner)) as acl from pg_namespace where nspname = 'public'
      ), creator (role) as (
        select a.grantee from public, aclexplode(acl) a where a.privilege_type = 'CREATE'
        union select proowner from public join pg_proc on pronamespace = public.oid
        union select oprowner from public join pg_operator on oprnamespace = public.oid
      )
      select min(r.rolname::text) from pg_roles r join creator c on c.role = 0 or pg_has_role(r.oid, c.role, 'MEMBER')
       where r.rolname = any ($1) or r.rolname ~ '^pgjot_.+_[0-9]+$' and r.oid = c.role`,
    values: [roles],
    rowMode: 'array',
  });
  return rows[0]?.[0] ?? undefined;
}
