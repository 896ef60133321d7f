/**
 * Cancel requests among several proxies behind one address: one that arrives at the wrong proxy is asked of all the others.
 *
 * Over the shared store, by publish and subscribe. A request travels encrypted with a key of the store's secret, so that
 * whoever can read there learns no cancel key, and whoever can write there can cancel nothing. The client's own connection
 * stays open until the answer, as it must, and is told nothing.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import type { RedisLink } from './redis-link.ts';

/** The key of a cancel request. */
export interface ForeignKey {
  readonly processId: number;
  readonly secretKey: Buffer;
}

/** Forwards a request for a session of this proxy's; resolves with whether there is one, when PostgreSQL has taken it. */
export type ForwardOwn = (key: ForeignKey) => Promise<boolean>;

const CHANNEL = 'pgjot:cancel';
// PostgreSQL has ten seconds for a request, and one may wait behind another.
const ANSWER_MS = 12_000;
// Each holds a socket, or a question: more at once is an attack.
const MAX_UNDER_WAY = 1_024;
// How far the clocks of two proxies may be apart, and how long a request could be sent again.
const FRESH_MS = 60_000;
const MAX_REMEMBERED = 10_000;
const CIPHER = 'aes-256-gcm';
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

type Message =
  | {
      readonly id: string;
      readonly from: string;
      readonly at: number;
      readonly processId: number;
      readonly secretKey: string;
    }
  | { readonly id: string; readonly found: boolean };

interface Open {
  /** How many will answer, once that is known; answers may come before. */
  others: number | undefined;
  answers: number;
  readonly settle: (found: boolean) => void;
}

/** One proxy's part in the exchange. */
export class CancelExchange {
  readonly #link: RedisLink;
  readonly #forward: ForwardOwn;
  readonly #key: Buffer;
  readonly #open = new Map<string, Open>();
  /** Requests that have been seen, and when they were made, so that nobody sends one twice; the oldest first. */
  readonly #seen = new Map<string, number>();
  /** When the youngest was made of those that have been forgotten again: whatever is no younger may be one of them. */
  #forgottenUntil = 0;
  #serving = 0;

  constructor(link: RedisLink, forward: ForwardOwn) {
    this.#link = link;
    this.#forward = forward;
    this.#key = link.keyFor('cancel requests');
  }

  /** Subscribes, now and whenever the store is back. */
  open(): void {
    const { subscriber, proxy } = this.#link;
    subscriber.on('ready', () => {
      subscriber.subscribe(CHANNEL, `${CHANNEL}:${proxy}`).catch(() => {});
    });
    subscriber.on('message', (channel: string, text: string) => {
      const message = this.#unseal(text);
      if (message === undefined) return;
      if ('found' in message) this.#onAnswer(message);
      else if (channel === CHANNEL) void this.#onRequest(message);
    });
  }

  /** Asks the other proxies; resolves with whether it was for a session of one, when that has been done. Never rejects. */
  async ask({ processId, secretKey }: ForeignKey): Promise<boolean> {
    if (this.#open.size >= MAX_UNDER_WAY) return false;
    const id = randomBytes(9).toString('base64url');
    const request = {
      id,
      from: this.#link.proxy,
      at: Date.now(),
      processId,
      secretKey: secretKey.toString('hex'),
    };
    return new Promise((resolve) => {
      const settle = (found: boolean) => {
        clearTimeout(timer);
        this.#open.delete(id);
        resolve(found);
      };
      const timer = setTimeout(() => settle(false), ANSWER_MS);
      const open: Open = { others: undefined, answers: 0, settle };
      this.#open.set(id, open);
      this.#link
        .ask((redis) => redis.publish(CHANNEL, this.#seal(request)))
        .then((receivers) => {
          // One of them is this proxy.
          open.others = receivers - 1;
          settleIfAnswered(open);
        })
        .catch(() => settle(false));
    });
  }

  close(): void {
    for (const { settle } of this.#open.values()) settle(false);
  }

  #onAnswer({ id, found }: { readonly id: string; readonly found: boolean }): void {
    const open = this.#open.get(id);
    if (open === undefined) return;
    if (found) return open.settle(true);
    open.answers++;
    settleIfAnswered(open);
  }

  async #onRequest(request: Exclude<Message, { found: boolean }>): Promise<void> {
    const { id, from, at, processId, secretKey } = request;
    if (from === this.#link.proxy) return;
    if (!this.#isNew(id, at)) return;
    let found = false;
    if (this.#serving < MAX_UNDER_WAY) {
      this.#serving++;
      const key = { processId, secretKey: Buffer.from(secretKey, 'hex') };
      found = await this.#forward(key).catch(() => false);
      this.#serving--;
    }
    const answer = this.#seal({ id, found });
    await this.#link.ask((redis) => redis.publish(`${CHANNEL}:${from}`, answer)).catch(() => {});
  }

  /** Attack: a request that was overheard is sent again, to cancel what its session runs now; perhaps behind ten thousand others. */
  #isNew(id: string, at: number): boolean {
    if (Math.abs(Date.now() - at) > FRESH_MS || at <= this.#forgottenUntil) return false;
    if (this.#seen.has(id)) return false;
    this.#seen.set(id, at);
    if (this.#seen.size > MAX_REMEMBERED) {
      const [oldest, madeAt] = this.#seen.entries().next().value as [string, number];
      this.#seen.delete(oldest);
      this.#forgottenUntil = Math.max(this.#forgottenUntil, madeAt);
    }
    return true;
  }

  #seal(message: Message): string {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv(CIPHER, this.#key, nonce, { authTagLength: TAG_BYTES });
    const sealed = [cipher.update(JSON.stringify(message)), cipher.final()];
    return Buffer.concat([nonce, ...sealed, cipher.getAuthTag()]).toString('base64');
  }

  /** `undefined` for what none of us has sealed. */
  #unseal(text: string): Message | undefined {
    try {
      const bytes = Buffer.from(text, 'base64');
      const nonce = bytes.subarray(0, NONCE_BYTES);
      const decipher = createDecipheriv(CIPHER, this.#key, nonce, { authTagLength: TAG_BYTES });
      decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
      const clear = [decipher.update(bytes.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()];
      return JSON.parse(Buffer.concat(clear).toString()) as Message;
    } catch {
      return undefined;
    }
  }
}

function settleIfAnswered({ others, answers, settle }: Open): void {
  if (others !== undefined && answers >= others) settle(false);
}
