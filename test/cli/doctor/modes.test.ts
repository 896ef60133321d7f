/** What belongs to session modes, lookups and slot care: nothing is found in what setup leaves, and every fault is. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { diagnose } from '../../../src/cli/doctor/diagnose.ts';
import type { Finding, Severity } from '../../../src/cli/doctor/finding.ts';
import { parseConfig, type ConfigInput } from '../../../src/config.ts';
import { install, type InstallOptions } from '../../../src/session-sql/install.ts';
import { createAuthority } from '../../support/certificate.ts';
import { connectAsSuperuser, hasExtension, postgresVersions } from '../../support/postgres.ts';
import { startStandby, type Standby } from '../../support/standby.ts';
import { ROLES, SECRET, serious, Ward, type Who } from './ward.ts';

type UpstreamInput = ConfigInput['upstreams'][string];
type Fault = readonly [
  severity: Severity,
  code: string,
  object: string,
  plant: string,
  since?: number,
];

const LOOKUP = { sql: 'select body from public.notes where owner = $1', params: ['/sub'] };
const codes = (findings: readonly Finding[]) =>
  findings.map(({ severity, code, object }) => [severity, code, object]);

beforeEach(() => {
  // The lookup's query is tried as the proxy runs it.
  vi.stubEnv('PGJOT_MAIN_SECRET', SECRET);
});

/** The configuration with this upstream and a standby of it, to which nobody connects. */
function withReplica(ward: Ward, upstream: Partial<UpstreamInput> = {}): ConfigInput {
  const config = ward.config(upstream);
  const main = config.upstreams['main'] as UpstreamInput;
  const { healSlots: _, ...same } = main;
  return {
    ...config,
    upstreams: { main, reads: { ...same, port: 1, session: 'replica' } },
  };
}

/** The advice that is no more than what one who is no superuser cannot see. */
const UNSEEN = new Set(['hba_unknown', 'identity_key_unknown']);
const seen = (findings: readonly Finding[]) => findings.filter(({ code }) => !UNSEEN.has(code));

describe.each(postgresVersions())('what setup leaves on PostgreSQL %i', (version) => {
  let ward: Ward;
  beforeAll(async () => {
    ward = await Ward.healthy('admin', { version });
    await ward.superuser.query('revoke create on schema public from public');
  });
  afterAll(() => ward[Symbol.asyncDispose]());

  const bypass = { ...ROLES, analyst: { slots: 2, attributes: ['BYPASSRLS' as const] } };
  const CONFIGURATIONS: readonly (readonly [
    name: string,
    setup: Partial<InstallOptions>,
    config: () => ConfigInput,
  ])[] = [
    ['healSlots', { healSlots: true }, () => ward.config({ healSlots: true })],
    ['a standby', { replicas: true }, () => withReplica(ward)],
    ['a lookup', { lookup: true }, () => ward.config({ lookup: LOOKUP })],
    [
      'all of these',
      { healSlots: true, replicas: true, lookup: true },
      () => withReplica(ward, { healSlots: true, lookup: LOOKUP }),
    ],
    ['none of these again', {}, () => ward.config()],
  ];

  it.each(CONFIGURATIONS)('with %s is nothing to be found', async (_, setup, config) => {
    await ward.setup('admin', setup);
    if (setup.lookup) {
      await ward.superuser.query('grant select on public.notes to pgjot_lookup');
    }

    for (const who of ['admin', 'superuser'] as const) {
      expect(seen(await ward.examine(who, { config: config() }))).toEqual([]);
    }
    if (setup.lookup) {
      await ward.superuser.query('drop owned by pgjot_lookup; drop role pgjot_lookup');
    }
  });

  it('with a privileged role is that, as advice where the configuration names it', async () => {
    await ward.superuser.query('alter role analyst bypassrls');
    await ward.setup('superuser', { roles: bypass });

    const named = await ward.examine('superuser', { config: ward.config({ roles: bypass }) });
    const unnamed = await ward.examine('superuser');

    expect(codes(named)).toEqual([['advice', 'role_privileged', 'role analyst']]);
    expect(named[0]?.reason).toContain('BYPASSRLS');
    expect(codes(unnamed)).toEqual([['critical', 'role_privileged', 'role analyst']]);
    await ward.superuser.query('alter role analyst createrole');
    const partly = await ward.examine('superuser', { config: ward.config({ roles: bypass }) });
    expect(codes(partly)).toEqual([
      ['critical', 'role_privileged', 'role analyst'],
      ['advice', 'role_privileged', 'role analyst'],
    ]);
    expect(partly[0]?.mend.sql).toBe('alter role analyst nocreaterole;');
    await ward.superuser.query(`
      alter role analyst nobypassrls nocreaterole;
      create role auditors bypassrls; grant auditors to analyst`);
    const byMembership = await ward.examine('superuser', {
      config: ward.config({ roles: bypass }),
    });
    expect(byMembership.map(({ code }) => code)).not.toContain('group_membership');
    expect(codes(await ward.examine('superuser'))).toContainEqual([
      'critical',
      'group_membership',
      'role analyst in auditors',
    ]);
    await ward.superuser.query('drop role auditors');
  });

  it('with a superuser for a role is not drowned in what superusers may do', async () => {
    const roles = { ...ROLES, analyst: { slots: 2, attributes: ['SUPERUSER' as const] } };
    await ward.superuser.query('alter role analyst superuser');
    await ward.setup('superuser', { roles });

    const found = await ward.examine('superuser', { config: ward.config({ roles }) });

    expect(codes(found)).toEqual([['advice', 'role_privileged', 'role analyst']]);
    await ward.superuser.query('alter role analyst nosuperuser');
    await ward.setup('superuser');
  });

  it('for two databases of the cluster, each with roles of its own, is nothing to be found', async () => {
    await ward.superuser.query('create database other owner admin');
    const other = await ward.database.admin('other');
    const roles = { authenticated: { slots: 4 }, auditor: { slots: 1 } };
    await install(other, { secret: SECRET, roles, healSlots: true });
    await ward.setup('admin');

    expect(seen(await ward.examine('superuser'))).toEqual([]);
    await ward.setup('admin', { healSlots: true });
    expect(
      seen(await ward.examine('superuser', { config: ward.config({ healSlots: true }) })),
    ).toEqual([]);
    await ward.setup('admin');
  });
});

