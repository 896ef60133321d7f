/** The page on tenants: every block of it. */
import { DatabaseError } from 'pg';
import { describeDocument, RUNNERS } from './describe-document.ts';

describeDocument('multi-tenant.md', {
  runners: {
    /** Whoever is not let in reads why. */
    async sql(block, site) {
      try {
        return (await RUNNERS['sql']?.(block, site)) ?? '';
      } catch (error) {
        if (!(error instanceof DatabaseError)) throw error;
        return `${error.severity}:  ${error.message}`;
      }
    },
  },
});
