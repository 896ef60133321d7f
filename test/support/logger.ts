/** The log of a proxy that runs in a test: every line of it is recorded, at level debug, whether the test looks at it or not. */
import { Writable } from 'node:stream';
import { pino, type Logger } from 'pino';
import { recordSource } from './record.ts';

/** Every test that needs a logger takes this one. `onLine` hears each line. */
export function recordedLogger(onLine: (line: string) => void = () => {}): Logger {
  const record = recordSource('log', '', 'log');
  const sink = new Writable({
    write(chunk: Buffer, _, next) {
      record(chunk);
      for (const line of chunk.toString().trimEnd().split('\n')) onLine(line);
      next();
    },
  });
  return pino({ level: 'debug', base: null }, sink);
}
