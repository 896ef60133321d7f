/**
 * 2,000 sockets that say nothing, or not all, against a real `pgjot start`: nobody else waits for them, they cost little, and all
 * of them are given back.
 */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { expect, test } from 'vitest';
import type { ConfigInput } from '../../src/config.ts';
import { install } from '../../src/session-sql/install.ts';
import { encodeSSLRequest, encodeStartupMessage } from '../../src/wire/startup.ts';
import { createAuthority } from '../support/certificate.ts';
import { exitOf, printed, startCli } from '../support/cli.ts';
import { startIssuer } from '../support/issuer.ts';
import { fromParts, type Closers } from '../support/parts.ts';
import { startTestPostgres, withSuperuser } from '../support/postgres.ts';
import { closed } from '../support/sockets.ts';

const SILENT = 2_000;
const LOGIN_TIMEOUT_MS = 12_000;
const P99_MS = 200;
// What a socket in the middle of a login may cost. One that waits for a TLS handshake is the dearest.
const MAX_KIB_EACH = 64;

const SECRET = 'a-secret-for-tests-of-at-least-32-characters';
const ROLES = { authenticated: { slots: 8 } };

const startup = encodeStartupMessage([
  ['user', 'authenticated'],
  ['database', 'postgres'],
]);

/** What they say before they fall silent, and how many bytes they are answered at once. */
const KINDS: readonly (readonly [says: Buffer, hears: number])[] = [
  [Buffer.alloc(0), 0],
  [startup.subarray(0, 6), 0],
  [startup, 'R....----'.length],
  [encodeSSLRequest(), 'S'.length],
];

test('2,000 silent sockets delay nobody, and are gone when their time is up', async () => {
  await using stage = await fromParts(startStage);
  const { pid, port, password, closers } = stage;
  const logIn = () => timeLogin({ port, password });
  // The pool, the verifier and the compiler have been busy before.
  for (let count = 0; count < 100; count++) await logIn();
  const rest = { kib: residentKiB(pid), sockets: openSockets(pid) };

  const silent = await openSilent(port, closers);
  const openedAt = performance.now();
  const busy = { kib: residentKiB(pid), sockets: openSockets(pid) };
  let p99 = Number.POSITIVE_INFINITY;
  // Three attempts: others use these cores as well, and one bad moment of theirs is no finding about us.
  for (let attempt = 0; attempt < 3 && p99 >= P99_MS; attempt++) p99 = await p99Of(100, logIn);
  const stillSilent = silent.filter((socket) => !socket.readableEnded).length;
  await Promise.all(silent.map((socket) => closed(socket)));
  const freedAfterMs = performance.now() - openedAt;
  const left = { kib: residentKiB(pid), sockets: openSockets(pid) };

  console.log(
    `2,000 silent sockets: a login's p99 ${p99.toFixed(0)} ms; ${((busy.kib - rest.kib) / SILENT).toFixed(1)} KiB each; ` +
      `all gone after ${(freedAfterMs / 1000).toFixed(1)} s; ${left.kib - rest.kib} KiB more than before`,
  );
  expect(stillSilent).toBe(SILENT);
  expect(p99).toBeLessThan(P99_MS);
  expect((busy.kib - rest.kib) / SILENT).toBeLessThan(MAX_KIB_EACH);
  expect((left.kib - rest.kib) / SILENT).toBeLessThan(MAX_KIB_EACH);
  expect(freedAfterMs).toBeLessThan(LOGIN_TIMEOUT_MS + 5_000);
  await logIn();
  if (rest.sockets === undefined || left.sockets === undefined)
    console.log('descriptors are not counted: there is no /proc');
  else {
    expect(busy.sockets).toBeGreaterThanOrEqual(rest.sockets + SILENT);
    // A spare or two more, or fewer, than at the start.
    expect(left.sockets).toBeLessThan(rest.sockets + 50);
  }
}, 60_000);

