/**
 * Being asked to stop: the first signal asks politely, the second insists.
 */

/** Fulfils when the process is asked to stop; while it is not disposed of, signals do not end the process by themselves. */
export interface StopRequests extends Disposable {
  readonly first: Promise<void>;
  /** Whether `first` has fulfilled. */
  readonly requested: boolean;
  /** Asked again: whatever is still under way should end at once. */
  readonly second: Promise<void>;
  /** Asks, as a signal does. */
  request(): void;
}

/** Listens for these signals. Several of a kind count: Ctrl-C twice is two. */
export function stopRequests(signals: readonly NodeJS.Signals[]): StopRequests {
  const announce: (() => void)[] = [];
  const promise = () => new Promise<void>((resolve) => announce.push(resolve));
  const [first, second] = [promise(), promise()];
  let requested = false;
  const onSignal = () => {
    requested = true;
    announce.shift()?.();
  };
  for (const signal of signals) process.on(signal, onSignal);
  return {
    first,
    second,
    request: onSignal,
    get requested() {
      return requested;
    },
    [Symbol.dispose]() {
      for (const signal of signals) process.off(signal, onSignal);
    },
  };
}
