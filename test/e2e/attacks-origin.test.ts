/**
 * Where clients are from: the PROXY protocol before all that a client can say, and who may use it; lists of addresses.
 *
 * A client of loopback is a load balancer when it comes from 127.0.0.2, and anybody else when not.
 */
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/proxy.ts';
import { headerV1, headerV2 } from '../support/proxy-header.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { passwordMessage, query, SSL_REQUEST, startup, TERMINATE } from './parity/bytes.ts';
import { cancelRequest } from './raw-client.ts';

const BALANCER = '127.0.0.2';
const STARTUP = startup([
  ['user', 'authenticated'],
  ['database', 'app'],
]);

// ReadyForQuery is the only message that ends so.
const READY = /Z[^]{4}I$/;

let stack: Stack;
let token: string;
beforeAll(async () => {
  stack = await startStack({
    tls: true,
    listen: { proxyProtocol: { from: [BALANCER] }, deny: ['203.0.113.0/24', '2001:db8:bad::/48'] },
  });
  token = await stack.token('alice');
});
afterAll(() => stack.close());

/** A socket from this address to the proxy. */
async function from(localAddress: string): Promise<Socket> {
  const socket = connect({ host: stack.host, port: stack.port, localAddress, noDelay: true });
  socket.on('error', () => {});
  await once(socket, 'connect');
  return socket;
}

/** What the proxy says to these bytes until it closes. */
async function answerTo(localAddress: string, ...pieces: Buffer[]): Promise<string> {
  const socket = await from(localAddress);
  const heard: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => heard.push(chunk));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  for (const piece of pieces) socket.write(piece);
  await closed;
  return Buffer.concat(heard).toString('latin1');
}

/** Logs in over TLS behind a header, begun by SSLRequest or directly; resolves with the socket, ready for a query. */
async function login(header: Buffer, direct: boolean): Promise<Socket> {
  const socket = await from(BALANCER);
  socket.write(header);
  if (!direct) {
    socket.write(SSL_REQUEST);
    await once(socket, 'readable');
    expect(String(socket.read(1))).toBe('S');
  }
  const secured = connectTls({ socket, ca: stack.authority.ca, ALPNProtocols: ['postgresql'] });
  secured.on('error', () => {});
  secured.write(Buffer.concat([STARTUP, passwordMessage(token)]));
  await hear(secured, READY);
  return secured;
}

async function hear(socket: Socket, expected: RegExp): Promise<string> {
  let text = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    text += (chunk as Buffer).toString('latin1');
    if (expected.test(text)) return text;
  }
  throw new Error(`closed after ${text}`);
}

describe('a client behind a load balancer', () => {
  it.each([
    ['198.51.100.7', headerV1('198.51.100.7'), false],
    ['2001:db8::7', headerV1('2001:db8::7'), true],
    ['198.51.100.8', headerV2(0x21, 0x11, Buffer.from('c6336408c0000201c3501920', 'hex')), true],
  ])('has the address %s in the log, and its session', async (address, header, direct) => {
    const socket = await login(header, direct);
    socket.write(Buffer.concat([query('select auth.user_id()'), TERMINATE]));

    await hear(socket, /alice/);
    await once(socket, 'close');
    for (const event of ['login', 'session_end']) {
      await stack.logged((line) => line['event'] === event && line['address'] === address);
    }
  });

  it('may cancel its query, with a header before the request', async () => {
    const socket = await from(BALANCER);
    socket.write(Buffer.concat([headerV1('198.51.100.9'), SSL_REQUEST]));
    await once(socket, 'readable');
    socket.read(1);
    const secured = connectTls({ socket, ca: stack.authority.ca });
    secured.write(Buffer.concat([STARTUP, passwordMessage(token)]));
    const greeting = Buffer.from(await hear(secured, READY), 'latin1');
    const at = greeting.indexOf(Buffer.from('K\0\0\0\u000c', 'latin1'));
    const key = {
      processId: greeting.readInt32BE(at + 5),
      secretKey: greeting.subarray(at + 9, at + 13),
    };
    secured.write(query('select pg_sleep(30)'));
    await until(() => stack.proxy.counts().clients === 1);
    const answer = hear(secured, /57014/);
    const again = setInterval(() => {
      void answerTo(BALANCER, headerV1('198.51.100.9'), cancelRequest(key));
    }, 300);

    await answer.finally(() => clearInterval(again));
    secured.destroy();
  });
});

