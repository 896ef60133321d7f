/**
 * A mistake of ours in the middle of one session (J7): that session ends with XX000, and no other notices.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { ConnectionLines } from '../../src/connection-log.ts';
import { ConnectionMetrics } from '../../src/connection-metrics.ts';
import type { ConnectionListener } from '../../src/connection-record.ts';
import { Roster } from '../../src/roster.ts';
import { FrameWalker } from '../../src/splice/frames.ts';
import { query } from '../e2e/parity/bytes.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { startStack, until, type Stack } from '../support/stack.ts';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ slots: 4 });
});

afterAll(async () => {
  await stack.close();
});

afterEach(() => {
  vi.restoreAllMocks();
});

const slots = () => stack.proxy.counts().upstreams['main']?.['authenticated'];

/** Has `instead` walk in place of the walkers of frames; it is given the true way. */
function replaceWalk(
  instead: (walker: FrameWalker, chunk: Buffer, walk: () => void) => void,
): void {
  const walk = Reflect.get(FrameWalker.prototype, 'walk');
  vi.spyOn(FrameWalker.prototype, 'walk').mockImplementation(function (this: FrameWalker, chunk) {
    instead(this, chunk, () => Reflect.apply(walk, this, [chunk]));
  });
}

describe('a mistake', () => {
  it.each([
    ['about what a client sends', "select 'stumble' = ''"],
    ['about what PostgreSQL answers', "select 'stum' || 'ble'"],
  ])('%s ends that session with XX000 and leaves the others alone', async (_, sql) => {
    const token = await stack.token('alice');
    using other = await RawClient.login(stack, token);
    using client = await RawClient.login(stack, token);
    const working = other.ask('select pg_sleep(0.3)');
    const before = stack.logs.length;
    replaceWalk((_walker, chunk, walk) => {
      if (chunk.includes('stumble')) throw new TypeError('a mistake');
      walk();
    });

    client.send(query(sql));
    await client.end();

    const last = client.heard.at(-1)?.reply;
    const lines = stack.logs.slice(before).map((line) => JSON.parse(line) as { session: string });
    const ended = lines.find((line) => 'endedBy' in line);
    expect(last).toMatchObject({ severity: 'FATAL', sqlstate: 'XX000', message: 'internal error' });
    expect(ended).toMatchObject({ level: 50, event: 'session_end', reason: 'internal' });
    // By this the client's report is found in the log.
    expect(last?.kind === 'error' && last.fields.get('D')).toBe(`connection ${ended?.session}`);
    expect(await working).toMatchObject({ sqlstate: undefined });
    expect((await other.ask('select 1')).rows).toEqual([['1']]);
    other.destroy();
    await until(() => slots()?.busy === 0);
  });

  it('in the middle of a row ends it without a word: it would be read as part of the row', async () => {
    using client = await RawClient.login(stack, await stack.token('alice'));
    replaceWalk((walker, _chunk, walk) => {
      const inside = !walker.atBoundary;
      walk();
      if (inside) throw new TypeError('a mistake');
    });

    client.send(query("select repeat('x', 1000000)"));
    await client.end();

    expect(client.heard.filter(({ type }) => type === 'E')).toEqual([]);
    expect(client.rest.includes('internal error')).toBe(false);
    await until(() => slots()?.busy === 0);
  });
});

describe('a mistake of whoever is told of a connection', () => {
  const LISTENERS: Record<string, ConnectionListener> = {
    metrics: ConnectionMetrics.prototype,
    log: ConnectionLines.prototype,
    roster: Roster.prototype,
  };

  it.each([
    ['roster', 'onArrival'],
    ['metrics', 'onStartup'],
    ['metrics', 'onToken'],
    ['metrics', 'onIdentity'],
    ['roster', 'onIdentity'],
    ['metrics', 'onLease'],
    ['metrics', 'onWelcome'],
    ['log', 'onWelcome'],
    ['roster', 'onWelcome'],
    ['metrics', 'onEnd'],
    ['log', 'onEnd'],
    ['metrics', 'onRefusal'],
    ['log', 'onRefusal'],
  ] as const)(
    '(the %s, %s) ends that connection alone, and nothing of it is counted any more',
    async (name, step) => {
      const listener = LISTENERS[name] as Required<ConnectionListener>;
      const token = await stack.token('alice');
      const stumbled = new Promise<void>((resolve) => {
        vi.spyOn(listener, step).mockImplementationOnce(() => {
          resolve();
          throw new TypeError('a mistake');
        });
      });

      const visited = RawClient.login(stack, step === 'onRefusal' ? 'no token' : token).then(
        (client) => client.destroy(),
        () => {},
      );
      await stumbled;
      await visited;

      await until(() => stack.proxy.counts().connections === 0 && slots()?.busy === 0);
      expect(stack.proxy.counts()).toMatchObject({
        clients: 0,
        limits: { unauthenticated: 0, clients: 0 },
      });
      const { text } = await stack.proxy.metrics();
      expect(text).not.toMatch(/^pgjot_sessions\{.*\} [1-9]/m);
      using other = await RawClient.login(stack, token);
      expect((await other.ask('select 1')).rows).toEqual([['1']]);
      other.destroy();
      await until(() => slots()?.busy === 0);
    },
    15_000,
  );

  it.each([
    ['onRenewal', true],
    ['onRenewalRefused', false],
  ] as const)('(the metrics, %s) ends that session with XX000', async (step, isGood) => {
    using other = await RawClient.login(stack, await stack.token('bob'));
    using client = await RawClient.login(stack, await stack.token('alice'));
    vi.spyOn(ConnectionMetrics.prototype, step).mockImplementationOnce(() => {
      throw new TypeError('a mistake');
    });

    const token = isGood ? await stack.token('alice', { plan: 'paid' }) : 'none';
    client.send(query(`set pgjot.token = '${token}'`));
    await client.end();

    expect(client.heard.at(-1)?.reply).toMatchObject({ sqlstate: 'XX000' });
    expect((await other.ask('select 1')).rows).toEqual([['1']]);
    other.destroy();
    await until(() => slots()?.busy === 0);
  });
});
