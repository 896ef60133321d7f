/**
 * Checks of the way to the database: the same server, no transaction pooler in between, TLS, and clocks that agree.
 *
 * Two connections are looked at: the administrator's, and the one that the proxy will open as pgjot_control.
 */
import { Client, DatabaseError } from 'pg';
import type { Config, UpstreamConfig } from '../../config.ts';
import { clientTlsMode, isLoopback, upstreamTlsMode } from '../../exposure.ts';
import { CONTROL_ROLE, derivePassword } from '../../session-sql/credentials.ts';
import { upstreamTlsOptions } from '../../upstream/dial.ts';
import { demandProof } from '../../upstream/proof.ts';
import type { Secrets } from '../../upstream/secrets.ts';
import { connectFailure } from '../admin.ts';
import type { Expected } from './check.ts';
import type { Finding, Severity } from './finding.ts';

/** What a connection looks like from both its ends. */
export interface Probe {
  /** Which backend the login named, and which have answered since. */
  readonly processId: number;
  readonly backends: readonly number[];
  readonly encrypted: boolean;
  /** How far the server's clock is ahead of ours, in ms; 0 when it may be our waiting. */
  readonly skewMs: number;
  /** Tells servers apart. */
  readonly server: string;
}

const MAX_SKEW_MS = 5_000;
const SAMPLES = 4;

// Before search_path can be pinned (another backend may answer), so every name and operator is qualified.
const LOOK = `
  select pg_catalog.pg_backend_pid() as pid,
         (select s.ssl from pg_catalog.pg_stat_ssl s where s.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) as ssl,
         pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) as now,
         pg_catalog.concat(pg_catalog.pg_postmaster_start_time(), ' ', pg_catalog.current_database()) as server`;

interface Look {
  readonly pid: number;
  readonly ssl: boolean | null;
  readonly now: number;
  readonly server: string;
}

/** Looks at both connections. `admin` must not be inside a transaction. */
export async function connectionFindings(
  admin: Client,
  upstream: UpstreamConfig,
  secrets: Secrets,
  { setup }: Pick<Expected, 'setup'>,
): Promise<Finding[]> {
  const seen = await probe(admin);
  const findings = [
    ...poolerFindings("the administrator's connection", seen, 'advice'),
    ...tlsInUse("the administrator's connection", admin.host, seen),
    ...clockFindings(seen),
  ];
  let control: Client | undefined;
  try {
    control = await secrets.try((secret) => connectAsControl(upstream, secret));
    const proxied = await probe(control);
    findings.push(
      ...poolerFindings('the control connection', proxied, 'critical'),
      ...tlsInUse('the control connection', upstream.host, proxied),
      ...sameServer(seen, proxied),
    );
  } catch (error) {
    findings.push(refused(error as Error, setup));
  } finally {
    await control?.end().catch(() => {});
  }
  return findings;
}

/** What the configuration says of TLS, both ways. */
export function configuredTls(name: string, upstream: UpstreamConfig, config: Config): Finding[] {
  const findings: Finding[] = [];
  const upstreamModes: Partial<Record<ReturnType<typeof upstreamTlsMode>, [Severity, string]>> = {
    disable: [
      'critical',
      'Identities and rows cross the network readable, and anybody in between can change them.',
    ],
    require: [
      'warning',
      'Any certificate is accepted, so anybody in between can pose as the database.',
    ],
    'verify-ca': [
      'advice',
      'Any server with a certificate of this authority can pose as the database.',
    ],
  };
  const [severity, why] = upstreamModes[upstreamTlsMode(upstream)] ?? [];
  if (severity !== undefined && why !== undefined && !isLoopback(upstream.host)) {
    const object = `upstreams.${name}.tls.mode`;
    const mend = {
      manual: `${object}: "verify-full", with caFile where the authority is your own`,
    };
    findings.push({ severity, code: 'upstream_tls', object, reason: why, mend });
  }
  if (clientTlsMode(config) !== 'require' && !isLoopback(config.listen.host)) {
    findings.push({
      severity: 'warning',
      code: 'client_tls',
      object: 'listen.tls.mode',
      reason: 'Tokens cross the network readable.',
      mend: { manual: 'listen.tls.mode: "require"' },
    });
  }
  return findings;
}

