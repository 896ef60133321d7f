/**
 * The HTTP endpoint for administrators: a listener, bounds on whoever asks, and the way to the route that answers.
 *
 * What is answered is `routes.ts`, to whom `principal.ts`.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readBody } from '../body.ts';
import type { Config } from '../config.ts';
import { ConfigError, printable } from '../errors.ts';
import { LogRation } from '../limits/log-ration.ts';
import type { Logger } from '../log.ts';
import {
  assertNoPage,
  assertPermitted,
  permissionOf,
  readCredentials,
  type Credentials,
} from './principal.ts';
import { Refusal, refusalOf, type AdminAnswer, type Route } from './routes.ts';

/** An endpoint that listens. */
export interface Admin {
  readonly port: number;
  /** Whether this configuration has it ask for another token than it does. */
  hasOtherToken(config: Config['admin']): boolean;
  close(): Promise<void>;
}

const MAX_BODY_BYTES = 16_384;
const REQUEST_TIMEOUT_MS = 5_000;
// How often those times are looked at; else Node does so twice a minute.
const CHECK_MS = 1_000;
const MAX_CONNECTIONS = 64;
const REFUSALS_PER_MINUTE = 60;

/** Listens. @throws the system's error when the address cannot be bound; {ConfigError} when the token cannot be read. */
export async function startAdmin(
  config: NonNullable<Config['admin']>,
  routes: readonly Route[],
  logger: Logger,
): Promise<Admin> {
  const credentials = readCredentials(config);
  const log = audit(logger);
  const server = createServer(
    {
      requestTimeout: REQUEST_TIMEOUT_MS,
      headersTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: CHECK_MS,
    },
    (request, response) => {
      // Not to be had any more when the request has been broken off.
      const address = request.socket.remoteAddress ?? '';
      answer(request, routes, credentials).then(
        (given) => {
          log.note(request, address, given?.status ?? (given === undefined ? 204 : 200));
          say(response, given);
        },
        (error: unknown) => {
          const { status, message } = refusalOf(error) ?? new Refusal(500, 'internal error');
          log.note(request, address, status);
          say(response, { status, json: { problem: message } });
        },
      );
    },
  );
  server.maxConnections = MAX_CONNECTIONS;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host: config.host, port: config.port }, () => {
      server.off('error', reject);
      server.on('error', () => {});
      resolve();
    });
  });
  return {
    port: (server.address() as AddressInfo).port,
    hasOtherToken(next) {
      try {
        return next === undefined || readCredentials(next).token !== credentials.token;
      } catch (error) {
        if (error instanceof ConfigError) return true;
        throw error;
      }
    },
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
      log.close();
    },
  };
}

/**
 * For the audit: who has changed something, or was turned away, and from where; not what they sent. Who looks, and may, is
 * none of its business.
 */
function audit(logger: Logger) {
  const ration = new LogRation(logger, () => REFUSALS_PER_MINUTE);
  return {
    note({ method, url = '' }: IncomingMessage, address: string, status: number): void {
      const isRefused = status >= 400;
      if (!isRefused && method === 'GET') return;
      if (isRefused && !ration.allows(address, `http_${status}`)) return;
      const path = printable(url.split('?')[0] ?? '');
      logger[isRefused ? 'warn' : 'info']({ event: 'admin', method, path, status, address });
    },
    close: () => ration.close(),
  };
}

/** @throws {Refusal}, and what the route throws. */
async function answer(
  request: IncomingMessage,
  routes: readonly Route[],
  credentials: Credentials,
): Promise<AdminAnswer> {
  const permission = permissionOf(request, credentials);
  const url = new URL(request.url ?? '/', 'http://admin');
  const found = find(routes, request.method, url.pathname);
  const route = found?.route ?? NO_ROUTE;
  // Whoever may not read need not know what there is.
  assertPermitted(route, permission, credentials);
  assertNoPage(request, route, credentials);
  if (found === undefined) {
    if (routes.some(({ path }) => match(path, url.pathname))) {
      throw new Refusal(405, `${request.method} is not for this path`);
    }
    throw new Refusal(404, 'no such thing here');
  }
  const body = await readBody(request, MAX_BODY_BYTES);
  if (body === undefined) throw new Refusal(413, `more than ${MAX_BODY_BYTES} bytes`);
  return found.route.answer({
    params: found.params,
    query: url.searchParams,
    accept: request.headers.accept,
    mayRead: permission !== 'public',
    json: () => parse(body),
  });
}

/** What is asked of those who ask for what is not there. */
const NO_ROUTE: Pick<Route, 'permission' | 'takesBody'> = { permission: 'read', takesBody: true };

function find(routes: readonly Route[], method = '', path: string) {
  for (const route of routes) {
    const params = route.method === method ? match(route.path, path) : undefined;
    if (params !== undefined) return { route, params };
  }
  return undefined;
}

/** What `path` has where the pattern is open; `undefined` where it does not match. */
function match(pattern: string, path: string): Record<string, string> | undefined {
  const [wanted, given] = [pattern.split('/'), path.split('/')];
  if (wanted.length !== given.length) return undefined;
  const params: Record<string, string> = {};
  for (const [index, segment] of wanted.entries()) {
    const other = given[index] as string;
    const name = /^\{(\w+)\}$/.exec(segment)?.[1];
    if (name === undefined && segment !== other) return undefined;
    if (name !== undefined) params[name] = decode(other);
  }
  return params;
}

/** @throws {Refusal} 400 */
function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new Refusal(400, 'the path is not well encoded');
  }
}

/** @throws {Refusal} 400 */
function parse(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    throw new Refusal(400, 'the body is not JSON');
  }
}

function say(response: ServerResponse, given: AdminAnswer): void {
  if (given === undefined) {
    response.writeHead(204, { connection: 'close' }).end();
    return;
  }
  const [type, text] =
    'json' in given
      ? ['application/json', `${JSON.stringify(given.json)}\n`]
      : [given.type, given.text];
  response.writeHead(given.status ?? 200, { 'content-type': type, connection: 'close' }).end(text);
}
