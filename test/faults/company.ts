/** Proxies that share a store on one stack, for tests of what becomes of their limits. */
import type pg from 'pg';
import type { ConfigInput } from '../../src/config.ts';
import { createProxy, parseConfig, type Proxy } from '../../src/proxy.ts';
import { recordedLogger } from '../support/logger.ts';
import { recordSecret } from '../support/record.ts';
import type { TestRedis } from '../support/redis.ts';
import { until, type Stack } from '../support/stack.ts';

/** What all of them have in common. */
export const SHARED_SECRET = 'what-all-proxies-have-in-common-0123456789';

type RedisInput = NonNullable<NonNullable<ConfigInput['limits']>['store']>['redis'];

interface Member {
  readonly proxy: Proxy;
  readonly port: number;
  readonly log: Record<string, unknown>[];
}

/** Proxies of this stack's configuration, by number in the order of their start, and their clients. */
export class Company implements AsyncDisposable {
  readonly members: Member[] = [];
  readonly #stack: Stack;
  readonly #redis: TestRedis;
  readonly #clients: pg.Client[] = [];

  /** The store's address is in the environment while they start. */
  constructor(stack: Stack, redis: TestRedis, url = redis.url) {
    this.#stack = stack;
    this.#redis = redis;
    recordSecret('secret of a store', SHARED_SECRET);
    process.env['PGJOT_TEST_REDIS_SECRET'] = SHARED_SECRET;
    process.env['PGJOT_TEST_REDIS_URL'] = url;
  }

  /** Starts another proxy with these limits. */
  async start(limits: object, settings: Partial<RedisInput> = {}): Promise<void> {
    const log: Record<string, unknown>[] = [];
    const redis: RedisInput = {
      url: { env: 'PGJOT_TEST_REDIS_URL' },
      secret: { env: 'PGJOT_TEST_REDIS_SECRET' },
      timeoutMs: 2_000,
      ...settings,
    };
    const config = { ...this.#stack.config, limits: { store: { redis }, ...limits } };
    const proxy = createProxy(parseConfig(config), {
      logger: recordedLogger((line) => void log.push(JSON.parse(line))),
    });
    const { port } = await proxy.start();
    this.members.push({ proxy, port, log });
  }

  /** Until all have given a sign of life to the store, if it is there. */
  async alive(): Promise<void> {
    const isThere = async () => {
      const names = await this.#redis.run((client) => client.keys('pgjot:alive:*'));
      return names.length >= this.members.length;
    };
    await until(() => isThere().catch(() => true));
  }

  /** Logs in at one of them; resolves with "in", or the SQLSTATE. */
  async login(index: number, sub = 'alice', password?: string): Promise<string> {
    const { port } = this.members[index] as Member;
    const more = password === undefined ? {} : { password };
    try {
      this.#clients.push(await this.#stack.connect(sub, { port, ...more }));
      return 'in';
    } catch (error) {
      return (error as { code: string }).code;
    }
  }

  /** Ends the client that came last. */
  async leave(): Promise<void> {
    await this.#clients.pop()?.end();
  }

  async leaveAll(): Promise<void> {
    await Promise.all(this.#clients.splice(0).map((client) => client.end()));
    await until(() => this.members.every(({ proxy }) => proxy.counts().clients === 0));
  }

  /** The first such line in one's log. */
  logged(index: number, event: string): Promise<Record<string, unknown>> {
    return until(() => this.members[index]?.log.find((line) => line['event'] === event));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#clients.splice(0).map((client) => client.end().catch(() => {})));
    await Promise.all(this.members.map(({ proxy }) => proxy.close()));
  }
}
