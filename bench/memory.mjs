/**
 * What a session costs that says nothing: resident memory of a proxy with thousands of them, client and upstream sockets both.
 *
 * Each column gets a proxy of its own for this, before `silent-postgres.mjs`. The kernel's part of a socket is not in these figures,
 * nor is what the proxy needed for the first hundred: its code, its tables, its first buffers.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { DATABASE } from './postgres.mjs';
import { startSilentPgjot } from './pgjot.mjs';
import { accepts, freePort, residentMiB } from './stage.mjs';
import { startHaproxy, startPgBouncer, startPipe } from './targets.mjs';
import { WireClient } from './wire.mjs';

const FIRST = 100;
const AT_ONCE = 32;

/**
 * @param {import('./clients.mjs').Scene} scene
 * @param {import('./targets.mjs').Target} like The column.
 * @param {{ tls?: boolean }} [way]
 * @returns {Promise<import('./clients.mjs').Sample>}
 */
export async function silence(
  { stage, postgres, silent, restSeconds },
  like,
  { tls = false } = {},
) {
  const port = await freePort();
  const script = fileURLToPath(new URL('./silent-postgres.mjs', import.meta.url));
  const server = await stage.serve(process.execPath, [script, String(port)], {
    ready: () => accepts(port),
  });
  const upstream = { ...postgres, port };
  const target = await {
    direct: () => Promise.reject(new Error('a direct connection has no proxy')),
    pgjot: () => startSilentPgjot(stage, upstream, silent + FIRST),
    pgbouncer: () => startPgBouncer(stage, upstream, 'trust'),
    haproxy: () => startHaproxy(stage, upstream),
    pipe: () => startPipe(stage, upstream),
    bare: () => Promise.reject(new Error('a bare pool is for logins alone')),
  }[like.column]();
  const { proxy } = target;
  if (proxy === undefined) throw new Error('there is no proxy');
  /** @type {WireClient[]} */
  const clients = [];
  try {
    const passwords = (await target.newcomers?.(silent)) ?? [];
    const fill = async (/** @type {number} */ wanted) => {
      let next = clients.length;
      const enter = async () => {
        while (next < wanted) {
          const password = passwords[next] ?? '';
          next += 1;
          const { port: at, user } = target;
          const client = await WireClient.login({
            port: at,
            user,
            password,
            database: DATABASE,
            tls,
          });
          clients.push(client);
          // PgBouncer gives a client its upstream session only when it first asks for something.
          await client.ask('select');
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, enter));
    };
    await fill(FIRST);
    await delay(1_000);
    const before = residentMiB(proxy.pid).now;
    await fill(silent);
    let after = Infinity;
    for (let second = 0; second < restSeconds; second += 1) {
      await delay(1_000);
      after = Math.min(after, residentMiB(proxy.pid).now);
    }
    return { kibPerSession: ((after - before) * 1_024) / (silent - FIRST), allMiB: after };
  } finally {
    for (const client of clients) client.destroy();
    await proxy.stop();
    await server.stop();
  }
}
