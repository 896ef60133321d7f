/**
 * Reads the fenced blocks of a document, so that a test can run each of them.
 *
 * A block's info string says what it is (`json configuration`) or why nobody runs it (`sh not run: needs your provider`). A
 * block of `text` right behind another one is what that one prints.
 */
import { readFileSync } from 'node:fs';

/** One block of a document. */
export interface Block {
  /** The line of its fence, from 1. */
  readonly line: number;
  /** The heading of second level above it. */
  readonly section: string;
  /** The first word of its info string. */
  readonly language: string;
  /** The rest of its info string. */
  readonly remark: string;
  readonly code: string;
  /** What the document says it prints; undefined where it says nothing. */
  readonly output: string | undefined;
}

/** The blocks of a file in `docs/`, in order. */
export function readDocument(file: string): Block[] {
  const text = readFileSync(new URL(`../../docs/${file}`, import.meta.url), 'utf8');
  const blocks: Block[] = [];
  let endOfLast = -1;
  for (const match of text.matchAll(/^( *)```(\w+) ?(.*)\n([\s\S]*?)^\1```$/gm)) {
    const [whole, indentation = '', language = '', remark = '', indented = ''] = match;
    const code = indented.replaceAll(new RegExp(`^${indentation}`, 'gm'), '');
    const before = text.slice(0, match.index);
    const last = blocks.at(-1);
    if (language === 'text' && last !== undefined && before.slice(endOfLast).trim() === '') {
      blocks[blocks.length - 1] = { ...last, output: code.trimEnd() };
    } else {
      const section = [...before.matchAll(/^## (.*)$/gm)].at(-1)?.[1] ?? '';
      const line = before.split('\n').length;
      blocks.push({ line, section, language, remark, code: code.trimEnd(), output: undefined });
    }
    endOfLast = match.index + whole.length;
  }
  return blocks;
}

/** Why a block is not run, where its info string says so. */
export function whyNotRun({ remark }: Block): string | undefined {
  return /^not run: (.+)$/.exec(remark)?.[1];
}
