/**
 * An operator's hour, in a minute: certificates and keys are rotated, a provider is added, PostgreSQL is killed, a user is revoked,
 * the proxy is drained and started again, with fifty clients at work throughout. Whatever fails for them must be explained by
 * what was done at that moment, and by nothing of pgjot's own.
 */
import { once } from 'node:events';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import type pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { createAuthority } from '../support/certificate.ts';
import { exitOf } from '../support/cli.ts';
import { startIssuer, type Issuer } from '../support/issuer.ts';
import { withSuperuser } from '../support/postgres.ts';
import { freePort } from '../support/sockets.ts';
import { until } from '../support/stack.ts';
import { startFleet, startGround, type Ground } from '../workers/fleet.ts';
import { gather, type Failure } from './crowd.ts';

const CLIENTS = 50;
const WORKERS = 2;
/** Whom the operator shuts out, and who signs in with the provider that is added. */
const REVOKED = 'user7';
const LATE = 'user49';
const USERS = Array.from({ length: CLIENTS }, (_, n) => `user${n}`);
// What a client hears when its connection is closed under it: what the system says, and what node-postgres does.
const CLOSED = 'ECONNRESET|EPIPE|Connection terminated( unexpectedly)?';
/** Of PostgreSQL that is killed and comes back: its own words, and the proxy's when there is nobody to ask. */
const POSTGRES_IS_AWAY = new RegExp(`^(57P0[123]|08001|08006|${CLOSED})$`);
const REFUSED = new RegExp(`^(57P01|28P01|${CLOSED})$`);
const RESTARTED = new RegExp(`^(57P01|57P03|ECONNREFUSED|${CLOSED})$`);

/** Something that the operator does, and what may fail meanwhile. */
interface Incident {
  readonly name: string;
  readonly from: number;
  to: number;
  readonly explains: (failure: Failure) => boolean;
}

const authority = createAuthority();
let ground: Ground;
let added: Issuer;
let folder: string;
let adminPort: number;

beforeAll(async () => {
  ground = await startGround(CLIENTS + 20);
  added = await startIssuer();
  folder = await mkdtemp(join(tmpdir(), 'pgjot-hour-'));
  adminPort = await freePort();
  await renewCertificate();
});

