/** Keys over https, which need an authority that Node.js was told of when it started: the command, as a process of its own. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createAuthority, type Certificate } from '../support/certificate.ts';
import { runCli } from '../support/cli.ts';
import { createIssuerKey } from '../support/issuer.ts';

const authority = createAuthority();
let folder: string;
let server: Server;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-keys-'));
  writeFileSync(join(folder, 'ca.crt'), authority.ca);
});

afterEach(async () => {
  rmSync(folder, { recursive: true });
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

/** Publishes a key over https, and what `pgjot check --online` has to say of that. */
async function problemsOf(certificate: Certificate, host: string, env: Record<string, string>) {
  const jwks = JSON.stringify({ keys: [createIssuerKey('ES256').jwk] });
  server = createServer(certificate, (_, response) => response.end(jwks));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const own = {
    issuer: 'https://id.example',
    jwksUri: `https://${host}:${port}/jwks.json`,
    audience: 'a',
    roles: ['analyst'],
  };
  const main = {
    host: join(folder, 'nothing-here'),
    database: 'app',
    secret: { env: 'SECRET' },
    roles: { analyst: { slots: 1 } },
  };
  const config = { providers: { own }, upstreams: { main } };
  writeFileSync(join(folder, 'proxy.config.json'), JSON.stringify(config));
  const { stdout } = await runCli(['check', '--online', '--json'], {
    cwd: folder,
    env: { SECRET: 'x'.repeat(32), ...env },
  });
  const { problems } = JSON.parse(stdout) as { problems: { path: string; message: string }[] };
  return problems.filter(({ path }) => path.startsWith('providers.')).map(({ message }) => message);
}

describe('keys over https', () => {
  it('are fetched where the authority is known', async () => {
    const known = { NODE_EXTRA_CA_CERTS: join(folder, 'ca.crt') };

    expect(await problemsOf(authority.issue(), 'localhost', known)).toEqual([]);
  });

  it('are not fetched where nobody knows the authority', async () => {
    const [problem] = await problemsOf(authority.issue(), 'localhost', {});

    expect(problem).toMatch(/^refresh failed: .*certificate/);
  });

  it('are not fetched from a server with a certificate for another name', async () => {
    const known = { NODE_EXTRA_CA_CERTS: join(folder, 'ca.crt') };
    const other = authority.issue(['id.example']);

    const [problem] = await problemsOf(other, '127.0.0.1', known);

    expect(problem).toMatch(/does not match certificate/);
  });
});
