/**
 * Cancel requests that come too late or too soon: attacks G3 and G4, where it is time that decides.
 *
 * What a single cancel request can and cannot do is in `attacks-cancel.test.ts`.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresVersions } from '../support/postgres.ts';
import { startStack, untilRunning, type Stack } from '../support/stack.ts';
import { sessionModes } from './attack-scene.ts';
import { inTurns } from './attack-stack.ts';
import { CODES } from './parity/bytes.ts';
import { cancel, RawClient } from './raw-client.ts';

const [newest = 0] = postgresVersions();

describe.each(sessionModes(newest))('with a single slot, mode %s', (session) => {
  let stack: Stack;

  beforeAll(async () => {
    stack = await startStack({ session, slots: 1 });
  });

  afterAll(async () => {
    await stack.close();
  });

  it('G3: a cancel that comes too late never hits the next user of the slot', async () => {
    const [alice, bob] = [await stack.token('alice'), await stack.token('bob')];
    for (let round = 0; round < 20; round++) {
      using first = await RawClient.login(stack, alice);
      const { key } = first;
      const working = first.ask('select pg_sleep(0.01)').catch(() => undefined);
      // Cancels all around the end of the session: before, during and after it.
      const storm = inTurns(4, Array.from({ length: 12 }), async () => {
        await cancel(stack, key);
      });
      first.destroy();
      using second = await RawClient.login(stack, bob);
      const results = [await second.ask('select pg_sleep(0.03)'), await second.ask('select 1')];
      await cancel(stack, key);
      results.push(await second.ask('select 2'));
      await storm;
      await working;

      expect(results.map(({ sqlstate }) => sqlstate)).toEqual([undefined, undefined, undefined]);
    }
  });
});

describe('G4: a cancel whose connection PostgreSQL is slow to close', () => {
  it('does not swallow the cancel of the next query', async () => {
    await using relay = await SlowClose.open();
    await using stack = await startStack({ upstream: { port: relay.port } });
    relay.target = stack.postgres.port;
    using client = await RawClient.login(stack, await stack.token('alice'));

    const runs = () => untilRunning(stack.postgres, 'pg_sleep(20)');

    const first = client.ask('select pg_sleep(20)');
    await runs();
    const firstCancel = cancel(stack, client.key);
    expect(await first).toMatchObject({ sqlstate: '57014' });
    // As drivers do that do not wait for the request's connection to close.
    const began = performance.now();
    const second = client.ask('select pg_sleep(20)');
    await runs();
    const secondCancel = cancel(stack, client.key);

    expect(await second).toMatchObject({ sqlstate: '57014' });
    expect(performance.now() - began).toBeLessThan(10_000);
    await Promise.all([firstCancel, secondCancel]);
  });
});

/** A relay to PostgreSQL that passes the end of a cancel request's connection on half a second late. */
class SlowClose implements AsyncDisposable {
  target = 0;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server.on('connection', (near: Socket) => this.#onConnection(near));
  }

  static async open(): Promise<SlowClose> {
    const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new SlowClose(server);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #onConnection(near: Socket): void {
    const far = connect({ port: this.target, host: '127.0.0.1', allowHalfOpen: true });
    let lateMs = 0;
    near.once('data', (first: Buffer) => {
      if (first.length >= 8 && first.readUInt32BE(4) === CODES.cancel) lateMs = 500;
    });
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy());
    near.pipe(far);
    far.on('data', (chunk) => near.write(chunk));
    far.on('end', () => setTimeout(() => near.end(), lateMs));
  }
}
