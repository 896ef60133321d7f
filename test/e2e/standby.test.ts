/**
 * The hot standbys that other tests build on: real ones, on every PostgreSQL here.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  connectAsSuperuser,
  postgresVersions,
  startTestPostgres,
  type TestPostgres,
} from '../support/postgres.ts';
import { startStandby, type Standby } from '../support/standby.ts';

describe.each(postgresVersions())('a standby of PostgreSQL %i', (version) => {
  let primary: TestPostgres;
  let standby: Standby;

  beforeAll(async () => {
    primary = await startTestPostgres({ version, settings: { max_worker_processes: '12' } });
    standby = await startStandby(primary);
  });

  afterAll(async () => {
    await standby?.stop();
    await primary.stop();
  });

  async function ask(server: TestPostgres, sql: string): Promise<unknown[]> {
    const client = await connectAsSuperuser(server);
    try {
      return (await client.query(sql)).rows;
    } finally {
      await client.end();
    }
  }

  it('is in recovery on the same version, elsewhere', async () => {
    const [{ recovering, folder }] = (await ask(
      standby,
      `select pg_is_in_recovery() as recovering, current_setting('data_directory') as folder`,
    )) as [{ recovering: boolean; folder: string }];

    expect(recovering).toBe(true);
    expect(standby.major).toBe(version);
    expect(folder).toBe(standby.dataDir);
    expect(folder).not.toBe(primary.dataDir);
    expect(standby.port).not.toBe(primary.port);
  });

  it('follows by streaming', async () => {
    await ask(primary, 'create table written as select 1 as n');
    await standby.caughtUp();

    expect(await ask(standby, 'select n from written')).toEqual([{ n: 1 }]);
    await expect
      .poll(() => ask(primary, 'select state from pg_stat_replication'))
      .toEqual([{ state: 'streaming' }]);
  });

  it('takes no write, and knows no unlogged table', async () => {
    await ask(primary, 'create unlogged table forgotten (n int)');
    await standby.caughtUp();

    await expect(ask(standby, 'insert into written values (2)')).rejects.toMatchObject({
      code: '25006',
    });
    await expect(ask(standby, 'select from forgotten')).rejects.toMatchObject({ code: '0A000' });
  });

  it('starts again as a standby', async () => {
    await standby.restart();
    await ask(primary, 'insert into written values (3)');
    await standby.caughtUp();

    expect(await ask(standby, 'select n from written order by n')).toEqual([{ n: 1 }, { n: 3 }]);
  });

  it('takes over when it is promoted, the primary gone', async () => {
    await primary.stop();
    await standby.promote();

    expect(await ask(standby, 'insert into written values (4) returning n')).toEqual([{ n: 4 }]);
    await standby.restart('immediate');
    expect(await ask(standby, 'select count(*)::int as n from written')).toEqual([{ n: 3 }]);
  });
});
