/**
 * What a login is bound to: the hash of RFC 5929 for every algorithm that certificates are signed with, as real servers have it.
 */
import { createHash, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect as connectTcp, createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { createSecureContext, TLSSocket, connect as connectTls } from 'node:tls';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { UpstreamConfig } from '../../src/config.ts';
import type { ProxyError } from '../../src/errors.ts';
import { serverEndPoint, signatureHash } from '../../src/upstream/channel-binding.ts';
import { connect, disconnect } from '../../src/upstream/connect.ts';
import { encodeString } from '../../src/wire/frame.ts';
import { readExactly } from '../../src/wire/read.ts';
import { encodeSSLRequest } from '../../src/wire/startup.ts';
import { createAuthority, type Certificate, type Signing } from '../support/certificate.ts';
import { authentication, upstreamAt } from '../support/fake-postgres.ts';
import {
  postgresVersions,
  startTestPostgres,
  type TestPostgres,
  withSuperuser,
} from '../support/postgres.ts';
import { makePairs } from '../support/sockets.ts';
import { anyBytes } from '../support/splits.ts';

const never = new AbortController().signal;

const HASHES: readonly (readonly [Signing, string | undefined])[] = [
  ['rsa-sha1', 'sha256'],
  ['rsa-sha224', 'sha224'],
  ['rsa-sha256', 'sha256'],
  ['rsa-sha384', 'sha384'],
  ['rsa-sha512', 'sha512'],
  ['ecdsa-sha224', 'sha224'],
  ['ecdsa-sha256', 'sha256'],
  ['ecdsa-sha384', 'sha384'],
  ['ecdsa-sha512', 'sha512'],
  ['pss-sha256', 'sha256'],
  ['pss-sha384', 'sha384'],
  ['pss-sha512', 'sha512'],
  ['ed25519', undefined],
];

const derOf = ({ cert }: Certificate) => new X509Certificate(cert).raw;

describe('signatureHash', () => {
  test.each(HASHES)('of a certificate signed with %s is %s', (signing, hash) => {
    expect(signatureHash(derOf(createAuthority(signing).issue()))).toBe(hash);
  });

  test('of RSASSA-PSS that names no hash is the one that takes the place of SHA-1', () => {
    const certificate = Buffer.from('30133000300d06092a864886f70d01010a30000300', 'hex');

    expect(signatureHash(certificate)).toBe('sha256');
  });

  test('of what is no certificate is none, and nothing is thrown', () => {
    fc.assert(
      fc.property(anyBytes(300), (bytes) => {
        expect(() => signatureHash(bytes)).not.toThrow();
      }),
    );
    const whole = derOf(createAuthority().issue());
    for (let length = 0; length < whole.length; length++) {
      expect(signatureHash(whole.subarray(0, length))).toBeUndefined();
    }
  });
});

test('serverEndPoint is the hash of the whole certificate that the server has shown', async () => {
  await using pairs = await makePairs();
  const { connected } = await pairs.tls();

  const { raw } = connected.getPeerCertificate();

  expect(raw.length).toBeGreaterThan(200);
  expect(serverEndPoint(connected)).toEqual(createHash('sha256').update(raw).digest());
});

const PASSWORD = 'a password of ASCII';
const KINDS = HASHES.map(([signing]) => signing);

/** What a server shows to whoever asks for TLS. */
async function secure(port: number): Promise<TLSSocket> {
  const socket = connectTcp({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
  socket.on('error', () => {}).write(encodeSSLRequest());
  await readExactly(socket, 1, never);
  const secured = connectTls({ socket, rejectUnauthorized: false });
  secured.on('error', () => {});
  await once(secured, 'secureConnect');
  return secured;
}

/** Somebody in between with a certificate of his own, who can read and change all that passes. */
async function startImpostor(
  certificate: Certificate,
  port: number,
  change: (chunk: Buffer) => Buffer,
): Promise<AsyncDisposable & { port: number }> {
  const sockets = new Set<Duplex>();
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    sockets.add(socket.on('error', () => {}));
    void readExactly(socket, 8, never).then(async () => {
      const far = await secure(port);
      sockets.add(far);
      socket.write('S');
      const near = new TLSSocket(socket, {
        isServer: true,
        secureContext: createSecureContext(certificate),
      });
      sockets.add(near.on('error', () => {}));
      near.pipe(far);
      far.on('data', (chunk: Buffer) => near.write(change(chunk)));
      far.on('end', () => near.end());
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of [...sockets].toReversed()) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** Takes SCRAM-SHA-256-PLUS off the server's list. */
function withoutPlus(chunk: Buffer): Buffer {
  if (!chunk.includes('SCRAM-SHA-256-PLUS')) return chunk;
  return authentication(10, encodeString('SCRAM-SHA-256'), Buffer.from([0]));
}

describe.each([...new Set([postgresVersions()[0], postgresVersions().at(-1)])])(
  'PostgreSQL %i',
  (version) => {
    const authorities = new Map(KINDS.map((kind) => [kind, createAuthority(kind)]));
    const certificates = new Map(KINDS.map((kind) => [kind, authorities.get(kind)?.issue()]));
    let postgres: TestPostgres;
    let folder: string;

    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'pgjot-binding-'));
      const files: Record<string, string> = {
        'pg_hba.conf':
          'hostssl all bound 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 scram-sha-256\n',
        'postgresql.auto.conf':
          "ssl = on\nssl_cert_file = 'rsa-sha256.crt'\nssl_key_file = 'rsa-sha256.key'\n",
      };
      for (const [kind, certificate] of certificates) {
        files[`${kind}.crt`] = certificate?.cert ?? '';
        files[`${kind}.key`] = certificate?.key ?? '';
        await writeFile(join(folder, `${kind}.ca`), authorities.get(kind)?.ca ?? '');
      }
      postgres = await startTestPostgres({ version: version as number, files });
      await withSuperuser(postgres, (admin) =>
        admin.query(`CREATE ROLE bound LOGIN PASSWORD '${PASSWORD}'`),
      );
    });
    afterAll(async () => {
      await postgres?.stop();
      await rm(folder, { recursive: true, force: true });
    });

    /** Has the server show another certificate, and waits until it does. */
    async function show(kind: Signing): Promise<void> {
      await withSuperuser(postgres, async (admin) => {
        await admin.query(`ALTER SYSTEM SET ssl_cert_file = '${kind}.crt'`);
        await admin.query(`ALTER SYSTEM SET ssl_key_file = '${kind}.key'`);
        await admin.query('SELECT pg_reload_conf()');
      });
      const wanted = derOf(certificates.get(kind) as Certificate);
      const deadline = performance.now() + 10_000;
      for (;;) {
        const stream = await secure(postgres.port);
        const shown = stream.getPeerCertificate().raw;
        stream.destroy();
        if (shown.equals(wanted)) return;
        if (performance.now() > deadline) throw new Error(`the server does not show ${kind}`);
      }
    }

    /** Logs in as `bound`, and out again; the failure, if it is one. */
    async function logIn(
      tls: UpstreamConfig['tls'],
      port = postgres.port,
    ): Promise<ProxyError | undefined> {
      const upstream = upstreamAt(port, { database: 'postgres', tls });
      const credentials = {
        user: 'bound',
        password: PASSWORD,
        role: 'bound',
        parameters: new Map<string, string>(),
        identity: async () => [],
      };
      try {
        const { stream } = await connect(upstream, credentials, never);
        await disconnect(stream);
        return undefined;
      } catch (error) {
        return error as ProxyError;
      }
    }

    test.each(HASHES.filter(([kind, hash]) => hash !== undefined && kind !== 'rsa-sha1'))(
      'agrees on what a certificate signed with %s binds to',
      async (kind) => {
        await show(kind);

        expect(await logIn({ mode: 'require' })).toBeUndefined();
        expect(
          await logIn({ mode: 'verify-full', caFile: join(folder, `${kind}.ca`) }),
        ).toBeUndefined();
      },
    );

    test('with a certificate that cannot be bound to is logged in to where TLS vouches for it, and nowhere else', async () => {
      await show('ed25519');

      const caFile = join(folder, 'ed25519.ca');
      expect(await logIn({ mode: 'verify-full', caFile })).toBeUndefined();
      expect(await logIn({ mode: 'require' })).toMatchObject({
        code: 'upstream_login_rejected',
        cause: { message: expect.stringMatching(/cannot be bound to/) as string },
      });
    });

    test.each<[string, Signing, (chunk: Buffer) => Buffer, RegExp]>([
      ['passes all on', 'ecdsa-sha256', (chunk) => chunk, /channel binding check failed/],
      ['takes -PLUS off the list', 'ecdsa-sha256', withoutPlus, /channel binding/],
      ['shows a certificate that cannot be bound to', 'ed25519', (chunk) => chunk, /be bound to/],
      ['does both', 'ed25519', withoutPlus, /channel binding/],
    ])('attack: somebody in between %s, and is not logged in', async (_, kind, change, why) => {
      await show('rsa-sha256');
      await using impostor = await startImpostor(
        createAuthority(kind).issue(),
        postgres.port,
        change,
      );

      const error = await logIn({ mode: 'require' }, impostor.port);

      expect(error?.code).toBe('upstream_login_rejected');
      expect(error?.cause).toMatchObject({ message: expect.stringMatching(why) as string });
    });
  },
);
