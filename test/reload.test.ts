/** What configurations leave behind that were replaced: nothing of them outlives the proxy. */
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ConfigError, createProxy, parseConfig, type ConfigInput } from '../src/proxy.ts';
import { recordedLogger } from './support/logger.ts';
import { openResources } from './support/sockets.ts';
import { until } from './support/stack.ts';

let folder: string;
let issuer: Server;
const sockets = new Set<Socket>();

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-reload-'));
  writeFileSync(join(folder, 'secret'), 'a-secret-for-tests-of-at-least-32-characters');
  // It takes requests and never answers one.
  issuer = createServer(() => {});
  issuer.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  issuer.listen(0, '127.0.0.1');
  await once(issuer, 'listening');
});
afterEach(async () => {
  issuer.closeAllConnections();
  issuer.close();
  await once(issuer, 'close');
  rmSync(folder, { recursive: true, force: true });
});

const inputOf = (path: string): ConfigInput => ({
  listen: { port: 0 },
  providers: {
    own: {
      issuer: 'https://id.example.com',
      jwksUri: `http://127.0.0.1:${(issuer.address() as AddressInfo).port}/${path}`,
      audience: 'app',
      roles: ['authenticated'],
    },
  },
  upstreams: {
    main: {
      host: '127.0.0.1',
      port: 1,
      database: 'app',
      secret: { file: join(folder, 'secret') },
      roles: { authenticated: { slots: 1 } },
    },
  },
  jwks: { timeoutMs: 30_000 },
  limits: { loginTimeoutMs: 60_000 },
  log: { level: 'error' },
});
const configOf = (path: string) => parseConfig(inputOf(path));

it('a proxy that ends while it starts listens nowhere', async () => {
  const before = openResources();
  const config = parseConfig({ ...inputOf('first'), admin: { port: 0 } });
  const proxy = createProxy(config, { logger: recordedLogger() });
  const started = proxy.start();

  await proxy.close();

  await started;
  await until(() => openResources().TCPServerWrap === before.TCPServerWrap, 2_000);
});

describe('a proxy that ends after a reload', () => {
  it('asks no issuer any more, of whatever configuration', async () => {
    const proxy = createProxy(configOf('first'), { logger: recordedLogger() });
    await proxy.start();
    proxy.reload(configOf('second'));
    proxy.reload(configOf('third'));
    await until(() => sockets.size === 3);

    await proxy.close();

    await until(() => sockets.size === 0, 2_000);
  });

  it('takes no other configuration', async () => {
    const proxy = createProxy(configOf('first'), { logger: recordedLogger() });
    await proxy.start();
    await proxy.close();

    expect(() => proxy.reload(configOf('second'))).toThrow(ConfigError);

    expect(sockets.size).toBe(0);
  });
});
