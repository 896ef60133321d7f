/**
 * What the compiler leaves undone in `dist`: the .sql files, the status page, the executable bit, and `npx pgjot` in this checkout.
 *
 * JavaScript, because it runs before anything is compiled or when only Node is there.
 */
import { chmodSync, cpSync, mkdirSync, symlinkSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const path = (relative) => fileURLToPath(new URL(`../${relative}`, import.meta.url));

cpSync(path('src/session-sql'), path('dist/session-sql'), {
  recursive: true,
  filter: (file) => !file.endsWith('.ts'),
});
cpSync(path('src/admin/page.html'), path('dist/admin/page.html'));
chmodSync(path('dist/cli/main.js'), 0o755);

// npm links the commands of dependencies, never those of the package itself, and without a link
// `npx pgjot` would install this folder into npm's cache, which takes a registry.
mkdirSync(path('node_modules/.bin'), { recursive: true });
try {
  symlinkSync('../../dist/cli/main.js', path('node_modules/.bin/pgjot'));
} catch (error) {
  if (error.code !== 'EEXIST') throw error;
}
