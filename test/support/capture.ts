/**
 * Real conversations, recorded between real clients and PostgreSQL 18 and kept in `test/fixtures/*.hex`.
 *
 * One line for each chunk that travelled: `F` from the frontend, `B` from the backend. Where a line
 * says `= idle` or the like, both sides had fallen silent, and that is the state which
 * `pg_stat_activity` gave for the backend then: PostgreSQL's own word for what it was doing.
 */
import { readFileSync, readdirSync } from 'node:fs';

/** One line of a capture. */
export type CaptureLine =
  | { readonly from: 'F' | 'B'; readonly bytes: Buffer }
  | { readonly from: '='; readonly state: string };

/** A recorded conversation. */
export interface Capture {
  readonly title: string;
  readonly lines: readonly CaptureLine[];
}

const FOLDER = new URL('../fixtures/', import.meta.url);

/** The names of all captures. */
export function captureNames(): string[] {
  return readdirSync(FOLDER)
    .filter((file) => file.endsWith('.hex'))
    .map((file) => file.slice(0, -'.hex'.length));
}

/** One capture, by the name of its file. */
export function capture(name: string): Capture {
  const [title = '', ...rest] = readFileSync(new URL(`${name}.hex`, FOLDER), 'utf8')
    .trimEnd()
    .split('\n');
  const lines = rest.filter((line) => !line.startsWith('#')).map(parseLine);
  return { title: title.slice(2), lines };
}

/** Everything that one side said, in order. */
export function saidBy(from: 'F' | 'B', { lines }: Capture): Buffer {
  return Buffer.concat(lines.map((line) => (line.from === from ? line.bytes : Buffer.alloc(0))));
}

function parseLine(line: string): CaptureLine {
  const from = line[0];
  const rest = line.slice(2);
  if (from === '=') return { from, state: rest };
  if (from !== 'F' && from !== 'B') throw new Error(`not a line of a capture: ${line}`);
  return { from, bytes: Buffer.from(rest, 'hex') };
}
