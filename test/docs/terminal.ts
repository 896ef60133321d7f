/**
 * Runs SQL as psql would in a document: one statement after the other, whether or not the one before has failed.
 *
 * Of statements that answer with no rows it prints the tags of INSERT, UPDATE, DELETE and MERGE alone.
 */
import type { Client, QueryArrayConfig, QueryArrayResult } from 'pg';
import { formatResult } from '../../src/cli/table.ts';

interface ErrorReport {
  readonly severity?: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

/** What the statements print. */
export async function transcript(client: Client, code: string): Promise<string> {
  const printed: string[] = [];
  const onNotice = (notice: unknown) => printed.push(report(notice as ErrorReport));
  client.on('notice', onNotice);
  try {
    for (const statement of statementsOf(code)) {
      try {
        const text = visibleResult(await client.query(asText(statement)));
        if (text !== undefined) printed.push(text);
      } catch (error) {
        printed.push(report(error as ErrorReport));
      }
    }
  } finally {
    client.off('notice', onNotice);
  }
  return printed.join('\n\n').trimEnd();
}

/** Whether a transcript reports an error. */
export function reportsError(printed: string): boolean {
  return /^(?:ERROR|FATAL): {2}/m.test(printed);
}

/** The statements of a script, without their semicolons. It knows no SQL beyond quotes, dollar quotes and comments. */
export function statementsOf(script: string): string[] {
  const statements = [''];
  for (const [token] of script.matchAll(
    /'(?:[^']|'')*'|"[^"]*"|(\$\w*\$)[\s\S]*?\1|--[^\n]*|;|[^;'"$-]+|[$-]/g,
  )) {
    if (token === ';') statements.push('');
    else statements[statements.length - 1] += token;
  }
  return statements
    .map((statement) => statement.trim())
    .filter((statement) => statement.replaceAll(/^--.*$/gm, '').trim() !== '');
}

function asText(text: string): QueryArrayConfig {
  return { text, rowMode: 'array', types: { getTypeParser: () => (value: unknown) => value } };
}

function visibleResult(result: QueryArrayResult): string | undefined {
  const tagged = ['INSERT', 'UPDATE', 'DELETE', 'MERGE'].includes(result.command);
  if (result.fields.length === 0 && !tagged) return undefined;
  const text = formatResult(result);
  const silent = `\n${result.command}`;
  return tagged || !text.includes(silent) ? text : text.slice(0, text.lastIndexOf(silent));
}

function report({ severity, message, detail, hint }: ErrorReport): string {
  return [
    `${severity ?? 'ERROR'}:  ${message}`,
    ...(detail === undefined ? [] : [`DETAIL:  ${detail}`]),
    ...(hint === undefined ? [] : [`HINT:  ${hint}`]),
  ].join('\n');
}
