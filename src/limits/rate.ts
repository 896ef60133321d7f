/**
 * How often something may happen within a second, by key.
 */
import { RateLimiterMemory, RateLimiterRes, type RateLimiterAbstract } from 'rate-limiter-flexible';

/** A rate, which may be shared with other proxies. */
export interface Rate {
  /** Whether it may happen once more. It counts, whatever the answer. */
  take(key: string): Promise<boolean>;
}

/**
 * A rate of `limiter`'s, with as many points as `perSecond` says at each time; where that is `undefined` there is no limit.
 */
export function rateOf(limiter: RateLimiterAbstract, perSecond: () => number | undefined): Rate {
  return {
    async take(key) {
      const points = perSecond();
      if (points === undefined) return true;
      limiter.points = points;
      return limiter.consume(key).then(
        () => true,
        (refusal: unknown) => {
          // Anything else is an error of the store, and the limiter has none behind it.
          if (!(refusal instanceof RateLimiterRes)) throw refusal;
          return false;
        },
      );
    },
  };
}

/** A limiter of this process. What it remembers of a key is gone within a second, so it is no larger than what comes in one. */
export function localLimiter(): RateLimiterMemory {
  return new RateLimiterMemory({ points: 1, duration: 1 });
}
