/**
 * A PostgreSQL that does as its script says, over a real loopback socket: for servers that lie, stall or break off.
 *
 * Each connection runs a script, a list of steps; the last script serves all further connections. A
 * step that does not get what it expects fails the connection, and `verify()` says so.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { TLSSocket, createSecureContext } from 'node:tls';
import type { UpstreamConfig } from '../../src/config.ts';
import { encodeErrorFields, encodeReadyForQuery } from '../../src/wire/backend.ts';
import { encodeFrame, encodeInt32, encodeString, readFrame } from '../../src/wire/frame.ts';
import { readExactly } from '../../src/wire/read.ts';
import { decodeParameters, readStartupPacket } from '../../src/wire/startup.ts';
import type { Certificate } from './certificate.ts';

/** The server's end of one connection. */
export interface Backend {
  stream: Duplex;
  /** What the StartupMessage held. */
  readonly parameters: Map<string, string>;
  /** Aborts when the server is closed. */
  readonly signal: AbortSignal;
}

/** One thing that the server does, or waits for. */
export type Step = (backend: Backend) => Promise<void> | void;

/** A running fake. */
export interface FakePostgres extends AsyncDisposable {
  readonly port: number;
  /** The connections so far. */
  readonly backends: readonly Backend[];
  /** Rejects with what the first connection expected in vain; resolves when every script so far has ended. */
  verify(): Promise<void>;
}

