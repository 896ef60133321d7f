/**
 * How many clients all workers together may have: permits that the primary leases to them, in batches while there are plenty.
 *
 *   worker: want ──▶ primary ──▶ permits        a worker has one for each of its clients, and a few to spare
 *                       │ none left
 *                       └──▶ recall ──▶ each worker returns what it has to spare ──▶ permits, or none: the house is full
 *
 * A client that is counted has a permit, so there are never more clients than permits, wherever they are; and nobody is
 * refused before every worker has given back what it had to spare.
 */
import { ProxyError } from '../errors.ts';

/** What the office says to a worker. */
export interface PermitHolder {
  tell(
    message:
      | { readonly kind: 'permits'; readonly count: number }
      | { readonly kind: 'recall'; readonly round: number },
  ): void;
}

const MAX_BATCH = 32;
// A worker that does not answer for so long has nothing to spare, as far as others can wait to know.
const RECALL_MS = 1_000;

interface Want {
  readonly holder: PermitHolder;
  /** The last recall that began before this was wanted; a later one may refuse it. */
  readonly after: number;
}

interface Recall {
  readonly round: number;
  readonly awaited: Set<PermitHolder>;
  readonly timer: NodeJS.Timeout;
}

/** The primary's part: all permits, and who has them. */
export class PermitOffice {
  #limit: number;
  readonly #held = new Map<PermitHolder, number>();
  #wants: Want[] = [];
  #rounds = 0;
  #recall: Recall | undefined;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** How many permits are out. */
  get leased(): number {
    return [...this.#held.values()].reduce((sum, held) => sum + held, 0);
  }

  /** Another limit. Clients beyond it stay; what is to spare beyond it comes back. */
  setLimit(limit: number): void {
    this.#limit = limit;
    if (this.#room < 0) this.#startRecall();
    this.#serve();
  }

  /** A worker wants at least one. */
  onWant(holder: PermitHolder): void {
    this.#wants.push({ holder, after: this.#rounds });
    this.#serve();
  }

  /** A worker has given some back, in answer to a recall where that is named. */
  onReturned(holder: PermitHolder, count: number, round?: number): void {
    this.#held.set(holder, (this.#held.get(holder) ?? 0) - count);
    this.#serve();
    if (round === this.#recall?.round) this.#heard(holder);
  }

  /** A worker is no more, and neither are its clients. */
  onGone(holder: PermitHolder): void {
    this.#held.delete(holder);
    this.#wants = this.#wants.filter((want) => want.holder !== holder);
    this.#serve();
    this.#heard(holder);
  }

  /** Waits for nobody any more. */
  close(): void {
    clearTimeout(this.#recall?.timer);
    this.#recall = undefined;
    this.#wants = [];
  }

  get #room(): number {
    return this.#limit - this.leased;
  }

  #serve(): void {
    for (let room = this.#room; room > 0; room = this.#room) {
      const want = this.#wants.shift();
      if (want === undefined) return;
      // Of what is left every worker could have a few batches; near the limit they are single ones.
      const share = Math.floor(room / (4 * Math.max(this.#held.size, 1)));
      const count = Math.min(Math.max(share, 1), MAX_BATCH);
      this.#held.set(want.holder, (this.#held.get(want.holder) ?? 0) + count);
      want.holder.tell({ kind: 'permits', count });
    }
    if (this.#wants.length > 0) this.#startRecall();
  }

  #startRecall(): void {
    if (this.#recall !== undefined) return;
    const round = ++this.#rounds;
    const awaited = new Set([...this.#held].filter(([, held]) => held > 0).map(([one]) => one));
    this.#recall = { round, awaited, timer: setTimeout(() => this.#endRecall(), RECALL_MS) };
    for (const holder of awaited) holder.tell({ kind: 'recall', round });
    if (awaited.size === 0) this.#endRecall();
  }

  #heard(holder: PermitHolder): void {
    if (this.#recall === undefined) return;
    this.#recall.awaited.delete(holder);
    if (this.#recall.awaited.size === 0) this.#endRecall();
  }

  /** Nothing more comes back: those who have waited since before the recall are refused. */
  #endRecall(): void {
    const { round = 0, timer } = this.#recall ?? {};
    clearTimeout(timer);
    this.#recall = undefined;
    const refused = this.#wants.filter(({ after }) => after < round);
    this.#wants = this.#wants.filter(({ after }) => after >= round);
    for (const { holder } of refused) holder.tell({ kind: 'permits', count: 0 });
    this.#serve();
  }
}

type PermitMessage =
  | { readonly kind: 'want' }
  | { readonly kind: 'returned'; readonly count: number; readonly round?: number };

interface Waiter {
  readonly resolve: (countOut: () => void) => void;
  readonly reject: (error: Error) => void;
}

/** A worker's part: the permits that it has, for its clients and to spare. */
export class PermitPurse {
  readonly #tell: (message: PermitMessage) => void;
  #spare = 0;
  /** About how many it may have to spare: none once they have become rare. */
  #keep = 0;
  /** Wants without an answer; never fewer than there are waiters. */
  #wanted = 0;
  readonly #waiters = new Set<Waiter>();

  constructor(tell: (message: PermitMessage) => void) {
    this.#tell = tell;
  }

  /**
   * Counts a client in, and returns how to count it out again.
   *
   * @throws {ProxyError} too_many_clients, or the signal's reason.
   */
  admit(signal: AbortSignal): (() => void) | Promise<() => void> {
    if (this.#spare > 0) return this.#use();
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason as Error);
      const settle = (finish: () => void) => {
        signal.removeEventListener('abort', onAbort);
        this.#waiters.delete(waiter);
        finish();
      };
      const onAbort = () => settle(() => reject(signal.reason as Error));
      const waiter: Waiter = {
        resolve: (countOut) => settle(() => resolve(countOut)),
        reject: (error) => settle(() => reject(error)),
      };
      signal.addEventListener('abort', onAbort);
      this.#waiters.add(waiter);
      this.#wanted++;
      this.#tell({ kind: 'want' });
    });
  }

  /** The answer to one want. */
  onPermits(count: number): void {
    this.#wanted--;
    this.#keep = count > 1 ? count : 0;
    this.#spare += count;
    this.#serve();
    if (count > 0 || this.#waiters.size <= this.#wanted) return;
    const [first] = this.#waiters;
    first?.reject(new ProxyError('too_many_clients'));
  }

  /** They have become rare. */
  onRecall(round: number): void {
    this.#keep = 0;
    const count = this.#spare;
    this.#spare = 0;
    this.#tell({ kind: 'returned', count, round });
  }

  #use(): () => void {
    this.#spare--;
    let counted = true;
    return () => {
      if (!counted) return;
      counted = false;
      this.#spare++;
      this.#serve();
    };
  }

  #serve(): void {
    for (const waiter of this.#waiters) {
      if (this.#spare === 0) return;
      waiter.resolve(this.#use());
    }
    // Not each that is one too many: the next client may come at once.
    if (this.#spare <= 2 * this.#keep) return;
    const surplus = this.#spare - this.#keep;
    this.#spare -= surplus;
    this.#tell({ kind: 'returned', count: surplus });
  }
}
