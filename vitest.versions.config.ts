import { defineConfig } from 'vitest/config';
import base from './vitest.config.ts';

// Who one is, and every attack on it, on each PostgreSQL from 14 to 18. The default run has the newest and the oldest.
export default defineConfig({
  test: {
    ...base.test,
    include: [
      'test/session-sql/**/*.test.ts',
      'test/e2e/attacks-*.test.ts',
      'test/e2e/modes.test.ts',
      'test/e2e/parameter-attacks.test.ts',
      'test/e2e/standby.test.ts',
      'test/e2e/lookup.test.ts',
      'test/upstream/lookup.test.ts',
    ],
    provide: { versions: 'all' },
  },
});
