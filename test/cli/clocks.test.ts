/** A machine whose clock is wrong refuses everybody; `pgjot check --online` says so before. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { clockProblems } from '../../src/cli/clocks.ts';
import { parseConfig } from '../../src/proxy.ts';

const server = createServer();
afterEach(() => {
  server.removeAllListeners('request');
  server.close();
});

async function problems(headers: (now: number) => Record<string, string>) {
  server.on('request', (_, response) => {
    response.sendDate = false;
    response.writeHead(200, headers(Date.now())).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const { providers, jwks } = parseConfig({
    providers: {
      own: {
        issuer: 'https://id.example',
        jwksUri: `http://127.0.0.1:${port}/`,
        audience: 'app',
        roles: ['a'],
      },
    },
    upstreams: {
      main: { host: 'a', database: 'a', secret: { env: 'A' }, roles: { a: { slots: 1 } } },
    },
  });
  const [own] = Object.values(providers);
  return clockProblems('own', own as NonNullable<typeof own>, jwks);
}
const dated = (offMs: number) => (now: number) => ({ date: new Date(now + offMs).toUTCString() });

describe("this machine's clock", () => {
  it.each([
    [3_600_000, /^this machine's clock is 3(599|600|601) s behind its issuer's/],
    [-3_600_000, /^this machine's clock is 3(599|600|601) s ahead of its issuer's/],
  ])('is said to be wrong by an issuer that is %i ms ahead', async (offMs, message) => {
    expect(await problems(dated(offMs))).toEqual([
      { path: 'providers.own', message: expect.stringMatching(message) as string },
    ]);
  });

  it.each<[string, (now: number) => Record<string, string>]>([
    ['the same time', dated(0)],
    ['a time within the tolerance', dated(-20_000)],
    [
      'an old time, of a cache that says how old',
      (now) => ({ ...dated(-600_000)(now), age: '600' }),
    ],
    ['no time', () => ({})],
    ['nonsense', () => ({ date: 'yesterday' })],
  ])('is not, by one that says %s', async (_, headers) => {
    expect(await problems(headers)).toEqual([]);
  });
});
