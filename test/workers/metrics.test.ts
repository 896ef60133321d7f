/**
 * One scrape of several workers: the sum of all, whatever has become of one of them.
 */
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { readScrape, type Scrape } from '../support/scrape.ts';
import { freePort } from '../support/sockets.ts';
import { until } from '../support/stack.ts';
import { startFleet, startGround, type Fleet, type Ground } from './fleet.ts';

vi.setConfig({ testTimeout: 60_000 });

const WORKERS = 2;
const LOGINS = ['pgjot_logins_total', { outcome: 'accepted' }] as const;

let ground: Ground;
let fleet: Fleet;
let port: number;
beforeAll(async () => {
  ground = await startGround(16);
  port = await freePort();
  fleet = await startFleet(ground, {
    workers: WORKERS,
    settings: { admin: { port } },
    pool: { spares: 0 },
  });
});
afterAll(async () => {
  await fleet?.[Symbol.asyncDispose]();
  await ground?.[Symbol.asyncDispose]();
});

async function scrape(): Promise<Scrape> {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`);
  expect(response.status).toBe(200);
  return readScrape(await response.text());
}

it('counts all workers together, and what there is only one of once', async () => {
  await fleet.fill(4);

  const now = await scrape();

  expect(now.sum(...LOGINS)).toBe(4);
  expect(now.sum('pgjot_sessions')).toBe(4);
  expect(now.sum('pgjot_slots', { state: 'busy' })).toBe(4);
  expect(now.sum('pgjot_connections_accepted_total')).toBe(4);
  expect(now.sum('pgjot_slots_configured')).toBe(16);
  expect(now.sum('pgjot_build_info')).toBe(1);
  expect(now.sum('pgjot_config_last_reload_successful')).toBe(1);
  expect(now.sum('pgjot_workers')).toBe(WORKERS);
  expect(now.sum('pgjot_workers_silent')).toBe(0);
  expect(now.sum('pgjot_event_loop_seconds_total')).toBeGreaterThan(0);
});

it('says once for all whether the configuration on disk is in force', async () => {
  const settings = { admin: { port } };
  await fleet.configure({ ...settings, sessions: { graceMs: -1 } });
  await fleet.logged(({ event }) => event === 'reload_failed');
  const during = await scrape();
  await fleet.configure(settings);

  const after = await until(async () => {
    const now = await scrape();
    return now.sum('pgjot_config_last_reload_successful') === 1 && now;
  });

  const reloads = (scraped: Scrape, outcome: string) =>
    scraped.sum('pgjot_config_reloads_total', { outcome });
  expect(during.sum('pgjot_config_last_reload_successful')).toBe(0);
  expect(reloads(during, 'success')).toBe(0);
  expect(reloads(during, 'failure')).toBeGreaterThan(0);
  expect(reloads(after, 'success')).toBeGreaterThan(0);
});

it('waits for no worker that hangs, whose last numbers count meanwhile', async () => {
  const hung = fleet.workers().get(1) as number;
  process.kill(hung, 'SIGSTOP');

  try {
    const during = await scrape();
    expect(during.sum('pgjot_workers_silent')).toBe(1);
    expect(during.sum(...LOGINS)).toBe(4);
    expect(during.sum('pgjot_sessions')).toBe(4);
  } finally {
    process.kill(hung, 'SIGCONT');
  }
  await until(async () => (await scrape()).sum('pgjot_workers_silent') === 0);
  expect((await scrape()).sum(...LOGINS)).toBe(4);
});

it('never counts backwards when a worker dies, and counts its successor', async () => {
  const before = await scrape();

  process.kill(fleet.workers().get(1) as number, 'SIGKILL');

  await fleet.logged(({ event }) => event === 'worker_lost');
  const after = await scrape();
  expect(after.sum(...LOGINS)).toBe(4);
  expect(after.sum('pgjot_login_seconds_count')).toBe(4);
  expect(after.sum('pgjot_sessions')).toBe(2);
  expect(after.sum('pgjot_workers_lost_total')).toBe(1);
  const isCumulative = (series: string) =>
    after.types.get(series.replace(/(_bucket|_sum|_count)?(\{.*)?$/, '')) !== 'gauge';
  const shrunk = [...before.series].filter(
    ([series, value]) => isCumulative(series) && !((after.series.get(series) ?? 0) >= value),
  );
  expect(shrunk).toEqual([]);

  await fleet.logged(({ event }) => event === 'worker_started');
  await fleet.onEach();
  const later = await scrape();
  expect(later.sum(...LOGINS)).toBeGreaterThanOrEqual(6);
  expect(later.sum('pgjot_workers_silent')).toBe(0);
});
