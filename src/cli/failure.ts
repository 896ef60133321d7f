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
