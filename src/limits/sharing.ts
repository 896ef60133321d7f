/**
 * A proxy's ledger, alone or with what it shares with other proxies: their counts, and cancel requests for one another.
 */
import type { Config } from '../config.ts';
import type { Logger } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import { CancelExchange, type ForeignKey, type ForwardOwn } from './cancel-exchange.ts';
import { ProxyLedger } from './ledger.ts';
import { RedisLink } from './redis-link.ts';
import { RedisStore } from './redis-store.ts';
import { refusalLog } from './refusal-log.ts';

export type { ForwardOwn };

/** A ledger and its surroundings, of which `open` opens connections and `close` closes them. */
export interface Sharing {
  readonly ledger: ProxyLedger;
  setLimits(limits: Config['limits']): void;
  /** Asks other proxies to forward a cancel request; resolves with whether it was for a session of one. Never rejects. */
  cancelElsewhere(key: ForeignKey): Promise<boolean>;
  open(): void;
  close(): Promise<void>;
}

/**
 * A ledger for these limits, shared where they name a store. `forwardOwn` forwards the cancel requests that others ask about.
 *
 * @throws {ConfigError} when a secret or file of the store cannot be read.
 */
export function createSharing(
  first: Config['limits'],
  logger: Logger,
  counter: Metrics['limits'],
  forwardOwn: ForwardOwn,
): Sharing {
  let limits = first;
  const link = limits.store && new RedisLink(limits.store.redis, logger);
  const store = link && new RedisStore(link, () => limits);
  const exchange = link && new CancelExchange(link, forwardOwn);
  const ledger = new ProxyLedger(limits, refusalLog(logger, counter), store);
  return {
    ledger,
    setLimits(next) {
      limits = next;
      ledger.setLimits(next);
    },
    cancelElsewhere: async (key) => exchange?.ask(key) ?? false,
    open() {
      store?.open();
      exchange?.open();
      link?.connect();
    },
    async close() {
      exchange?.close();
      await store?.close();
      link?.close();
    },
  };
}
