/**
 * Watches a file for changes, from before it is first read: whatever happens to it after that is told.
 *
 * Asks for its state again and again, since events are lost on network file systems and where a file is replaced. Reads
 * nothing itself.
 */
import { type BigIntStats, statSync } from 'node:fs';
import { stat } from 'node:fs/promises';

/** A file that is watched. */
export interface Watch extends Disposable {
  /** Tells of nothing any more. */
  close(): void;
}

/** A file as it is; `undefined` where it has changed so lately that another change would look the same. */
type State = string | undefined;

const GONE: State = 'gone';
// A tick of the clock that file systems take their times from, and some more.
const TICK_MS = 20;

/**
 * Calls `onChange` after each change of `file`, which includes that it is gone or there again; one that is as young as the
 * file system's clock is coarse is told twice. One call at a time: the next comes when what the last returned is settled.
 * Where that is `again`, the same change is told once more. What it throws ends the process, as it would from any event.
 *
 * To be called before the file is read for the first time. It holds no process up.
 */
export function watchFile(
  file: string,
  intervalMs: number,
  onChange: () => 'again' | void | Promise<'again' | void>,
): Watch {
  let seen = stateNow(file);
  let looking = false;
  let closed = false;

  const look = async (): Promise<void> => {
    const found = await stat(file, { bigint: true }).then(stateOf, () => GONE);
    if (closed || (found !== undefined && found === seen)) return;
    if ((await onChange()) !== 'again') seen = found;
  };
  const timer = setInterval(() => {
    if (looking) return;
    looking = true;
    void look().finally(() => {
      looking = false;
    });
  }, intervalMs).unref();
  const close = () => {
    closed = true;
    clearInterval(timer);
  };
  return { close, [Symbol.dispose]: close };
}

function stateNow(file: string): State {
  try {
    return stateOf(statSync(file, { bigint: true }));
  } catch {
    return GONE;
  }
}

function stateOf({ ino, size, mtimeNs, ctimeNs, ctimeMs }: BigIntStats): State {
  const ageMs = Date.now() - Number(ctimeMs);
  // One from the future is told by a clock that is not ours, and would be young for as long as that is ahead.
  if (ageMs >= 0 && ageMs < TICK_MS) return undefined;
  return [ino, size, mtimeNs, ctimeNs].join(' ');
}
