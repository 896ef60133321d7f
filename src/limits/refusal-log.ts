/**
 * Says that a limit is reached, in the log once in a while: a flood of clients must not become a flood of lines.
 */
import type { Logger } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import type { LimitName } from './ledger.ts';

const PAUSE_MS = 10_000;

/**
 * Takes note of refusals: `counter` counts them; the first for a limit is logged at once, and those of the next ten seconds
 * with the first after them.
 */
export function refusalLog(
  logger: Logger,
  counter: Pick<Metrics['limits'], 'inc'>,
): (limit: LimitName, address: string | undefined) => void {
  const silent = new Map<LimitName, { until: number; refused: number }>();
  return (limit, address) => {
    counter.inc({ limit });
    const now = performance.now();
    const { until, refused } = silent.get(limit) ?? { until: 0, refused: 0 };
    if (now < until) {
      silent.set(limit, { until, refused: refused + 1 });
      return;
    }
    logger.warn({
      event: 'limit_reached',
      limit: `limits.${limit}`,
      address,
      refused: refused + 1,
    });
    silent.set(limit, { until: now + PAUSE_MS, refused: 0 });
  };
}
