/**
 * Cancel requests among workers: a key's process id names the worker that gave it out, and the request goes there.
 *
 * Whose client sent it does not matter, and nobody is told whether the key was good: that worker alone knows.
 */
import { Line, workerOf, type CancelKey, type Cancels } from '../upstream/cancel.ts';

// A request is under way for as long as PostgreSQL needs, and each holds a client's socket: more at once is an attack.
const MAX_UNDER_WAY = 1_024;

/** What a worker has to know of the others. */
export interface Siblings {
  readonly worker: number;
  /** How many workers there are, this one too. */
  readonly workers: number;
  /** Has the worker that gave the key out forward it; resolves when that is done, whatever came of it. */
  forward(key: CancelKey): Promise<void>;
}

/** The cancels of all workers, as this one sees them: `own`, and those that are sent where they belong. */
export function shareCancels(own: Cancels, siblings: Siblings): Cancels {
  // By the whole key: what a stranger sends must not hold up what the key's owner does.
  const lines = new Map<string, { line: Line; users: number }>();

  const send = async (key: CancelKey): Promise<void> => {
    const name = `${key.processId} ${key.secretKey.toString('hex')}`;
    const entry = lines.get(name) ?? { line: new Line(), users: 0 };
    if (entry.users === 0 && lines.size >= MAX_UNDER_WAY) return;
    lines.set(name, entry);
    entry.users++;
    try {
      await entry.line.join(() => siblings.forward(key));
    } finally {
      entry.users--;
      if (entry.users === 0) lines.delete(name);
    }
  };

  return {
    register: (target, minor) => own.register(target, minor),
    revoke: (key) => own.revoke(key),
    async forward(key) {
      const worker = workerOf(key.processId);
      if (worker === siblings.worker) await own.forward(key);
      else if (worker >= 1 && worker <= siblings.workers) await send(key);
    },
  };
}
