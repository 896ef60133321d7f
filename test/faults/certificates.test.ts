/** Certificates rotate while clients come and go: no handshake fails, no session notices, and newcomers see the new one. */
import { renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ConfigError, parseConfig } from '../../src/proxy.ts';
import { createAuthority } from '../support/certificate.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { startFleet, startGround } from '../workers/fleet.ts';
import { Client } from 'pg';

/** The serial number that a client was shown. */
const serialOf = (client: pg.Client) =>
  (
    client as unknown as { connection: { stream: TLSSocket } }
  ).connection.stream.getPeerCertificate().serialNumber;

/** One file in the place of another, all at once. */
const replace = (file: string, text: string) => {
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
};

describe("the listener's certificate", () => {
  let stack: Stack;
  let names: { certFile: string; keyFile: string };
  beforeAll(async () => {
    stack = await startStack({ tls: true });
    names = stack.config.listen?.tls as typeof names;
  });
  afterAll(() => stack.close());

  const visit = async () => {
    const client = await stack.connect('alice');
    const serial = serialOf(client);
    await client.query('select 1');
    await client.end();
    return serial;
  };

  it('rotates under load: no handshake fails, and a session from before goes on', async () => {
    const inside = await stack.connect('bob');
    const before = serialOf(inside);
    const seen: string[] = [];
    const failures: unknown[] = [];
    const over = new AbortController();
    const clients = Array.from({ length: 4 }, async () => {
      while (!over.signal.aborted)
        await visit().then(
          (serial) => seen.push(serial),
          (error: unknown) => failures.push(error),
        );
    });

    // Two rotations, each with a while in which the pair is no pair.
    for (let round = 1; round <= 2; round++) {
      const { cert, key } = stack.authority.issue();
      replace(names.certFile, cert);
      await stack.logged(({ event }) => event === 'certificate_unusable');
      replace(names.keyFile, key);
      await until(() => new Set(seen).size === round + 1);
    }
    over.abort();
    await Promise.all(clients);
    const { rows } = await inside.query('select auth.user_id()');
    await inside.end();

    expect(failures).toEqual([]);
    expect(seen[0]).toBe(before);
    expect(new Set(seen).size).toBe(3);
    expect(rows).toEqual([{ user_id: 'bob' }]);
    const line = await stack.logged(({ event }) => event === 'certificate_reloaded');
    expect(line).toMatchObject({
      path: 'listen.tls',
      serial: expect.stringMatching(/^[\dA-F]+$/) as string,
      validTo: expect.stringMatching(/^\d{4}-.*Z$/) as string,
    });
    expect(stack.logs.join('\n')).not.toContain('PRIVATE KEY');
  });

  it('that cannot be used refuses a reload, and the one before is shown still', async () => {
    const before = await visit();
    const config = {
      ...stack.config,
      listen: { ...stack.config.listen, tls: { ...names, keyFile: '/nowhere/tls.key' } },
    };

    expect(() => stack.proxy.reload(parseConfig(config))).toThrow(
      new ConfigError([
        { path: 'listen.tls.keyFile', message: '/nowhere/tls.key cannot be read (ENOENT)' },
      ]),
    );

    expect(await visit()).toBe(before);
  });

  it('is read at once by a reload', async () => {
    const before = await visit();
    const { cert, key } = stack.authority.issue();
    replace(names.certFile, cert);
    replace(names.keyFile, key);

    stack.proxy.reload(parseConfig(stack.config));

    expect(await visit()).not.toBe(before);
  });
});

describe('the authority that vouches for the upstream', () => {
  it('is read again when its file changes, and one that is cut off replaces nothing', async () => {
    await using stack = await startStack({ upstreamTls: true });
    const upstream = stack.config.upstreams['main'];
    const caFile = upstream?.tls?.caFile as string;
    const enter = () => stack.connect('alice').then((client) => client.end());
    const reloads = () =>
      stack.logs.filter((line) => line.includes('"certificate_reloaded"')).length;
    await enter();

    replace(caFile, stack.authority.ca.slice(0, 100));
    const unusable = await stack.logged(({ event }) => event === 'certificate_unusable');
    await enter();
    expect(() => stack.proxy.reload(parseConfig(stack.config))).toThrow(ConfigError);
    replace(caFile, createAuthority().ca);
    await until(() => reloads() === 1);
    await expect(enter()).rejects.toMatchObject({ code: '08001' });
    replace(caFile, createAuthority().ca + stack.authority.ca);
    await until(() => reloads() === 2);
    await enter();

    expect(unusable).toMatchObject({ path: 'upstreams.main.tls' });
  });
});

describe('several workers', () => {
  it('all show the new certificate', async () => {
    await using ground = await startGround(8);
    const authority = createAuthority();
    const folder = dirname(ground.postgres.dataDir);
    const [certFile, keyFile] = [join(folder, 'w.crt'), join(folder, 'w.key')];
    const put = () => {
      const { cert, key } = authority.issue();
      writeFileSync(certFile, cert);
      writeFileSync(keyFile, key);
    };
    put();
    await using fleet = await startFleet(ground, {
      workers: 2,
      settings: { listen: { port: 0, tls: { mode: 'require', certFile, keyFile } } },
    });
    const serials = async () => {
      const clients = Array.from(
        { length: 4 },
        () =>
          new Client({
            host: fleet.host,
            port: fleet.port,
            user: 'authenticated',
            database: 'app',
            password: fleet.token('alice'),
            ssl: { ca: authority.ca },
          }),
      );
      await Promise.all(clients.map((client) => client.connect()));
      const found = new Set(clients.map(serialOf));
      await Promise.all(clients.map((client) => client.end()));
      return found;
    };
    const before = await serials();

    put();
    for (const worker of [1, 2]) {
      await fleet.logged(
        (line) => line['event'] === 'certificate_reloaded' && line['worker'] === worker,
      );
    }

    expect(before.size).toBe(1);
    const after = await serials();
    expect(after.size).toBe(1);
    expect(after).not.toEqual(before);
  });
});