/** Listens on a free port. */
export async function startFakePostgres(...scripts: readonly Step[][]): Promise<FakePostgres> {
  const backends: Backend[] = [];
  const sockets = new Set<Socket>();
  const running: Promise<unknown>[] = [];
  const abort = new AbortController();
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    sockets.add(socket.on('error', () => {}));
    const script = scripts[Math.min(backends.length, scripts.length - 1)] ?? [];
    const backend: Backend = { stream: socket, parameters: new Map(), signal: abort.signal };
    backends.push(backend);
    running.push(play(script, backend).catch((error: unknown) => error));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    backends,
    async verify() {
      for (const failure of await Promise.all(running)) if (failure instanceof Error) throw failure;
    },
    async [Symbol.asyncDispose]() {
      abort.abort(new Error('the fake was closed'));
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** How the proxy reaches a fake. */
export function upstreamAt(port: number, overrides: Partial<UpstreamConfig> = {}): UpstreamConfig {
  return {
    host: '127.0.0.1',
    port,
    database: 'app',
    tls: { mode: 'disable' },
    session: 'portable',
    healSlots: false,
    nameSessions: false,
    secret: { env: 'PGJOT_UNUSED' },
    roles: { authenticated: { slots: 4 } },
    connectTimeoutMs: 5_000,
    acquireTimeoutMs: 5_000,
    pool: {
      mode: 'session',
      reuse: 'same-identity',
      // A test that counts connections counts its own.
      spares: 0,
      maxWaiting: 1_000,
      idleTimeoutMs: 60_000,
      lifetimeMs: 3_600_000,
    },
    ...overrides,
  };
}

async function play(script: readonly Step[], backend: Backend): Promise<void> {
  for (const step of script) await step(backend);
}

/** Expects a StartupMessage and keeps its parameters. */
export const startupMessage: Step = async (backend) => {
  const { body } = await readStartupPacket(backend.stream, backend.signal);
  for (const [name, value] of decodeParameters(body)) backend.parameters.set(name, value);
};

/** Expects an SSLRequest and answers with these bytes. */
export function sslRequest(answer: string | Buffer): Step {
  return async ({ stream, signal }) => {
    const request = (await readExactly(stream, 8, signal)).toString('hex');
    if (request !== '0000000804d2162f') throw new Error(`expected an SSLRequest, got ${request}`);
    stream.write(answer);
  };
}

/** Goes on in TLS. */
export function startTls(certificate: Certificate): Step {
  return async (backend) => {
    const secured = new TLSSocket(backend.stream, {
      isServer: true,
      secureContext: createSecureContext(certificate),
    });
    secured.on('error', () => {});
    backend.stream = secured;
    await once(secured, 'secure');
  };
}

/** Sends frames, or any bytes. */
export function send(...bytes: readonly Buffer[]): Step {
  return ({ stream }) => void stream.write(Buffer.concat(bytes));
}

/** Expects a frame of a type, and its body where one is given. */
export function expectFrame(type: string, body?: Buffer): Step {
  return async ({ stream, signal }) => {
    const frame = await readFrame(stream, 1_048_576, signal);
    const got = String.fromCharCode(frame.type);
    if (got !== type) throw new Error(`expected message ${type}, got ${got}`);
    if (body !== undefined && !body.equals(frame.body)) throw new Error(`another body of ${type}`);
  };
}

/** Expects the peer to close without another byte. */
export const expectEnd: Step = async ({ stream }) => {
  stream.on('data', (chunk: Buffer) => {
    stream.destroy(new Error(`expected the end, got ${chunk.length} bytes`));
  });
  await once(stream, 'end');
  stream.end();
};

/** Closes, or resets, the connection. */
export const hangUp: Step = ({ stream }) => void stream.end();
export const reset: Step = ({ stream }) => void (stream as Socket).resetAndDestroy();

/** Sends this again and again until the peer is gone. */
export function flood(bytes: Buffer): Step {
  return async ({ stream }) => {
    while (!stream.destroyed && !stream.closed) {
      if (stream.write(bytes)) await new Promise(setImmediate);
      else
        await new Promise<void>((resolve) => {
          stream.once('drain', resolve);
          stream.once('close', resolve);
        });
    }
  };
}

/** Messages of a login. */
export const authentication = (code: number, ...rest: Buffer[]) =>
  encodeFrame('R', encodeInt32(code), ...rest);
export const ok = authentication(0);
export const keyData = encodeFrame('K', encodeInt32(4_711), Buffer.from('c0ffee00', 'hex'));
export const ready = encodeReadyForQuery('I');
export const parameterStatus = (name: string, value: string) =>
  encodeFrame('S', encodeString(name), encodeString(value));
export const failure = (sqlstate: string, message: string, severity = 'FATAL') =>
  encodeErrorFields({ severity, sqlstate, message });

/** How a SCRAM exchange departs from RFC 5802. */
export interface ScramFaults {
  readonly mechanisms?: readonly string[];
  readonly iterations?: number | string;
  /** Default: another one at every login. */
  readonly salt?: Buffer;
  /** Another salted password than the client's. */
  readonly password?: string;
  /** A nonce that does not begin with the client's. */
  readonly foreignNonce?: boolean;
  /** What to send instead of the server's proof; nothing at all when empty. */
  readonly final?: readonly Buffer[];
}

/** The server's part of SCRAM-SHA-256 up to its final message; checks the client's proof. */
export function scram(password: string, faults: ScramFaults = {}): Step {
  return async ({ stream, signal }) => {
    const mechanisms = faults.mechanisms ?? ['SCRAM-SHA-256'];
    stream.write(authentication(10, ...mechanisms.map(encodeString), Buffer.from([0])));
    const initial = (await readFrame(stream, 10_000, signal)).body.toString('latin1');
    const clientFirst = /n=\*,r=.*$/.exec(initial)?.[0] ?? '';
    const nonce = `${faults.foreignNonce ? 'x' : clientFirst.slice(6)}${randomBytes(9).toString('hex')}`;
    const salt = faults.salt ?? randomBytes(16);
    const iterations = faults.iterations ?? 4_096;
    const serverFirst = `r=${nonce},s=${salt.toString('base64')},i=${iterations}`;
    stream.write(authentication(11, Buffer.from(serverFirst)));

    const final = (await readFrame(stream, 10_000, signal)).body.toString('latin1');
    const [withoutProof, proof] = final.split(',p=') as [string, string];
    const known = faults.password ?? password;
    const salted = pbkdf2Sync(known, salt, Number(iterations), 32, 'sha256');
    const signed = `${clientFirst},${serverFirst},${withoutProof}`;
    const hmac = (key: Buffer, text: string) => createHmac('sha256', key).update(text).digest();
    const clientKey = hmac(salted, 'Client Key');
    const signature = hmac(createHash('sha256').update(clientKey).digest(), signed);
    const expected = clientKey.map((byte, index) => byte ^ (signature[index] as number));
    const matches = Buffer.from(expected).toString('base64') === proof;
    if (!matches && faults.password === undefined) throw new Error('the proof is wrong');
    const serverProof = hmac(hmac(salted, 'Server Key'), signed).toString('base64');
    for (const frame of faults.final ?? [authentication(12, Buffer.from(`v=${serverProof}`))]) {
      stream.write(frame);
    }
  };
}

/** A login as PostgreSQL does it. */
export function login(password: string): Step[] {
  return [
    startupMessage,
    scram(password),
    send(ok, parameterStatus('TimeZone', 'UTC'), keyData, ready),
  ];
}
