/**
 * 100,000 cancel requests with keys that somebody guesses: attack G1.
 *
 * What a single cancel request can and cannot do is in `test/e2e/attacks-cancel.test.ts`.
 */
import { connect } from 'node:net';
import { expect, it } from 'vitest';
import { inTurns, randomKey } from '../e2e/attack-stack.ts';
import { query } from '../e2e/parity/bytes.ts';
import { cancel, cancelRequest, RawClient, type Key } from '../e2e/raw-client.ts';
import { Relay } from '../e2e/relay.ts';
import { startStack } from '../support/stack.ts';

const RANDOM_KEYS = 100_000;

it(`guessing finds nothing in ${RANDOM_KEYS} random keys, and not one is dialled for`, async () => {
  await using relay = await Relay.open();
  await using stack = await startStack({ upstream: { port: relay.port } });
  relay.toward(stack.postgres.port);
  using client = await RawClient.login(stack, await stack.token('alice'));
  client.send(query('select pg_sleep(3600)'));
  const before = relay.accepted;
  // Half of them guess the secret of a process id that exists.
  const keys = Array.from(
    { length: RANDOM_KEYS },
    (_, i): Key => (i % 2 ? randomKey() : { ...randomKey(), processId: client.key.processId }),
  );
  let bytes = 0;
  await inTurns(128, [...keys.entries()], ([i, key]) => {
    return new Promise<void>((resolve) => {
      // From many addresses: one has only 28,000 ports, and each is taken for a minute.
      const localAddress = `127.0.0.${2 + (i % 200)}`;
      const socket = connect({ host: stack.host, port: stack.port, localAddress });
      socket.on('data', (chunk) => (bytes += chunk.length));
      socket.on('error', () => {}).on('close', () => resolve());
      socket.end(cancelRequest(key));
    });
  });

  expect([bytes, relay.accepted - before]).toEqual([0, 0]);
  expect(client.heard.filter(({ type }) => type === 'E')).toEqual([]);
  await cancel(stack, client.key);
  await client.next('E');
}, 180_000);
