/** The page on Row-Level Security: every block of it, and that its Drizzle schema says what its SQL does. */
import { describe, expect, it } from 'vitest';
import { lacks } from '../clients/todos.ts';
import { describeDocument } from './describe-document.ts';
import { readDocument } from './document.ts';
import { policiesOf, runApplication } from './drizzle.ts';

const FILE = 'row-level-security.md';
const [schema, ...applications] = readDocument(FILE).filter(({ language }) => language === 'ts');
const noDrizzle = lacks('Drizzle in the documents', 'drizzle-orm', 'pg');

describeDocument(FILE, {
  skip: ({ language }) => noDrizzle && language === 'ts',
  runners: {
    async ts(block, site) {
      if (block.line === schema?.line) return '';
      return runApplication(schema?.code ?? '', block.code, 'alice', site);
    },
  },
});

describe.skipIf(noDrizzle)('the Drizzle schema', () => {
  it('has the very policies of the SQL below it', async () => {
    const sql = readDocument(FILE).map(({ code }) => code);
    const written = sql.flatMap((code) => code.match(/^CREATE POLICY .*;$/gm) ?? []);

    expect(written).toHaveLength(4);
    expect(await policiesOf(schema?.code ?? '')).toEqual(written);
  });

  it('has an application behind it', () => {
    expect(applications).toHaveLength(1);
  });
});
