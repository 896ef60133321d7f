/**
 * Tells systemd how the service is doing, as `Type=notify` and its watchdog want it.
 *
 * Node has no datagram sockets in the file system, so the program `systemd-notify` speaks for us: a few milliseconds for each
 * thing said, and the unit needs `NotifyAccess=all`. Elsewhere nothing is said.
 *
 * https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
 */
import { execFile } from 'node:child_process';

/** Who started the process, and wants to know. */
export interface Supervisor extends Disposable {
  /** It serves; also once a reload is over, however that went. `status` is a line for `systemctl status`. */
  ready(status: string): void;
  reloading(): void;
  stopping(status: string): void;
  /** Resolves when all that was told so far has been said, or cannot be. */
  told(): Promise<void>;
}

const PROGRAM = 'systemd-notify';
const SAY_MS = 5_000;

/** The supervisor that `env` names: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` where it wants a sign of life that often. */
export function createSupervisor(env: NodeJS.ProcessEnv = process.env): Supervisor {
  const isThere = Boolean(env['NOTIFY_SOCKET']);
  let last = Promise.resolve();
  let failed = false;
  // One after the other: each is a process of its own, and READY=1 must not overtake RELOADING=1.
  const say = (...assignments: string[]) => {
    if (isThere) last = last.then(() => saying(assignments));
  };
  const saying = (assignments: string[]) =>
    new Promise<void>((resolve) => {
      execFile(PROGRAM, assignments, { env, timeout: SAY_MS }, (error) => {
        if (error !== null && !failed)
          console.error(`pgjot: cannot tell systemd: ${reasonOf(error)}`);
        failed = error !== null;
        resolve();
      });
    });

  const watchdogMs = isThere && isOurs(env) ? Number(env['WATCHDOG_USEC']) / 1000 : 0;
  // Twice as often as it is expected. An event loop that is stuck says nothing.
  const watchdog =
    watchdogMs > 0 ? setInterval(() => say('WATCHDOG=1'), watchdogMs / 2).unref() : undefined;
  return {
    ready: (status) => say('READY=1', `STATUS=${status}`),
    // Of one clock for all processes, so that systemd can tell this reload from one before.
    reloading: () => say('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`),
    stopping: (status) => say('STOPPING=1', `STATUS=${status}`),
    told: () => last,
    [Symbol.dispose]: () => clearInterval(watchdog),
  };
}

/** Whether the watchdog is this process's, not that of one that started it. */
function isOurs(env: NodeJS.ProcessEnv): boolean {
  return env['WATCHDOG_PID'] === undefined || env['WATCHDOG_PID'] === String(process.pid);
}

function reasonOf(error: Error & { code?: unknown }): string {
  return error.code === 'ENOENT' ? `there is no program ${PROGRAM}` : error.message.trim();
}
