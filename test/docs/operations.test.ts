/**
 * The operator's guide: the commands it names are commands, with these options, and what it says of events is logged.
 */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { ROOT, runCli } from '../support/cli.ts';

const text = readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8');
const code = [...text.matchAll(/`{1,3}(?:sh\n)?([^`]+)`{1,3}/g)].map(([, inner = '']) => inner);

test('every option of a command that it names is one', async () => {
  const uses = code
    .flatMap((inner) => inner.split('\n'))
    .flatMap((line) => [...line.matchAll(/pgjot ([a-z-]+)((?: +(?:--)?[\w…-]+)*)/g)]);
  const options = new Map<string, Set<string>>();
  for (const [, command = '', rest = ''] of uses) {
    const known = options.get(command) ?? new Set();
    for (const [option] of rest.matchAll(/--[\w-]+/g)) known.add(option);
    options.set(command, known);
  }
  expect([...options.keys()].toSorted()).toEqual(['check', 'doctor', 'rotate-secret', 'setup']);
  for (const [command, named] of options) {
    const { stdout } = await runCli([command, '--help'], { cwd: ROOT });
    for (const option of named) expect(stdout).toContain(option);
  }
  expect(options.get('rotate-secret')).toEqual(
    new Set(['--dry-run', '--finish', '--end-sessions']),
  );
});

test('every event that it speaks of is one', () => {
  const logs = readFileSync(new URL('../../docs/logs.md', import.meta.url), 'utf8');
  const events = new Set(
    [...logs.matchAll(/^### (.*)$/gm)].flatMap(([, title = '']) =>
      [...title.matchAll(/\w+/g)].map(([name]) => name),
    ),
  );
  for (const event of [
    'secret_changed',
    'secret_refused',
    'reloaded',
    'key_problem',
    'keys_changed',
    'slot_quarantined',
    'limit_reached',
    'upstream_moved',
    'slot_not_healed',
    'revocations_unreadable',
    'reload_failed',
    'certificate_unusable',
    'crashed',
  ]) {
    expect(text).toContain(`\`${event}\``);
    expect(events).toContain(event);
  }
});
