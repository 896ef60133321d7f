/**
 * The way to a Redis or Valkey that several proxies share: it answers soon or counts as gone, and never holds a login up.
 *
 * Knows not what is kept there.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type * as ioredis from 'ioredis';
import { type Config, readSecret, readUrl } from '../config.ts';
import { ConfigError } from '../errors.ts';
import type { Logger } from '../log.ts';
import { logTo, TlsFiles } from '../tls-files.ts';

// Loaded when somebody has a store: a fifth of the time that a proxy takes to start.
const load = () => createRequire(import.meta.url)('ioredis') as typeof ioredis;

/** What `limits.store.redis` says. */
export type RedisConfig = NonNullable<Config['limits']['store']>['redis'];

// After it has not answered, nobody waits for it for so long: one login in a while finds out that it is still away.
const PAUSE_MS = 1_000;
const LONGEST_RETRY_MS = 2_000;
const REDIS_PORT = 6379;
const GOODBYE_MS = 2_000;
const TLS_PATH = 'limits.store.redis.tls';

/** Connections to the store, opened by `connect`. */
export class RedisLink {
  /** This proxy's name among those that share the store. */
  readonly proxy = randomBytes(8).toString('hex');
  readonly commands: ioredis.Redis;
  readonly subscriber: ioredis.Redis;
  readonly #secret: string;
  readonly #timeoutMs: number;
  readonly #logger: Logger;
  readonly #tlsFiles: TlsFiles | undefined;
  #watching: Disposable | undefined;
  #restUntil = 0;
  #isLost = false;
  #isClosed = false;

  /** @throws {ConfigError} when a secret or file cannot be read, or there are settings of TLS for a server without. */
  constructor(config: RedisConfig, logger: Logger) {
    const url = readUrl(config.url, 'limits.store.redis.url', ['redis:', 'rediss:']);
    this.#tlsFiles = readTlsFiles(config, url);
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
      Connector: connectorTo(url, config, this.#tlsFiles),
    };
    const { Redis } = load();
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
    this.#watching = this.#tlsFiles?.watch(logTo(this.#logger, TLS_PATH));
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
    this.#watching?.[Symbol.dispose]();
    this.commands.disconnect();
    this.subscriber.disconnect();
  }

  #onLost(error: Error): void {
    if (this.#isLost || this.#isClosed) return;
    this.#isLost = true;
    // ioredis puts what it sent into the error, never into the message.
    const { message } = error instanceof AggregateError ? (error.errors[0] as Error) : error;
    const cause = `${message}; answers are awaited for ${this.#timeoutMs} ms`;
    this.#logger.error({ event: 'limit_store_lost', cause });
  }

  #onBack(): void {
    if (!this.#isLost || this.#isClosed) return;
    this.#isLost = false;
    this.#logger.info({ event: 'limit_store_back' });
  }
}

/** @throws {ConfigError} */
function readTlsFiles({ tls }: RedisConfig, url: string): TlsFiles | undefined {
  if (url.startsWith('rediss:')) return new TlsFiles(tls ?? {}, TLS_PATH);
  if (tls === undefined) return undefined;
  throw new ConfigError([{ path: TLS_PATH, message: 'is for a URL rediss://…' }]);
}

/**
 * How ioredis gets its streams: TLS ones with the certificates as they are by then. On its own streams it hears one error, and
 * of a TLS handshake that fails there may be two, the second of which would end this process.
 */
function connectorTo(url: string, { tls }: RedisConfig, files: TlsFiles | undefined) {
  const { hostname, port } = new URL(url);
  const host = hostname.replace(/^\[(.*)\]$/, '$1');
  const to = { host, port: Number(port || REDIS_PORT) };
  const servername = tls?.serverName ?? (isIP(host) === 0 ? host : undefined);
  const open = (): Socket =>
    files === undefined
      ? connectTcp(to)
      : connectTls({
          ...to,
          ...(servername && { servername }),
          secureContext: files.context,
          // Else $NODE_TLS_REJECT_UNAUTHORIZED, meant for some other program, would have us believe anybody.
          rejectUnauthorized: true,
        });
  return class extends load().AbstractConnector {
    constructor() {
      super(GOODBYE_MS);
    }

    override async connect(): Promise<Socket> {
      this.connecting = true;
      this.stream = open().on('error', () => {});
      return this.stream;
    }
  };
}
