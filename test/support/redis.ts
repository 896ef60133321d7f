/** A real Redis or Valkey for one test: on a port of its own, with nothing on disk, and gone with the test. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { freePort } from './sockets.ts';
import { until } from './stack.ts';

const PROGRAM = ['redis-server', 'valkey-server'].find(
  (name) => spawnSync(name, ['--version']).status === 0,
);

/** Whether there is one here. Says so in one line where not. */
export const hasRedis = PROGRAM !== undefined;
if (!hasRedis)
  console.error('there is no redis-server here, so nothing that proxies share is tested');

/** Whether it can speak TLS. Says so in one line where not. */
export const hasRedisTls = hasRedis && speaksTls(PROGRAM as string);
if (hasRedis && !hasRedisTls)
  console.error(
    `this ${PROGRAM} was built without TLS, so nothing that proxies share over TLS is tested`,
  );

/** It says which of its settings it does not know, or, where it knows them, that there is no such folder. */
function speaksTls(program: string): boolean {
  const folder = join(tmpdir(), 'there-is-no-such-folder');
  const { stdout } = spawnSync(program, ['--port', '0', '--tls-port', '0', '--dir', folder]);
  return !/tls-port/.test(String(stdout));
}

/** A running server. */
export class TestRedis implements AsyncDisposable {
  readonly port: number;
  readonly #folder: string;
  readonly #options: readonly string[];
  #process: ChildProcess | undefined;

  private constructor(port: number, folder: string, options: readonly string[]) {
    this.port = port;
    this.#folder = folder;
    this.#options = options;
  }

  static async start(...options: string[]): Promise<TestRedis> {
    const redis = new TestRedis(await freePort(), await mkdtemp(join(tmpdir(), 'redis-')), options);
    await redis.start();
    return redis;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  /** Starts it again, empty, where it has been stopped. */
  async start(): Promise<void> {
    const own = ['--port', String(this.port), '--bind', '127.0.0.1', '--dir', this.#folder];
    const options = [...own, '--save', '', '--appendonly', 'no', ...this.#options];
    this.#process = spawn(PROGRAM as string, options, { stdio: 'ignore' });
    await until(() => this.run((client) => client.ping()).catch(() => undefined));
  }

  signal(name: NodeJS.Signals): void {
    this.#process?.kill(name);
  }

  async stop(): Promise<void> {
    const running = this.#process;
    if (running === undefined) return;
    this.#process = undefined;
    const gone = once(running, 'exit');
    running.kill('SIGKILL');
    await gone;
  }

  /** Does something there, over a connection of its own. */
  async run<T>(work: (client: Redis) => Promise<T>): Promise<T> {
    const client = new Redis(this.url, { lazyConnect: true, retryStrategy: () => null });
    client.on('error', () => {});
    try {
      await client.connect();
      return await work(client);
    } finally {
      client.disconnect();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
