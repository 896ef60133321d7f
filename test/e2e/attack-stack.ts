/**
 * What the attacks share: a stack behind a relay that counts what pgjot dials, and measures of what an attack costs.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { connect } from 'node:net';
import { expect } from 'vitest';
import { type Stack, type StackOptions, startStack } from '../support/stack.ts';
import { session } from './parity/bytes.ts';
import { describe as inWords, probe, type Step } from './parity/probe.ts';
import type { Key } from './raw-client.ts';
import { Relay } from './relay.ts';

// Every attack ends in a close: patience costs nothing unless something is wrong.
const PATIENT = { quietMs: 8_000 };

export const MIB = 1_048_576;

/** What a client that plays `target.messages()` hears. */
export const GOOD = 'asks password, logs in, ready I, row "in", ready I, closes';

/** Stands where a token stands in what is refused: no log line may hold it. */
export const MARK = 'bWFya2VkLXRva2VuLW5ldmVyLWxvZ2dlZA';

/** A stack under attack. */
export interface AttackTarget extends AsyncDisposable {
  readonly stack: Stack;
  /** A good token, of which no part may ever be logged. */
  readonly token: string;
  /** The bytes of a good session: startup, password, query, Terminate. */
  messages(sql?: string): [Buffer, Buffer, Buffer, Buffer];
  /** Plays a script and says in words what happened. */
  outcome(...steps: Step[]): Promise<string>;
  /** Runs an attack and expects that nothing was dialled upstream meanwhile. */
  unheard(attack: () => Promise<void>): Promise<void>;
}

/** Starts a stack whose upstream is a relay to its PostgreSQL. The caller disposes of it. */
export async function startTarget(options: StackOptions = {}): Promise<AttackTarget> {
  const relay = await Relay.open();
  const stack = await startStack({ ...options, upstream: { port: relay.port } });
  relay.toward(stack.postgres.port);
  const token = await stack.token('alice');
  const login = { user: 'authenticated', database: stack.database, password: token };
  return {
    stack,
    token,
    messages: (sql) => session(login, sql) as [Buffer, Buffer, Buffer, Buffer],
    outcome: async (...steps) => inWords(await probe(stack, steps, PATIENT)),
    async unheard(attack) {
      const before = relay.accepted;
      await attack();
      expect(relay.accepted - before, 'connections to the upstream').toBe(0);
    },
    async [Symbol.asyncDispose]() {
      await stack.close();
      await relay[Symbol.asyncDispose]();
    },
  };
}

/** Expects that the log of these targets holds no part of a token, and a JSON object on every line. */
export function expectCleanLogs(...targets: readonly AttackTarget[]): void {
  const lines = targets.flatMap(({ stack }) => stack.logs);
  // The header of a token is no secret; the rest is.
  const secrets = [MARK, ...targets.flatMap(({ token }) => token.split('.').slice(1))];

  expect(lines.length).toBeGreaterThan(0);
  for (const line of lines) {
    expect(secrets.filter((secret) => line.includes(secret))).toEqual([]);
    expect(JSON.parse(line)).toBeTypeOf('object');
  }
}

/** Expects that soon no client is connected to these targets and no session is in use. */
export async function expectNothingLeft(...targets: readonly AttackTarget[]): Promise<void> {
  for (const { stack } of targets) {
    const inUse = () => {
      const { clients, upstreams } = stack.proxy.counts();
      const slots = upstreams['main']?.['authenticated'];
      return { clients, busy: slots?.busy, quarantined: slots?.quarantined };
    };
    const none = { clients: 0, busy: 0, quarantined: 0 };
    await expect.poll(inUse, { timeout: 10_000 }).toEqual(none);
  }
}

/** Bytes by which the memory of this process, the proxy's too, has grown at most while `attack` ran. */
export async function memoryGrowth(attack: () => Promise<void>): Promise<number> {
  const before = process.memoryUsage().rss;
  let most = before;
  const watch = setInterval(() => {
    most = Math.max(most, process.memoryUsage().rss);
  }, 10);
  try {
    await attack();
  } finally {
    clearInterval(watch);
  }
  return Math.max(most, process.memoryUsage().rss) - before;
}

/** Sends `first`, then zeroes as fast as they are taken, until `total` bytes are gone or the server closes. */
export async function flood(
  { stack }: AttackTarget,
  first: readonly Buffer[],
  total: number,
): Promise<void> {
  const socket = connect({ host: stack.host, port: stack.port });
  const zeroes = Buffer.alloc(65_536);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.on('error', () => undefined);
  socket.resume();
  for (const one of first) socket.write(one);
  for (let sent = 0; sent < total && !socket.destroyed; sent += zeroes.length) {
    if (!socket.write(zeroes)) {
      await Promise.race([new Promise((resolve) => socket.once('drain', resolve)), closed]);
    }
  }
  socket.destroy();
}

/** A key for cancel requests that nobody has. */
export const randomKey = (): Key => ({
  processId: randomInt(1, 2 ** 31 - 1),
  secretKey: randomBytes(4),
});

/** Runs `work` on every item, at most `width` at a time. */
export async function inTurns<T>(
  width: number,
  items: readonly T[],
  work: (item: T) => Promise<void>,
): Promise<void> {
  const waiting = items.entries();
  const next = async () => {
    for (const [, item] of waiting) await work(item);
  };
  await Promise.all(Array.from({ length: width }, next));
}
