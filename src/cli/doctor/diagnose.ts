/**
 * Everything that `pgjot doctor` looks at, in order.
 *
 * Changes nothing: the database is read in one read-only transaction.
 */
import type { Client } from 'pg';
import type { Config, SecretPair, UpstreamConfig } from '../../config.ts';
import { Secrets } from '../../upstream/secrets.ts';
import { primaryOf, replicasOf } from '../standbys.ts';
import { examine, runChecks, type Expected } from './check.ts';
import { configuredTls, connectionFindings } from './connection.ts';
import { fileFindings } from './files.ts';
import { rotationFindings } from './rotation.ts';
import { worstFirst, type Finding } from './finding.ts';
import { HEALING_CHECKS } from './healing.ts';
import { LOOKUP_CHECKS, queryFindings } from './lookup.ts';
import { keyFindings, MODE_CHECKS } from './modes.ts';
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
  /** The upstream's secrets, to log in as the proxy does. */
  readonly secrets: SecretPair;
}

/**
 * The findings, the worst first. `admin` is connected to the upstream's database, stays open and must not be
 * inside a transaction.
 *
 * @throws {pg.DatabaseError} when PostgreSQL refuses a query.
 */
export async function diagnose(admin: Client, patient: Patient): Promise<Finding[]> {
  const { name, config, configFile } = patient;
  const secrets = new Secrets(patient.secrets);
  const upstream = config.upstreams[name];
  if (upstream === undefined) throw new TypeError(`no upstream "${name}"`);
  const expected = expectedOf(patient, upstream);
  const findings = [
    ...fileFindings(configFile, config, upstream),
    ...configuredTls(name, upstream, config),
    ...(await connectionFindings(admin, upstream, secrets, expected)),
    ...rotationFindings(patient, secrets),
    ...(await examine(admin, async () => {
      const found = [
        ...(await runChecks(admin, CHECKS, expected)),
        ...(await keyFindings(admin, expected, secrets)),
        ...(await policyFindings(admin, expected)),
      ];
      return [
        ...(await serverFindings(admin, expected)),
        ...((await isStandby(admin)) ? found.map(onPrimary) : found),
      ];
    })),
  ];
  if (!findings.some(({ code }) => code === 'lookup_missing')) {
    findings.push(...(await queryFindings(upstream, secrets, `upstreams.${name}`)));
  }
  return worstFirst(findings);
}

const CHECKS = [
  ...OBJECT_CHECKS,
  ...MODE_CHECKS,
  ...ROLE_CHECKS,
  ...LOOKUP_CHECKS,
  ...HEALING_CHECKS,
  ...TABLE_CHECKS,
];

/** A standby has what its primary has, so that is whose setup it wants. */
function expectedOf({ name, config, configFile }: Patient, upstream: UpstreamConfig): Expected {
  const { session, roles, lookup } = upstream;
  const isReplica = session === 'replica';
  const primary = isReplica ? primaryOf(config, name) : name;
  return {
    session,
    roles,
    healSlots: primary === undefined ? undefined : config.upstreams[primary]?.healSlots,
    lookup: lookup !== undefined,
    replicas: isReplica || replicasOf(config, name).length > 0,
    setup:
      primary === undefined
        ? { manual: 'run pgjot setup for its primary' }
        : { shell: `pgjot setup ${primary} --config ${configFile}` },
  };
}

async function isStandby(admin: Client): Promise<boolean> {
  const { rows } = await admin.query<{ answer: boolean }>('select pg_is_in_recovery() as answer');
  return rows[0]?.answer === true;
}

/** Nothing can be changed on a standby. */
function onPrimary(finding: Finding): Finding {
  const { mend } = finding;
  if (mend.sql === undefined) return finding;
  const manual = ['all of that on the primary', ...(mend.manual ? [mend.manual] : [])].join('; ');
  return { ...finding, mend: { ...mend, manual } };
}
