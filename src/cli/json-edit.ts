/**
 * Adds a member to a JSON text and leaves the rest of it as its author wrote it: indentation, order, line ends.
 *
 * For text that JSON.parse accepts; it is no parser of its own and knows no comments.
 */
import { isDeepStrictEqual } from 'node:util';

/** An object in the text: where its brace is, where its first member begins, and where its last one ends. */
interface Span {
  readonly open: number;
  readonly first: number | undefined;
  readonly end: number;
}

type Members = Readonly<Record<string, unknown>>;

// Longer values get a line for each member.
const MAX_LINE_CHARACTERS = 100;
const TOKENS = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g;

/**
 * `text` with the member `name` in the object that is its member `parent`, which is made where it is not there.
 *
 * @param text an object in JSON, in which `parent`, if it is there, is an object without `name`.
 * @throws {Error} where the result would not be exactly that.
 */
export function addMember(text: string, parent: string, name: string, value: unknown): string {
  const before = JSON.parse(text) as Members;
  const { top, inner } = findObjects(text, parent);
  if (inner === undefined && Object.hasOwn(before, parent)) {
    throw new Error(`"${parent}" is not an object`);
  }
  const edited =
    inner === undefined
      ? insert(text, top, parent, { [name]: value })
      : insert(text, inner, name, value);

  const members = { ...(before[parent] as Members | undefined), [name]: value };
  if (!isDeepStrictEqual(JSON.parse(edited), { ...before, [parent]: members })) {
    throw new Error('the file is written in a way that cannot be edited');
  }
  return edited;
}

/** The object as a whole, and that of its members called `parent`; the last, which is the one that JSON.parse keeps. */
function findObjects(text: string, parent: string): { top: Span; inner: Span | undefined } {
  const stack: { open: number; first: number | undefined; end: number }[] = [];
  let top: Span | undefined;
  let inner: Span | undefined;
  let name: string | undefined;
  let previous = '';
  for (const { 0: token, index } of text.matchAll(TOKENS)) {
    const around = stack.at(-1);
    if (token === '}' || token === ']') {
      const closed = stack.pop();
      if (stack.length === 0) top = closed;
      if (stack.length === 1 && token === '}' && name === parent) inner = closed;
    } else if (around !== undefined && token !== ',' && token !== ':') {
      around.first ??= index;
    }
    if (token === ':' && stack.length === 1) name = JSON.parse(previous) as string;
    if (token === '{' || token === '[') stack.push({ open: index, first: undefined, end: index });
    const holder = stack.at(-1);
    // A bracket that was just opened is no member of itself.
    if (holder !== undefined && holder.open !== index && token !== ',') {
      holder.end = index + token.length;
    }
    previous = token;
  }
  if (top === undefined) throw new TypeError('not an object');
  return { top, inner };
}

function insert(text: string, { open, first, end }: Span, name: string, value: unknown): string {
  const eol = text.includes('\r\n') ? '\r\n' : '\n';
  const outer = indentationAt(text, open);
  if (first !== undefined && !text.slice(open, first).includes('\n')) {
    return splice(text, end, end, `, ${JSON.stringify(name)}: ${onOneLine(value)}`);
  }
  const inside = first === undefined ? outer + unitOf(text) : indentationAt(text, first);
  const member = `${inside}${JSON.stringify(name)}: ${onLines(value, inside, unitOf(text), eol)}`;
  if (first !== undefined) return splice(text, end, end, `,${eol}${member}`);
  return splice(text, open + 1, text.indexOf('}', open), `${eol}${member}${eol}${outer}`);
}

function splice(text: string, from: number, to: number, insertion: string): string {
  return text.slice(0, from) + insertion + text.slice(to);
}

/** The white space with which the line of `index` begins. */
function indentationAt(text: string, index: number): string {
  const start = text.lastIndexOf('\n', index - 1) + 1;
  return /^[ \t]*/.exec(text.slice(start, index))?.[0] ?? '';
}

/** One step of indentation: that of the first line that has one. */
function unitOf(text: string): string {
  return /^[ \t]+(?=\S)/m.exec(text)?.[0] ?? '  ';
}

function onLines(value: unknown, indentation: string, unit: string, eol: string): string {
  const line = onOneLine(value);
  if (indentation.length + line.length <= MAX_LINE_CHARACTERS) return line;
  return JSON.stringify(value, null, unit).replaceAll('\n', eol + indentation);
}

function onOneLine(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(onOneLine).join(', ')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.entries(value).map(
    ([key, one]) => `${JSON.stringify(key)}: ${onOneLine(one)}`,
  );
  return members.length === 0 ? '{}' : `{ ${members.join(', ')} }`;
}
