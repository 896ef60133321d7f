/**
 * The HTTP endpoint for administrators: a listener, bounds on whoever asks, and the way to the route that answers.
 *
 * What is answered is `routes.ts`, to whom `principal.ts`.
 */
import { constants } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createSecureServer, Server as HttpsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { readBody } from '../body.ts';
import type { Config } from '../config.ts';
import { printable } from '../errors.ts';
import { canonical } from '../limits/address.ts';
import { LogRation } from '../limits/log-ration.ts';
import type { Logger } from '../log.ts';
import { logTo, type TlsFiles } from '../tls-files.ts';
import {
  assertNoPage,
  assertPermitted,
  principalOf,
  TLS_PATH,
  type Credentials,
} from './principal.ts';
import { Refusal, refusalOf, type AdminAnswer, type Route } from './routes.ts';

/** An endpoint that listens. */
export interface Admin {
  readonly port: number;
  /** Asks for what this says from now on. A certificate is for new connections, as it is when its file changes. */
  setCredentials(credentials: Credentials): void;
  /** Lets answers under way be sent, for a second at most. */
  close(): Promise<void>;
}

const MAX_BODY_BYTES = 16_384;
const REQUEST_TIMEOUT_MS = 5_000;
// From the request's first byte until its answer has been taken: longer than any route needs, over all workers.
const EXCHANGE_MS = 20_000;
// How often those times are looked at; else Node does so twice a minute.
const CHECK_MS = 1_000;
const MAX_CONNECTIONS = 64;
const REFUSALS_PER_MINUTE = 60;
const GOODBYE_MS = 1_000;

/**
 * Listens; `credentials` are what `readCredentials` makes of the same configuration.
 *
 * @throws the system's error when the address cannot be bound.
 */
export async function startAdmin(
  { host, port }: Pick<NonNullable<Config['admin']>, 'host' | 'port'>,
  credentials: Credentials,
  routes: readonly Route[],
  logger: Logger,
  exchangeMs = EXCHANGE_MS,
): Promise<Admin> {
  let asked = credentials;
  const log = audit(logger);
  const exchanges = new Set<ServerResponse>();
  const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    // Not to be had any more when the request has been broken off.
    const address = canonical(request.socket.remoteAddress ?? '');
    exchanges.add(response);
    // Whoever does not take the answer has it taken away.
    const timer = setTimeout(() => request.socket.destroy(), exchangeMs);
    response.once('close', () => {
      clearTimeout(timer);
      exchanges.delete(response);
    });
    answer(request, routes, asked).then(
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
  };
  const server = createListener(asked, onRequest);
  server.maxConnections = MAX_CONNECTIONS;
  // Attack: requests by the thousand behind one another. Node never says of those behind the first that they are over.
  server.maxRequestsPerSocket = 1;
  server.on('dropRequest', (_, socket) => void socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host, port }, () => {
      server.off('error', reject);
      server.on('error', () => {});
      resolve();
    });
  });
  let watching = show(server, asked.tls, logger);
  return {
    port: (server.address() as AddressInfo).port,
    setCredentials(next) {
      asked = next;
      watching?.[Symbol.dispose]();
      watching = show(server, next.tls, logger);
    },
    async close() {
      watching?.[Symbol.dispose]();
      const closed = new Promise((resolve) => server.close(resolve));
      const said = [...exchanges].map((response) => once(response, 'close'));
      await Promise.race([Promise.all(said), delay(GOODBYE_MS, undefined, { ref: false })]);
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
      // That it is not ready is told by what makes it so.
      const isRefused = status >= 400 && status !== 503;
      if (!isRefused && method === 'GET') return;
      if (isRefused && !ration.allows(address, `http_${status}`)) return;
      const path = printable(url.split('?')[0] ?? '');
      logger[isRefused ? 'warn' : 'info']({ event: 'admin', method, path, status, address });
    },
    close: () => ration.close(),
  };
}

/** Shows newcomers these certificates, as they are and whenever they change. */
function show(
  server: Server | HttpsServer,
  tls: TlsFiles | undefined,
  logger: Logger,
): Disposable | undefined {
  if (tls === undefined || !(server instanceof HttpsServer)) return undefined;
  const log = logTo(logger, TLS_PATH);
  const present = () => server.setSecureContext(tls.pem);
  present();
  return tls.watch({
    ...log,
    onReloaded(certificate) {
      present();
      log.onReloaded(certificate);
    },
  });
}

function createListener(
  { tls, takesCertificates }: Credentials,
  onRequest: (request: IncomingMessage, response: ServerResponse) => void,
): Server | HttpsServer {
  const times = {
    requestTimeout: REQUEST_TIMEOUT_MS,
    headersTimeout: REQUEST_TIMEOUT_MS,
    connectionsCheckingInterval: CHECK_MS,
  };
  if (tls === undefined) return createServer(times, onRequest);
  const server = createSecureServer(
    {
      ...times,
      ...tls.pem,
      minVersion: 'TLSv1.2',
      handshakeTimeout: REQUEST_TIMEOUT_MS,
      // Attack A14: key exchange after key exchange.
      secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
      requestCert: takesCertificates,
      // Whoever has none is answered what is for all; `principal.ts` tells them apart.
      rejectUnauthorized: false,
    },
    onRequest,
  );
  // A handshake that fails is the end of that connection and of nothing else.
  return server.on('tlsClientError', (_, socket) => void socket.destroy());
}

/** @throws {Refusal}, and what the route throws. */
async function answer(
  request: IncomingMessage,
  routes: readonly Route[],
  credentials: Credentials,
): Promise<AdminAnswer> {
  const principal = principalOf(request, credentials);
  const url = urlOf(request);
  const found = find(routes, request.method, url.pathname);
  const route = found?.route ?? NO_ROUTE;
  // Whoever may not read need not know what there is.
  assertPermitted(route, principal, credentials);
  assertNoPage(request, route, principal);
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
    mayRead: principal.permission !== 'public',
    json: () => parse(body),
  });
}

/** @throws {Refusal} 400 */
function urlOf({ url = '/' }: IncomingMessage): URL {
  if (!url.startsWith('/') || !URL.canParse(`http://admin${url}`)) {
    throw new Refusal(400, 'the path is none');
  }
  return new URL(`http://admin${url}`);
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
  const headers = { ...SAFETY, connection: 'close' };
  if (given === undefined) {
    response.writeHead(204, headers).end();
    return;
  }
  const { status = 200 } = given;
  const [type, text] =
    'json' in given
      ? ['application/json', `${JSON.stringify(given.json)}\n`]
      : [given.type, given.text];
  const more = 'headers' in given ? given.headers : {};
  response.writeHead(status, { ...headers, 'content-type': type, ...more }).end(text);
}

/** What is said here is nobody else's to keep, to guess the type of, to embed, or to run. */
const SAFETY = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
} as const;
