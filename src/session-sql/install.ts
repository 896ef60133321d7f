/**
 * Installs the SQL objects of the session modes: roles, schema `pgjot`, the `auth.*` functions.
 *
 * What is installed, and why, is in `portable.sql`, `extension.sql`, `heal.sql`, `auth.sql` and `grants.sql`; what
 * removes it again, in `no-heal.sql` and `uninstall.sql`. This file gives them names and verifiers and runs them in one transaction. It neither
 * looks for problems (`pgjot doctor`) nor opens the administrator's connection.
 */
import type pg from 'pg';
import {
  CONTROL_ROLE,
  deriveIdentityKey,
  derivePassword,
  LOOKUP_ROLE,
  scramVerifier,
  slotName,
} from './credentials.ts';
import { plan, run, type Script } from './script.ts';

/**
 * The version of the SQL objects, which `pgjot.version()` returns. It grows whenever the objects change, so
 * that `pgjot doctor` can tell who must run `pgjot setup` again.
 */
export const SESSION_SQL_VERSION = 4;

/** What to install. `roles` is the whole list: slots that it no longer names are retired. */
export interface InstallOptions {
  /** The upstream's secret, from which all passwords derive. Everything in one cluster shares it, as it shares the roles. */
  readonly secret: string;
  /** Group roles, how many slots each has, and what it may be although Row-Level Security does not hold for it then. */
  readonly roles: Readonly<
    Record<string, { readonly slots: number; readonly attributes?: readonly string[] | undefined }>
  >;
  /** How identities reach SQL on this server. Default: `portable`. */
  readonly session?: 'portable' | 'pg_session_jwt';
  /** Whether its standbys serve clients (mode `replica`): they get the key that signs identities. */
  readonly replicas?: boolean;
  /** Whether to make the role that a lookup runs as. */
  readonly lookup?: boolean;
  /** Whether the proxy may mend slots that a user has spoilt. */
  readonly healSlots?: boolean;
  /** Schemas whose tables, present and future, group roles may use. What was granted earlier stays granted. */
  readonly grants?: readonly SchemaGrant[];
  /** Whether to enable and force Row-Level Security on every table of those schemas. */
  readonly forceRls?: boolean;
}

/** A schema of the application, and a group role that may use its tables. */
export interface SchemaGrant {
  readonly schema: string;
  readonly role: string;
}

/** How to uninstall. */
export interface UninstallOptions {
  /** Leave the roles alone, because other databases of the cluster use them. */
  readonly keepRoles?: boolean;
}

/** A row of the setting `pgjot_install.slots`, which `portable.sql` reads. */
interface PlannedSlot {
  readonly role: string;
  readonly slot: string;
  readonly number: number;
  readonly verifier: string;
  readonly attributes: readonly string[];
}

const MAX_SLOTS = 10_000;

/**
 * The statements that `install` would run, in order, as a script for psql. They hold verifiers with
 * fresh salts (so no two plans are equal), no password, not the secret, and in place of the identity key a remark.
 *
 * @throws {TypeError} when a slot's name would be too long, or a slot count is not between 1 and 10,000.
 */
export async function planInstall(options: InstallOptions): Promise<readonly string[]> {
  return plan(await installScript(options));
}

/**
 * Installs or updates everything in the database that `admin` is connected to, in one transaction:
 * it either all happens or nothing does. May be run again at any time, with live sessions, with
 * another number of slots, or with another secret (which then holds for the whole cluster).
 *
 * `admin` needs CREATEROLE and the database, or to be a superuser; it stays open and must not be
 * inside a transaction.
 *
 * @returns what was changed, one line each. That passwords were set, as they are every time, is not among it.
 * @throws {TypeError} when a slot's name would be too long, or a slot count is not between 1 and 10,000.
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function install(
  admin: pg.Client,
  options: InstallOptions,
): Promise<readonly string[]> {
  return run(admin, await installScript(options));
}

/** The statements that `uninstall` would run, in order, as a script for psql. */
export async function planUninstall(options: UninstallOptions = {}): Promise<readonly string[]> {
  return plan(uninstallScript(options));
}

/**
 * Removes what `install` made in the database that `admin` is connected to, in one transaction. Group roles
 * and the application's tables stay. `admin` as for `install`.
 *
 * @returns what was removed, one line each.
 * @throws {pg.DatabaseError} 55006 while sessions use the roles, 2BP01 while policies or other databases use
 *   what would go; nothing has changed then.
 */
export async function uninstall(
  admin: pg.Client,
  options: UninstallOptions = {},
): Promise<readonly string[]> {
  return run(admin, uninstallScript(options));
}

/**
 * Installs the demonstration: the table `public.todos` under Row-Level Security, with three rows of
 * `alice` and two of `bob`. Needs the group role `authenticated`; run again, it adds no rows.
 *
 * @throws {pg.DatabaseError} when PostgreSQL refuses; nothing has changed then.
 */
export async function installDemo(admin: pg.Client): Promise<void> {
  await run(admin, { settings: {}, files: ['demo.sql'] });
}

async function installScript(options: InstallOptions): Promise<Script> {
  const { secret, roles, session = 'portable', grants = [], forceRls = false } = options;
  const names = Object.entries(roles).flatMap(([role, { slots, attributes = [] }]) => {
    if (!Number.isInteger(slots) || slots < 1 || slots > MAX_SLOTS) {
      throw new TypeError(
        `role "${role}" must have between 1 and ${MAX_SLOTS} slots, not ${slots}`,
      );
    }
    return Array.from({ length: slots }, (_, i) => ({
      role,
      slot: slotName(role, i + 1),
      number: i + 1,
      attributes,
    }));
  });
  const verifierOf = (name: string) => scramVerifier(derivePassword(secret, name));
  const planned: PlannedSlot[] = await Promise.all(
    names.map(async (one) => ({ ...one, verifier: await verifierOf(one.slot) })),
  );
  return {
    settings: {
      'pgjot_install.version': String(SESSION_SQL_VERSION),
      'pgjot_install.control': await verifierOf(CONTROL_ROLE),
      'pgjot_install.slots': JSON.stringify(planned),
      'pgjot_install.lookup': options.lookup ? await verifierOf(LOOKUP_ROLE) : '',
      'pgjot_install.mode': session,
      ...(grants.length > 0 && {
        'pgjot_install.grants': JSON.stringify(grants),
        'pgjot_install.force_rls': String(forceRls),
      }),
    },
    secrets: options.replicas ? { identity_key: deriveIdentityKey(secret).toString('hex') } : {},
    files: [
      'portable.sql',
      options.healSlots ? 'heal.sql' : 'no-heal.sql',
      session === 'portable' ? 'auth.sql' : 'extension.sql',
      'report.sql',
      ...(grants.length > 0 ? ['grants.sql'] : []),
    ],
  };
}

function uninstallScript({ keepRoles = false }: UninstallOptions): Script {
  return {
    settings: { 'pgjot_install.keep_roles': String(keepRoles) },
    files: ['no-heal.sql', 'uninstall.sql'],
  };
}
