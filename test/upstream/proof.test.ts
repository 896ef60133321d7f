/**
 * Servers that are not ours, before the logins that `pg` makes for us: whoever had the password of pgjot_control could say
 * who everybody is.
 */
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import type { UpstreamConfig } from '../../src/config.ts';
import { derivePassword } from '../../src/session-sql/credentials.ts';
import { createControl } from '../../src/upstream/control.ts';
import { asRole } from '../../src/upstream/errand.ts';
import { Secrets } from '../../src/upstream/secrets.ts';
import { createAuthority } from '../support/certificate.ts';
import * as fake from '../support/fake-postgres.ts';
import { SECRET } from '../support/stack.ts';

const ROLE = 'pgjot_control';
// The address of this machine that does not look like it.
const AWAY: Partial<UpstreamConfig> = { host: '0.0.0.0' };
const REQUIRE: Partial<UpstreamConfig> = { tls: { mode: 'require' } };
const TLS = () => [fake.sslRequest('S'), fake.startTls(createAuthority().issue())];

const LOGINS: [string, (upstream: UpstreamConfig) => Promise<unknown>][] = [
  [
    'the control connection',
    async (upstream) => {
      const control = createControl(upstream, new Secrets({ current: SECRET }), () => {});
      try {
        await control.ping();
      } finally {
        await control.close();
      }
    },
  ],
  [
    'an errand',
    (upstream) =>
      asRole({ user: ROLE, name: 'pgjot errand', upstream, secret: SECRET }, async () => {}),
  ],
];

describe.each(LOGINS)('%s', (_, login) => {
  /** What becomes of a login at such a server, and what that hears after it has said this. */
  async function attempt(
    before: fake.Step[],
    said: Buffer[],
    overrides: Partial<UpstreamConfig> = {},
  ) {
    const told: Buffer[] = [];
    const listen: fake.Step = async ({ stream }) => {
      stream.on('data', (chunk: Buffer) => told.push(chunk)).on('error', () => {});
      stream.once('end', () => stream.end());
      if (!stream.closed) await once(stream, 'close');
    };
    await using server = await fake.startFakePostgres([...before, fake.send(...said), listen]);
    const error = await login(fake.upstreamAt(server.port, overrides)).then(
      () => undefined,
      (thrown: { code?: string; cause?: Error }) => thrown,
    );
    await server.verify();
    return {
      code: error?.code,
      cause: error?.cause?.message,
      told: Buffer.concat(told).toString(),
    };
  }

  it.each<[string, fake.Step[], Partial<UpstreamConfig>]>([
    ['without TLS', [fake.startupMessage], AWAY],
    ['over TLS that anybody could have answered', [...TLS(), fake.startupMessage], REQUIRE],
  ])('says no password in clear %s', async (_name, before, overrides) => {
    const { code, cause, told } = await attempt(before, [fake.authentication(3)], overrides);

    expect(told).toBe('');
    expect([code, cause]).toEqual([
      'upstream_login_rejected',
      expect.stringMatching('clear password'),
    ]);
  });

  it('says no MD5 of a password to anybody', async () => {
    const salt = Buffer.from('salt');
    const { code, told } = await attempt([fake.startupMessage], [fake.authentication(5, salt)]);

    expect(told).toBe('');
    expect(code).toBe('upstream_login_rejected');
  });

  it.each<[string, fake.Step[]]>([
    ['at all', []],
    ['once SCRAM has begun', [fake.scram(derivePassword(SECRET, ROLE), { final: [] })]],
  ])('believes nobody who lets it in without a proof %s', async (_name, exchange) => {
    const welcome = [fake.ok, fake.keyData, fake.ready];
    const { code, cause, told } = await attempt([fake.startupMessage, ...exchange], welcome, AWAY);

    expect(told).toBe('');
    expect([code, cause]).toEqual(['upstream_login_rejected', expect.stringMatching('proof')]);
  });
});