/** Asks several times, each time in a transaction of its own, as a pooler would hand them out. */
export async function probe(client: Client): Promise<Probe> {
  const looks: (Look & { skewMs: number })[] = [];
  for (let sample = 0; sample < SAMPLES; sample++) {
    const sentAt = Date.now();
    const { rows } = await client.query<Look>(LOOK);
    const look = rows[0] as Look;
    looks.push({ ...look, skewMs: skew(sentAt, look.now * 1_000, Date.now()) });
  }
  const skews = looks.map(({ skewMs }) => skewMs);
  return {
    processId: (client as Client & { readonly processID: number }).processID,
    backends: looks.map(({ pid }) => pid),
    encrypted: looks.every(({ ssl }) => ssl === true),
    skewMs: skews.toSorted((a, b) => Math.abs(a) - Math.abs(b))[0] ?? 0,
    server: looks.at(-1)?.server ?? '',
  };
}

function skew(sentAt: number, then: number, receivedAt: number): number {
  if (then < sentAt) return then - sentAt;
  return then > receivedAt ? then - receivedAt : 0;
}

/** What a probe says of the clocks. */
export function clockFindings({ skewMs }: Pick<Probe, 'skewMs'>): Finding[] {
  if (Math.abs(skewMs) <= MAX_SKEW_MS) return [];
  const seconds = Math.round(Math.abs(skewMs) / 1_000);
  return [
    {
      severity: 'warning',
      code: 'clock_skew',
      object: 'server',
      reason: `Its clock is ${seconds} s ${skewMs > 0 ? 'ahead of' : 'behind'} this machine's, so sessions end ${skewMs > 0 ? 'before' : 'after'} their tokens.`,
      mend: { manual: 'set both clocks by NTP' },
    },
  ];
}

/** Whether other backends answer than the one that logged in. */
export function poolerFindings(
  object: string,
  { processId, backends }: Pick<Probe, 'processId' | 'backends'>,
  severity: Severity,
): Finding[] {
  if (backends.every((pid) => pid === processId)) return [];
  const reason =
    'Another backend answers than the one that logged in: a pooler stands in between, which can give an identity to the wrong client.';
  const mend = { manual: 'connect to PostgreSQL itself, past the pooler' };
  return [{ severity, code: 'pooler', object, reason, mend }];
}

/** Whether a connection beyond this machine is encrypted. */
export function tlsInUse(
  object: string,
  host: string,
  { encrypted }: Pick<Probe, 'encrypted'>,
): Finding[] {
  if (encrypted || isLoopback(host)) return [];
  const reason = 'It is not encrypted, and not between two programs of one machine.';
  const mend = { manual: 'ssl = on in postgresql.conf, and sslmode=verify-full (tls.mode) here' };
  return [{ severity: 'warning', code: 'tls_unused', object, reason, mend }];
}

function sameServer(admin: Probe, control: Probe): Finding[] {
  if (admin.server === control.server) return [];
  const reason =
    "It leads to another server or database than the administrator's, so all the rest was said of the wrong one.";
  const mend = { manual: 'make PGJOT_ADMIN_URL and the configuration name the same database' };
  return [
    { severity: 'critical', code: 'other_server', object: 'the control connection', reason, mend },
  ];
}

/** PostgreSQL's own words on a login, or the system's on a network; neither holds the password. */
function refused(error: Error, setup: Expected['setup']): Finding {
  const answered = error instanceof DatabaseError;
  return {
    severity: 'critical',
    code: 'control_login',
    object: 'the control connection',
    reason: `The proxy cannot log in as ${CONTROL_ROLE}: ${connectFailure(error)}.`,
    mend: answered
      ? setup
      : { manual: 'make host, port and tls of the upstream lead to the database' },
  };
}

async function connectAsControl(upstream: UpstreamConfig, secret: string): Promise<Client> {
  const client = new Client({
    host: upstream.host,
    port: upstream.port,
    database: upstream.database,
    user: CONTROL_ROLE,
    password: derivePassword(secret, CONTROL_ROLE),
    ssl: upstreamTlsMode(upstream) === 'disable' ? false : upstreamTlsOptions(upstream),
    application_name: 'pgjot doctor',
    connectionTimeoutMillis: upstream.connectTimeoutMs,
    query_timeout: upstream.connectTimeoutMs,
  });
  client.on('error', () => {});
  demandProof(client, upstream);
  await client.connect();
  return client;
}
