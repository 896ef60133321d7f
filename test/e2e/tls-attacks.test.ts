/**
 * What a client can try inside TLS: attack A14. What it tries around the beginning of TLS is in `wire-attacks.test.ts`.
 */
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startStack, until, type Stack } from '../support/stack.ts';
import { SSL_REQUEST } from './parity/bytes.ts';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ tls: true });
});

afterAll(async () => {
  await stack.close();
});

async function startTls(version: 'TLSv1.2' | 'TLSv1.3'): Promise<TLSSocket> {
  const socket = connectTcp({ host: stack.host, port: stack.port });
  socket.write(SSL_REQUEST);
  await once(socket, 'readable');
  expect(String(socket.read(1))).toBe('S');
  const { ca } = stack.authority;
  const secured = connectTls({
    socket,
    ca,
    host: 'localhost',
    maxVersion: version,
    minVersion: version,
  });
  secured.on('error', () => {});
  await once(secured, 'secureConnect');
  return secured;
}

describe('A14: TLS itself', () => {
  test('is not negotiated again, in 1.2', async () => {
    const client = await startTls('TLSv1.2');
    const outcome = await new Promise<string>((resolve) => {
      client.once('close', () => resolve('closed'));
      client.once('error', () => resolve('refused'));
      client.renegotiate({}, (error) => resolve(error === null ? 'renegotiated' : 'refused'));
    });
    client.destroy();

    expect(outcome).not.toBe('renegotiated');
    await until(() => stack.proxy.counts().connections === 0);
  });

  test.each(['TLSv1', 'TLSv1.1'] as const)(
    'is not spoken in its old version %s',
    async (version) => {
      const socket = connectTcp({ host: stack.host, port: stack.port });
      socket.write(SSL_REQUEST);
      await once(socket, 'readable');
      socket.read(1);
      // Security level 0, or this client itself would refuse to try.
      const old = {
        minVersion: version,
        maxVersion: version,
        ciphers: 'DEFAULT@SECLEVEL=0',
      } as const;
      const secured = connectTls({ socket, rejectUnauthorized: false, ...old });
      const [error] = (await once(secured, 'error')) as [NodeJS.ErrnoException];

      expect(error.code).toMatch(/PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|ECONNRESET/);
      await until(() => stack.proxy.counts().connections === 0);
    },
  );

  test('ends without harm when its end is cut off', async () => {
    for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
      const client = await startTls(version);
      // Destroyed without close_notify: a truncation, which TLS cannot tell from a dead peer.
      client.write('half of something', () => client.destroy());
      await once(client, 'close');
    }
    await until(() => stack.proxy.counts().connections === 0);
    const client = await stack.connect('alice');
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    await client.end();
  });
});
