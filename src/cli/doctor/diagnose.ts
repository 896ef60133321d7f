/**
 * Everything that `pgjot doctor` looks at, in order.
 *
 * Changes nothing: the database is read in one read-only transaction.
 */
import type { Client } from 'pg';
import type { Config } from '../../config.ts';
import { examine, runChecks, type Expected } from './check.ts';
import { configuredTls, connectionFindings } from './connection.ts';
import { fileFindings } from './files.ts';
import { worstFirst, type Finding } from './finding.ts';
import { OBJECT_CHECKS } from './objects.ts';
import { policyFindings } from './policies.ts';
import { ROLE_CHECKS } from './roles.ts';
import { serverFindings } from './server.ts';
import { TABLE_CHECKS } from './tables.ts';

/** What is examined. */
export interface Patient {
  /** The upstream's name in the configuration. */
  readonly name: string;
  readonly config: Config;
  readonly configFile: string;
  /** The upstream's secret, to log in as the proxy does. */
  readonly secret: string;
}

/**
 * The findings, the worst first. `admin` is connected to the upstream's database, stays open and must not be
 * inside a transaction.
 *
 * @throws {pg.DatabaseError} when PostgreSQL refuses a query.
 */
export async function diagnose(admin: Client, patient: Patient): Promise<Finding[]> {
  const { name, config, configFile, secret } = patient;
  const upstream = config.upstreams[name];
  if (upstream === undefined) throw new TypeError(`no upstream "${name}"`);
  const expected: Expected = {
    roles: upstream.roles,
    setup: `pgjot setup ${name} --config ${configFile}`,
  };
  return worstFirst([
    ...fileFindings(configFile, config, upstream),
    ...configuredTls(name, upstream, config),
    ...(await connectionFindings(admin, upstream, secret, expected)),
    ...(await examine(admin, async () => [
      ...(await serverFindings(admin, expected)),
      ...(await runChecks(admin, [...OBJECT_CHECKS, ...ROLE_CHECKS, ...TABLE_CHECKS], expected)),
      ...(await policyFindings(admin, expected)),
    ])),
  ]);
}
