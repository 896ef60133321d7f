/**
 * The way to a Redis or Valkey that several proxies share: it answers soon or counts as gone, and never holds a login up.
 *
 * Knows not what is kept there.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import type * as ioredis from 'ioredis';
import { type Config, readSecret, readUrl } from '../config.ts';
import { ConfigError } from '../errors.ts';
import type { Logger } from '../log.ts';

// Loaded when somebody has a store: a fifth of the time that a proxy takes to start.
const require = createRequire(import.meta.url);

/** What `limits.store.redis` says. */
export type RedisConfig = NonNullable<Config['limits']['store']>['redis'];

// After it has not answered, nobody waits for it for so long: one login in a while finds out that it is still away.
const PAUSE_MS = 1_000;
const LONGEST_RETRY_MS = 2_000;

/** Connections to the store, opened by `connect`. */
export class RedisLink {
  /** This proxy's name among those that share the store. */
  readonly proxy = randomBytes(8).toString('hex');
  readonly commands: ioredis.Redis;
  readonly subscriber: ioredis.Redis;
  readonly #secret: string;
  readonly #timeoutMs: number;
  readonly #logger: Logger;
  #restUntil = 0;
  #isLost = false;
  #isClosed = false;

  /** @throws {ConfigError} when a secret or file cannot be read. */
  constructor(config: RedisConfig, logger: Logger) {
    const url = readUrl(config.url, 'limits.store.redis.url', ['redis:', 'rediss:']);
    this.#secret = readSecret(config.secret, 'limits.store.redis.secret');
    this.#timeoutMs = config.timeoutMs;
    this.#logger = logger;
    const options = {
      lazyConnect: true,
      // Nothing is kept to be said later: a count that is late is wrong.
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      autoResendUnfulfilledCommands: false,
      commandTimeout: config.timeoutMs,
      connectTimeout: Math.max(config.timeoutMs, 1_000),
      retryStrategy: (attempt: number) => Math.min(50 * 2 ** attempt, LONGEST_RETRY_MS),
      ...(config.caFile !== undefined && { tls: { ca: readCertificate(config.caFile) } }),
    };
    const { Redis } = require('ioredis') as typeof ioredis;
    this.commands = new Redis(url, options);
    // It waits for messages, for as long as there are none.
    const { commandTimeout: _, ...patient } = options;
    this.subscriber = new Redis(url, { ...patient, autoResubscribe: false });
    for (const client of [this.commands, this.subscriber]) {
      client.on('error', (error: Error) => this.#onLost(error));
    }
    this.commands.on('ready', () => this.#onBack());
  }

  /** Begins to connect, and goes on trying until `close`. Does not wait for it: a proxy starts without. */
  connect(): void {
    for (const client of [this.commands, this.subscriber]) client.connect().catch(() => {});
  }

  /** Whether it is worth asking. */
  get isUp(): boolean {
    return this.commands.status === 'ready' && performance.now() >= this.#restUntil;
  }

  /** What the store answers to `question`. Rejects when it does not, in time or at all, or is known not to. */
  async ask<T>(question: (redis: ioredis.Redis) => Promise<T>): Promise<T> {
    if (!this.isUp) throw new Error('the store is away');
    try {
      const answer = await question(this.commands);
      this.#onBack();
      return answer;
    } catch (error) {
      this.#restUntil = performance.now() + PAUSE_MS;
      this.#onLost(error as Error);
      throw error;
    }
  }

  /** The name of something in the store, from which nobody who reads there learns what it is about. */
  nameOf(kind: string, key: string): string {
    return `pgjot:${kind}:${this.keyFor(`${kind} ${key}`).toString('base64url').slice(0, 22)}`;
  }

  /** 32 bytes for one purpose, the same in all proxies with one secret. */
  keyFor(purpose: string): Buffer {
    return createHmac('sha256', this.#secret).update(purpose).digest();
  }

  close(): void {
    this.#isClosed = true;
    this.commands.disconnect();
    this.subscriber.disconnect();
  }

  #onLost(error: Error): void {
    if (this.#isLost || this.#isClosed) return;
    this.#isLost = true;
    // ioredis puts what it sent into the error, never into the message.
    const cause = `${error.message}; answers are awaited for ${this.#timeoutMs} ms`;
    this.#logger.error({ event: 'limit_store_lost', cause });
  }

  #onBack(): void {
    if (!this.#isLost || this.#isClosed) return;
    this.#isLost = false;
    this.#logger.info({ event: 'limit_store_back' });
  }
}

function readCertificate(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    const message = `cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`;
    throw new ConfigError([{ path: 'limits.store.redis.caFile', message }]);
  }
}