afterAll(async () => {
  await added.close();
  await ground[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

it('leaves no failed statement that nothing explains', { timeout: 300_000 }, async () => {
  const incidents: Incident[] = [];
  const during = async (
    name: string,
    explains: Incident['explains'],
    work: () => Promise<void>,
  ): Promise<void> => {
    const incident: Incident = { name, from: performance.now(), to: Infinity, explains };
    incidents.push(incident);
    await work();
    incident.to = performance.now();
  };
  const nothing = () => false;
  const isOfRevoked = ({ user, code }: Failure) => user === REVOKED && REFUSED.test(code);
  let isAdded = false;
  let current = await startFleet(ground, { workers: WORKERS, settings: settingsOf(0) });
  const { host, port } = current;
  const connection = (user: string): pg.ClientConfig => {
    const issuer = user === LATE && isAdded ? added : ground.issuer;
    const password = () => issuer.mint({ sub: user });
    const ssl = { ca: authority.ca };
    return { host, port, database: 'app', user: 'authenticated', password, ssl };
  };

  try {
    await until(async () => (await admin('/readyz')).status === 200);
    await using crowd = gather({ users: USERS, connection, statements: 8, pauseMs: 150 });
    await crowd.turnedOver();

    await during('readiness and metrics are looked at', nothing, async () => {
      const { logins } = crowd;
      expect(await sumOf('pgjot_logins_total', 'outcome="accepted"')).toBeGreaterThanOrEqual(
        logins,
      );
      expect(await sumOf('pgjot_sessions', '')).toBeGreaterThan(0);
      const sessions = await until(async () => {
        const { text } = await admin('/sessions');
        return text.includes(`"${REVOKED}"`) && text;
      });
      expect(sessions).not.toContain('eyJ');
    });

    await during('the certificate is rotated', nothing, async () => {
      const before = await serialOf({ host, port });
      await renewCertificate();
      await until(async () => (await serialOf({ host, port })) !== before, 20_000);
      await crowd.turnedOver();
    });

    await during('the issuer’s keys are rotated', nothing, async () => {
      ground.issuer.rotate({ keepOld: true });
      await crowd.turnedOver();
    });

    await during('a provider is added', nothing, async () => {
      const from = current.log.length;
      await current.configure(settingsOf(port, { added }));
      await current.logged(({ event }) => event === 'reloaded', from);
      isAdded = true;
      await crowd.turnedOver();
      await until(async () => (await admin('/sessions')).text.includes(added.issuer));
    });

    await during(
      'PostgreSQL is killed and comes back',
      ({ code }) => POSTGRES_IS_AWAY.test(code),
      async () => {
        await ground.postgres.restart('immediate');
        const back = performance.now();
        await crowd.turnedOver();
        expect(performance.now() - back).toBeLessThan(45_000);
        expect((await admin('/readyz')).status).toBe(200);
      },
    );

    await during('a user is revoked', isOfRevoked, async () => {
      const entry = { iss: ground.issuer.issuer, sub: REVOKED };
      expect((await admin('/revocations', entry)).status).toBe(204);
      const served = crowd.failures.length;
      await until(() => crowd.failures.slice(served).some(({ code }) => code === '28P01'), 20_000);
      await crowd.turnedOver((user) => user !== REVOKED);
      expect((await admin('/sessions')).text).not.toContain(`"${REVOKED}"`);
    });

    await during(
      'the proxy is drained and started again',
      (failure) => RESTARTED.test(failure.code) || isOfRevoked(failure),
      async () => {
        current.primary.kill('SIGTERM');
        expect(await exitOf(current.primary)).toBe(0);
        await current[Symbol.asyncDispose]();
        current = await startFleet(ground, {
          workers: WORKERS,
          settings: settingsOf(port, { added }),
        });
        // What the admin endpoint was told it keeps in memory: what is to outlast a restart belongs in the file.
        await crowd.turnedOver();
      },
    );

    await crowd.leave();
    const unexplained = crowd.failures.filter(
      (failure) =>
        !incidents.some(
          ({ from, to, explains }) => failure.to >= from && failure.from <= to && explains(failure),
        ),
    );
    report(incidents, crowd);

    expect(unexplained).toEqual([]);
    expect(crowd.wrong).toEqual([]);
    expect(await lostRows(crowd.committed)).toEqual([]);
    expect(current.noise).toEqual([]);
  } finally {
    await current[Symbol.asyncDispose]();
  }
});

function settingsOf(port: number, { added: more }: { added?: Issuer } = {}): Partial<ConfigInput> {
  const roles = ['authenticated'];
  return {
    listen: {
      port,
      tls: {
        mode: 'require',
        certFile: join(folder, 'server.crt'),
        keyFile: join(folder, 'server.key'),
      },
    },
    providers: {
      own: ground.issuer.provider({ roles }),
      ...(more !== undefined && { added: more.provider({ roles }) }),
    },
    admin: { host: '127.0.0.1', port: adminPort },
    sessions: { drainTimeoutMs: 10_000 },
  };
}

/** A new certificate under the old names, each file replaced in one step. */
async function renewCertificate(): Promise<void> {
  const { cert, key } = authority.issue();
  for (const [name, text] of [
    ['server.key', key],
    ['server.crt', cert],
  ] as const) {
    await writeFile(join(folder, `${name}.new`), text, { mode: 0o600 });
    await rename(join(folder, `${name}.new`), join(folder, name));
  }
}

/** Of the certificate that a new client is shown. */
async function serialOf({ host, port }: { host: string; port: number }): Promise<string> {
  const socket = connect({ host, port, ca: authority.ca, ALPNProtocols: ['postgresql'] });
  await once(socket, 'secureConnect');
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

/** Asks the admin endpoint; with an entry, posts it. */
async function admin(path: string, entry?: object): Promise<{ status: number; text: string }> {
  try {
    const response = await fetch(`http://127.0.0.1:${adminPort}${path}`, {
      ...(entry !== undefined && {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(entry),
      }),
    });
    return { status: response.status, text: await response.text() };
  } catch {
    return { status: 0, text: '' };
  }
}

/** The sum of a metric's samples whose labels contain this. */
async function sumOf(metric: string, label: string): Promise<number> {
  const { text } = await admin('/metrics');
  const samples = text
    .split('\n')
    .filter((line) => line.startsWith(`${metric}{`) || line.startsWith(`${metric} `))
    .filter((line) => line.includes(label));
  return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}

/** Users of whom the table has fewer rows than they were told are committed. */
async function lostRows(committed: ReadonlyMap<string, number>): Promise<string[]> {
  const counted = await withSuperuser(
    ground.postgres,
    (superuser) =>
      superuser.query<{ user_id: string; rows: number }>(
        'select user_id, count(*)::int as rows from todos group by user_id',
      ),
    'app',
  );
  const rows = new Map(counted.rows.map((row) => [row.user_id, row.rows]));
  return [...committed]
    .filter(([user, told]) => (rows.get(user) ?? 0) < told)
    .map(([user]) => user);
}

function report(
  incidents: readonly Incident[],
  crowd: { failures: readonly Failure[]; logins: number; statements: number },
): void {
  console.log(`${crowd.logins} logins, ${crowd.statements} statements`);
  for (const { name, from, to } of incidents) {
    const codes = new Map<string, number>();
    for (const { from: began, code } of crowd.failures) {
      if (began >= from && began <= to) codes.set(code, (codes.get(code) ?? 0) + 1);
    }
    const failed = [...codes].map(([code, count]) => `${code} ${count}`).join(', ') || 'none';
    console.log(`${name}: ${Math.round(to - from)} ms; failed: ${failed}`);
  }
}
