/**
 * Attack H1: clients that ask for a huge result and never read a byte of it, against a real `pgjot` process.
 *
 * Each backend stops at what the kernel and the proxy hold for its client; what the proxy holds is bounded, and nobody
 * else waits for them.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { exitOf, printed, startCli } from '../support/cli.ts';
import { withSuperuser } from '../support/postgres.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { query } from '../e2e/parity/bytes.ts';
import { RawClient } from '../e2e/raw-client.ts';

const CLIENTS = 200;
const MIB_IN_ALL = 100;
const HUGE = "select repeat('x', 1000000) from generate_series(1, 100000)";

let stack: Stack;
let folder: string;
let proxy: ReturnType<typeof startCli>;
let port: number;

beforeAll(async () => {
  stack = await startStack({ slots: CLIENTS + 20 });
  folder = await mkdtemp(join(tmpdir(), 'pgjot-slow-'));
  await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(stack.config));
  proxy = startCli(['start'], { cwd: folder });
  port = Number(/"port":(\d+)/.exec(await printed(proxy, /"port":(\d+)/))?.[1]);
});

afterAll(async () => {
  proxy.kill('SIGKILL');
  await exitOf(proxy);
  await stack.close();
  await rm(folder, { recursive: true, force: true });
});

/** Memory of the proxy, in MiB. */
function residentMiB(): number {
  const kib = execFileSync('ps', ['-o', 'rss=', '-p', String(proxy.pid)], { encoding: 'utf8' });
  return Number(kib) / 1_024;
}

async function logIn(sub: string): Promise<RawClient> {
  return RawClient.login({ host: '127.0.0.1', port }, await stack.token(sub));
}

/** How many backends wait for their client to read. */
async function stuck(): Promise<number> {
  const { rows } = await withSuperuser(stack.postgres, (superuser) =>
    superuser.query<{ count: number }>(
      "select count(*)::int from pg_stat_activity where wait_event = 'ClientWrite'",
    ),
  );
  return rows[0]?.count ?? 0;
}

describe(`${CLIENTS} clients that never read`, () => {
  test(`cost less than ${MIB_IN_ALL} MiB in all, and nobody else waits for them`, {
    timeout: 40_000,
  }, async () => {
    using good = await logIn('alice');
    const slow: RawClient[] = [];
    try {
      const before = residentMiB();
      while (slow.length < CLIENTS) {
        const some = Array.from({ length: 20 }, (_, index) => logIn(`slow-${index}`));
        slow.push(...(await Promise.all(some)));
      }
      for (const { socket } of slow) {
        socket.pause();
        socket.write(query(HUGE));
      }
      await until(async () => (await stuck()) === CLIENTS, 25_000);

      // Who was there before, who comes now, and a result that fills every buffer of its own.
      expect((await good.ask('select auth.user_id()')).rows).toEqual([['alice']]);
      using late = await logIn('carol');
      const { rows } = await late.ask("select repeat('y', 3000000) from generate_series(1, 5)");
      expect(rows.map(([text]) => text?.length)).toEqual(Array(5).fill(3_000_000));
      expect(residentMiB() - before).toBeLessThan(MIB_IN_ALL);
    } finally {
      for (const client of slow) client.destroy();
    }
  });
});
