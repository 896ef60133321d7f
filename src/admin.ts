/**
 * The HTTP endpoint for administrators: to revoke what tokens were issued for, and to have the configuration read again.
 *
 *   POST /revocations   one entry as JSON, as in the file: jti, iss, sub, issuedBefore    204, or 422 and why
 *   POST /reload        no body                                                           204, or 422 and why
 *
 * Only for whoever has the token, or is on this machine where there is none. Answers nothing to a browser's page: what it
 * sends carries an Origin; and where there is no token, a name of its own in Host, or a type that a form can have.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { z } from 'zod';
import { readBody } from './body.ts';
import { readSecret, type Config } from './config.ts';
import { ConfigError } from './errors.ts';
import { isLoopback } from './exposure.ts';

/** What administrators may do. */
export interface AdminActions {
  /** @throws {z.ZodError} when the entry is none; {RangeError} when there are too many. */
  revoke(entry: unknown): void | Promise<void>;
  /** @throws {ConfigError} when the new configuration is wrong; then the old one stays. */
  reload(): void | Promise<void>;
}

/** An endpoint that listens. */
export interface Admin {
  readonly port: number;
  /** Whether this configuration has it ask for another token than it does. */
  hasOtherToken(config: Config['admin']): boolean;
  close(): Promise<void>;
}

const ACTIONS: ReadonlyMap<string, 'revoke' | 'reload'> = new Map([
  ['/revocations', 'revoke'],
  ['/reload', 'reload'],
]);
const MAX_BODY_BYTES = 16_384;
const REQUEST_TIMEOUT_MS = 5_000;
// How often those times are looked at; else Node does so twice a minute.
const CHECK_MS = 1_000;
const MAX_CONNECTIONS = 64;

/** Listens. @throws the system's error when the address cannot be bound; {ConfigError} when the token cannot be read. */
export async function startAdmin(
  config: NonNullable<Config['admin']>,
  actions: AdminActions,
): Promise<Admin> {
  const token = tokenOf(config);
  const server = createServer(
    {
      requestTimeout: REQUEST_TIMEOUT_MS,
      headersTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: CHECK_MS,
    },
    (request, response) => {
      answer(request, token, actions).then(
        ([status, problem]) => say(response, status, problem),
        () => say(response, 500, 'internal error'),
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
        return tokenOf(next) !== token;
      } catch (error) {
        if (error instanceof ConfigError) return true;
        throw error;
      }
    },
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

/** @throws {ConfigError} when it cannot be read. */
function tokenOf(config: Config['admin']): string | undefined {
  return config?.token && readSecret(config.token, 'admin.token');
}

type Answer = readonly [status: number, problem?: string];

async function answer(
  request: IncomingMessage,
  token: string | undefined,
  actions: AdminActions,
): Promise<Answer> {
  if (request.headers.origin !== undefined) return [403, 'not for browsers'];
  if (token !== undefined && !isBearer(request.headers.authorization, token)) {
    return [401, 'Authorization: Bearer … is missing or wrong'];
  }
  // A page may have its own name lead to this machine (DNS rebinding), and is of one origin with us then.
  if (token === undefined && !isLoopback(hostnameOf(request.headers.host))) {
    return [403, 'Host: must be a loopback address where admin.token is not configured'];
  }
  const action = ACTIONS.get(request.url ?? '');
  if (action === undefined) return [404, 'no such thing here'];
  if (request.method !== 'POST') return [405, 'POST is the only method'];
  if (token === undefined && !isTypeFit(request.headers['content-type'], action)) {
    return [415, 'Content-Type: must be application/json where admin.token is not configured'];
  }
  const body = await readBody(request, MAX_BODY_BYTES);
  if (body === undefined) return [413, `more than ${MAX_BODY_BYTES} bytes`];
  try {
    if (action === 'reload') await actions.reload();
    else await actions.revoke(JSON.parse(body));
    return [204];
  } catch (error) {
    return refusal(error);
  }
}

function refusal(error: unknown): Answer {
  if (error instanceof SyntaxError) return [400, 'the body is not JSON'];
  if (error instanceof z.ZodError) {
    const problems = error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`);
    return [422, problems.join('; ')];
  }
  if (error instanceof ConfigError || error instanceof RangeError) return [422, error.message];
  throw error;
}

/** Without its port; empty where it is none. */
function hostnameOf(host: string | undefined): string {
  try {
    return new URL(`http://${host}`).hostname.replace(/^\[(.*)\]$/, '$1');
  } catch {
    return '';
  }
}

/** What a page may send without asking is typed as a form's, or as text. Where there is no body there is no type. */
function isTypeFit(type: string | undefined, action: 'revoke' | 'reload'): boolean {
  if (type === undefined) return action === 'reload';
  return /^application\/json\s*(;|$)/i.test(type);
}

/** Compared by digests, whose comparison takes the same time whatever they are. */
function isBearer(header: string | undefined, token: string): boolean {
  const given = /^Bearer ([^\s]+)$/i.exec(header ?? '')?.[1] ?? '';
  const [one, other] = [given, token].map((text) => createHash('sha256').update(text).digest());
  return timingSafeEqual(one as Buffer, other as Buffer);
}

function say(response: ServerResponse, status: number, problem?: string): void {
  if (problem === undefined) {
    response.writeHead(status, { connection: 'close' }).end();
    return;
  }
  const body = JSON.stringify({ problem });
  response
    .writeHead(status, { 'content-type': 'application/json', connection: 'close' })
    .end(`${body}\n`);
}
