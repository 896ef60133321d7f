/**
 * A mistake of ours in the middle of one session (J7): that session ends with XX000, and no other notices.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
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
