/**
 * PostgreSQL restarted again and again, and a connection to it reset in the middle of a result.
 */
import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import type { PostgresServer } from '../../src/cli/dev/postgres.ts';
import { Gate } from '../e2e/gate.ts';
import { query } from '../e2e/parity/bytes.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { startStack, until } from '../support/stack.ts';
import { startFleet, startGround } from '../workers/fleet.ts';

const RESTARTS = 20;
const SLOTS = 12;
const DOCUMENTED = /^(57P0[123]|08001|08006|closed before a frame of type Z came)$/;

describe('PostgreSQL', () => {
  it(`is restarted ${RESTARTS} times under load: every error is documented, no descriptor and no slot is lost`, {
    timeout: 240_000,
  }, async () => {
    await using ground = await startGround(SLOTS);
    await using fleet = await startFleet(ground, {
      workers: 2,
      pool: { spares: 0, reuse: 'never' },
    });
    // The server itself: the ground's own would remove its data.
    const server = Object.getPrototypeOf(ground.postgres) as PostgresServer;
    const descriptors = () =>
      [...fleet.workers().values()].map((pid) => readdirSync(`/proc/${pid}/fd`).length);
    for (const client of (await fleet.onEach()).values()) client.destroy();
    await until(() => fleet.log.filter(({ event }) => event === 'session_end').length >= 2);
    const before = descriptors();

    const progress = { over: false, served: 0 };
    const errors = new Set<string>();
    const load = Array.from({ length: 4 }, async () => {
      while (!progress.over) {
        try {
          using client = await fleet.login();
          for (let n = 0; n < 5; n++) await client.ask('select count(*) from todos');
          progress.served++;
        } catch (error) {
          errors.add((error as { code?: string }).code ?? (error as Error).message);
        }
      }
    });
    for (let n = 0; n < RESTARTS; n++) {
      await server.restart(n % 4 === 3 ? 'immediate' : 'fast');
      const { served } = progress;
      await until(() => progress.served > served + 2, 20_000);
    }
    progress.over = true;
    await Promise.all(load);
    const all = await until(() => fleet.fill(SLOTS).catch(() => undefined), 20_000);
    for (const client of all) client.destroy();

    expect([...errors].filter((one) => !DOCUMENTED.test(one))).toEqual([]);
    expect(all).toHaveLength(SLOTS);
    await until(() => descriptors().every((open, index) => open <= (before[index] as number)));
    expect(fleet.log.filter(({ event }) => event === 'worker_lost')).toEqual([]);
    console.error(
      `restarts: ${RESTARTS}, ${progress.served} sessions served, errors: ${[...errors].join(', ')}`,
    );
  });

  it('is cut off by a reset in the middle of a result: the client has a prefix of what was sent, and not a byte more', async () => {
    await using gate = await Gate.open();
    await using stack = await startStack({ upstream: { port: gate.port } });
    gate.target = stack.postgres.port;
    using client = await RawClient.login(stack, await stack.token('alice'));
    const got: Buffer[] = [];
    client.socket.on('data', (chunk: Buffer) => got.push(chunk));
    const sent = new Map<Socket, Buffer[]>();
    gate.onBytes = (chunk, far) => void sent.set(far, [...(sent.get(far) ?? []), chunk]);
    const bytes = () => got.reduce((sum, { length }) => sum + length, 0);

    client.send(query("select repeat('x', 10000) from generate_series(1, 100000)"));
    await until(() => bytes() > 1_000_000);
    gate.breakAll();
    await client.end();

    const hash = (data: Buffer) => createHash('sha256').update(data).digest('hex');
    const received = Buffer.concat(got);
    const prefixes = [...sent.values()].map((chunks) =>
      hash(Buffer.concat(chunks).subarray(0, received.length)),
    );
    expect(prefixes).toContain(hash(received));
    await until(() => stack.proxy.counts().upstreams['main']?.['authenticated']?.busy === 0);
  });
});