describe('attack', () => {
  const refusals = (code: string) => stack.logs.filter((line) => line.includes(`"${code}"`)).length;

  it('a header from an address that is no load balancer is not read, and nobody else is served', async () => {
    expect(await answerTo('127.0.0.1', headerV1('198.51.100.1'), SSL_REQUEST)).toBe('');
    expect(await answerTo('127.0.0.1', SSL_REQUEST)).toBe('');
    expect(stack.logs.filter((line) => line.includes('"address":"127.0.0.1"'))).toEqual([]);
  });

  it('a load balancer that sends no header is refused, and the log says so', async () => {
    const before = refusals('proxy_header_invalid');

    expect(await answerTo(BALANCER, SSL_REQUEST)).toBe('');
    expect(refusals('proxy_header_invalid')).toBe(before + 1);
  });

  it('a second header is a packet of an impossible length', async () => {
    const header = headerV1('198.51.100.1');
    const v2 = headerV2(0x20, 0);

    expect(await answerTo(BALANCER, header, header)).toBe('');
    expect(await answerTo(BALANCER, v2, v2, SSL_REQUEST)).toBe('');
    expect(await answerTo(BALANCER, v2, header, SSL_REQUEST)).toBe('');
  });

  it('plaintext behind the header and SSLRequest is not read as if it had come by TLS', async () => {
    const heardBack = await answerTo(
      BALANCER,
      Buffer.concat([headerV1('198.51.100.1'), SSL_REQUEST, STARTUP]),
    );

    expect(heardBack).toMatch(/received unencrypted data after SSL request/);
  });

  it('a header inside TLS, where a client could write it, says nothing', async () => {
    const socket = await from(BALANCER);
    socket.write(Buffer.concat([headerV1('198.51.100.1'), SSL_REQUEST]));
    await once(socket, 'readable');
    socket.read(1);
    const secured = connectTls({ socket, ca: stack.authority.ca });
    secured.on('error', () => {});
    secured.write(Buffer.concat([headerV1('192.0.2.99'), STARTUP, passwordMessage(token)]));
    secured.resume();
    await new Promise((resolve) => secured.once('close', resolve));

    expect(stack.logs.some((line) => line.includes('192.0.2.99'))).toBe(false);
  });

  it('an address that is denied is closed without a word, also when it is written as IPv6', async () => {
    for (const address of ['203.0.113.5', '::ffff:203.0.113.5', '2001:db8:bad::1']) {
      const before = refusals('address_denied');

      expect(await answerTo(BALANCER, headerV1(address), SSL_REQUEST)).toBe('');
      expect(refusals('address_denied')).toBe(before + 1);
    }
  });
});

describe('another configuration', () => {
  it('takes effect for the next connection', async () => {
    const reload = (listen: object) =>
      stack.proxy.reload(
        parseConfig({
          ...stack.config,
          listen: { ...stack.config.listen, proxyProtocol: undefined, ...listen },
        }),
      );
    const say = () => answerTo('127.0.0.1', STARTUP);

    reload({ deny: [] });
    expect(await say()).toMatch(/connection requires TLS/);
    reload({ deny: ['127.0.0.0/8'] });
    expect(await say()).toBe('');
    reload({ deny: [], allow: ['10.0.0.0/8', '127.0.0.2'] });
    expect(await say()).toBe('');
    expect(await answerTo('127.0.0.2', STARTUP)).toMatch(/connection requires TLS/);
  });
});
