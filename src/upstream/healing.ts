/**
 * Mends slots that users have spoilt, where the configuration lets the proxy do so: one at a time, at most ten a second.
 *
 * Whoever may log in may spoil slot after slot, so what that makes us do is bounded, and the rest waits in quarantine.
 * Knows nothing of who waits for a slot.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { ProxyError } from '../errors.ts';
import { QUARANTINE_MS } from './slots.ts';

/** The care for the slots of one upstream. */
export interface Healing {
  /** Whether `mend` would try: not when a slot that was mended lets nobody in all the same. */
  mayHelp(slot: string): boolean;
  /** Mends a slot when its turn comes, and then calls `onMended`; never, where that fails. */
  mend(slot: string, onMended: () => void): void;
  /** Somebody got in with this slot: if it was mended, that helped. */
  letIn(slot: string): void;
  /** Forgets the slots whose turn has not come, and waits for the one whose has. Never throws. */
  close(): Promise<void>;
}

/** Who hears of it. */
export interface HealingListener {
  readonly onHealed: (slot: string) => void;
  /** At most once a minute: one reason seldom keeps to one slot. */
  readonly onHealingFailed: (slot: string, error: ProxyError) => void;
}

const PAUSE_MS = 100;
const TELL_AGAIN_MS = 60_000;

/** Care with nothing to do yet; `mendSlot` gives a slot what setup gave it. */
export function createHealing(
  mendSlot: (slot: string) => Promise<void>,
  { onHealed, onHealingFailed }: HealingListener,
): Healing {
  // In the order in which they were spoilt; none is in it twice, so there are no more of them than slots.
  const waiting = new Map<string, () => void>();
  // When slots were mended with which nobody has got in since, on the clock of performance.now().
  const mended = new Map<string, number>();
  const stop = new AbortController();
  let work: Promise<void> | undefined;
  let toldAt = Number.NEGATIVE_INFINITY;

  const heal = async (slot: string, onMended: () => void): Promise<void> => {
    try {
      await mendSlot(slot);
      mended.set(slot, performance.now());
      onHealed(slot);
      onMended();
    } catch (error) {
      if (stop.signal.aborted || performance.now() - toldAt < TELL_AGAIN_MS) return;
      toldAt = performance.now();
      onHealingFailed(slot, ProxyError.from(error));
    }
  };

  const workOff = async (): Promise<void> => {
    // Those that are added meanwhile are met as well.
    for (const [slot, onMended] of waiting) {
      waiting.delete(slot);
      await heal(slot, onMended);
      await delay(PAUSE_MS, undefined, { signal: stop.signal, ref: false }).catch(() => {});
    }
    // Before anybody else can run: whoever comes next starts anew.
    work = undefined;
  };

  const mayHelp = (slot: string): boolean => {
    const since = performance.now() - (mended.get(slot) ?? Number.NEGATIVE_INFINITY);
    return !stop.signal.aborted && since > QUARANTINE_MS;
  };

  return {
    mayHelp,
    mend(slot, onMended) {
      if (!mayHelp(slot)) return;
      waiting.set(slot, onMended);
      work ??= workOff();
    },
    letIn: (slot) => void mended.delete(slot),
    async close() {
      stop.abort();
      waiting.clear();
      await work;
    },
  };
}
