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
  /** Whether a key that is none of theirs may be another proxy's. */
  readonly arePeers: boolean;
  /** Has whoever gave the key out forward it; resolves when that is done, with whether it was anybody's. */
  forward(key: CancelKey): Promise<boolean>;
}

/** The cancels of all workers, as this one sees them: `own`, and those that are sent where they belong. */
export function shareCancels(own: Cancels, siblings: Siblings): Cancels {
  // By the whole key: what a stranger sends must not hold up what the key's owner does.
  const lines = new Map<string, { line: Line; users: number; found: boolean }>();

  const send = async (key: CancelKey): Promise<boolean> => {
    const name = `${key.processId} ${key.secretKey.toString('hex')}`;
    const entry = lines.get(name) ?? { line: new Line(), users: 0, found: false };
    if (entry.users === 0 && lines.size >= MAX_UNDER_WAY) return false;
    lines.set(name, entry);
    entry.users++;
    try {
      await entry.line.join(async () => {
        entry.found = await siblings.forward(key);
      });
      return entry.found;
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
      if (worker === siblings.worker && (await own.forward(key))) return true;
      const isOfOurs = worker !== siblings.worker && worker >= 1 && worker <= siblings.workers;
      return (isOfOurs || siblings.arePeers) && send(key);
    },
  };
}
