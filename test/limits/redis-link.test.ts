/** The way to the store: what is said on it, to whoever is there. */
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { afterEach, expect, it, vi } from 'vitest';
import { RedisLink } from '../../src/limits/redis-link.ts';
import { createAuthority } from '../support/certificate.ts';
import { recordSecret } from '../support/record.ts';
import { recordedLogger } from '../support/logger.ts';

const PASSWORD = 'a-password-of-a-store';
const TLS_HANDSHAKE = 0x16;

afterEach(() => {
  vi.unstubAllEnvs();
});

/** `onLine` hears what it logs. */
function linkTo(url: string, onLine?: (line: string) => void): RedisLink {
  recordSecret('password of a store', PASSWORD);
  vi.stubEnv('PGJOT_TEST_STORE', url);
  vi.stubEnv('PGJOT_TEST_SECRET', 's'.repeat(64));
  const config = {
    url: { env: 'PGJOT_TEST_STORE' },
    secret: { env: 'PGJOT_TEST_SECRET' },
    timeoutMs: 200,
  };
  return new RedisLink(config, recordedLogger(onLine));
}

it.each(['rediss', 'REDISS', 'Rediss', 're\tdiss'])(
  'says no word in clear where the URL asks for TLS, spelled %j',
  async (scheme) => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const heard = new Promise<Buffer>((resolve) => {
      server.on('connection', (socket) =>
        socket
          .on('error', () => {})
          .once('data', (bytes) => {
            resolve(bytes);
            socket.destroy();
          }),
      );
    });
    const { port } = server.address() as AddressInfo;

    const link = linkTo(`${scheme}://:${PASSWORD}@127.0.0.1:${port}`);
    link.connect();
    const first = await heard;
    link.close();
    server.close();

    expect(first[0]).toBe(TLS_HANDSHAKE);
    expect(first.includes(PASSWORD)).toBe(false);
  },
);

it('verifies its server, whatever Node is told for all programs', async () => {
  vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', '0');
  const heard: Buffer[] = [];
  const server = createTlsServer(createAuthority().issue(), (socket) =>
    socket.on('error', () => {}).on('data', (bytes: Buffer) => heard.push(bytes)),
  ).listen(0, '127.0.0.1');
  server.on('tlsClientError', () => {});
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  const line = await new Promise<string>((resolve) => {
    const link = linkTo(`rediss://:${PASSWORD}@127.0.0.1:${port}`, (said) => {
      link.close();
      resolve(said);
    });
    link.connect();
  });
  server.close();

  expect(line).toMatch(/"event":"limit_store_lost".*certificate/);
  expect(heard).toEqual([]);
});
