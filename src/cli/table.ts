/**
 * Query results as psql prints them: aligned columns, numbers to the right, a line that counts the rows.
 *
 * https://www.postgresql.org/docs/current/app-psql.html
 */

/** One statement's result, with every value as PostgreSQL wrote it. */
export interface TextResult {
  /** The command tag's first words, for instance `INSERT`. */
  readonly command: string;
  readonly rowCount: number | null;
  readonly fields: readonly { readonly name: string; readonly dataTypeID: number }[];
  readonly rows: readonly (readonly (string | null)[])[];
}

// int8, int2, int4, oid, float4, float8, money, numeric: the types that psql aligns to the right.
const NUMERIC = new Set([20, 21, 23, 26, 700, 701, 790, 1700]);

/** The lines for one result. */
export function formatResult(result: TextResult): string {
  const { fields, rows, command, rowCount } = result;
  if (fields.length === 0) return tag(command, rowCount);
  const cells = rows.map((row) => row.map((value) => visible(value ?? '')));
  const names = fields.map(({ name }) => visible(name));
  const widths = names.map((name, column) =>
    Math.max(width(name), ...cells.map((row) => width(row[column] ?? ''))),
  );
  const body = cells.map((row) =>
    line(row, (text, column) => {
      const space = ' '.repeat((widths[column] ?? 0) - width(text));
      return NUMERIC.has(fields[column]?.dataTypeID ?? 0) ? space + text : text + space;
    }),
  );
  return [
    line(names, (name, column) => centred(name, widths[column] ?? 0)),
    widths.map((one) => '-'.repeat(one + 2)).join('+'),
    ...body,
    `(${rows.length} ${rows.length === 1 ? 'row' : 'rows'})`,
    // INSERT … RETURNING has both.
    ...(command === 'SELECT' ? [] : [tag(command, rowCount)]),
  ].join('\n');
}

function line(texts: readonly string[], place: (text: string, column: number) => string): string {
  return texts
    .map((text, column) => ` ${place(text, column)} `)
    .join('|')
    .trimEnd();
}

function tag(command: string, rowCount: number | null): string {
  if (command === 'INSERT') return `INSERT 0 ${rowCount ?? 0}`;
  return rowCount === null ? command : `${command} ${rowCount}`;
}

function centred(text: string, to: number): string {
  const space = to - width(text);
  const left = Math.floor(space / 2);
  return ' '.repeat(left) + text + ' '.repeat(space - left);
}

const graphemes = new Intl.Segmenter();

/** In characters as a reader counts them. */
function width(text: string): number {
  return /^[\x20-\x7e]*$/.test(text) ? text.length : [...graphemes.segment(text)].length;
}

/**
 * The text with its control characters spelt out.
 *
 * Attack: a stored value with escape sequences that rewrite the terminal of whoever reads it.
 */
export function visible(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    const short = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }[character];
    const code = character.codePointAt(0) ?? 0;
    return short ?? (code < 256 ? `\\x${hex(code, 2)}` : `\\u${hex(code, 4)}`);
  });
}

function hex(code: number, digits: number): string {
  return code.toString(16).toUpperCase().padStart(digits, '0');
}
