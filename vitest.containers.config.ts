import { defineConfig } from 'vitest/config';

// Apart from the default run: these tests need a container engine.
export default defineConfig({
  test: {
    include: ['test/containers/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 600_000,
  },
});
