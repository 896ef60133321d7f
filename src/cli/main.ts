#!/usr/bin/env node
/**
 * The command `pgjot`: its subcommands, and how each failure ends the process.
 *
 * What a command does is in the file of its name.
 */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { ConfigError } from '../errors.ts';
import { CommandError, EXIT } from './failure.ts';

const { version, description } = createRequire(import.meta.url)('../../package.json') as {
  version: string;
  description: string;
};

const program = new Command('pgjot')
  .description(description)
  .version(version)
  // Thrown rather than exited with, and worded like every other failure.
  .exitOverride()
  .configureOutput({
    outputError: (text, write) => write(text.replace(/^error: /, 'pgjot: ')),
  })
  .addHelpText(
    'after',
    `
Exit status: 0 done; ${EXIT.failure} failed; ${EXIT.usage} wrong usage; ${EXIT.unavailable} something that it needs is unavailable;
${EXIT.config} the configuration is wrong. Failures are reported on standard error.`,
  );
/** In the order in which help names them. */
const commands = new Map<string, () => Promise<Command>>([
  ['dev', async () => (await import('./dev.ts')).devCommand()],
  ['start', async () => (await import('./start.ts')).startCommand()],
  ['check', async () => (await import('./check.ts')).checkCommand()],
  ['setup', async () => (await import('./setup.ts')).setupCommand()],
  ['doctor', async () => (await import('./doctor.ts')).doctorCommand()],
  ['explain', async () => (await import('./explain.ts')).explainCommand()],
  ['provider', async () => (await import('./provider.ts')).providerCommand()],
  ['rotate-secret', async () => (await import('./rotate-secret.ts')).rotateSecretCommand()],
  ['issuer', async () => (await import('./issuer.ts')).issuerCommand()],
  ['token', async () => (await import('./token.ts')).tokenCommand()],
  ['sql', async () => (await import('./sql.ts')).sqlCommand()],
]);
// What all the others would load takes longer than most commands do.
const named = commands.get(process.argv[2] ?? '');
for (const load of named === undefined ? commands.values() : [named]) {
  const added = (await load()).copyInheritedSettings(program);
  for (const inner of added.commands) inner.copyInheritedSettings(added);
  program.addCommand(added);
}

// console.log keeps it to itself. Whoever reads no further, such as head(1), has what they wanted.
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
  if (code === 'EPIPE') return;
  console.error(`pgjot: standard output cannot be written (${code})`);
  process.exitCode = EXIT.failure;
});

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}

/** Says what went wrong, one line for each thing, and returns the exit status. */
function report(error: unknown): number {
  // commander has printed its own line, or the help that was asked for.
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT.usage;
  if (error instanceof ConfigError) {
    for (const { path, message } of error.problems) console.error(`pgjot: ${path}: ${message}`);
    return EXIT.config;
  }
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  const known = error instanceof CommandError;
  console.error(`pgjot: ${message.replaceAll(/\s*\n\s*/g, ' ')}`);
  if (process.env['PGJOT_DEBUG'] !== undefined) console.error(stack);
  return known ? error.exitCode : EXIT.failure;
}
