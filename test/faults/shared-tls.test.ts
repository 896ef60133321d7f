/**
 * Two proxies that share a real Redis over TLS: it is believed only with the right certificate, each proxy shows its own, and
 * as an ACL user they may do no more than they do. Whatever is wrong there is said, and each proxy counts alone.
 */
import { readFileSync } from 'node:fs';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ConfigError } from '../../src/errors.ts';
import { cancel } from '../e2e/raw-client.ts';
import { createAuthority } from '../support/certificate.ts';
import { recordSecret } from '../support/record.ts';
import { freePort } from '../support/sockets.ts';
import { hasRedisTls, TestRedis } from '../support/redis.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { Company } from './company.ts';

const PASSWORD = 'a-password-of-the-store';
const [, RIGHTS = ''] =
  /ACL SETUSER pgjot on >PASSWORD ([^`]+)/.exec(
    readFileSync(new URL('../../docs/limits.md', import.meta.url), 'utf8'),
  ) ?? [];
const LIMITS = { maxClientsPerAddress: 1, loginsPerSecond: 1_000 };

describe.runIf(hasRedisTls)('a store over TLS', () => {
  const authority = createAuthority();
  const other = createAuthority();
  let stack: Stack;
  let folder: string;
  let port: number;
  let redis: TestRedis;
  let company: Company;

  beforeAll(async () => {
    recordSecret('password of a store', PASSWORD);
    stack = await startStack();
  });
  afterAll(() => stack.close());

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pgjot-store-tls-'));
    port = await freePort();
    await put('ca.crt', authority.ca);
    await put('other-ca.crt', other.ca);
    await putPair('server');
    await putPair('client');
    const options = {
      'tls-port': String(port),
      'tls-auth-clients': 'yes',
      'tls-cert-file': path('server.crt'),
      'tls-key-file': path('server.key'),
      'tls-ca-cert-file': path('ca.crt'),
    };
    redis = await TestRedis.start(
      ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]),
    );
    await redis.run((admin) =>
      admin.call('ACL', 'SETUSER', 'proxies', 'on', `>${PASSWORD}`, ...RIGHTS.trim().split(/\s+/)),
    );
  });
  afterEach(async () => {
    await company?.[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  const path = (name: string) => join(folder, name);
  /** As whatever rotates certificates does: whole, in the place of the one before. */
  async function put(name: string, text: string): Promise<string> {
    await writeFile(path(`${name}.new`), text);
    await rename(path(`${name}.new`), path(name));
    return path(name);
  }
  async function putPair(name: string, from = authority, names?: string[], expiresAt?: number) {
    const { cert, key } = from.issue(names, expiresAt);
    await put(`${name}.crt`, cert);
    await put(`${name}.key`, key);
  }
  const files = () => ({
    caFile: path('ca.crt'),
    certFile: path('client.crt'),
    keyFile: path('client.key'),
  });
  const urlAs = (user: string, host = '127.0.0.1') => `rediss://${user}@${host}:${port}`;
  const GOOD = `proxies:${PASSWORD}`;

  async function start(url: string, tls: object): Promise<void> {
    company = new Company(stack, redis, url);
    await company.start(LIMITS, { tls });
    await company.start(LIMITS, { tls });
  }

  it('counts for all proxies, and carries their cancel requests, with no more rights than are documented', async () => {
    await start(urlAs(GOOD, 'localhost'), files());
    await company.alive();
    expect(await company.login(0)).toBe('in');
    expect(await company.login(1)).toBe('53300');
    await company.leave();

    const [home, away] = company.members.map((member) => ({
      host: '127.0.0.1',
      port: member.port,
      database: 'app',
    }));
    const client = await stack.connect('alice', { port: home?.port as number });
    const { processID, secretKey } = client as unknown as Record<string, number>;
    const key = { processId: processID as number, secretKey: Buffer.alloc(4) };
    key.secretKey.writeInt32BE(secretKey as number);
    const answer = client.query('select pg_sleep(30)').catch((error: unknown) => error);
    // One that comes before its query cancels nothing.
    const again = setInterval(() => {
      cancel(away as NonNullable<typeof away>, key).catch(() => {});
    }, 200);
    expect(await answer.finally(() => clearInterval(again))).toMatchObject({ code: '57014' });
    await client.end();

    const denied = await redis.run((admin) => admin.call('ACL', 'LOG'));
    expect(denied).toEqual([]);
    for (const { log } of company.members) {
      expect(log.filter(({ event }) => event === 'limit_store_lost')).toEqual([]);
    }
  });

  it('is asked for by the name that the configuration has for it', async () => {
    await redis.stop();
    await putPair('server', authority, ['redis.internal']);
    await redis.start();
    await redis.run((admin) => admin.call('CONFIG', 'SET', 'requirepass', PASSWORD));
    await start(`rediss://:${PASSWORD}@127.0.0.1:${port}`, {
      ...files(),
      serverName: 'redis.internal',
    });
    await company.alive();

    expect([await company.login(0), await company.login(1)]).toEqual(['in', '53300']);
  });

  it.each<[string, RegExp, () => Promise<[url: string, tls: object]>]>([
    [
      'by a certificate of somebody else',
      /certificate/,
      async () => [urlAs(GOOD), { ...files(), caFile: path('other-ca.crt') }],
    ],
    ['by no authority of this machine', /certificate/, async () => [urlAs(GOOD), {}]],
    [
      'by an expired certificate',
      /certificate has expired/,
      async () => {
        await redis.stop();
        await putPair('server', authority, undefined, Date.now() - 60_000);
        await redis.start();
        return [urlAs(GOOD), files()];
      },
    ],
    [
      'by the certificate of another name',
      /does not match certificate's altnames/,
      async () => [urlAs(GOOD), { ...files(), serverName: 'redis.internal' }],
    ],
    [
      'without a certificate of ours',
      // Whichever the kernel lets us hear first: the alert, or that the connection is closed.
      /certificate required|ECONNRESET|EPIPE/,
      async () => [urlAs(GOOD), { caFile: path('ca.crt') }],
    ],
    ['with a wrong password', /WRONGPASS/, async () => [urlAs('proxies:wrong'), files()]],
    [
      'as a user who may not do that',
      /NOPERM/,
      async () => {
        await redis.run((admin) =>
          admin.call('ACL', 'SETUSER', 'reader', 'on', '>x', '~*', '&*', '+info', '+get'),
        );
        return [urlAs('reader:x'), files()];
      },
    ],
  ])(
    'counts for nobody %s: it is said why, and each proxy counts alone',
    async (_, cause, prepare) => {
      await start(...(await prepare()));
      for (const index of [0, 1]) {
        expect((await company.logged(index, 'limit_store_lost'))['cause']).toMatch(cause);
        expect(await company.login(index)).toBe('in');
        expect(await company.login(index)).toBe('53300');
      }
      expect(JSON.stringify(company.members.map(({ log }) => log))).not.toContain(PASSWORD);
    },
  );

  it('may have certificates of another authority: the files are read again, with no restart', async () => {
    await start(urlAs(GOOD), files());
    await company.alive();

    await redis.stop();
    await company.logged(0, 'limit_store_lost');
    await put('ca.crt', other.ca);
    await putPair('server', other);
    await putPair('client', other);
    await company.logged(0, 'certificate_reloaded');
    await redis.start();
    await redis.run((admin) =>
      admin.call('ACL', 'SETUSER', 'proxies', 'on', `>${PASSWORD}`, ...RIGHTS.trim().split(/\s+/)),
    );

    await company.logged(0, 'limit_store_back');
    await company.logged(1, 'limit_store_back');
    await company.alive();
    expect([await company.login(0), await company.login(1)]).toEqual(['in', '53300']);
  });

  it('needs files that can be used, and a URL that says so', async () => {
    const problemOf = async (url: string, tls: object) => {
      const error: unknown = await start(url, tls).catch((one: unknown) => one);
      return (error as ConfigError).problems;
    };
    expect(await problemOf(urlAs(GOOD), { caFile: path('nowhere.crt') })).toEqual([
      { path: 'limits.store.redis.tls.caFile', message: expect.stringContaining('ENOENT') },
    ]);
    expect(await problemOf(redis.url, files())).toEqual([
      { path: 'limits.store.redis.tls', message: 'is for a URL rediss://…' },
    ]);
  });
});
