/**
 * The end of a process that has thrown what nobody caught: one line in the log, its clients told, and out.
 *
 * What state the process is in after that nobody knows, so nobody is served by it any more; whoever supervises it starts
 * another. Mistakes in one connection do not come here: they end that connection (`splice.ts`, `connection.ts`).
 */
import { setTimeout as delay } from 'node:timers/promises';
import { explain, traceOf, type Logger } from './log.ts';
import { ProxyError } from './errors.ts';

/** Exit status of a process that ended by a mistake of ours (EX_SOFTWARE of sysexits.h). */
export const EXIT_CRASHED = 70;

const GOODBYE_MS = 5_000;

/**
 * From now on an exception or a rejection that nobody caught is logged, `close` is called, and the process exits with
 * `EXIT_CRASHED` when that is done or five seconds are over.
 */
export function exitOnMistakes(logger: Logger, close: () => Promise<unknown>): void {
  let closing = false;
  process.on('uncaughtException', (thrown: unknown, origin) => {
    const { cause } = explain(ProxyError.from(thrown));
    logger.fatal({ event: 'crashed', origin, cause, stack: traceOf(thrown) });
    if (closing) return;
    closing = true;
    const over = delay(GOODBYE_MS);
    void Promise.race([close(), over])
      .catch(() => {})
      .finally(() => process.exit(EXIT_CRASHED));
  });
}
