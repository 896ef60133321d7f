import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PostgresServer } from '../../src/cli/dev/postgres.ts';
import { connectAsSuperuser, postgresVersions, startTestPostgres } from '../support/postgres.ts';

describe.each(postgresVersions())('a local PostgreSQL %i', (version) => {
  let server: PostgresServer;

  beforeAll(async () => {
    server = await startTestPostgres({ version });
  });

  afterAll(async () => {
    await server.stop();
  });

  it('is the version that was asked for, in UTF-8, on loopback alone', async () => {
    const admin = await connectAsSuperuser(server);
    const { rows } = await admin.query(`
      SELECT current_setting('server_version_num')::int / 10000 AS major,
             current_setting('server_encoding') AS encoding,
             current_setting('listen_addresses') AS addresses,
             inet_server_port() AS port`);
    await admin.end();

    expect(rows).toEqual([
      { major: version, encoding: 'UTF8', addresses: '127.0.0.1', port: server.port },
    ]);
  });
});
