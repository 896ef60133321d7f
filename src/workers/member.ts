/**
 * One worker process as the primary sees it, from its fork to its end.
 *
 * Starts no other when it ends; that is `crew.ts`.
 */
import cluster from 'node:cluster';
import type { Socket } from 'node:net';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Taker } from './dispatch.ts';
import type { LimitNote } from './ledger.ts';
import {
  errorOf,
  toPrimary,
  type Order,
  type Question,
  type Start,
  type ToWorker,
} from './messages.ts';
import { answer, Questions } from './questions.ts';

/** How a worker has ended. */
export interface Departure {
  readonly code: number | null;
  readonly signal: string | null;
}

/** Who hears what a worker says. */
export interface MemberListener {
  /** It may have taken over a client, or be rid of one. */
  onLoad(member: Member): void;
  onLimit(member: Member, note: LimitNote): void;
  onQuestion(member: Member, question: Question): Promise<unknown>;
  /** This client could not be sent to the worker, which is ended therefore. */
  onUndelivered(client: Socket): void;
  onGone(member: Member, departure: Departure): void;
}

// A worker whose descriptors are used up does not even learn that a client was sent.
const TAKE_MS = 5_000;
// A stream of its own for each worker, with Buffers and `undefined` as they are.
const SERIALIZATION = 'advanced';

/** A running worker. */
export class Member implements Taker {
  readonly number: number;
  /** Fulfils when it serves clients; rejects with why it cannot, or that it has ended before. */
  readonly ready: Promise<void>;
  readonly gone: Promise<Departure>;
  readonly #worker: ReturnType<typeof cluster.fork>;
  readonly #questions: Questions<Order>;
  readonly #listener: MemberListener;
  readonly #start: () => Omit<Start, 'kind'>;
  /** Whether it has been told how to start: with what holds then, so that what was ordered before is in it. */
  #started = false;
  #onReady: () => void = () => {};
  #onFailed: (error: Error) => void = () => {};
  #open = 0;
  #sent = 0;
  #isDeaf = false;
  /** The client on its way: its socket stays open here until the worker has it, for Node would leave it to nobody. */
  #onItsWay: { readonly client: Socket; readonly timer: NodeJS.Timeout } | undefined;

  /** Forks a worker; `start` says how it is to start, when it asks. */
  constructor(number: number, start: () => Omit<Start, 'kind'>, listener: MemberListener) {
    this.number = number;
    this.#start = start;
    this.#listener = listener;
    this.ready = new Promise((resolve, reject) => {
      this.#onReady = resolve;
      this.#onFailed = reject;
    });
    // Whoever does not wait for it learns of its end by `gone`.
    this.ready.catch(() => {});
    cluster.setupPrimary({ exec: entry(), args: [], serialization: SERIALIZATION });
    this.#worker = cluster.fork();
    this.#questions = new Questions((ask) => this.tell(ask));
    this.#worker.on('message', (message: unknown) => this.#hear(message));
    this.#worker.on('error', () => {});
    this.gone = new Promise((resolve) => {
      this.#worker.once('exit', (code: number | null, signal: string | null) => {
        this.#questions.close();
        this.#letGo();
        this.#onFailed(
          new Error(`worker ${this.number} has ended (${signal ?? `status ${code}`})`),
        );
        this.#listener.onGone(this, { code, signal });
        resolve({ code, signal });
      });
    });
  }

  get open(): number {
    return this.#open + (this.#onItsWay === undefined ? 0 : 1);
  }

  get free(): boolean {
    return this.#onItsWay === undefined && !this.#isDeaf && this.#worker.isConnected();
  }

  take(client: Socket): void {
    const id = ++this.#sent;
    const onLost = () => {
      this.#letGo();
      this.#listener.onLoad(this);
    };
    this.#onItsWay = { client, timer: setTimeout(onLost, TAKE_MS) };
    this.#worker.process.send({ kind: 'client', id }, client, { keepOpen: true }, (error) => {
      if (error === null) return;
      // A worker that nothing can be sent to is gone, or as good as that; another can have the client.
      this.#isDeaf = true;
      clearTimeout(this.#onItsWay?.timer);
      this.#onItsWay = undefined;
      this.#listener.onUndelivered(client);
      void this.kill();
    });
  }

  /** Says something; to a worker that is gone or that has not started, in vain. */
  tell(message: ToWorker): void {
    // Its end is heard of by `exit`; without a callback an error here would end the primary.
    this.#worker.process.send(message, undefined, undefined, () => {});
  }

  /**
   * Asks for something to be done; rejects when it fails, takes longer than `ms`, or the worker is gone. Of a worker that has
   * not started yet nothing need be asked.
   */
  async ask(order: Order, ms: number): Promise<unknown> {
    return this.#started ? this.#questions.ask(order, ms) : undefined;
  }

  /** Has it end. */
  end(how: 'drain' | 'close'): void {
    if (this.#started) this.tell({ kind: 'end', how });
    else void this.kill();
  }

  /** Ends it at once; the kernel closes what it had. Resolves when it is gone. */
  async kill(): Promise<void> {
    this.#worker.process.kill('SIGKILL');
    await this.gone;
  }

  /** The worker has the client, or nobody will. */
  #letGo(): void {
    clearTimeout(this.#onItsWay?.timer);
    // Closes this descriptor of it; the worker's is its own.
    this.#onItsWay?.client.destroy();
    this.#onItsWay = undefined;
  }

  #hear(sent: unknown): void {
    const message = toPrimary(sent);
    switch (message.kind) {
      case 'hello':
        this.#started = true;
        return this.tell({ kind: 'start', ...this.#start() });
      case 'ready':
        return this.#onReady();
      case 'failed':
        return this.#onFailed(errorOf(message.failure));
      case 'load':
        this.#open = message.open;
        if (message.taken === this.#sent) this.#letGo();
        return this.#listener.onLoad(this);
      case 'limit':
        return this.#listener.onLimit(this, message.note);
      case 'ask':
        void answer(message.id, () => this.#listener.onQuestion(this, message.question)).then(
          (said) => this.tell(said),
        );
        return;
      case 'answer':
        return this.#questions.settle(message);
    }
  }
}

/** The program of a worker: beside this file, and of its kind. */
function entry(): string {
  return fileURLToPath(new URL(`worker${extname(import.meta.url)}`, import.meta.url));
}
