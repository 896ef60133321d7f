/**
 * Runs the TypeScript of a document with Drizzle, in the folder whose packages hold it.
 *
 * The first block is a schema; those behind it use its tables, and `host`, `port` and `getToken` as an application would.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import type { Site } from './site.ts';

const CLIENTS = fileURLToPath(new URL('../clients', import.meta.url));

/** What a block may use that it does not define. */
interface Surroundings {
  readonly host: string;
  readonly port: number;
  getToken(): Promise<string>;
  readonly console: { log(value: unknown): void };
}

/** Runs `code` as a module that follows `schema`, signed in as `name`, and answers what it printed. */
export async function runApplication(
  schema: string,
  code: string,
  name: string,
  site: Site,
): Promise<string> {
  const printed: string[] = [];
  const { host = '', port = 0, password } = await site.settingsFor(name);
  const surroundings: Surroundings = {
    host,
    port,
    getToken: async () => String(password),
    console: { log: (value) => printed.push(inspect(value)) },
  };
  const imports = code.match(/^import .*$/gm) ?? [];
  const statements = code.replaceAll(/^import .*\n/gm, '');
  await inModule(
    [
      ...imports,
      schema,
      `export const run = async ({ ${Object.keys(surroundings).join(', ')} }) => {`,
      statements,
      '};',
    ].join('\n'),
    ({ run }) => (run as (given: Surroundings) => Promise<void>)(surroundings),
  );
  return printed.join('\n');
}

/** The statements that make the policies of a schema's tables, as drizzle-kit writes them. */
export async function policiesOf(schema: string): Promise<string[]> {
  const code = `
import { getTableConfig, PgDialect, PgTable } from 'drizzle-orm/pg-core';
import { is } from 'drizzle-orm';
import * as schema from './schema.ts';
const text = (condition) => new PgDialect().sqlToQuery(condition).sql;
export const policies = Object.values(schema)
  .filter((one) => is(one, PgTable))
  .map(getTableConfig)
  .flatMap(({ name, policies }) => policies.map((policy) =>
    \`CREATE POLICY "\${policy.name}" ON "\${name}" AS PERMISSIVE FOR \${policy.for.toUpperCase()} TO "\${policy.to.name}"\` +
      (policy.using ? \` USING (\${text(policy.using)})\` : '') +
      (policy.withCheck ? \` WITH CHECK (\${text(policy.withCheck)})\` : '') + ';'));
`;
  return inModule(code, ({ policies }) => policies as string[], { 'schema.ts': schema });
}

async function inModule<T>(
  code: string,
  use: (module: Record<string, unknown>) => T | Promise<T>,
  files: Readonly<Record<string, string>> = {},
): Promise<T> {
  const folder = await mkdtemp(join(CLIENTS, 'document-'));
  try {
    for (const [name, text] of Object.entries({ ...files, 'main.ts': code })) {
      await writeFile(join(folder, name), text);
    }
    const module = (await import(join(folder, 'main.ts'))) as Record<string, unknown>;
    return await use(module);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