const EVERYTHING = { healSlots: true, replicas: true, lookup: true };

const FAULTS: readonly Fault[] = [
  ['critical', 'healer_login', 'role pgjot_healer', 'alter role pgjot_healer login'],
  ['critical', 'role_privileged', 'role pgjot_healer', 'alter role pgjot_healer createdb'],
  [
    'critical',
    'role_granted',
    'role spy in pgjot_healer',
    'create role spy; grant pgjot_healer to spy',
  ],
  [
    'critical',
    'role_granted',
    'role pgjot_owner in pgjot_healer',
    'grant pgjot_healer to pgjot_owner',
  ],
  [
    'critical',
    'role_membership',
    'role pgjot_healer in pg_monitor',
    'grant pg_monitor to pgjot_healer',
  ],
  [
    'critical',
    'role_granted',
    'role pgjot_healer in pgjot_authenticated_1',
    'grant pgjot_authenticated_1 to pgjot_healer',
  ],
  [
    'warning',
    'healer_powerless',
    'role pgjot_healer',
    'set role admin; revoke pgjot_authenticated_2 from pgjot_healer; reset role',
    16,
  ],
  [
    'critical',
    'control_function_granted',
    'function pgjot.heal(name,text)',
    'grant execute on function pgjot.heal to authenticated',
  ],
  [
    'critical',
    'public_execute',
    'function pgjot.heal(name,text)',
    'grant execute on function pgjot.heal to public',
  ],
  [
    'critical',
    'pgjot_table_granted',
    'table pgjot.slot',
    'grant insert, update on pgjot.slot to pgjot_healer',
  ],
  [
    'critical',
    'pgjot_table_granted',
    'table pgjot.identity_key',
    'grant select on pgjot.identity_key to analyst',
  ],
  ['critical', 'role_privileged', 'role pgjot_lookup', 'alter role pgjot_lookup bypassrls'],
  [
    'critical',
    'role_membership',
    'role pgjot_lookup in authenticated',
    'grant authenticated to pgjot_lookup',
  ],
  [
    'critical',
    'role_granted',
    'role pgjot_lookup in pgjot_control',
    'grant pgjot_control to pgjot_lookup',
  ],
  [
    'critical',
    'role_membership',
    'role pgjot_lookup in middle',
    'create role middle bypassrls; grant middle to pgjot_lookup',
  ],
  ['critical', 'group_membership', 'role analyst in pgjot_lookup', 'grant pgjot_lookup to analyst'],
  [
    'warning',
    'lookup_writes',
    'table public.notes',
    'grant insert, update (body) on public.notes to pgjot_lookup',
  ],
  [
    'warning',
    'lookup_writes',
    'table private.open',
    'create table private.open (); grant usage on schema private to pgjot_lookup; grant delete on private.open to public',
  ],
  [
    'warning',
    'slot_expiry',
    'role pgjot_lookup',
    `alter role pgjot_lookup valid until '2030-01-01'`,
  ],
];

