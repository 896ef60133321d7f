/**
 * What administrators may ask over HTTP: a table of routes, each with what it takes to be answered.
 *
 * A route knows neither sockets nor tokens: who asks, and how much they may send, is judged in `endpoint.ts` before it is
 * called.
 */
import { z } from 'zod';
import { ConfigError } from '../errors.ts';
import type { PoolDescription, ProviderDescription } from '../inspection.ts';
import type { MetricsText } from '../metrics-sample.ts';
import type { Readiness } from '../readiness.ts';
import type { SessionPage, SessionQuery, SessionSelection } from '../roster.ts';
import { PAGE, PAGE_HEADERS } from './page.ts';

/** What whoever asks must be allowed to: nothing, to look, or to change something. */
export type Permission = 'public' | 'read' | 'write';

/** A request that has been let in. */
export interface AdminRequest {
  /** The segments of the path that the route leaves open, by name, decoded. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** The header Accept. */
  readonly accept: string | undefined;
  /** The body as JSON. @throws {Refusal} 400 when it is none. */
  json(): unknown;
  /** Whether whoever asks may look: a public route tells others less. */
  readonly mayRead: boolean;
}

/** What is answered: nothing (204), a value as JSON, or a text of some other type. */
export type AdminAnswer =
  | undefined
  | { readonly status?: number; readonly json: unknown }
  | {
      readonly status?: number;
      readonly type: string;
      readonly text: string;
      readonly headers?: Readonly<Record<string, string>>;
    };

/** One row of the table. */
export interface Route {
  readonly method: 'GET' | 'POST';
  /** Segments in braces match any one segment, as in `/sessions/{id}/terminate`. */
  readonly path: string;
  readonly permission: Permission;
  /** Whether it takes a JSON body; a POST that takes none is not to have one. */
  readonly takesBody?: true;
  /** @throws {Refusal}, or what `refusalOf` makes one of. */
  answer(request: AdminRequest): AdminAnswer | Promise<AdminAnswer>;
}

