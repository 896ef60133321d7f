/**
 * The few messages that we send to a server ourselves, beside the same ones from real clients.
 */
import { PassThrough } from 'node:stream';
import { describe, expect, test } from 'vitest';
import {
  FRONTEND,
  Terminate,
  encodePasswordMessage,
  encodeQuery,
  encodeSASLInitialResponse,
  encodeSASLResponse,
} from '../../src/wire/frontend.ts';
import { readFrame } from '../../src/wire/frame.ts';
import { capture } from '../support/capture.ts';

function sentBy(name: string): Buffer[] {
  return capture(name).lines.flatMap((line) => (line.from === 'F' ? [line.bytes] : []));
}

describe('messages of ours', () => {
  test('are those that psql sends', () => {
    const [, , first, final, query, terminate] = sentBy('psql');
    const response = String(first?.subarray(5 + 'SCRAM-SHA-256\0'.length + 4));

    expect(encodeSASLInitialResponse('SCRAM-SHA-256', response)).toEqual(first);
    expect(encodeSASLResponse(String(final?.subarray(5)))).toEqual(final);
    expect(encodeQuery('select pg_sleep(60)')).toEqual(query);
    expect(Terminate).toEqual(terminate);
  });

  test('say what they are by the type bytes of the table', async () => {
    const stream = new PassThrough();
    const messages = [encodePasswordMessage('secret'), encodeQuery('select 1'), Terminate];
    stream.end(Buffer.concat(messages));

    const types: number[] = [];
    for (const message of messages) {
      const frame = await readFrame(stream, 100, new AbortController().signal);
      expect(frame.bytes).toEqual(message);
      types.push(frame.type);
    }

    expect(types).toEqual([FRONTEND.PasswordMessage, FRONTEND.Query, FRONTEND.Terminate]);
  });
});
