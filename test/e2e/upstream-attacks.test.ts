/**
 * What somebody between pgjot and PostgreSQL can try while TLS begins: attacks A2 and A3, each by its name.
 *
 * The upstream is scripted. It must never hear more than an SSLRequest in clear, and the client never
 * what the upstream said.
 */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Stack, startStack, until } from '../support/stack.ts';
import { frame, int32, SSL_REQUEST, session } from './parity/bytes.ts';
import { describe as inWords, probe } from './parity/probe.ts';

const WHISPER = 'words of an upstream that nobody has authenticated';
const AUTHENTICATION_OK = frame('R', int32(0));
const READY = frame('Z', 'I');
const ERROR = frame('E', `SFATAL\0VFATAL\0C28P01\0M${WHISPER}\0\0`);

/** Answers an SSLRequest with `answers`, each a segment of its own, and keeps what it hears. */
class Impostor implements AsyncDisposable {
  answers: readonly Buffer[] = [];
  heard: Buffer[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor() {
    this.#server = createServer({ noDelay: true }, (socket) => {
      let answered = false;
      this.#sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => this.#sockets.delete(socket));
      socket.on('data', (chunk: Buffer) => {
        this.heard.push(chunk);
        if (!answered) for (const answer of this.answers) setImmediate(() => socket.write(answer));
        answered = true;
      });
    });
  }

  /** Listens on a free port of the loopback address, which it returns. */
  async listen(): Promise<number> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close');
  }
}

const ATTACKS: [attack: string, name: string, answers: Buffer[]][] = [
  [
    'A2',
    'S with AuthenticationOk behind it',
    [Buffer.concat([Buffer.from('S'), AUTHENTICATION_OK, READY])],
  ],
  ['A2', 'S with an error behind it', [Buffer.concat([Buffer.from('S'), ERROR])]],
  ['A2', 'S twice', [Buffer.from('SS')]],
  ['A2', 'S, then AuthenticationOk in clear', [Buffer.from('S'), AUTHENTICATION_OK, READY]],
  ['A2', 'AuthenticationOk instead of an answer', [AUTHENTICATION_OK, READY]],
  ['A3', 'N: no TLS here', [Buffer.from('N')]],
  [
    'A3',
    'N with AuthenticationOk behind it',
    [Buffer.concat([Buffer.from('N'), AUTHENTICATION_OK])],
  ],
  ['A3', 'E: an error before TLS', [ERROR]],
  ['A3', 'E in the words of 7.3', [Buffer.from(`E${WHISPER}\n\0`)]],
  ['A3', 'a byte that means nothing', [Buffer.from('?')]],
];

describe.each(['require', 'verify-full'] as const)('with upstream tls.mode %s', (mode) => {
  let impostor: Impostor;
  let stack: Stack;

  beforeAll(async () => {
    impostor = new Impostor();
    const port = await impostor.listen();
    const upstream = { port, tls: { mode }, acquireTimeoutMs: 400, connectTimeoutMs: 200 };
    stack = await startStack({ upstream });
  });

  afterAll(async () => {
    await stack?.close();
    await impostor?.[Symbol.asyncDispose]();
  });

  test.each(ATTACKS)('%s: %s', async (_, __, answers) => {
    impostor.answers = answers;
    impostor.heard = [];
    const login = { user: 'authenticated', database: 'app', password: await stack.token('alice') };

    // After some of these the upstream is left alone for a second.
    const said = await until(async () => {
      const one = await probe(stack, session(login), { quietMs: 8_000 });
      expect(inWords(one)).toBe('asks password, 08001, closes');
      return impostor.heard.length > 0 && one;
    });

    expect(said.bytes.toString('latin1')).not.toContain(WHISPER);
    expect(impostor.heard[0]).toEqual(SSL_REQUEST);
    for (const hello of clearText(impostor.heard)) expect(hello).toEqual(SSL_REQUEST);
    expect(Buffer.concat(impostor.heard).toString('latin1')).not.toContain('pgjot_');
    expect(stack.logs.join()).not.toContain(WHISPER);
  });
});

/** What was heard in clear: all but TLS records. */
function clearText(heard: readonly Buffer[]): Buffer[] {
  return heard.filter((chunk) => chunk[0] !== 0x16 && chunk[0] !== 0x15);
}
