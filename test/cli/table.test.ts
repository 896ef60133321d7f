import { describe, expect, it } from 'vitest';
import { formatResult, type TextResult } from '../../src/cli/table.ts';

const INT4 = 23;
const TEXT = 25;

describe('a result', () => {
  it('is aligned as psql aligns it: names in the middle, numbers to the right, NULL as nothing', () => {
    const text = formatResult(
      select(
        [
          ['id', INT4],
          ['name', TEXT],
        ],
        ['1', 'a'],
        ['12345', null],
        ['7', 'longer'],
      ),
    );

    expect(text).toBe(
      [
        '  id   |  name',
        '-------+--------',
        '     1 | a',
        ' 12345 |',
        '     7 | longer',
        '(3 rows)',
      ].join('\n'),
    );
  });

  it('counts no rows and one row', () => {
    expect(formatResult(select([['a', TEXT]]))).toMatch(/\(0 rows\)$/);
    expect(formatResult(select([['a', TEXT]], ['x']))).toMatch(/\(1 row\)$/);
  });

  it('counts a character that is several code points as one', () => {
    const lines = formatResult(select([['a', TEXT]], ['🇨🇭'], ['é'])).split('\n');

    expect(lines[1]).toBe('---');
  });

  it('cannot move the cursor, ring, or turn text around', () => {
    const hostile = '\u001B[2J\u0007\u202Eevil\u009B1m\nnext\tline\r';

    const text = formatResult(select([[hostile, TEXT]], [hostile]));

    expect(text.replaceAll('\n', '')).toMatch(/^[\x20-\x7e]*$/);
    expect(text).toContain('\\x1B[2J\\x07\\u202Eevil\\x9B1m\\nnext\\tline\\r');
  });

  it('of a statement that returns no rows is its command tag', () => {
    expect(formatResult(command('INSERT', 2))).toBe('INSERT 0 2');
    expect(formatResult(command('UPDATE', 0))).toBe('UPDATE 0');
    expect(formatResult(command('CREATE', null))).toBe('CREATE');
  });

  it('of INSERT … RETURNING has the rows and the tag', () => {
    const text = formatResult({ ...select([['id', INT4]], ['1']), command: 'INSERT', rowCount: 1 });

    expect(text).toBe(' id\n----\n  1\n(1 row)\nINSERT 0 1');
  });
});

function select(
  columns: readonly (readonly [name: string, type: number])[],
  ...rows: (string | null)[][]
): TextResult {
  const fields = columns.map(([name, dataTypeID]) => ({ name, dataTypeID }));
  return { command: 'SELECT', rowCount: rows.length, fields, rows };
}

function command(name: string, rowCount: number | null): TextResult {
  return { command: name, rowCount, fields: [], rows: [] };
}
