/**
 * The secret of an upstream is rotated where passwords are not all that derives from it, or play no part: identities on a hot
 * standby are signed with a key of it, and with client certificates nobody is asked for a password.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { expect, test } from 'vitest';
import type { ConfigInput } from '../../src/proxy.ts';
import { createAuthority } from '../support/certificate.ts';
import { until } from '../support/stack.ts';
import { expectNoSecret, Scene, workers } from './rotation.ts';

const CLIENTS = 12;

/** Who this session is to SQL. */
const self = async (client: pg.Client): Promise<unknown> =>
  (await client.query('select auth.user_id() as me')).rows[0]?.me;

/**
 * Rotates while clients log in and work, of whom none may notice, with a proxy that is told of both secrets before and of one
 * after. Returns Carol, who has been there all the time.
 */
async function whileClientsWork(
  scene: Scene,
  rotate: () => ReturnType<Scene['rotate']>,
): Promise<pg.Client> {
  const old = await scene.stack.connect('carol');
  const clients = workers(scene, CLIENTS);
  await clients.goOn();
  scene.reload('both');
  await clients.goOn();

  const result = await rotate();

  expect(result.stderr).toBe('');
  expect(result.status).toBe(0);
  expectNoSecret(result);
  await scene.stack.standby?.caughtUp();
  await clients.goOn();
  scene.reload('after');
  await clients.goOn();
  const { failures } = await clients.stop();
  expect(failures).toEqual([]);
  expect(await self(old)).toBe('carol');
  return old;
}

test('of a standby: clients there notice nothing, and the old key holds until it is finished', async () => {
  const scene = await Scene.start({ session: 'replica', slots: 40 });
  try {
    /** As the proxy's, with the primary beside it. */
    const withPrimary = (stage: 'both' | 'after'): ConfigInput => {
      const config = scene.config(stage);
      const main = config.upstreams['main'] as ConfigInput['upstreams'][string];
      const primary = { ...main, port: scene.stack.primary.port, session: 'portable' as const };
      return { ...config, upstreams: { primary, main } };
    };
    const rotate = (stage: 'both' | 'after', ...args: string[]) =>
      scene.rotate(stage, args, withPrimary(stage), 'primary');
    const old = await whileClientsWork(scene, async () => {
      const onStandby = await scene.rotate('both');
      expect(onStandby.stderr).toContain('"main" is a standby: rotate the secret of its primary');

      const result = await rotate('both');

      expect(result.stdout).toContain('checked: the old one is refused');
      expect(result.stdout).toContain('Once the sessions on main from before now have ended');
      return result;
    });

    const finished = await rotate('after', '--finish');
    expect(finished.status).toBe(0);
    expectNoSecret(finished);
    await scene.stack.standby?.caughtUp();
    // Signed with a key that is no key any more: it is nobody's.
    await until(async () => (await self(old).catch(() => null)) === null);
    const young = await scene.stack.connect('dave');
    expect(await self(young)).toBe('dave');
    await Promise.all([old.end(), young.end()]);
  } finally {
    await scene.stack.close();
  }
});

test('with client certificates: it is the same, and the command says that passwords are not asked for', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-certificates-'));
  const authority = createAuthority();
  const { cert, key } = authority.issue(['proxy']);
  const [certFile, keyFile] = [join(folder, 'proxy.crt'), join(folder, 'proxy.key')];
  await writeFile(certFile, cert);
  await writeFile(keyFile, key, { mode: 0o600 });
  const scene = await Scene.start({
    slots: 40,
    upstreamTls: true,
    settings: { ssl_ca_file: 'clients.crt' },
    files: {
      'clients.crt': authority.ca,
      'pg_hba.conf': `host all postgres 127.0.0.1/32 scram-sha-256
hostssl app all 127.0.0.1/32 cert map=proxies
`,
      'pg_ident.conf': 'proxies proxy /^pgjot_.*$\n',
    },
    upstream: { tls: { mode: 'require', certFile, keyFile } },
  });
  try {
    const old = await whileClientsWork(scene, async () => {
      const result = await scene.rotate('both');

      expect(result.stdout).toContain('the old one lets us in as well');
      return result;
    });
    await old.end();
    expect(scene.events('slot_quarantined')).toEqual([]);
    expect(scene.events('secret_refused')).toEqual([]);
  } finally {
    await scene.stack.close();
    await rm(folder, { recursive: true, force: true });
  }
});