/** Why a request is not answered as it wishes: an HTTP status, and one line for whoever asked. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly status: number;

  constructor(status: number, problem: string) {
    super(problem);
    this.status = status;
  }
}

/** An error that whoever asked can do something about, as a refusal; `undefined` for any other. */
export function refusalOf(error: unknown): Refusal | undefined {
  if (error instanceof Refusal) return error;
  if (error instanceof z.ZodError) {
    const problems = error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`);
    return new Refusal(422, problems.join('; '));
  }
  if (error instanceof ConfigError || error instanceof RangeError) {
    return new Refusal(422, error.message);
  }
  return undefined;
}

/** An answer that all processes have part in. */
export type Joint<Answer> = Answer & {
  /** The workers, by number, that have not answered in time: what they have, or would have done, is not in it. */
  readonly unanswered?: readonly number[];
};

type Soon<Answer> = Answer | Promise<Answer>;

/** What administrators may do, by whoever runs the proxy: one process, or the primary of several. */
export interface Operations {
  readiness(): Promise<Readiness>;
  sessions(query: SessionQuery): Soon<Joint<SessionPage>>;
  pools(): Promise<Joint<{ readonly pools: readonly PoolDescription[] }>>;
  providers(): Soon<Joint<{ readonly providers: readonly ProviderDescription[] }>>;
  /** Ends sessions whose clients may come back. */
  terminate(selection: SessionSelection): Soon<Joint<{ readonly terminated: number }>>;
  /** Has later logins get sessions that are opened later. @throws {RangeError} when there is no such upstream. */
  reconnect(upstream: string): Soon<Joint<{ readonly closed: number; readonly inUse: number }>>;
  /** Begins to end the proxy as SIGTERM does. */
  drain(): void;
  /** @throws {z.ZodError} when the entry is none; {RangeError} when there are too many. */
  revoke(entry: unknown): void | Promise<void>;
  /** @throws {ConfigError} when the new configuration is wrong; then the old one stays. */
  reload(): void | Promise<void>;
  /** All metrics as text; `accept` says in which format. */
  metrics(accept?: string): Promise<MetricsText>;
}

const MAX_PAGE = 1_000;
const STATES = [
  'login',
  'active',
  'idle',
  'idle in transaction',
  'idle in transaction (aborted)',
  'closing',
] as const;
const text = z.string().max(16_384);

const which = {
  iss: text.optional(),
  sub: text.optional(),
  provider: text.optional(),
  role: text.optional(),
  upstream: text.optional(),
  address: text.optional(),
  state: z.enum(STATES).optional(),
};
const sessionQuery = z.strictObject({
  ...which,
  limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(100),
  after: text.optional(),
});
// A claim that was meant to narrow it down and has no value must not widen it.
const selection = z
  .strictObject(which)
  .refine((chosen) => Object.keys(chosen).length > 0, 'say which sessions');

/** The table, for these operations. */
export function createRoutes(operations: Operations): readonly Route[] {
  return [...probes(operations), ...views(operations), ...actions(operations)];
}

/** What load balancers, supervisors and browsers ask without showing anything. */
function probes(operations: Operations): Route[] {
  return [
    {
      method: 'GET',
      path: '/',
      permission: 'public',
      answer: () => ({ type: 'text/html; charset=utf-8', text: PAGE, headers: PAGE_HEADERS }),
    },
    {
      method: 'GET',
      path: '/healthz',
      permission: 'public',
      answer: () => ({ json: { alive: true } }),
    },
    {
      method: 'GET',
      path: '/readyz',
      permission: 'public',
      async answer({ mayRead }) {
        const { ready, reasons, troubles, ageMs } = await operations.readiness();
        const json = { ready, reasons, ageMs, ...(mayRead && { troubles }) };
        return { status: ready ? 200 : 503, json };
      },
    },
  ];
}

/** What there is to be seen. */
function views(operations: Operations): Route[] {
  return [
    {
      method: 'GET',
      path: '/sessions',
      permission: 'read',
      async answer({ query }) {
        const asked = sessionQuery.parse(Object.fromEntries(query));
        return { json: await operations.sessions(asked) };
      },
    },
    {
      method: 'GET',
      path: '/pools',
      permission: 'read',
      answer: async () => ({ json: await operations.pools() }),
    },
    {
      method: 'GET',
      path: '/providers',
      permission: 'read',
      answer: async () => ({ json: await operations.providers() }),
    },
    {
      method: 'GET',
      path: '/metrics',
      permission: 'read',
      async answer({ accept }) {
        const { contentType, text: metrics } = await operations.metrics(accept);
        return { type: contentType, text: metrics };
      },
    },
  ];
}

/** What changes something. */
function actions(operations: Operations): Route[] {
  return [
    {
      method: 'POST',
      path: '/sessions/{id}/terminate',
      permission: 'write',
      async answer({ params: { id = '' } }) {
        const result = await operations.terminate({ id });
        // There is only one: whoever is silent has not got it.
        if (result.terminated > 0) return { json: result };
        if (!result.unanswered?.length) throw new Refusal(404, 'there is no such session');
        return done(result);
      },
    },
    {
      method: 'POST',
      path: '/terminate',
      permission: 'write',
      takesBody: true,
      answer: async (request) => done(await operations.terminate(selection.parse(request.json()))),
    },
    {
      method: 'POST',
      path: '/pools/{upstream}/reconnect',
      permission: 'write',
      async answer({ params: { upstream = '' } }) {
        return done(await operations.reconnect(upstream));
      },
    },
    {
      method: 'POST',
      path: '/revocations',
      permission: 'write',
      takesBody: true,
      async answer(request) {
        await operations.revoke(request.json());
        return undefined;
      },
    },
    {
      method: 'POST',
      path: '/reload',
      permission: 'write',
      async answer() {
        await operations.reload();
        return undefined;
      },
    },
    {
      method: 'POST',
      path: '/drain',
      permission: 'write',
      answer() {
        operations.drain();
        return { status: 202, json: { draining: true } };
      },
    },
  ];
}

/** A script must notice when not every worker has done what it was told. */
function done(result: Joint<object>): AdminAnswer {
  return { status: result.unanswered?.length ? 504 : 200, json: result };
}
