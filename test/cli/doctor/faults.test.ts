/** Every fault, planted in one database: each is found, mended by the SQL that the doctor gives, and gone. */
import { describe, expect, it } from 'vitest';
import type { Severity } from '../../../src/cli/doctor/finding.ts';
import { install, installDemo } from '../../../src/session-sql/install.ts';
import { postgresVersions } from '../../support/postgres.ts';
import { ROLES, SECRET, serious, Ward, type Who } from './ward.ts';

type Fault = readonly [
  severity: Severity,
  code: string,
  object: string,
  plant: string,
  /** Who plants it, where a superuser could not on every version. */
  by?: Who,
];

const FAULTS: readonly Fault[] = [
  // Roles
  ['warning', 'slots_missing', 'role authenticated', 'alter role pgjot_authenticated_4 nologin'],
  [
    'warning',
    'slots_surplus',
    'role analyst',
    'create role pgjot_analyst_9 login connection limit 1; grant analyst to pgjot_analyst_9',
  ],
  ['warning', 'group_login', 'role analyst', 'alter role analyst login'],
  ['critical', 'owner_login', 'role pgjot_owner', 'alter role pgjot_owner login'],
  ['critical', 'role_privileged', 'role analyst', 'alter role analyst bypassrls createdb'],
  ['critical', 'role_privileged', 'role pgjot_control', 'alter role pgjot_control replication'],
  [
    'critical',
    'role_privileged',
    'role pgjot_authenticated_3',
    'alter role pgjot_authenticated_3 superuser createrole',
  ],
  [
    'critical',
    'group_membership',
    'role analyst in pg_read_all_data',
    'grant pg_read_all_data to analyst',
  ],
  [
    'critical',
    'group_membership',
    'role authenticated in middle',
    'create role boss createrole; create role middle; grant boss to middle; grant middle to authenticated',
  ],
  [
    'critical',
    'group_membership',
    'role authenticated in analyst',
    'grant analyst to authenticated',
  ],
  [
    'critical',
    'role_membership',
    'role pgjot_authenticated_1 in analyst',
    'grant analyst to pgjot_authenticated_1',
  ],
  [
    'critical',
    'role_membership',
    'role pgjot_control in pg_monitor',
    'grant pg_monitor to pgjot_control',
  ],
  [
    'critical',
    'role_membership',
    'role pgjot_owner in pg_signal_backend',
    'grant pg_signal_backend to pgjot_owner',
  ],
  [
    'critical',
    'slot_not_in_group',
    'role pgjot_analyst_1',
    'revoke analyst from pgjot_analyst_1',
    'admin',
  ],
  [
    'critical',
    'slot_not_watched',
    'role pgjot_analyst_2',
    'revoke pgjot_analyst_2 from pgjot_owner',
    'admin',
  ],
  [
    'critical',
    'role_granted',
    'role spy in pgjot_authenticated_2',
    'create role spy; grant pgjot_authenticated_2 to spy',
  ],
  ['critical', 'role_granted', 'role spy in pgjot_owner', 'grant pgjot_owner to spy'],
  ['critical', 'role_granted', 'role spy in pgjot_control', 'grant pgjot_control to spy'],
  [
    'critical',
    'slot_settings',
    'role pgjot_authenticated_1',
    'alter role pgjot_authenticated_1 set search_path = evil',
  ],
  [
    'critical',
    'slot_settings',
    'role pgjot_authenticated_2',
    'alter role pgjot_authenticated_2 in database app set row_security = off',
  ],
  [
    'warning',
    'slot_expiry',
    'role pgjot_analyst_2',
    `alter role pgjot_analyst_2 valid until '2030-01-01'`,
  ],
  [
    'warning',
    'slot_connection_limit',
    'role pgjot_authenticated_1',
    'alter role pgjot_authenticated_1 connection limit -1',
  ],

  // Schema pgjot
  [
    'warning',
    'version_older',
    'schema pgjot',
    `create or replace function pgjot.version() returns text language sql immutable parallel safe return '0'`,
  ],
  ['critical', 'wrong_owner', 'table pgjot.lease', 'alter table pgjot.lease owner to spy'],
  [
    'critical',
    'wrong_owner',
    'function pgjot.claims()',
    'grant create on schema pgjot to spy; alter function pgjot.claims() owner to spy',
  ],
  [
    'critical',
    'wrong_owner',
    'function pgjot.backdoor()',
    `create function pgjot.backdoor() returns text language sql security definer as $$ select 'alice' $$`,
  ],
  ['critical', 'wrong_owner', 'schema pgjot', 'alter schema pgjot owner to spy'],
  [
    'critical',
    'public_execute',
    'function pgjot.sweep()',
    'grant execute on function pgjot.sweep() to public',
  ],
  [
    'critical',
    'public_execute',
    'function auth.user_id()',
    'grant execute on function auth.user_id() to public',
  ],
  [
    'critical',
    'control_function_granted',
    'function pgjot.bind(integer,bigint,jsonb,bigint)',
    'grant execute on function pgjot.bind to authenticated',
  ],
  [
    'critical',
    'pgjot_table_granted',
    'table pgjot.session',
    'grant select, update (claims) on pgjot.session to analyst',
  ],
  [
    'critical',
    'pgjot_table_granted',
    'table pgjot.drop_owned_guard',
    'grant select on pgjot.drop_owned_guard to public',
  ],
  ['critical', 'drop_owned_guard', 'role staff', 'create role staff; grant staff to authenticated'],
  [
    'critical',
    'drop_owned_guard',
    'role analyst',
    'revoke all (wire) on pgjot.drop_owned_guard from analyst',
  ],
  [
    'advice',
    'auth_foreign',
    'function auth.uid()',
    `drop function auth.uid();
     create function auth.uid() returns uuid language sql stable
       as $$ select (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid $$`,
  ],

  // What clients can reach
  [
    'warning',
    'schema_create',
    'schema public',
    'grant create on schema public to public; grant create on schema public to authenticated',
  ],
  ['warning', 'database_create', 'database app', 'grant create on database app to analyst'],
  ['critical', 'table_without_rls', 'table public.open', 'create table public.open ()', 'admin'],
  [
    'critical',
    'table_without_rls',
    'table public.columns',
    'create table public.columns (a int, b int); revoke all on public.columns from authenticated, analyst; grant select (a) on public.columns to public',
    'admin',
  ],
  [
    'warning',
    'table_not_forced',
    'table public."It\'s lax"',
    'create table public."It\'s lax" (); alter table public."It\'s lax" enable row level security',
    'admin',
  ],
  [
    'critical',
    'table_owned_by_client',
    'table public.theirs',
    'create table public.theirs (); alter table public.theirs enable row level security, force row level security, owner to analyst',
  ],
  [
    'critical',
    'table_owned_by_client',
    'table private.hers',
    'create table private.hers (); alter table private.hers owner to pgjot_authenticated_2',
  ],
  [
    'critical',
    'table_power_granted',
    'table public.notes',
    'grant truncate, trigger on public.notes to authenticated',
  ],
  [
    'critical',
    'view_as_owner',
    'view public.every_note',
    'create view public.every_note as select * from public.notes; grant select on public.every_note to authenticated',
  ],
  [
    'critical',
    'view_as_owner',
    'view public.every_note_again',
    'create view public.every_note_again as select * from public.drafts; grant select on public.every_note_again to analyst',
  ],
  [
    'critical',
    'matview_readable',
    'materialized view public.kept',
    'create materialized view public.kept as select * from public.every_note; grant select on public.kept to authenticated',
  ],
  [
    'warning',
    'matview_readable',
    'materialized view public.numbers',
    'create materialized view public.numbers as select 1 as one; grant select on public.numbers to public',
  ],
  [
    'warning',
    'foreign_table_readable',
    'foreign table public.far',
    `create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;
     create foreign table public.far (id int) server nowhere; grant select on public.far to analyst`,
  ],
  [
    'warning',
    'definer_search_path',
    'function public.risky(integer)',
    'create function public.risky(int) returns int language sql security definer as $$ select $1 $$',
  ],
  [
    'warning',
    'definer_search_path',
    'function public.shadowed()',
    'create procedure public.shadowed() language sql security definer set search_path = public, private as $$ select 1 $$',
  ],

  // Policies
  [
    'critical',
    'policy_forgeable',
    'policy forged on table public.notes',
    `create policy forged on public.notes using (owner = current_setting('request.jwt.claims', true)::json ->> 'sub')`,
  ],
  [
    'critical',
    'policy_forgeable',
    'policy tenant on table public.notes',
    `create policy tenant on public.notes with check (body = current_setting('app.tenant'))`,
  ],
  [
    'critical',
    'policy_forgeable',
    'policy supabase on table public.notes',
    'create policy supabase on public.notes using (owner = (select auth.uid())::text)',
  ],
  [
    'critical',
    'policy_null_identity',
    'policy "no body" on table public.shares',
    'create policy "no body" on public.shares using (reader = (select auth.user_id()) or (select auth.user_id()) is null)',
  ],
  [
    'advice',
    'policy_per_row',
    'policy slow on table public.shares',
    'create policy slow on public.shares using (reader = auth.user_id())',
  ],
];

