/**
 * The ways a command can fail, as exit statuses, and the error that carries one line for the user.
 *
 * Failures of a connection are in `src/errors.ts`; these are about commands alone.
 *
 * Numbers: sysexits.h, where it has a fitting one.
 */

/** Exit statuses of `pgjot`, as `pgjot --help` documents them. */
export const EXIT = { failure: 1, usage: 64, unavailable: 69, config: 78 } as const;

/** A failure that the user can act on: `message` is the one line that goes to standard error. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly exitCode: number;

  constructor(kind: keyof typeof EXIT, message: string, options?: ErrorOptions) {
    super(message, options);
    this.exitCode = EXIT[kind];
  }
}

/**
 * Closes one after the other, whatever fails: what comes last still runs.
 *
 * A failure to close is one line on standard error and exit status 1, and hides no earlier error.
 */
export async function closeAll(closes: readonly (() => Promise<void>)[]): Promise<void> {
  for (const close of closes) {
    try {
      await close();
    } catch (error) {
      const { message } = error instanceof Error ? error : new Error(String(error));
      console.error(`pgjot: while stopping: ${message}`);
      process.exitCode = EXIT.failure;
    }
  }
}
