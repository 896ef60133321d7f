/**
 * How many clients so many descriptors are enough for.
 */
import { expect, test } from 'vitest';
import { parseConfig } from '../src/config.ts';
import { descriptorLimit, roomFor } from '../src/descriptors.ts';

const configOf = (slots: number, limits: object) =>
  parseConfig({
    providers: {
      own: {
        issuer: 'https://id.example',
        audience: 'app',
        roles: ['authenticated'],
        jwksFile: 'jwks.json',
      },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        database: 'app',
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: { authenticated: { slots } },
      },
    },
    limits,
  });

test('all that are configured, where there is no limit or a high one', () => {
  const config = configOf(100, { maxClients: 1_000, maxUnauthenticated: 50 });

  expect(roomFor(config, Infinity)).toEqual({ clients: 1_000, sockets: 1_050 });
  expect(roomFor(config, 1_048_576)).toEqual({ clients: 1_000, sockets: 1_050 });
});

test.each([40, 64, 128, 256, 1_024, 1_214])('never more than %i descriptors are used', (limit) => {
  for (const slots of [1, 40, 2_000]) {
    const config = configOf(slots, { maxClients: 1_000, maxUnauthenticated: 500 });
    const { clients, sockets } = roomFor(config, limit);

    expect(clients).toBeGreaterThan(0);
    expect(sockets).toBeGreaterThanOrEqual(clients);
    // Every client may have a session, as far as there are slots.
    if (limit > 68) expect(sockets + Math.min(slots, clients)).toBeLessThanOrEqual(limit - 64);
  }
});

test('the limit is what the kernel says', () => {
  expect(descriptorLimit()).toBeGreaterThan(100);
});
