/**
 * What administrators may ask over HTTP: a table of routes, each with what it takes to be answered.
 *
 * A route knows neither sockets nor tokens: who asks, and how much they may send, is judged in `endpoint.ts` before it is
 * called.
 */
import { z } from 'zod';
import { ConfigError } from '../errors.ts';
import type { MetricsText } from '../metrics-sample.ts';

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
  | { readonly status?: number; readonly type: string; readonly text: string };

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

/** What administrators may do, by whoever runs the proxy: one process, or the primary of several. */
export interface Operations {
  /** @throws {z.ZodError} when the entry is none; {RangeError} when there are too many. */
  revoke(entry: unknown): void | Promise<void>;
  /** @throws {ConfigError} when the new configuration is wrong; then the old one stays. */
  reload(): void | Promise<void>;
  /** All metrics as text; `accept` says in which format. */
  metrics(accept?: string): Promise<MetricsText>;
}

/** The table, for these operations. */
export function createRoutes(operations: Operations): readonly Route[] {
  return [
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
      method: 'GET',
      path: '/metrics',
      permission: 'read',
      async answer({ accept }) {
        const { contentType, text } = await operations.metrics(accept);
        return { type: contentType, text };
      },
    },
  ];
}
