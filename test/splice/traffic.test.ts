/**
 * What a session is doing, judged against PostgreSQL's own word: the states that the captures hold.
 */
import { describe, expect, test } from 'vitest';
import { Traffic } from '../../src/splice/traffic.ts';
import { encodeReadyForQuery } from '../../src/wire/backend.ts';
import { encodeFrame, encodeInt32 } from '../../src/wire/frame.ts';
import { Terminate, encodeQuery } from '../../src/wire/frontend.ts';
import { capture, captureNames } from '../support/capture.ts';
import { byteByByte } from '../support/splits.ts';

/** Conversations that hold states; those of whole clients begin with a login, which no splice sees. */
const CONVERSATIONS = captureNames().filter((name) =>
  capture(name).lines.some((line) => line.from === '='),
);

/** What PostgreSQL's word means for us. */
const MEANING: Record<string, { busy: boolean; idle: boolean }> = {
  idle: { busy: false, idle: true },
  'idle in transaction': { busy: false, idle: false },
  'idle in transaction (aborted)': { busy: false, idle: false },
  active: { busy: true, idle: false },
};

/** Replays a capture and tells what was thought at each state that it holds. */
function replay(name: string, cut: (bytes: Buffer) => Buffer[]) {
  const traffic = new Traffic();
  const states: { line: number; state: string; busy: boolean; idle: boolean }[] = [];
  for (const [index, line] of capture(name).lines.entries()) {
    if (line.from === '=') {
      const { busy, idle } = traffic;
      states.push({ line: index, state: line.state, busy, idle });
      continue;
    }
    const walker = line.from === 'F' ? traffic.fromClient : traffic.fromUpstream;
    for (const piece of cut(line.bytes)) walker.walk(piece);
  }
  return { traffic, states };
}

describe('Traffic', () => {
  test('has captures to be judged by', () => {
    expect(CONVERSATIONS).toEqual(
      expect.arrayContaining([
        'copy-in-extended',
        'copy-in-simple',
        'copy-out',
        'extended-query',
        'flush-without-sync',
        'function-call',
        'notifications',
        'pipeline',
        'simple-query',
        'transaction',
      ]),
    );
  });

  describe.each(CONVERSATIONS)('of "%s"', (name) => {
    test.each([
      ['as it came', (bytes: Buffer) => [bytes]],
      ['byte by byte', byteByByte],
    ])('is what PostgreSQL says it is doing, %s', (_, cut) => {
      const { states } = replay(name, cut);

      const alive = states.filter(({ state }) => state !== 'gone');

      expect(alive.length).toBeGreaterThan(0);
      expect(alive).toEqual(alive.map((seen) => ({ ...seen, ...MEANING[seen.state] })));
    });

    test('is never idle between a request and the last byte of its answer', () => {
      const traffic = new Traffic();
      let waiting = false;
      for (const [index, line] of capture(name).lines.entries()) {
        if (line.from === '=') {
          waiting = false;
          continue;
        }
        const walker = line.from === 'F' ? traffic.fromClient : traffic.fromUpstream;
        waiting ||= line.from === 'F' && requests(line.bytes);
        const pieces = byteByByte(line.bytes);
        for (const [at, piece] of pieces.entries()) {
          walker.walk(piece);
          const last = at === pieces.length - 1 && line.from === 'B';
          if (waiting && !last)
            expect({ index, at, idle: traffic.idle }).toMatchObject({ idle: false });
        }
      }
    });
  });

  test('knows that the client said Terminate', () => {
    const { traffic } = replay('terminate', (bytes) => [bytes]);

    expect(traffic.terminated).toBe(true);
    expect(replay('simple-query', (bytes) => [bytes]).traffic.terminated).toBe(false);
  });

  test("knows that the upstream's last word explained its end", () => {
    const { traffic } = replay('notifications', (bytes) => [bytes]);

    expect(traffic.upstreamExplained).toBe(true);
    traffic.fromUpstream.walk(encodeReadyForQuery('I'));
    expect(traffic.upstreamExplained).toBe(false);
  });

  test('is busy while a message of the client is cut off', () => {
    const traffic = new Traffic();

    traffic.fromClient.walk(encodeQuery('select 1').subarray(0, 3));

    expect(traffic).toMatchObject({ busy: true, idle: false });
  });

  test('is not idle in the middle of a message of the upstream', () => {
    const traffic = new Traffic();

    traffic.fromUpstream.walk(encodeFrame('N', Buffer.alloc(9)).subarray(0, 7));

    expect(traffic).toMatchObject({ busy: false, idle: false });
  });

  test('is never idle again when either side has lost the frames', () => {
    for (const side of ['fromClient', 'fromUpstream'] as const) {
      const traffic = new Traffic();
      traffic[side].walk(Buffer.concat([Buffer.from('Z'), encodeInt32(1)]));
      traffic.fromClient.walk(encodeQuery('select 1'));
      traffic.fromUpstream.walk(encodeReadyForQuery('I'));

      expect(traffic.idle).toBe(false);
    }
  });

  test('does not count below zero when the upstream says ReadyForQuery unasked', () => {
    const traffic = new Traffic();
    traffic.fromUpstream.walk(encodeReadyForQuery('I'));

    traffic.fromClient.walk(encodeQuery('select 1'));

    expect(traffic).toMatchObject({ busy: true, idle: false });
  });

  test('is no more idle for a Terminate that is answered by nothing', () => {
    const traffic = new Traffic();
    traffic.fromClient.walk(encodeQuery('select pg_sleep(60)'));

    traffic.fromClient.walk(Terminate);

    expect(traffic).toMatchObject({ busy: true, terminated: true });
  });
});

/** Whether a chunk asks for anything: a client may also say CopyData to nobody, and Terminate. */
function requests(chunk: Buffer): boolean {
  return /[QFPBDECHS]/.test(String.fromCharCode(chunk[0] as number));
}

describe('a count that was a guess', () => {
  const copy = encodeQuery('copy t from stdin');
  const [sync, copyDone] = [encodeFrame('S'), encodeFrame('c')];
  const copyIn = encodeFrame('G', Buffer.from([0, 0, 0]));
  const ready = encodeReadyForQuery('I');

  test.each([
    // The second CopyDone means nothing, and the Sync before it is answered.
    ['Syncs before a CopyDone that is none', [copy, copyDone, sync, copyDone], []],
    // The COPY may fail before they arrive.
    ['Syncs before the COPY is known to have begun', [copy, sync], []],
    ['Syncs in the middle of the COPY', [copy], [sync]],
  ])('is known to be one: %s', (_, before, after) => {
    const traffic = new Traffic();
    for (const frame of before) traffic.fromClient.walk(frame);
    traffic.fromUpstream.walk(copyIn);
    for (const frame of after) traffic.fromClient.walk(frame);
    traffic.fromUpstream.walk(ready);

    expect(traffic.guessed).toBe(true);
  });

  test('is none where the client waits for the COPY to begin', () => {
    const traffic = new Traffic();
    traffic.fromClient.walk(copy);
    traffic.fromUpstream.walk(copyIn);
    traffic.fromClient.walk(copyDone);
    traffic.fromUpstream.walk(ready);

    expect(traffic).toMatchObject({ idle: true, guessed: false });
  });
});
