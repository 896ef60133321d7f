/**
 * Installs the SQL objects of session mode `portable`: roles, schema `pgjot`, the `auth.*` functions.
 *
 * What is installed, and why, is in `portable.sql` and `auth.sql`; this file gives them names and
 * verifiers and runs them in one transaction. It neither looks for problems (`pgjot doctor`) nor
 * opens the administrator's connection.
 */
import { readFile } from 'node:fs/promises';
import pg from 'pg';
import { CONTROL_ROLE, derivePassword, scramVerifier, slotName } from './credentials.ts';

/** What to install. `roles` is the whole list: slots that it no longer names are retired. */
export interface InstallOptions {
  /** The upstream's secret, from which all passwords derive. Everything in one cluster shares it, as it shares the roles. */
  readonly secret: string;
  /** Group roles, and how many slots each has. */
  readonly roles: Readonly<Record<string, { readonly slots: number }>>;
}

/** A row of the setting `pgjot_install.slots`, which `portable.sql` reads. */
interface PlannedSlot {
  readonly role: string;
  readonly slot: string;
  readonly number: number;
  readonly verifier: string;
}

/** The settings that `portable.sql` reads, by name. */
type InstallSettings = Readonly<Record<string, string>>;

const MAX_SLOTS = 10_000;

/**
 * The statements that `install` would run, in order, as a script for psql. They hold verifiers with
 * fresh salts (so no two plans are equal), no password and not the secret.
 *
 * @throws {TypeError} when a slot's name would be too long, or a slot count is not between 1 and 10,000.
 */
export async function planInstall(options: InstallOptions): Promise<readonly string[]> {
  const settings = await installSettings(options);
  return [
    'BEGIN;',
    ...Object.entries(settings).map(
      ([name, value]) => `SET LOCAL ${name} = ${pg.escapeLiteral(value)};`,
    ),
    await readSql('portable.sql'),
    await readSql('auth.sql'),
    'COMMIT;',
  ];
}

/**
 * Installs or updates everything in the database that `admin` is connected to, in one transaction:
 * it either all happens or nothing does. May be run again at any time, with live sessions, with
 * another number of slots, or with another secret (which then holds for the whole cluster).
 *
 * `admin` needs CREATEROLE and the database, or to be a superuser; it stays open and must not be
 * inside a transaction.
 *
 * @throws {TypeError} when a slot's name would be too long, or a slot count is not between 1 and 10,000.
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function install(admin: pg.Client, options: InstallOptions): Promise<void> {
  const settings = await installSettings(options);
  const portable = await readSql('portable.sql');
  const auth = await readSql('auth.sql');
  await inTransaction(admin, async () => {
    for (const [name, value] of Object.entries(settings)) {
      await admin.query('SELECT pg_catalog.set_config($1, $2, true)', [name, value]);
    }
    await admin.query(portable);
    await admin.query(auth);
  });
}

/**
 * Installs the demonstration: the table `public.todos` under Row-Level Security, with three rows of
 * `alice` and two of `bob`. Needs the group role `authenticated`; run again, it adds no rows.
 *
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function installDemo(admin: pg.Client): Promise<void> {
  const demo = await readSql('demo.sql');
  await inTransaction(admin, async () => {
    await admin.query(demo);
  });
}

async function installSettings({ secret, roles }: InstallOptions): Promise<InstallSettings> {
  const names = Object.entries(roles).flatMap(([role, { slots }]) => {
    if (!Number.isInteger(slots) || slots < 1 || slots > MAX_SLOTS) {
      throw new TypeError(
        `role "${role}" must have between 1 and ${MAX_SLOTS} slots, not ${slots}`,
      );
    }
    return Array.from({ length: slots }, (_, i) => ({
      role,
      slot: slotName(role, i + 1),
      number: i + 1,
    }));
  });
  const verifierOf = (name: string) => scramVerifier(derivePassword(secret, name));
  const planned: PlannedSlot[] = await Promise.all(
    names.map(async (one) => ({ ...one, verifier: await verifierOf(one.slot) })),
  );
  return {
    'pgjot_install.control': await verifierOf(CONTROL_ROLE),
    'pgjot_install.slots': JSON.stringify(planned),
  };
}

async function inTransaction(admin: pg.Client, work: () => Promise<void>): Promise<void> {
  await admin.query('BEGIN');
  try {
    await work();
    await admin.query('COMMIT');
  } catch (error) {
    // The connection itself may be what failed; the first error is the one that explains.
    await admin.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

// The build copies the .sql files beside the compiled module, so one relative path serves both.
function readSql(file: string): Promise<string> {
  return readFile(new URL(file, import.meta.url), 'utf8');
}
