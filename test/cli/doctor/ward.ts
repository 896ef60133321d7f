/** A database of an application, as `pgjot setup --grant-schema public --force-rls` leaves it, for doctors to look at. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { diagnose } from '../../../src/cli/doctor/diagnose.ts';
import type { Finding } from '../../../src/cli/doctor/finding.ts';
import { parseConfig, type ConfigInput } from '../../../src/config.ts';
import { install, type InstallOptions } from '../../../src/session-sql/install.ts';
import { Database, SECRET } from '../../session-sql/database.ts';
import type { TestPostgresOptions } from '../../support/postgres.ts';

export { SECRET };

/** Who examines, and mends. */
export type Who = 'admin' | 'superuser';

export const ROLES = { authenticated: { slots: 4 }, analyst: { slots: 2 } };

const APPLICATION = `
  create table public.notes (id bigserial primary key, owner text not null default auth.user_id(), body text);
  create table public.shares (note bigint references public.notes, reader text);
  create policy own on public.notes to authenticated
    using (owner = (select auth.user_id())) with check (owner = (select auth.user_id()));
  create policy shared on public.notes for select to analyst
    using (exists (select 1 from public.shares s where s.note = notes.id and s.reader = (select auth.jwt() ->> 'sub')));
  create policy mine on public.shares to authenticated using (reader = (select pgjot.user_id()));
  create function public.word_count() returns bigint language sql security definer
    set search_path = pg_catalog, public, pg_temp as 'select count(*) from public.notes';
  create materialized view public.statistics as select count(*) from public.notes;
  create schema private;
  create table private.audit (line text)`;

/** The patient, its administrator and its superuser. */
export class Ward implements AsyncDisposable {
  readonly database: Database;
  readonly folder: string;
  readonly admin: pg.Client;
  readonly superuser: pg.Client;

  private constructor(database: Database, folder: string, admin: pg.Client, superuser: pg.Client) {
    this.database = database;
    this.folder = folder;
    this.admin = admin;
    this.superuser = superuser;
  }

  /** A server of its own with nothing in the database. */
  static async bare(options: TestPostgresOptions = {}): Promise<Ward> {
    const database = await Database.start(options);
    const folder = await mkdtemp(join(tmpdir(), 'pgjot-doctor-'));
    return new Ward(database, folder, await database.admin(), await database.superuser());
  }

  /** The application, and what setup makes of it when `who` runs it. */
  static async healthy(
    who: Who,
    options: TestPostgresOptions = {},
    setup: Partial<InstallOptions> = {},
  ): Promise<Ward> {
    const ward = await Ward.bare(options);
    if (setup.session === 'pg_session_jwt') {
      // Which an administrator who is no superuser has to be given.
      await ward.superuser.query(
        'create extension pg_session_jwt; grant usage on schema auth to admin with grant option',
      );
    }
    await install(ward[who], { secret: SECRET, roles: ROLES, ...setup });
    const wants = ward.database.server.major >= 15 ? ' with (security_invoker = true)' : '';
    await ward[who].query(APPLICATION);
    await ward[who].query(`create view public.drafts${wants} as select * from public.notes`);
    if (wants !== '') await ward[who].query('grant select on public.drafts to authenticated');
    await ward.setup(who, setup);
    return ward;
  }

  /** What `pgjot setup main --grant-schema public --force-rls` does. */
  async setup(who: Who, setup: Partial<InstallOptions> = {}): Promise<void> {
    const grants = Object.keys(setup.roles ?? ROLES).map((role) => ({ schema: 'public', role }));
    await install(this[who], { secret: SECRET, roles: ROLES, grants, forceRls: true, ...setup });
  }

  /** Runs SQL that the doctor gave as `who`, or, where PostgreSQL wants more for it, as superuser. */
  async mend(who: Who, sql: string): Promise<void> {
    const refusals: (string | undefined)[] = [];
    // REVOKE by somebody who granted nothing is a warning to PostgreSQL.
    const listen = ({ code }: { code: string | undefined }) => refusals.push(code);
    this[who].on('notice', listen);
    try {
      await this[who].query(sql);
    } catch (error) {
      if (!(error instanceof pg.DatabaseError)) throw error;
      refusals.push(error.code);
    }
    this[who].off('notice', listen);
    if (refusals.length === 0) return;
    await this[who].query('rollback');
    const isOfRights = refusals.every((one) => one === '42501' || one === '01006');
    if (who !== 'admin' || !isOfRights) throw new Error(`${refusals.join()}: ${sql}`);
    await this.superuser.query(sql);
  }

  /** The configuration of this upstream as the proxy has it. */
  config(upstream: Partial<ConfigInput['upstreams'][string]> = {}): ConfigInput {
    const { host, port } = this.database.server;
    return {
      listen: { port: 0 },
      providers: {
        own: {
          issuer: 'https://id.example.com',
          jwksFile: join(this.folder, 'jwks.json'),
          audience: 'app',
          roles: ['authenticated'],
        },
      },
      upstreams: {
        main: {
          host,
          port,
          database: 'app',
          secret: { env: 'PGJOT_MAIN_SECRET' },
          roles: ROLES,
          ...upstream,
        },
      },
    };
  }

  /** Writes the configuration to a file that nobody else can read, and returns its path. */
  async configFile(config = this.config()): Promise<string> {
    const file = join(this.folder, 'proxy.config.json');
    await writeFile(file, JSON.stringify(config), { mode: 0o600 });
    return file;
  }

  /** What the doctor finds; `secret` is the one that the proxy has. */
  async examine(
    who: Who,
    { config = this.config(), secret = SECRET }: { config?: ConfigInput; secret?: string } = {},
  ): Promise<Finding[]> {
    const configFile = await this.configFile(config);
    return diagnose(this[who], {
      name: 'main',
      config: parseConfig(config),
      configFile,
      secrets: { current: secret },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.database[Symbol.asyncDispose]();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** All but advice. */
export function serious(findings: readonly Finding[]): Finding[] {
  return findings.filter(({ severity }) => severity !== 'advice');
}
