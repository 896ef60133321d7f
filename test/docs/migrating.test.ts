/** The page on migrating: each way from an empty server to clients who see their rows and can forge nothing. */
import type { ClientConfig } from 'pg';
import { describe, expect, it, vi } from 'vitest';
import { lacksCommands, versionOf } from '../clients/command.ts';
import { runShell } from '../support/cli.ts';
import { hasExtension, postgresVersions } from '../support/postgres.ts';
import { describeDocument } from './describe-document.ts';
import { readDocument, whyNotRun } from './document.ts';
import { startSite } from './site.ts';

// Most of these start servers, standbys and commands.
vi.setConfig({ testTimeout: 60_000 });

describeDocument('migrating.md', { siteForEachSection: true });

const blocks = readDocument('migrating.md').filter(({ section }) => section === 'From Neon RLS');
const dump = blocks.find((block) => whyNotRun(block) !== undefined)?.code ?? '';
const table = blocks.find(({ code }) => code.includes('create table'))?.code ?? '';

const version = postgresVersions().find((one) => hasExtension(one, 'pg_session_jwt'));
const skipped =
  lacksCommands('a dump of a database with pg_session_jwt', 'pg_dump', 'psql') ||
  version === undefined ||
  (versionOf('pg_dump') ?? 0) < Math.max(version, 17);
if (skipped) {
  console.log('skipped a dump from Neon: needs pg_session_jwt, and pg_dump 17 or newer for it');
}

describe.skipIf(skipped)('a dump of a database that has the extension', () => {
  const at = { version: version ?? 0 };

  it('is restored where pgjot is, with its rows and policies', async () => {
    await using source = await startSite(at);
    await using target = await startSite(at);
    await (await source.as('superuser')).query(
      `create role authenticated;
       create extension pg_session_jwt;
       grant usage on schema auth to app_admin, authenticated`,
    );
    await (await source.as('admin')).query(`${table}; grant select on todos to authenticated`);
    await target.shell('pgjot setup main');

    const moved = await runShell(dump, {
      cwd: '/',
      env: {
        NEON_URL: urlOf(await source.settingsFor('admin')),
        PGJOT_ADMIN_URL: urlOf(await target.settingsFor('admin')),
      },
    });
    await target.shell('pgjot setup main --grant-schema public --force-rls');
    const { rows } = await (await target.as('bob')).query('select user_id, task from todos');

    expect(moved).toMatchObject({ status: 0, stderr: '' });
    expect(rows).toEqual([{ user_id: 'bob', task: 'tune the piano' }]);
  });
});

function urlOf({ user, password, host, port, database }: ClientConfig): string {
  return `postgres://${user}:${String(password)}@${host}:${port}/${database}`;
}
