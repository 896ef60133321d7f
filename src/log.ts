/**
 * The log: JSON lines, one for each login (accepted or refused, with the reason) and one for each session's end.
 *
 * The only reader of `ProxyError.cause`. Tokens, passwords and keys never come here; what a client
 * sent comes only as `printable()` names.
 */
import { destination, pino, type Logger } from 'pino';
import type { Config } from './config.ts';
import { ConfigError, type ProxyError } from './errors.ts';

export type { Logger } from 'pino';

// A write is dearer than the line in it: a busy proxy writes many lines at once, a quiet one soon enough.
const WRITE_BYTES = 8_192;
const WRITE_MS = 100;
// What may wait for a reader that has stalled; what comes after it is lost, not the memory.
const MAX_WAITING_BYTES = 16 * 1024 * 1024;
// Workers share standard output: so much a pipe takes in one piece (Linux's PIPE_BUF), and no line is cut by another.
const SHARED_WRITE = { minLength: 2_048, maxWrite: 4_096 };

/**
 * A logger that writes to standard output, off the path of anybody's query: a line is written at most 100 ms later, and
 * before the process exits. Every line of a worker has its number.
 */
export function createLogger(config: Config['log'], worker?: number): Logger {
  const out = destination({
    dest: 1,
    sync: false,
    periodicFlush: WRITE_MS,
    maxLength: MAX_WAITING_BYTES,
    ...(worker === undefined ? { minLength: WRITE_BYTES } : SHARED_WRITE),
  });
  surviveFailures(out, worker === undefined ? '' : `worker ${worker}: `);
  const base = worker === undefined ? null : { worker };
  return pino({ level: config.level, base, timestamp: isoTime }, out);
}

let second = Number.NaN;
let upToSecond = '';

/** As pino's own: the time in ISO 8601. All but the milliseconds is spelled once a second. */
function isoTime(): string {
  const now = Date.now();
  const ms = now % 1000;
  if (now - ms !== second) {
    second = now - ms;
    upToSecond = `,"time":"${new Date(second).toISOString().slice(0, -4)}`;
  }
  return `${upToSecond}${String(ms).padStart(3, '0')}Z"`;
}

/**
 * A closed pipe or a full disk must not end anybody's session, nor keep the process from ending. Lines wait for the disk as
 * long as there is room; standard error says once that they do, and what became of them.
 */
function surviveFailures(out: ReturnType<typeof destination>, who: string): void {
  const flushSync = out.flushSync.bind(out);
  let failing = false;
  let lost = 0;
  out.on('drop', () => lost++);
  out.on('error', ({ code }: NodeJS.ErrnoException) => {
    if (failing) return;
    failing = true;
    // Called when the process exits, it would try to write for ever.
    out.flushSync = () => {};
    const fate = code === 'EPIPE' ? 'nobody reads it any more' : 'its lines wait, up to 16 MiB';
    console.error(`pgjot: ${who}the log cannot be written (${code}): ${fate}`);
  });
  out.on('write', () => {
    if (!failing) return;
    failing = false;
    out.flushSync = flushSync;
    console.error(`pgjot: ${who}the log is written again; lines lost: ${lost}`);
    lost = 0;
  });
}

/** What the log says of a failure beside its code: the causes, outermost first. */
export function explain(error: ProxyError): {
  reason: string;
  sqlstate: string | undefined;
  cause: string | undefined;
} {
  const causes: string[] = [];
  for (let cause = error.cause; cause !== undefined && causes.length < 4; ) {
    causes.push(
      cause instanceof Error ? describe(cause) : typeof cause === 'string' ? cause : 'unknown',
    );
    cause = cause instanceof Error ? cause.cause : undefined;
  }
  return {
    reason: error.code,
    sqlstate: error.spec.sqlstate,
    cause: causes.length > 0 ? redact(causes.join(': ')) : undefined,
  };
}

/** Where a mistake of ours was made: the functions that called one another, without the message. */
export function traceOf(thrown: unknown): string[] {
  if (!(thrown instanceof Error)) return [];
  const lines = (thrown.stack ?? '').split('\n').map((line) => line.trim());
  return lines.filter((line) => line.startsWith('at ')).slice(0, 12);
}

function describe(error: Error): string {
  // What happy eyeballs throws: one error for each address tried.
  if (error instanceof AggregateError) {
    return error.errors.map((one) => (one as Error).message).join(', ');
  }
  const text = error instanceof ConfigError ? error.message.replaceAll('\n', '; ') : error.message;
  return error.name === 'Error' || error.name === 'ConfigError' ? text : `${error.name} ${text}`;
}

/** A last line of defence: no cause should ever hold a token, and if one does, the log does not. */
function redact(text: string): string {
  return text.replaceAll(/eyJ[\w-]+(\.[\w-]*){0,2}/g, '[token]');
}
