import { defineConfig } from 'vitest/config';
import base from './vitest.config.ts';

// Apart from the default run: these tests kill processes, use up what a machine has, and wait for the kernel to give up.
export default defineConfig({
  test: {
    ...base.test,
    include: ['test/faults/**/*.test.ts', 'test/package/**/*.test.ts'],
    exclude: ['**/node_modules/**'],
    testTimeout: 60_000,
  },
});