/** PostgreSQL, an issuer, and the command before them. */
async function startStage(
  closers: Closers,
): Promise<{ pid: number; port: number; password: string; closers: Closers }> {
  const postgres = await startTestPostgres();
  closers.push(() => postgres.stop());
  await withSuperuser(postgres, (admin) => install(admin, { secret: SECRET, roles: ROLES }));
  const issuer = await startIssuer();
  closers.push(() => issuer.close());
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-silent-'));
  closers.push(() => rm(folder, { recursive: true, force: true }));
  const { cert, key } = createAuthority().issue();
  const [certFile, keyFile] = [join(folder, 'server.crt'), join(folder, 'server.key')];
  await writeFile(certFile, cert);
  await writeFile(keyFile, key, { mode: 0o600 });
  const config: ConfigInput = {
    listen: { host: '127.0.0.1', port: 0, tls: { mode: 'allow', certFile, keyFile } },
    providers: { dev: issuer.provider({ roles: ['authenticated'] }) },
    upstreams: {
      main: {
        host: '127.0.0.1',
        port: postgres.port,
        database: 'postgres',
        secret: { env: 'PGJOT_MAIN_SECRET' },
        roles: ROLES,
      },
    },
    // All of them come from one address here. That they would be too many is the matter of attacks-limits.test.ts.
    limits: {
      loginTimeoutMs: LOGIN_TIMEOUT_MS,
      maxUnauthenticated: SILENT + 100,
      maxUnauthenticatedPerAddress: SILENT + 100,
    },
  };
  await writeFile(join(folder, 'proxy.config.json'), JSON.stringify(config));
  const child = startCli(['start'], { cwd: folder, env: { PGJOT_MAIN_SECRET: SECRET } });
  closers.push(() => {
    child.kill('SIGKILL');
    return exitOf(child);
  });
  const line = /"event":"listening".*\n/.exec(await printed(child, /"event":"listening".*\n/));
  const port = Number(/"port":(\d+)/.exec(line?.[0] ?? '')?.[1]);
  const password = issuer.mint({ sub: 'alice' }, { expiresIn: 3_600 });
  return { pid: child.pid as number, port, password, closers };
}

/** How long it takes to connect, ask one question and leave, in ms. */
async function timeLogin(at: { port: number; password: string }): Promise<number> {
  const start = performance.now();
  const client = new pg.Client({
    host: '127.0.0.1',
    user: 'authenticated',
    database: 'postgres',
    ...at,
  });
  await client.connect();
  const { rows } = await client.query<{ who: string }>('SELECT auth.user_id() AS who');
  const took = performance.now() - start;
  await client.end();
  if (rows[0]?.who !== 'alice') throw new Error('logged in as somebody else');
  return took;
}

async function p99Of(count: number, measure: () => Promise<number>): Promise<number> {
  const all: number[] = [];
  while (all.length < count) all.push(await measure());
  return all.toSorted((a, b) => a - b)[Math.ceil(count * 0.99) - 1] as number;
}

/** Opens them in equal parts of each kind; resolves when each has been answered what it will be. */
async function openSilent(port: number, closers: Closers): Promise<Socket[]> {
  const all: Socket[] = [];
  closers.push(async () => all.forEach((socket) => socket.destroy()));
  const open = async (index: number): Promise<void> => {
    const [says, hears] = KINDS[index % KINDS.length] as (typeof KINDS)[number];
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    all.push(socket.on('error', () => {}));
    await once(socket, 'connect');
    if (says.length > 0) socket.write(says);
    if (hears > 0) {
      const [answer] = (await once(socket, 'data')) as [Buffer];
      if (answer.length !== hears) throw new Error(`answered ${answer.length} bytes`);
    }
    socket.resume();
  };
  // Fewer at a time than wait in the listener's queue.
  for (let from = 0; from < SILENT; from += 250) {
    await Promise.all(Array.from({ length: 250 }, (_, index) => open(from + index)));
  }
  return all;
}

function residentKiB(pid: number): number {
  return Number(execFileSync('ps', ['-o', 'rss=', '-p', String(pid)], { encoding: 'utf8' }));
}

/** The open descriptors of a process, where the system tells. */
function openSockets(pid: number): number | undefined {
  const folder = `/proc/${pid}/fd`;
  return existsSync(folder) ? readdirSync(folder).length : undefined;
}
