/**
 * How many log lines refusals may write: a stranger who is refused a thousand times a second must not fill the disk.
 *
 * Each address has so many lines a minute, all together have ten times as many; what is left out is counted, and said in one
 * line for each address when the minute is over. Nothing else than lines about refusals is ever left out.
 */
import { countedAs } from './address.ts';
import type { Logger } from '../log.ts';

const WINDOW_MS = 60_000;
const ALL_TOGETHER = 10;
/** Addresses that are told apart in one minute; those after them are one. */
const MAX_ADDRESSES = 100;
const OTHERS = 'others';
const IPV6_PREFIX_BITS = 64;

/** What one address has had in this minute. */
interface Account {
  lines: number;
  suppressed: number;
  readonly reasons: Map<string, number>;
}

/** The ration of one process. */
export class LogRation {
  readonly #logger: Logger;
  readonly #perMinute: () => number;
  readonly #accounts = new Map<string, Account>();
  #lines = 0;
  #window: NodeJS.Timeout | undefined;

  /** @param perMinute how many lines one address may have, asked each time. */
  constructor(logger: Logger, perMinute: () => number) {
    this.#logger = logger;
    this.#perMinute = perMinute;
  }

  /** Whether a refusal of a client at `address`, for this reason (a code of `errors.ts`), may have a line of its own. */
  allows(address: string, reason: string): boolean {
    this.#window ??= setTimeout(() => this.close(), WINDOW_MS).unref();
    const account = this.#accountOf(countedAs(address, IPV6_PREFIX_BITS));
    const limit = this.#perMinute();
    if (account.lines < limit && this.#lines < limit * ALL_TOGETHER) {
      account.lines++;
      this.#lines++;
      return true;
    }
    account.suppressed++;
    account.reasons.set(reason, (account.reasons.get(reason) ?? 0) + 1);
    return false;
  }

  /** Ends the minute: says what was left out, and begins anew. */
  close(): void {
    clearTimeout(this.#window);
    this.#window = undefined;
    for (const [address, { suppressed, reasons }] of this.#accounts) {
      if (suppressed === 0) continue;
      const counts = Object.fromEntries(reasons);
      this.#logger.warn({ event: 'refusals_suppressed', address, suppressed, reasons: counts });
    }
    this.#accounts.clear();
    this.#lines = 0;
  }

  #accountOf(address: string): Account {
    const isKnown = this.#accounts.has(address) || this.#accounts.size < MAX_ADDRESSES;
    const key = isKnown ? address : OTHERS;
    let account = this.#accounts.get(key);
    if (account === undefined) {
      account = { lines: 0, suppressed: 0, reasons: new Map() };
      this.#accounts.set(key, account);
    }
    return account;
  }
}
