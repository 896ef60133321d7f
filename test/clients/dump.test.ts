/**
 * pg_dump and pg_restore through the proxy, as a role that owns a schema and nothing else.
 *
 * pg_dump refuses a server that is newer than itself, so the database is the newest that it accepts.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { postgresVersions } from '../support/postgres.ts';
import {
  type Outcome,
  lacksCommands,
  run,
  signedIn,
  temporaryFolder,
  versionOf,
} from './command.ts';
import { asSuperuser, useStack } from './todos.ts';

const version = newestFor(versionOf('pg_dump'));
const skipped = lacksCommands('pg_dump', 'pg_dump', 'pg_restore', 'psql') || version === undefined;

describe.skipIf(skipped)('pg_dump', () => {
  const stack = useStack(version === undefined ? {} : { version });
  const client = async (command: string, ...arguments_: string[]): Promise<Outcome> =>
    run(command, arguments_, await signedIn(stack(), 'alice'));
  const psql = (statements: string) => client('psql', '-X', '-A', '-t', '-q', '-c', statements);

  beforeAll(async () => {
    await asSuperuser(stack(), 'grant create on database app to authenticated');
  });

  it("writes the signed-in user's rows and nobody else's", async () => {
    const options = ['--table=public.todos', '--data-only', '--inserts', '--enable-row-security'];

    const { code, stdout, stderr } = await client('pg_dump', ...options);

    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const owners = [...stdout.matchAll(/INSERT INTO public.todos VALUES \(\d+, '(\w+)'/g)];
    expect(owners.map(([, owner]) => owner)).toEqual(['alice', 'alice', 'alice']);
  });

  it('fails rather than leave rows out, unless it is told that it may', async () => {
    const { code, stderr } = await client('pg_dump', '--table=public.todos', '--data-only');

    expect(code).toBe(1);
    expect(stderr).toContain(
      'query would be affected by row-level security policy for table "todos"',
    );
  });

  it.each([
    ['custom', '1'],
    ['directory', '3'],
  ])('restores in the %s format, over %s connections, what it dumped', async (format, jobs) => {
    const schema = `notes_${format}`;
    await asSuperuser(stack(), `create schema ${schema} authorization authenticated`);
    expect(await psql(objects(schema))).toEqual({ code: 0, stdout: '', stderr: '' });
    const before = await psql(contents(schema));
    const parallel = format === 'directory' ? [`--jobs=${jobs}`] : [];
    const folder = temporaryFolder();
    const archive = join(folder, 'archive');

    const target = [`--schema=${schema}`, `--format=${format}`, `--file=${archive}`];
    const dumped = await client('pg_dump', ...target, ...parallel);
    expect(dumped).toEqual({ code: 0, stdout: '', stderr: '' });
    expect((await psql(`drop schema ${schema} cascade`)).code).toBe(0);
    const source = ['--dbname=app', '--exit-on-error', archive];
    const restored = await client('pg_restore', ...parallel, ...source);

    expect(restored).toEqual({ code: 0, stdout: '', stderr: '' });
    const after = await psql(contents(schema));
    expect(after.stdout).toBe(before.stdout);
    expect(after.stdout).toMatch(/^2000\|2001000\|note 1\|/);
  });

  it('writes a plain script that psql runs', async () => {
    await asSuperuser(stack(), 'create schema notes_plain authorization authenticated');
    await psql(objects('notes_plain'));
    const before = await psql(contents('notes_plain'));
    const folder = temporaryFolder();
    const script = join(folder, 'script.sql');

    const dumped = await client('pg_dump', '--schema=notes_plain', '--clean', `--file=${script}`);
    const ran = await client('psql', '-X', '-q', '--set=ON_ERROR_STOP=1', '-f', script);

    expect(dumped).toEqual({ code: 0, stdout: '', stderr: '' });
    expect({ code: ran.code, stderr: ran.stderr }).toEqual({ code: 0, stderr: '' });
    expect(await readFile(script, 'utf8')).toContain('CREATE SCHEMA notes_plain');
    expect(await psql(contents('notes_plain'))).toEqual(before);
  });
});

/** Some of everything that a dump is made of. */
function objects(schema: string): string {
  return `
    set search_path = ${schema};
    create table note (id int generated always as identity primary key, body text not null, at date);
    insert into note (body, at) select 'note ' || n, date '2024-01-01' + n from generate_series(1, 2000) n;
    create index on note (at);
    create table tag (note_id int references note, name text check (name <> ''));
    insert into tag values (1, E'tab\\t, "quote" and \\\\ backslash'), (2, 'naïve 🐘');
    create view tagged as select n.body, t.name from note n join tag t on t.note_id = n.id;
    create function latest() returns date language sql stable as 'select max(at) from ${schema}.note';
    comment on table note is 'dumped and restored';`;
}

/** One line that says whether they are all there again. */
function contents(schema: string): string {
  return `
    set search_path = ${schema};
    select count(*), sum(id), min(body), latest(),
      (select string_agg(name, '; ' order by name) from tagged),
      (select string_agg(indexname, ' ' order by indexname) from pg_indexes where schemaname = '${schema}'),
      obj_description('note'::regclass), (select tableowner from pg_tables
        where schemaname = '${schema}' and tablename = 'note')
    from note`;
}

/** The newest PostgreSQL of this run that a pg_dump of the given major version can read. */
function newestFor(major = 0): number | undefined {
  const found = postgresVersions().find((one) => one <= major);
  if (found === undefined && major > 0) {
    console.log(
      `skipped pg_dump: version ${major} reads no server newer than itself, and this run has only ${postgresVersions().join(', ')}`,
    );
  }
  return found;
}
