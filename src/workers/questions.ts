/**
 * Questions that one process asks another: each gets one answer, or fails when its time is up or the other process is gone.
 *
 * Knows nothing of processes; whoever sends and receives the messages does.
 */
import { errorOf, failureOf, type Answer, type Ask } from './messages.ts';

interface Open {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** The questions to one process that are still open. */
export class Questions<Question> {
  readonly #send: (ask: Ask<Question>) => void;
  readonly #open = new Map<number, Open>();
  #asked = 0;
  #closed = false;

  constructor(send: (ask: Ask<Question>) => void) {
    this.#send = send;
  }

  /** How many are open. */
  get size(): number {
    return this.#open.size;
  }

  /** Asks; rejects when the answer is a failure, does not come within `ms`, or nobody is there to give it. */
  ask(question: Question, ms: number): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(new Error('is gone'));
      const id = ++this.#asked;
      const timer = setTimeout(() => {
        this.#open.delete(id);
        reject(new Error(`has not answered within ${ms} ms`));
      }, ms);
      this.#open.set(id, { resolve, reject, timer });
      this.#send({ kind: 'ask', id, question });
    });
  }

  /** An answer has come; one that is too late is nobody's. */
  settle({ id, value, failure }: Answer): void {
    const open = this.#open.get(id);
    if (open === undefined) return;
    this.#open.delete(id);
    clearTimeout(open.timer);
    if (failure === undefined) open.resolve(value);
    else open.reject(errorOf(failure));
  }

  /** Nobody will answer any more. */
  close(): void {
    this.#closed = true;
    for (const { reject, timer } of this.#open.values()) {
      clearTimeout(timer);
      reject(new Error('is gone'));
    }
    this.#open.clear();
  }
}

/** The answer to question `id` out of what `work` brings. Never throws. */
export async function answer(id: number, work: () => unknown): Promise<Answer> {
  try {
    return { kind: 'answer', id, value: await work() };
  } catch (error) {
    return { kind: 'answer', id, failure: failureOf(error) };
  }
}
