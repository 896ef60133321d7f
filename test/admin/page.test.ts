/** The status page cannot be made to run what a client chose: nothing in it makes markup, and the browser would not run it. */
import { createHash } from 'node:crypto';
import { expect, it } from 'vitest';
import { PAGE, PAGE_HEADERS } from '../../src/admin/page.ts';

const policy = PAGE_HEADERS['content-security-policy'] ?? '';

it('makes text of what it is told, never markup or code', () => {
  expect(PAGE).not.toMatch(
    /innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|srcdoc|setAttribute|\shref|\ssrc|\son\w+=/,
  );
  expect(PAGE).not.toMatch(/https?:|\/\/[a-z]|@import|url\(|localStorage|sessionStorage|cookie/i);
});

it('lets the browser run its own script and nothing else', () => {
  const [, script = ''] = /<script>([^]*?)<\/script>/.exec(PAGE) ?? [];
  const hash = createHash('sha256').update(script).digest('base64');

  expect(PAGE.match(/<script/g)).toHaveLength(1);
  expect(policy).toContain(`script-src 'sha256-${hash}';`);
  expect(policy).toContain("default-src 'none'");
  expect(policy).toContain("frame-ancestors 'none'");
  expect(policy).not.toContain('unsafe');
});
