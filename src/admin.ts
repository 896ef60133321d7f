/**
 * The HTTP endpoint for administrators: to revoke what tokens were issued for, and to have the configuration read again.
 *
 *   POST /revocations   one entry as JSON, as in the file: jti, iss, sub, issuedBefore    204, or 422 and why
 *   POST /reload        no body                                                           204, or 422 and why
 *
 * Only for whoever has the token, or is on this machine where there is none. Answers nothing to a browser's page: what it
 * sends carries an Origin.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { z } from 'zod';
import { readSecret, type Config } from './config.ts';
import { ConfigError } from './errors.ts';

/** What administrators may do. */
export interface AdminActions {
  /** @throws {z.ZodError} when the entry is none; {RangeError} when there are too many. */
  revoke(entry: unknown): void;
  /** @throws {ConfigError} when the new configuration is wrong; then the old one stays. */
  reload(): void;
}

/** An endpoint that listens. */
export interface Admin {
  readonly port: number;
  close(): Promise<void>;
}

const MAX_BODY_BYTES = 16_384;
const REQUEST_TIMEOUT_MS = 5_000;

/** Listens. @throws the system's error when the address cannot be bound; {ConfigError} when the token cannot be read. */
export async function startAdmin(
  config: NonNullable<Config['admin']>,
  actions: AdminActions,
): Promise<Admin> {
  const token = config.token && readSecret(config.token, 'admin.token');
  const server = createServer(
    { requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS },
    (request, response) => {
      answer(request, token, actions).then(
        ([status, problem]) => say(response, status, problem),
        () => say(response, 500, 'internal error'),
      );
    },
  );
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
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
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
  const action = { '/revocations': 'revoke', '/reload': 'reload' }[request.url ?? ''];
  if (action === undefined) return [404, 'no such thing here'];
  if (request.method !== 'POST') return [405, 'POST is the only method'];
  const body = await readBody(request);
  if (body === undefined) return [413, `more than ${MAX_BODY_BYTES} bytes`];
  try {
    if (action === 'reload') actions.reload();
    else actions.revoke(JSON.parse(body));
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

/** Compared by digests, whose comparison takes the same time whatever they are. */
function isBearer(header: string | undefined, token: string): boolean {
  const given = /^Bearer ([^\s]+)$/i.exec(header ?? '')?.[1] ?? '';
  const [one, other] = [given, token].map((text) => createHash('sha256').update(text).digest());
  return timingSafeEqual(one as Buffer, other as Buffer);
}

async function readBody(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
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
