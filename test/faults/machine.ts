/**
 * What tests may do to this machine, for a while: only as root, only with the tools that are there, and undone afterwards.
 */
import { execFileSync, spawnSync } from 'node:child_process';

/** The first of these that is missing, as a sentence for whoever reads the results; undefined when the test can run. */
export function missing(...tools: readonly string[]): string | undefined {
  return process.getuid?.() === 0 ? missingTool(...tools) : 'not tested: it takes root';
}

/** The same, of what needs no root. */
export function missingTool(...tools: readonly string[]): string | undefined {
  const absent = tools.find((tool) => spawnSync('which', [tool]).status !== 0);
  return absent === undefined ? undefined : `not tested: there is no ${absent} here`;
}

/** Runs a command to its end. @throws when it fails, with what it said. */
export function run(command: string, ...args: readonly string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}