describe.each(postgresVersions())('the doctor on PostgreSQL %i', (version) => {
  it.each(['admin', 'superuser'] as const)(
    'finds nothing in what setup leaves, as %s',
    async (who) => {
      await using ward = await Ward.healthy(who, { version });

      const findings = serious(await ward.examine(who));

      if (version < 15 && who === 'admin') {
        // The one thing that an administrator cannot mend: public belongs to the superuser.
        expect(findings.map(({ code, object }) => [code, object])).toEqual([
          ['schema_create', 'schema public'],
        ]);
        await ward.superuser.query(findings[0]?.mend.sql ?? '');
        expect(serious(await ward.examine(who))).toEqual([]);
      } else {
        expect(findings).toEqual([]);
      }
    },
  );

  it('finds nothing in what pgjot dev leaves', async () => {
    await using ward = await Ward.bare({ version });
    await install(ward.superuser, { secret: SECRET, roles: ROLES });
    await installDemo(ward.superuser);
    if (version < 15) await ward.superuser.query('revoke create on schema public from public');

    expect(await ward.examine('superuser')).toEqual([]);
  });

  it.each(['admin', 'superuser'] as const)(
    'finds every fault as %s, and its SQL mends each',
    async (who) => {
      await using ward = await Ward.healthy('admin', { version });
      if (version < 15) await ward.superuser.query('revoke create on schema public from public');
      expect(serious(await ward.examine(who))).toEqual([]);

      for (const [, , , plant, by = 'superuser'] of FAULTS) await ward[by].query(plant);
      const findings = await ward.examine(who);

      const found = findings.map(({ severity, code, object }) => [severity, code, object]);
      for (const [severity, code, object] of FAULTS) {
        expect(found).toContainEqual([severity, code, object]);
      }
      for (const { reason } of findings) expect(reason).toMatch(/^[A-Z"].*\.$/);

      for (const { mend } of findings) {
        if (mend.sql !== undefined) await ward.mend(who, mend.sql);
      }
      expect(findings.some(({ mend }) => mend.shell?.startsWith('pgjot setup main'))).toBe(true);
      await ward.setup('superuser');
      await ward.setup('admin');

      const left = await ward.examine(who);
      expect(serious(left)).toEqual([]);
      expect(left.map(({ code }) => code)).not.toContain('policy_per_row');
      const { rows } = await ward.superuser.query(`select to_regproc('pgjot.backdoor') as found`);
      expect(rows).toEqual([{ found: null }]);
    },
    60_000,
  );
});
