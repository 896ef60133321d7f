/**
 * The limits of all workers together: the primary keeps the one ledger, and workers write in it by messages.
 *
 *   worker: enter ──▶            a socket, counted on the way; `evict` comes back where there are too many
 *           admit ──▶ answer     the one question of a login, and, where subjects have a limit, claim
 *           leave, failed … ──▶  what has become of it
 *
 * A worker that dies has left with all that was counted for it.
 */
import {
  CountedIn,
  type Admission,
  type Ledger,
  type LimitName,
  type ProxyLedger,
  LimitError,
  type Refusal,
} from '../limits/ledger.ts';
import type { Wait } from '../limits/setbacks.ts';

/** What a worker tells the ledger. `id` is one that the worker has made up for the socket or client. */
export type LimitNote =
  | { readonly what: 'enter'; readonly id: number; readonly address: string | undefined }
  | { readonly what: 'exit'; readonly id: number }
  | { readonly what: 'leave'; readonly id: number }
  | { readonly what: 'failed' | 'succeeded'; readonly key: string; readonly issuer: string }
  | { readonly what: 'refused'; readonly limit: LimitName; readonly address: string }
  | { readonly what: 'missedCancel'; readonly address: string };

/** What a worker asks the ledger. */
export type LimitQuestion =
  | { readonly what: 'admit'; readonly id: number; readonly address: string }
  | { readonly what: 'claim'; readonly id: number; readonly key: string }
  | { readonly what: 'mayCancel'; readonly address: string };

/** The answer to `admit`. */
type AdmitAnswer =
  | { readonly key: string; readonly waits: readonly Wait[] }
  | { readonly code: Refusal; readonly limit: LimitName };

/** A worker, as the ledger knows it. */
export interface LedgerUser {
  tell(message: { readonly kind: 'evict'; readonly id: number }): void;
}

const NEVER = new AbortController().signal;

interface Held {
  readonly sockets: Map<number, () => void>;
  readonly clients: Map<number, CountedIn>;
  /** Who is being counted in, and has not left meanwhile. */
  readonly coming: Set<number>;
}

/** The primary's part: what each worker has in the ledger. */
export class LedgerDesk {
  readonly #ledger: ProxyLedger;
  readonly #held = new Map<LedgerUser, Held>();

  constructor(ledger: ProxyLedger) {
    this.#ledger = ledger;
  }

  onNote(user: LedgerUser, note: LimitNote): void {
    const { sockets, clients, coming } = this.#of(user);
    switch (note.what) {
      case 'enter': {
        const { id, address } = note;
        sockets.set(
          id,
          this.#ledger.enter(address, () => user.tell({ kind: 'evict', id })),
        );
        return;
      }
      case 'exit':
        sockets.get(note.id)?.();
        sockets.delete(note.id);
        return;
      case 'leave':
        clients.get(note.id)?.leave();
        clients.delete(note.id);
        coming.delete(note.id);
        return;
      case 'failed':
      case 'succeeded':
        return this.#ledger.setbacks[note.what](note.key, note.issuer);
      case 'refused':
        return this.#ledger.refuse(note.limit, note.address);
      case 'missedCancel':
        return this.#ledger.missedCancel(note.address);
      default:
        return note satisfies never;
    }
  }

  async onQuestion(user: LedgerUser, question: LimitQuestion): Promise<unknown> {
    switch (question.what) {
      case 'admit':
        return this.#admit(user, question.id, question.address);
      case 'claim':
        return (await this.#held.get(user)?.clients.get(question.id)?.count(question.key)) ?? false;
      case 'mayCancel':
        return this.#ledger.mayCancel(question.address);
      default:
        return question satisfies never;
    }
  }

  onGone(user: LedgerUser): void {
    const { sockets, clients, coming } = this.#of(user);
    this.#held.delete(user);
    coming.clear();
    for (const exit of sockets.values()) exit();
    for (const client of clients.values()) client.leave();
  }

  async #admit(user: LedgerUser, id: number, address: string): Promise<AdmitAnswer> {
    const { clients, coming } = this.#of(user);
    coming.add(id);
    try {
      const client = await this.#ledger.admit(address, NEVER);
      if (coming.has(id)) clients.set(id, client);
      else client.leave();
      return { key: client.key, waits: client.waits };
    } catch (error) {
      if (error instanceof LimitError) return { code: error.code, limit: error.limit };
      throw error;
    } finally {
      coming.delete(id);
    }
  }

  #of(user: LedgerUser): Held {
    const known = this.#held.get(user);
    if (known !== undefined) return known;
    const held: Held = { sockets: new Map(), clients: new Map(), coming: new Set() };
    this.#held.set(user, held);
    return held;
  }
}

/** How a worker reaches the primary. */
export interface LedgerLine {
  tell(note: LimitNote): void;
  ask(question: LimitQuestion): Promise<unknown>;
  /** How many clients one subject may have. */
  maxPerSubject(): number | undefined;
}

/** A worker's part: what it has in the ledger, told to the primary. */
export class RemoteLedger implements Ledger {
  readonly #line: LedgerLine;
  readonly #evictions = new Map<number, () => void>();
  #lastId = 0;

  constructor(line: LedgerLine) {
    this.#line = line;
  }

  enter(address: string | undefined, refuse: () => void): () => void {
    const id = ++this.#lastId;
    this.#evictions.set(id, refuse);
    this.#line.tell({ what: 'enter', id, address });
    return () => {
      if (this.#evictions.delete(id)) this.#line.tell({ what: 'exit', id });
    };
  }

  /** The primary has found that there are too many. */
  onEvict(id: number): void {
    this.#evictions.get(id)?.();
  }

  async admit(address: string, signal: AbortSignal): Promise<Admission> {
    const id = ++this.#lastId;
    const asked = this.#line.ask({ what: 'admit', id, address }).catch((error: unknown) => {
      // It may be counted in later than anybody waits for it.
      this.#line.tell({ what: 'leave', id });
      throw error;
    });
    const answer = (await asked) as AdmitAnswer;
    if ('code' in answer) throw new LimitError(answer.code, answer.limit);
    const admission = new CountedIn(this.#storeOf(id), answer.key, {
      refusal: (code, limit, hint) => {
        this.#line.tell({ what: 'refused', limit, address });
        return new LimitError(code, limit, hint);
      },
      maxPerSubject: () => this.#line.maxPerSubject(),
    });
    admission.waits = answer.waits;
    admission.onLeave(() => this.#line.tell({ what: 'leave', id }));
    if (signal.aborted) admission.leave();
    signal.throwIfAborted();
    return admission;
  }

  async mayCancel(address: string): Promise<boolean> {
    return (await this.#line.ask({ what: 'mayCancel', address })) === true;
  }

  missedCancel(address: string): void {
    this.#line.tell({ what: 'missedCancel', address });
  }

  #storeOf(id: number): ConstructorParameters<typeof CountedIn>[0] {
    return {
      setbacks: {
        at: () => [],
        failed: (key, issuer) => this.#line.tell({ what: 'failed', key, issuer }),
        succeeded: (key, issuer) => this.#line.tell({ what: 'succeeded', key, issuer }),
      },
      subjects: {
        add: async (key) => (await this.#line.ask({ what: 'claim', id, key })) === true,
        // The primary does, when the client leaves.
        remove: () => {},
      },
    };
  }
}
