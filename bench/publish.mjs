/**
 * Puts what a run has measured into README.md and docs/performance.md, between the marks that they have for it.
 *
 * Words around the marks are people's: what a figure means, and what was tried, no program can say.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const ROOT = new URL('../', import.meta.url);
const BEGIN = '<!-- npm run bench -- --publish -->';
const END = '<!-- end -->';

/** Where the picture belongs. */
export const PICTURE = fileURLToPath(new URL('docs/performance.svg', ROOT));

/**
 * @param {{ file: string, text: string }} page `file` within the repository, `text` in Markdown.
 * @throws {Error} when the page has no marks, or not in this order; it is then left as it is.
 */
export function publish({ file, text }) {
  const path = fileURLToPath(new URL(file, ROOT));
  const page = readFileSync(path, 'utf8');
  const [before, rest, more] = page.split(BEGIN);
  const [, after] = rest?.split(END) ?? [];
  if (before === undefined || after === undefined || more !== undefined) {
    throw new Error(`${file} must have "${BEGIN}" and "${END}", once each`);
  }
  writeFileSync(path, `${before}${BEGIN}\n\n${text.trim()}\n\n${END}${after}`);
}
