/**
 * The workers of a primary: as many as were asked for, each started again when it ends, sooner the longer it has lived.
 *
 * What workers do for clients is none of its business.
 */
import type { Logger } from '../log.ts';
import { Member, type Departure, type MemberListener } from './member.ts';
import type { Order, Start } from './messages.ts';

/** Who is told which workers there are. */
export interface CrewListener extends Omit<MemberListener, 'onGone'> {
  /** It serves clients from now on. */
  onReady(member: Member): void;
  onGone(member: Member): void;
}

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 30_000;
// Who has lived for so long did not end because of how it was started.
const SOUND_MS = 30_000;
// For an order, and for a sign of life: whoever is silent for longer serves nobody.
const ORDER_MS = 10_000;
const PULSE_MS = 10_000;
const SILENCE_MS = 30_000;
const START_MS = 30_000;
const GOODBYE_MS = 15_000;
// Node takes what is longer for 1 ms.
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;

/** The workers, by number. */
export class Crew {
  readonly #logger: Logger;
  readonly #listener: CrewListener;
  readonly #start: (worker: number) => Omit<Start, 'kind' | 'worker' | 'workers'>;
  readonly #size: number;
  readonly #members = new Map<number, Member>();
  readonly #returning = new Map<number, NodeJS.Timeout>();
  readonly #failures = new Map<number, number>();
  #pulse: NodeJS.Timeout | undefined;
  /** Who ends before all run, or after they were told to, is not replaced. */
  #running = false;

  /** `start` is asked for each worker, those that replace others too. */
  constructor(
    size: number,
    start: (worker: number) => Omit<Start, 'kind' | 'worker' | 'workers'>,
    logger: Logger,
    listener: CrewListener,
  ) {
    this.#size = size;
    this.#start = start;
    this.#logger = logger;
    this.#listener = listener;
  }

  /** Forks all; rejects when one of them cannot start. */
  async start(): Promise<void> {
    const members = Array.from({ length: this.#size }, (_, index) => this.#fork(index + 1));
    await Promise.all(members.map(({ ready }) => ready));
    this.#running = true;
    this.#pulse = setInterval(() => this.#feelPulse(), PULSE_MS).unref();
  }

  /** The worker of this number, if it is running. */
  member(number: number): Member | undefined {
    return this.#members.get(number);
  }

  /**
   * Has every worker do this; resolves when all have. One that does not, or not in time, is ended, and its successor starts
   * with what holds by then: there is none left that has not heard.
   */
  async order(order: (worker: number) => Order): Promise<void> {
    await Promise.all(
      [...this.#members.values()].map((member) =>
        member
          .ask(order(member.number), ORDER_MS)
          .catch((error: Error) => this.#end(member, error)),
      ),
    );
  }

  /** What every worker answers; of those that do not, or not in time, nothing. `onAnswer` is told of each as soon as it is there. */
  async survey(
    order: Order,
    ms = ORDER_MS,
    onAnswer: (member: Member, value: unknown) => void = () => {},
  ): Promise<unknown[]> {
    const answers: unknown[] = [];
    const ask = async (member: Member) => {
      const value = await member.ask(order, ms);
      if (value === undefined) return;
      answers.push(value);
      onAnswer(member, value);
    };
    await Promise.allSettled([...this.#members.values()].map(ask));
    return answers;
  }

  /** What each worker answers, by number, and who has not in time. Of those that have not started nothing is asked. */
  async poll(
    order: Order,
    ms: number,
  ): Promise<{
    readonly answers: readonly { readonly worker: number; readonly value: unknown }[];
    readonly unanswered: readonly number[];
  }> {
    const [answers, unanswered] = [[] as { worker: number; value: unknown }[], [] as number[]];
    const ask = async (member: Member) => {
      const worker = member.number;
      try {
        const value = await member.ask(order, ms);
        if (value !== undefined) answers.push({ worker, value });
      } catch {
        unanswered.push(worker);
      }
    };
    await Promise.all([...this.#members.values()].map(ask));
    answers.sort((one, other) => one.worker - other.worker);
    return { answers, unanswered: unanswered.toSorted((one, other) => one - other) };
  }

  /**
   * Has every worker end, at once or when its sessions have, for which they have `graceMs`; resolves when none is left. Those
   * that hang are ended.
   */
  async end(how: 'drain' | 'close', graceMs: number): Promise<void> {
    this.#running = false;
    clearInterval(this.#pulse);
    for (const timer of this.#returning.values()) clearTimeout(timer);
    this.#returning.clear();
    const members = [...this.#members.values()];
    for (const member of members) member.end(how);
    const kill = () => members.forEach((member) => void member.kill());
    const overdue = setTimeout(kill, Math.min(graceMs + GOODBYE_MS, LONGEST_TIMEOUT_MS));
    await Promise.all(members.map(({ gone }) => gone));
    clearTimeout(overdue);
  }

  #fork(number: number): Member {
    const bornAt = performance.now();
    const member = new Member(
      number,
      () => ({ ...this.#start(number), worker: number, workers: this.#size }),
      {
        ...this.#listener,
        onGone: (one, departure) => this.#onGone(one, departure, performance.now() - bornAt),
      },
    );
    this.#members.set(number, member);
    const late = () => this.#end(member, new Error(`has not started within ${START_MS} ms`));
    const timer = setTimeout(() => void late(), START_MS);
    member.ready
      .then(
        () => this.#listener.onReady(member),
        () => {},
      )
      .finally(() => clearTimeout(timer));
    return member;
  }

  #onGone(member: Member, departure: Departure, livedMs: number): void {
    const { number } = member;
    this.#members.delete(number);
    this.#listener.onGone(member);
    if (!this.#running) return;
    const failures = livedMs > SOUND_MS ? 0 : (this.#failures.get(number) ?? 0);
    this.#failures.set(number, failures + 1);
    const restartInMs = Math.min(FIRST_PAUSE_MS * 2 ** failures, LONGEST_PAUSE_MS);
    this.#logger.error({ event: 'worker_lost', worker: number, ...departure, restartInMs });
    this.#returning.set(
      number,
      setTimeout(() => this.#return(number), restartInMs),
    );
  }

  #return(number: number): void {
    this.#returning.delete(number);
    this.#fork(number).ready.then(
      () => this.#logger.info({ event: 'worker_started', worker: number }),
      (error: Error) =>
        this.#logger.error({ event: 'worker_failed', worker: number, cause: error.message }),
    );
  }

  async #end(member: Member, error: Error): Promise<void> {
    if (this.#members.get(member.number) !== member) return;
    this.#logger.error({ event: 'worker_failed', worker: member.number, cause: error.message });
    await member.kill();
  }

  #feelPulse(): void {
    for (const member of this.#members.values()) {
      member.ask({ what: 'counts' }, SILENCE_MS).catch((error: Error) => this.#end(member, error));
    }
  }
}