describe.each(postgresVersions())('the doctor on PostgreSQL %i', (version) => {
  it.each(['admin', 'superuser'] as const)(
    'finds every fault of slot care, lookup and standby as %s, and its SQL mends each',
    async (who) => {
      await using ward = await Ward.healthy('admin', { version }, EVERYTHING);
      await ward.superuser.query(`
        revoke create on schema public from public; grant select on public.notes to pgjot_lookup`);
      const examine = () =>
        ward.examine(who, { config: withReplica(ward, { healSlots: true, lookup: LOOKUP }) });
      expect(seen(await examine())).toEqual([]);
      const faults = FAULTS.filter(([, , , , since = 0]) => version >= since);

      for (const [, , , plant] of faults) await ward.superuser.query(plant);
      const findings = await examine();

      const found = codes(findings);
      for (const [severity, code, object] of faults) {
        expect(found).toContainEqual([severity, code, object]);
      }
      for (const { reason } of findings) expect(reason).toMatch(/^[A-Z"].*\.$/);
      for (const { mend } of findings) {
        if (mend.sql !== undefined) await ward.mend(who, mend.sql);
      }
      await ward.setup('superuser', EVERYTHING);
      await ward.setup('admin', EVERYTHING);
      expect(seen(await examine())).toEqual([]);
    },
    60_000,
  );

  it('says whether slots can be mended where the configuration says so, and only there', async () => {
    await using ward = await Ward.healthy('admin', { version });
    await ward.superuser.query('revoke create on schema public from public');
    const healing = ward.config({ healSlots: true });
    const found = async (who: Who, config = ward.config()) =>
      codes(serious(await ward.examine(who, { config })));

    for (const who of ['admin', 'superuser'] as const) {
      expect(await found(who, healing)).toEqual([
        ['warning', 'healer_missing', 'role pgjot_healer'],
      ]);
    }
    await ward.setup('admin', { healSlots: true });
    for (const who of ['admin', 'superuser'] as const) {
      expect(await found(who, healing)).toEqual([]);
      expect(await found(who)).toEqual([['warning', 'healer_unused', 'role pgjot_healer']]);
    }
    await ward.superuser.query('alter role pgjot_healer superuser');
    const [almighty] = serious(await ward.examine('admin', { config: healing }));
    expect(codes(almighty ? [almighty] : [])).toEqual([
      ['critical', 'role_privileged', 'role pgjot_healer'],
    ]);
    await ward.superuser.query(almighty?.mend.sql ?? '');
    await ward.superuser.query('alter role pgjot_healer nocreaterole');
    expect(await found('admin', healing)).toEqual([
      ['warning', 'healer_missing', 'role pgjot_healer'],
    ]);
    await ward.setup('admin');
    await ward.superuser.query('create role pgjot_healer createrole');
    expect(await found('admin')).toEqual([['warning', 'healer_unused', 'role pgjot_healer']]);
  });

  it("says whether the lookup's role is there and its query can be run", async () => {
    await using ward = await Ward.healthy('admin', { version });
    await ward.superuser.query('revoke create on schema public from public');
    const found = async (lookup: UpstreamInput['lookup']) =>
      serious(await ward.examine('admin', { config: ward.config({ lookup }) }));

    expect(codes(await found(LOOKUP))).toEqual([
      ['critical', 'lookup_missing', 'role pgjot_lookup'],
    ]);
    await ward.setup('admin', { lookup: true });
    const [denied, ...more] = await found(LOOKUP);
    expect(more).toEqual([]);
    expect(denied).toMatchObject({
      severity: 'critical',
      code: 'lookup_query',
      object: 'upstreams.main.lookup.sql',
    });
    expect(denied?.reason).toMatch(/permission denied for table notes.*\.$/);
    expect(codes(await found({ ...LOOKUP, required: false }))).toEqual([
      ['warning', 'lookup_query', 'upstreams.main.lookup.sql'],
    ]);
    await ward.superuser.query('grant select on public.notes to pgjot_lookup');
    expect(await found(LOOKUP)).toEqual([]);
    for (const wrong of [{ params: [] }, { sql: 'select * from public.nothing', params: [] }]) {
      expect((await found({ ...LOOKUP, ...wrong }))[0]).toMatchObject({ code: 'lookup_query' });
    }
    await ward.superuser.query('alter role pgjot_lookup nologin');
    expect(codes(await found(LOOKUP))).toEqual([
      ['critical', 'lookup_missing', 'role pgjot_lookup'],
    ]);
  });

  it('says whether the key of signed identities is there and ours, where it may look', async () => {
    await using ward = await Ward.healthy('admin', { version });
    await ward.superuser.query('revoke create on schema public from public');
    const found = async (who: Who, config: ConfigInput) =>
      codes(await ward.examine(who, { config })).filter(([, code]) => code !== 'hba_unknown');
    const finding = (severity: Severity, code: string) => [
      [severity, code, 'table pgjot.identity_key'],
    ];

    expect(await found('superuser', withReplica(ward))).toEqual(
      finding('critical', 'identity_key_missing'),
    );
    expect(await found('admin', withReplica(ward))).toEqual(
      finding('advice', 'identity_key_unknown'),
    );
    await ward.setup('admin', { replicas: true });
    expect(await found('superuser', withReplica(ward))).toEqual([]);
    expect(await found('superuser', ward.config())).toEqual(
      finding('advice', 'identity_key_unused'),
    );
    expect(await found('admin', ward.config())).toEqual([]);
    await ward.superuser.query(`update pgjot.identity_key set inner_block = sha512('another')`);
    const foreign = await ward.examine('superuser', { config: withReplica(ward) });
    expect(codes(foreign)).toEqual(finding('critical', 'identity_key_foreign'));
    expect(foreign[0]?.mend.shell).toMatch(/^pgjot setup main --config /);
    await ward.setup('admin', { replicas: true });
    expect(await found('superuser', withReplica(ward))).toEqual([]);
  });

  it('runs nothing that somebody else put in the place of the key', async () => {
    await using ward = await Ward.bare({ version });
    await ward.superuser.query(`
      create schema pgjot;
      create function pgjot.spring() returns bytea language plpgsql as $$ begin raise 'sprung'; end $$;
      create view pgjot.identity_key as select pgjot.spring() as inner_block`);

    const found = codes(await ward.examine('superuser', { config: withReplica(ward) }));

    expect(found).toContainEqual(['critical', 'wrong_owner', 'schema pgjot']);
  });

  it('says that the session functions are of another mode', async () => {
    await using ward = await Ward.healthy('admin', { version });
    await ward.superuser.query('revoke create on schema public from public');

    const found = await ward.examine('superuser', {
      config: ward.config({ session: 'pg_session_jwt' }),
    });

    expect(codes(found)).toContainEqual(['critical', 'mode_mismatch', 'function pgjot.claims()']);
    expect(codes(found)).toContainEqual([
      'critical',
      'extension_missing',
      'extension pg_session_jwt',
    ]);
    const { reason, mend } = found.find(({ code }) => code === 'extension_missing') as Finding;
    if (hasExtension(version, 'pg_session_jwt')) expect(mend.shell).toMatch(/^pgjot setup/);
    else expect([reason, mend.shell]).toEqual([expect.stringContaining('The server'), undefined]);
  });
});

describe('pg_hba.conf in mode pg_session_jwt', () => {
  const PROXY = 'host app +authenticated,+analyst 10.0.0.1/32 scram-sha-256';
  const SHUT = 'host all +authenticated,+analyst all reject';
  const OPEN = 'host all all 0.0.0.0/0 scram-sha-256';
  let ward: Ward;
  beforeAll(async () => {
    // Else rules for TLS would not count.
    const authority = createAuthority();
    const { cert, key } = authority.issue();
    ward = await Ward.healthy('admin', {
      settings: { ssl: 'on', ssl_ca_file: 'root.crt' },
      files: { 'server.crt': cert, 'server.key': key, 'root.crt': authority.ca },
    });
  });
  afterAll(() => ward[Symbol.asyncDispose]());

  it.each([
    ['with a password from everywhere', [OPEN], [4]],
    ['from everywhere, by the name of its group', ['host app +analyst all scram-sha-256'], [4]],
    ['from everywhere, by a pattern', ['hostssl app /^pgjot_ ::/0 scram-sha-256'], [4]],
    ['from named addresses', [PROXY], []],
    ['from named addresses, everybody else not', [PROXY, SHUT, OPEN], []],
    ['of one group from everywhere, of the other not', ['host all +analyst all reject', OPEN], [5]],
    ['from everywhere before it is not', [OPEN, SHUT], [4]],
    ['not over TLS, else from everywhere', ['hostssl all all all reject', OPEN], [5]],
    ['by certificate', ['hostssl all all all cert'], []],
    [
      'by password and certificate',
      ['hostssl all all all scram-sha-256 clientcert=verify-full'],
      [],
    ],
    ['not at all, but others are', ['host all postgres,app_user all scram-sha-256'], []],
    ['to another database', ['host other all all scram-sha-256'], []],
  ])('lets slots in %s', async (_, rules, lines) => {
    const file = join(ward.database.server.dataDir, 'pg_hba.conf');
    const before = await readFile(file, 'utf8');
    const own = 'host all all 127.0.0.1/32 scram-sha-256';
    await writeFile(file, ['#', '#', own, ...rules, ''].join('\n'));

    const config = ward.config({ session: 'pg_session_jwt' });
    const found = (await ward.examine('superuser', { config })).filter(
      ({ code }) => code === 'hba_slots_open',
    );
    const portable = codes(await ward.examine('superuser'));
    const { rows: mistakes } = await ward.superuser.query(
      'select error from pg_hba_file_rules where error is not null',
    );

    await writeFile(file, before);
    expect(mistakes).toEqual([]);
    expect(codes(found)).toEqual(
      lines.map((line) => ['warning', 'hba_slots_open', `pg_hba.conf line ${line}`]),
    );
    expect(portable.map(([, code]) => code)).not.toContain('hba_slots_open');
  });

  it('cannot be seen by everybody, and that is said', async () => {
    const config = ward.config({ session: 'pg_session_jwt' });
    const found = await ward.examine('admin', { config });

    expect(found.find(({ code }) => code === 'hba_unknown')?.reason).toMatch(
      /slot can be anybody.*change its password/,
    );
  });
});

describe.each(postgresVersions())('a standby on PostgreSQL %i', (version) => {
  let ward: Ward;
  let standby: Standby;
  beforeAll(async () => {
    ward = await Ward.healthy('admin', { version }, EVERYTHING);
    await ward.superuser.query(`
      revoke create on schema public from public; grant select on public.notes to pgjot_lookup`);
    standby = await startStandby(ward.database.server);
  });
  afterAll(async () => {
    await standby.stop();
    await ward[Symbol.asyncDispose]();
  });

  /** What the doctor finds there; `main` is the primary, unless it is not in the configuration. */
  async function examine(replica: Partial<UpstreamInput> = {}, { alone = false } = {}) {
    await standby.caughtUp();
    const { upstreams, ...rest } = ward.config({ healSlots: true });
    const main = upstreams['main'] as UpstreamInput;
    const { healSlots: _, ...same } = main;
    const reads = { ...same, session: 'replica' as const, port: standby.port, ...replica };
    const config = { ...rest, upstreams: alone ? { reads } : { main, reads } };
    const configFile = await ward.configFile(config);
    const client = await connectAsSuperuser(standby, 'app');
    try {
      return await diagnose(client, {
        name: 'reads',
        config: parseConfig(config),
        configFile,
        secrets: { current: SECRET },
      });
    } finally {
      await client.end();
    }
  }

  it('of what setup leaves has nothing to be found', async () => {
    expect(await examine()).toEqual([]);
    expect(await examine({ lookup: LOOKUP })).toEqual([]);
    expect(await examine({}, { alone: true })).toEqual([]);
    expect(await examine({ roles: { authenticated: { slots: 1 } } })).toEqual([]);
  });

  it('has the faults of its primary, to be mended there', async () => {
    await ward.superuser.query(`
      alter role analyst bypassrls; delete from pgjot.identity_key; create table public.open (); grant select on public.open to analyst`);

    const found = await examine();

    expect(codes(found)).toEqual([
      ['critical', 'role_privileged', 'role analyst'],
      ['critical', 'table_without_rls', 'table public.open'],
      ['critical', 'identity_key_missing', 'table pgjot.identity_key'],
    ]);
    expect(found[0]?.mend).toEqual({
      sql: 'alter role analyst nobypassrls;',
      manual: 'all of that on the primary',
    });
    expect(found[2]?.mend.shell).toMatch(/^pgjot setup main --config /);
    const alone = await examine({}, { alone: true });
    expect(alone[2]?.mend).toEqual({ manual: 'run pgjot setup for its primary' });
    await ward.superuser.query('alter role analyst nobypassrls; drop table public.open');
    await ward.setup('admin', EVERYTHING);
    expect(await examine()).toEqual([]);
  });

  it('is no server for mode portable, and a primary none for mode replica', async () => {
    const portable = await examine({ session: 'portable' }, { alone: true });
    const primary = ward.config();
    const replica = await ward.examine('superuser', {
      config: {
        ...primary,
        upstreams: {
          main: { ...(primary.upstreams['main'] as UpstreamInput), session: 'replica' },
        },
      },
    });

    expect(codes(portable)).toContainEqual(['critical', 'server_is_standby', 'server']);
    expect(codes(serious(replica))).toEqual([['critical', 'server_is_primary', 'server']]);
  });
});

describe.each(postgresVersions().filter((version) => hasExtension(version, 'pg_session_jwt')))(
  'the extension on PostgreSQL %i',
  (version) => {
    const session = 'pg_session_jwt';
    const config = (ward: Ward) => ward.config({ session });

    it.each(['admin', 'superuser'] as const)(
      'as setup leaves it gives nothing to be found, as %s',
      async (who) => {
        await using ward = await Ward.healthy(who, { version }, { session });
        await ward.superuser.query('revoke create on schema public from public');

        for (const one of ['admin', 'superuser'] as const) {
          expect(seen(await ward.examine(one, { config: config(ward) }))).toEqual([]);
        }
      },
    );

    it('is found missing, outdated and unusable, and mended', async () => {
      await using ward = await Ward.healthy('superuser', { version }, { session });
      await ward.superuser.query(`
        revoke create on schema public from public;
        update pg_extension set extversion = '0.3.1' where extname = 'pg_session_jwt';
        revoke usage on schema auth from analyst`);

      const found = await ward.examine('superuser', { config: config(ward) });

      expect(codes(found)).toEqual([
        ['critical', 'extension_outdated', 'extension pg_session_jwt'],
        ['critical', 'extension_unusable', 'role analyst'],
      ]);
      // It is not really of that version, so there is nothing to update from.
      await ward.superuser.query(
        `update pg_extension set extversion = '0.5.0' where extname = 'pg_session_jwt'`,
      );
      await ward.superuser.query(found[1]?.mend.sql ?? '');
      expect(await ward.examine('superuser', { config: config(ward) })).toEqual([]);
    });

    it('is not to be believed by policies in another mode', async () => {
      await using ward = await Ward.bare({ version });
      await ward.superuser.query(`
        revoke create on schema public from public; create extension pg_session_jwt`);
      await ward.setup('superuser');
      await ward.superuser.query(`
        create table public.notes (owner text);
        alter table public.notes enable row level security, force row level security;
        create policy own on public.notes using (owner = (select auth.user_id()));
        create policy claim on public.notes using (owner = (select auth.jwt() ->> 'email'));
        create policy ours on public.notes using (owner = (select pgjot.user_id()))`);

      const found = await ward.examine('superuser');

      const forgeable = found.filter(({ code }) => code === 'policy_forgeable');
      expect(codes(forgeable)).toEqual([
        ['critical', 'policy_forgeable', 'policy claim on table public.notes'],
        ['critical', 'policy_forgeable', 'policy own on table public.notes'],
      ]);
      // As in the mode of the extension nobody has to mend anything.
      const inMode = await ward.examine('superuser', { config: config(ward) });
      expect(inMode.map(({ code }) => code)).not.toContain('policy_forgeable');
      for (const { mend } of forgeable) await ward.superuser.query(mend.sql ?? '');
      expect(serious(await ward.examine('superuser'))).toEqual([]);
    });
  },
);
