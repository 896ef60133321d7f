/**
 * Clients that log in, run short statements, cancel at any moment, also long after their session has ended, and come back;
 * and the book of whose statement was cancelled although nobody had asked for that.
 */
import { cancel, type Key, type RawClient } from '../e2e/raw-client.ts';
import type { Fleet } from './fleet.ts';

/** How a race went. */
export interface Outcome {
  sessions: number;
  statements: number;
  /** Cancel requests whose connection has been closed, as each must be. */
  cancels: number;
  /** Of them, those with the key of a session that had ended. */
  late: number;
  /** Statements that were cancelled while their own session had asked for it. */
  hits: number;
  /** What must not be: a statement cancelled for which nobody had asked, an error, a cancel request left open. */
  faults: string[];
}

const CLIENTS = 20;
const IDENTITIES = 8;
// Keys of sessions that have ended, to be tried again and again.
const MAX_OLD_KEYS = 200;
const MAX_SLEEP_MS = 30;

/** Races until so many cancel requests have been sent. */
export async function race(fleet: Fleet, cancels: number): Promise<Outcome> {
  const outcome: Outcome = { sessions: 0, statements: 0, cancels: 0, late: 0, hits: 0, faults: [] };
  const oldKeys: Key[] = [];
  const progress = { sent: 0 };

  const request = async (key: Key): Promise<void> => {
    progress.sent++;
    try {
      const heard = await cancel(fleet, key);
      if (heard.length > 0) outcome.faults.push(`a cancel request heard ${heard.toString('hex')}`);
      outcome.cancels++;
    } catch (error) {
      outcome.faults.push(`a cancel request: ${(error as Error).message}`);
    }
  };

  const lateOnes = async (): Promise<void> => {
    while (progress.sent < cancels) {
      const key = oldKeys[Math.floor(Math.random() * oldKeys.length)];
      if (key === undefined) await pause(5);
      else {
        await request(key);
        outcome.late++;
      }
    }
  };

  const client = async (cancelling: boolean): Promise<void> => {
    while (progress.sent < cancels && outcome.faults.length === 0) {
      using raw = await fleet.login(`user-${Math.floor(Math.random() * IDENTITIES)}`);
      outcome.sessions++;
      const session = new Session(raw, outcome, request);
      await session.run(cancelling);
      oldKeys.push(raw.key);
      if (oldKeys.length > MAX_OLD_KEYS) oldKeys.shift();
      // It leaves with its last cancels still on their way, in good order or not.
      if (Math.random() < 0.5) raw.send(TERMINATE);
      raw.destroy();
      await session.settled();
    }
  };

  const tasks = [
    ...Array.from({ length: CLIENTS }, (_, index) => client(index % 2 === 0)),
    ...Array.from({ length: 4 }, lateOnes),
  ];
  for (const task of await Promise.allSettled(tasks)) {
    if (task.status === 'rejected') outcome.faults.push(String(task.reason));
  }
  return outcome;
}

const TERMINATE = Buffer.from([0x58, 0, 0, 0, 4]);

/** A cancel request: from when to when, in ms, it may take effect. */
interface Wish {
  sentAt: number;
  closedAt: number;
}

/** A session's statements and cancel requests. */
class Session {
  readonly #client: RawClient;
  readonly #outcome: Outcome;
  readonly #request: (key: Key) => Promise<void>;
  readonly #wishes: Wish[] = [];
  readonly #underWay: Promise<void>[] = [];

  constructor(client: RawClient, outcome: Outcome, request: (key: Key) => Promise<void>) {
    this.#client = client;
    this.#outcome = outcome;
    this.#request = request;
  }

  /** Runs a few statements, with or without cancels before, during and after each. */
  async run(cancelling: boolean): Promise<void> {
    for (let left = 1 + Math.floor(Math.random() * 4); left > 0; left--) {
      const sleepMs = Math.random() * MAX_SLEEP_MS;
      if (cancelling) this.#underWay.push(this.#cancelWithin(2 * sleepMs));
      await this.#statement(sleepMs);
    }
    if (cancelling) this.#underWay.push(this.#cancelWithin(1));
  }

  /** Resolves when all its cancel requests are closed. */
  async settled(): Promise<void> {
    await Promise.all(this.#underWay);
  }

  async #statement(sleepMs: number): Promise<void> {
    const startedAt = performance.now();
    const { sqlstate } = await this.#client.ask(`select pg_sleep(${sleepMs / 1000})`);
    const endedAt = performance.now();
    this.#outcome.statements++;
    if (sqlstate === undefined) return;
    // A request that was closed before the statement began must not meet it (attack G4).
    const wished = this.#wishes.some((one) => one.sentAt <= endedAt && one.closedAt >= startedAt);
    if (sqlstate === '57014' && wished) this.#outcome.hits++;
    else this.#outcome.faults.push(`a statement ended with ${sqlstate}, which nobody had wished`);
  }

  async #cancelWithin(ms: number): Promise<void> {
    await pause(Math.random() * ms);
    const wish: Wish = { sentAt: performance.now(), closedAt: Infinity };
    this.#wishes.push(wish);
    await this.#request(this.#client.key);
    wish.closedAt = performance.now();
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
