/**
 * Loaded into pgjot's process before pgjot itself (`node --import`): answers SIGUSR2 with what the process has open.
 *
 * Written to the file that PGJOT_SOAK_PROBE names. Run with --expose-gc, so that memory is what is held and not what
 * has yet to be swept up. Takes no part in anything else.
 */
import { renameSync, writeFileSync } from 'node:fs';

process.on('SIGUSR2', () => {
  globalThis.gc?.();
  /** @type {Record<string, number>} */
  const open = {};
  for (const name of process.getActiveResourcesInfo()) open[name] = (open[name] ?? 0) + 1;
  const { heapUsed, external } = process.memoryUsage();
  const file = process.env['PGJOT_SOAK_PROBE'] ?? '';
  writeFileSync(`${file}.new`, JSON.stringify({ open, heldMiB: (heapUsed + external) / 2 ** 20 }));
  renameSync(`${file}.new`, file);
});
