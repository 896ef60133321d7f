/**
 * The status page for people: one file that loads nothing, and may do nothing but run its own script and ask this endpoint.
 *
 * It holds no answer itself, so it is the same for everybody. What it shows was chosen by clients who are hostile (a subject,
 * an application's name), and becomes text in it and nothing else; should that fail, the browser still runs only the script
 * whose hash is in the header.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

/** The page. */
export const PAGE = readFileSync(new URL('page.html', import.meta.url), 'utf8');

/** What the browser is told of it. */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy': [
    "default-src 'none'",
    `script-src ${hashOf('script')}`,
    `style-src ${hashOf('style')}`,
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
};

/** The one element of this name, as CSP names it. */
function hashOf(element: 'script' | 'style'): string {
  const [, text = ''] = new RegExp(`<${element}>([^]*?)</${element}>`).exec(PAGE) ?? [];
  return `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
}
