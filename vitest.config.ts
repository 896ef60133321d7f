import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['**/node_modules/**', 'test/containers/**', 'test/faults/**', 'test/package/**'],
    globalSetup: 'test/support/global-setup.ts',
    setupFiles: 'test/support/record-setup.ts',
    testTimeout: 20_000,
    hookTimeout: 60_000,
    // These files mostly wait for PostgreSQL and for clocks; vitest would use one of two cores.
    maxWorkers: 2,
  },
});
