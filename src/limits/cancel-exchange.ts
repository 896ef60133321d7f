/**
 * Cancel requests among several proxies behind one address: one that arrives at the wrong proxy is asked of all the others.
 *
 *   asking: call ──▶ all          somebody wants a session cancelled
 *           ◀── ticket            from each: good for one request, for five seconds by the clock of who gave it
 *           request ──▶ each      the cancel key, with that one's ticket
 *           ◀── answer            whether it was for a session of its own
 *
 * Over the shared store, by publish and subscribe. All travels encrypted with a key of the store's secret, so that whoever can
 * read there learns no cancel key, and whoever can write there can cancel nothing: not by sending again what was overheard, nor
 * by holding it back until the session runs something else. The client's own connection stays open until the answer, as it
 * must, and is told nothing.
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
// For a message there and another one back.
const TICKET_MS = 5_000;
// Of each proxy; beyond them the oldest are good no more.
const MAX_TICKETS = 10_000;
const CIPHER = 'aes-256-gcm';
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

type Call = { readonly what: 'call'; readonly id: string; readonly from: string };
type Ticket = {
  readonly what: 'ticket';
  readonly id: string;
  readonly from: string;
  readonly ticket: string;
};
type Request = {
  readonly what: 'request';
  readonly id: string;
  readonly from: string;
  readonly ticket: string;
  readonly processId: number;
  readonly secretKey: string;
};
type Answer = {
  readonly what: 'answer';
  readonly id: string;
  readonly from: string;
  readonly found: boolean;
};
type Message = Call | Ticket | Request | Answer;

interface Open {
  readonly key: ForeignKey;
  /** Until when a ticket is taken: its request is good no more when whoever asked is told that nothing came of it. */
  readonly takesTicketsUntil: number;
  /** How many will answer, once that is known; answers may come before. */
  others: number | undefined;
  /** Who has answered, and whose answer to a request is still to come. */
  readonly answered: Set<string>;
  readonly awaited: Set<string>;
  readonly settle: (found: boolean) => void;
}

/** One proxy's part in the exchange. */
export class CancelExchange {
  readonly #link: RedisLink;
  readonly #forward: ForwardOwn;
  readonly #key: Buffer;
  readonly #open = new Map<string, Open>();
  /** Until when tickets are good that we gave out; the oldest first. */
  readonly #tickets = new Map<string, number>();
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
    subscriber.on('message', (_channel: string, text: string) => {
      const message = this.#unseal(text);
      if (message !== undefined) this.#onMessage(message);
    });
  }

  /** Asks the other proxies; resolves with whether it was for a session of one, when that has been done. Never rejects. */
  async ask(key: ForeignKey): Promise<boolean> {
    if (this.#open.size >= MAX_UNDER_WAY) return false;
    const id = randomBytes(9).toString('base64url');
    const call: Call = { what: 'call', id, from: this.#link.proxy };
    return new Promise((resolve) => {
      const settle = (found: boolean) => {
        clearTimeout(timer);
        this.#open.delete(id);
        resolve(found);
      };
      const timer = setTimeout(() => settle(false), ANSWER_MS);
      const takesTicketsUntil = performance.now() + ANSWER_MS - TICKET_MS;
      const [answered, awaited] = [new Set<string>(), new Set<string>()];
      const others = undefined;
      const open: Open = { key, takesTicketsUntil, others, answered, awaited, settle };
      this.#open.set(id, open);
      void this.#link
        .ask((redis) => redis.publish(CHANNEL, this.#seal(call)))
        .catch(() => 0)
        .then((receivers) => {
          // One of them is this proxy.
          open.others = receivers - 1;
          settleIfAnswered(open);
        });
    });
  }

  close(): void {
    for (const { settle } of this.#open.values()) settle(false);
  }

  #onMessage(message: Message): void {
    switch (message.what) {
      case 'call':
        return this.#onCall(message);
      case 'ticket':
        return this.#onTicket(message);
      case 'request':
        return void this.#onRequest(message);
      case 'answer':
        return this.#onAnswer(message);
      default:
        return message satisfies never;
    }
  }

  #onCall({ id, from }: Call): void {
    if (from === this.#link.proxy) return;
    const ticket = randomBytes(12).toString('base64url');
    this.#tickets.set(ticket, performance.now() + TICKET_MS);
    if (this.#tickets.size > MAX_TICKETS) {
      this.#tickets.delete(this.#tickets.keys().next().value as string);
    }
    this.#tell(from, { what: 'ticket', id, from: this.#link.proxy, ticket });
  }

  #onTicket({ id, from, ticket }: Ticket): void {
    const open = this.#open.get(id);
    // Attack: call and request are both held back, until the client has been told and its session runs something else.
    if (open === undefined || performance.now() >= open.takesTicketsUntil) return;
    const { processId } = open.key;
    const secretKey = open.key.secretKey.toString('hex');
    const request: Request = {
      what: 'request',
      id,
      from: this.#link.proxy,
      ticket,
      processId,
      secretKey,
    };
    open.awaited.add(from);
    this.#tell(from, request);
  }

  async #onRequest({ id, from, ticket, processId, secretKey }: Request): Promise<void> {
    if (!this.#isGood(ticket)) return;
    let found = false;
    if (this.#serving < MAX_UNDER_WAY) {
      this.#serving++;
      const key = { processId, secretKey: Buffer.from(secretKey, 'hex') };
      found = await this.#forward(key).catch(() => false);
      this.#serving--;
    }
    this.#tell(from, { what: 'answer', id, from: this.#link.proxy, found });
  }

  /** Attack: what was overheard or held back is sent when its session runs something else. */
  #isGood(ticket: string): boolean {
    const until = this.#tickets.get(ticket) ?? 0;
    this.#tickets.delete(ticket);
    return performance.now() < until;
  }

  #onAnswer({ id, from, found }: Answer): void {
    const open = this.#open.get(id);
    if (open === undefined) return;
    if (found) return open.settle(true);
    open.answered.add(from);
    open.awaited.delete(from);
    settleIfAnswered(open);
  }

  #tell(proxy: string, message: Message): void {
    const text = this.#seal(message);
    this.#link.ask((redis) => redis.publish(`${CHANNEL}:${proxy}`, text)).catch(() => {});
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

/** Attack: whoever asked is told too early, by an answer sent twice or a false count, while a request is held back. */
function settleIfAnswered({ others, answered, awaited, settle }: Open): void {
  if (others !== undefined && answered.size >= others && awaited.size === 0) settle(false);
}
