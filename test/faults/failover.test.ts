/**
 * The upstream's name leads to another server: a standby that was promoted, or a primary that has moved.
 *
 * The name is one of /etc/hosts, of which pgjot alone sees the test's own copy.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { PostgresServer } from '../../src/cli/dev/postgres.ts';
import { Gate } from '../e2e/gate.ts';
import type { RawClient } from '../e2e/raw-client.ts';
import { fromParts } from '../support/parts.ts';
import { withSuperuser } from '../support/postgres.ts';
import { startStandby } from '../support/standby.ts';
import { until } from '../support/stack.ts';
import { configOf, startFleet, startGround } from '../workers/fleet.ts';
import { missing } from './machine.ts';

const absent = missing('unshare');
if (absent !== undefined) console.error(`failover by DNS is ${absent}`);

const OLD = '127.0.0.21';
const NEW = '127.0.0.22';

/** A proxy whose upstream is `db.test`, which leads to the first server until it is told otherwise. */
async function startScene(options: { standby: boolean; workers: number }) {
  return fromParts(async (closers) => {
    const ground = await startGround(8);
    closers.push(async () => ground[Symbol.asyncDispose]());
    const other = options.standby ? undefined : await startGround(8);
    if (other) closers.push(async () => other[Symbol.asyncDispose]());
    const standby = other ? undefined : await startStandby(ground.postgres);
    if (standby) closers.push(() => standby.stop());
    const next = (standby ?? other?.postgres) as PostgresServer;

    const before = await Gate.open(OLD);
    closers.push(() => before[Symbol.asyncDispose]());
    const after = await Gate.open(NEW, before.port);
    closers.push(() => after[Symbol.asyncDispose]());
    before.target = ground.postgres.port;
    after.target = next.port;

    const folder = await mkdtemp(join(tmpdir(), 'pgjot-hosts-'));
    closers.push(() => rm(folder, { recursive: true }));
    const hosts = join(folder, 'hosts');
    const point = (address: string) => writeFile(hosts, `${address} db.test\n`);
    await point(OLD);

    const main = { ...configOf(ground).upstreams['main'], host: 'db.test', port: before.port };
    // The relays are on loopback; pgjot cannot know that of a name.
    const upstreams = { main: { ...main, tls: { mode: 'disable' } } } as never;
    const script = `mount --bind ${hosts} /etc/hosts && exec "$@"`;
    const fleet = await startFleet(ground, {
      workers: options.workers,
      settings: { upstreams },
      under: ['unshare', '--mount', 'sh', '-c', script, 'sh'],
    });
    closers.push(async () => fleet[Symbol.asyncDispose]());
    return { ground, standby, next, before, point, fleet };
  });
}

/** Signs in and asks which server that is: its port. */
async function whereabouts(fleet: { login(sub?: string): Promise<RawClient> }, sub: string) {
  using client = await fleet.login(sub);
  const { rows } = await client.ask('select current_setting($$port$$), auth.user_id()');
  client.send(Buffer.from('5800000004', 'hex'));
  await client.end();
  expect(rows[0]?.[1]).toBe(sub);
  return Number(rows[0]?.[0]);
}

const controls = (server: PostgresServer) =>
  withSuperuser(server, async (admin) => {
    const { rows } = await admin.query(
      "select count(*)::int as n from pg_stat_activity where usename = 'pgjot_control'",
    );
    return (rows[0] as { n: number }).n;
  });

describe.skipIf(absent !== undefined).each([{ workers: 1 }, { workers: 2 }])(
  'a name that leads to another server ($workers workers)',
  ({ workers }) => {
    it('whose primary has crashed: logins wait for the promotion, and are on the new one at once', async () => {
      await using scene = await startScene({ standby: true, workers });
      const { ground, standby, next, point, fleet } = scene;
      expect(await whereabouts(fleet, 'alice')).toBe(ground.postgres.port);
      await standby?.caughtUp();

      await (Object.getPrototypeOf(ground.postgres) as PostgresServer).stop('immediate');
      await point(NEW);
      const early = await fleet.login('bob').catch((error: { code: string }) => error.code);
      await standby?.promote();
      const promotedAt = performance.now();
      const where = await until(() => whereabouts(fleet, 'alice').catch(() => undefined), 20_000);
      const afterMs = performance.now() - promotedAt;

      expect(early).toBe('57P03');
      expect(where).toBe(next.port);
      expect(afterMs).toBeLessThan(5_000);
      console.error(
        `failover: logins on the new primary ${Math.round(afterMs)} ms after it was promoted`,
      );
    });

    it('while the one before goes on: newcomers, and who comes back, are on the new one within 5 s', async () => {
      await using scene = await startScene({ standby: false, workers });
      const { ground, next, point, fleet } = scene;
      using inside = await fleet.login('carol');
      for (const sub of ['alice', 'bob', 'alice'])
        expect(await whereabouts(fleet, sub)).toBe(ground.postgres.port);

      await point(NEW);
      const movedAt = performance.now();
      const seen = new Map<string, number>();
      const refused: unknown[] = [];
      await until(async () => {
        for (const sub of ['alice', 'bob', 'dave']) {
          const where = await whereabouts(fleet, sub).catch(
            (error: unknown) => void refused.push(error),
          );
          if (where !== undefined) seen.set(sub, where);
        }
        return [...seen.values()].every((port) => port === next.port) && seen.size === 3;
      });
      const afterMs = performance.now() - movedAt;

      expect(afterMs).toBeLessThan(5_000);
      expect(refused).toEqual([]);
      // Who is inside stays: its transaction is there.
      expect((await inside.ask('select current_setting($$port$$)')).rows).toEqual([
        [String(ground.postgres.port)],
      ]);
      await until(async () => (await controls(ground.postgres)) === 0);
      expect(await fleet.logged(({ event }) => event === 'upstream_moved')).toMatchObject({
        upstream: 'main',
        addresses: [NEW],
      });
      console.error(
        `failover: everybody on the new primary ${Math.round(afterMs)} ms after the name moved`,
      );
    });
  },
);
