/**
 * Runs in every test file before its first test: has all that its child processes print, all answers that it fetches and all
 * that it prints itself written down by `record.ts`.
 */
import { ChildProcess } from 'node:child_process';
import { relative } from 'node:path';
import type { Readable } from 'node:stream';
import { format } from 'node:util';
import { afterAll, expect, inject } from 'vitest';
import {
  closeRecord,
  openRecord,
  recordSecret,
  recordSource,
  recordUpstreamSecret,
} from './record.ts';

const record = inject('record');
const file = expect.getState().testPath ?? '';
const isFirst = openRecord(record, relative(process.cwd(), file));
// Of all hooks of the file the first to be declared, hence the last to run.
afterAll(closeRecord);

// What hears them stays in this process, whose next file it then serves.
if (isFirst) {
  recordChildren();
  recordAnswers();
  recordConsole();
}

/** Every process that is started here, whoever starts it: PostgreSQL, `pgjot`, the clients. */
function recordChildren(): void {
  interface Spawning extends ChildProcess {
    spawn: (this: ChildProcess, options: unknown) => unknown;
  }
  const prototype = ChildProcess.prototype as Spawning;
  const { spawn } = prototype;
  prototype.spawn = function (this: ChildProcess, options) {
    recordEnvironment((options as { envPairs?: readonly string[] }).envPairs ?? []);
    const result = spawn.call(this, options);
    const [program = '', ...rest] = this.spawnargs ?? [];
    listen(this.stdout, recordSource(program, rest.join(' '), 'stdout'));
    listen(this.stderr, recordSource(program, rest.join(' '), 'stderr'));
    return result;
  };
}

/** What children are told in their environment, by us: the machine's own secrets are not for our files. */
function recordEnvironment(pairs: readonly string[]): void {
  for (const pair of pairs) {
    const [, name = '', value = ''] = /^(PGJOT_\w+|SECRET)=(.*)$/s.exec(pair) ?? [];
    if (name.endsWith('SECRET')) recordUpstreamSecret(value, { authenticated: { slots: 20 } });
    else if (name.endsWith('URL')) recordSecret(`password in ${name}`, passwordIn(value));
  }
}

function passwordIn(url: string): string {
  return URL.canParse(url) ? decodeURIComponent(new URL(url).password) : '';
}

/** Hears what comes in, whether and however it is read; a listener would start the flow before the reader is there. */
function listen(stream: Readable | null, hear: (chunk: Buffer) => void): void {
  if (stream === null || stream === undefined) return;
  const push = stream.push.bind(stream);
  stream.push = (chunk: unknown, encoding?: BufferEncoding) => {
    if (Buffer.isBuffer(chunk)) hear(chunk);
    return push(chunk, encoding);
  };
}

/** What HTTP servers answer, above all the endpoint for administrators. */
function recordAnswers(): void {
  const plain = globalThis.fetch;
  globalThis.fetch = async (...request) => {
    const response = await plain(...request);
    const [asked, init] = request;
    const url = asked instanceof Request ? asked.url : String(asked);
    const hear = recordSource('fetch', `${init?.method ?? 'GET'} ${url}`, 'answer');
    hear(`${JSON.stringify([...response.headers])}\n`);
    const body = response.clone().arrayBuffer();
    body.then(
      (bytes) => hear(Buffer.from(bytes)),
      () => {},
    );
    return response;
  };
}

function recordConsole(): void {
  const hear = recordSource('console', '', 'console');
  for (const level of ['debug', 'log', 'info', 'warn', 'error'] as const) {
    const plain = console[level].bind(console);
    console[level] = (...values: unknown[]) => {
      hear(`${format(...values)}\n`);
      plain(...values);
    };
  }
}
