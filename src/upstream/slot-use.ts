/**
 * One use of a slot, from when somebody gets it until it is vacant, kept or put aside: what it began with, and that it ends once.
 */
import type { Slot } from './slots.ts';

/** What the book of slots hears of a use. */
export interface UseListener<Session> {
  /** It will probably come back under `key`, and not under `before` any more. */
  onExpect(before: string | undefined, key: string | undefined): void;
  onRelease(use: SlotUse<Session>): void;
  onKeep(use: SlotUse<Session>, session: Session, key: string): void;
  /** Returns how to end the quarantine before its time. */
  onQuarantine(use: SlotUse<Session>, ms: number): () => void;
}

/** A slot in use. An object with methods rather than closures, since every session has one. */
export class SlotUse<Session> implements Slot<Session> {
  readonly name: string;
  readonly session: Session | undefined;
  /** Which of the leases it is from. */
  readonly leasedIn: number;
  /** Called when it ends. */
  readonly onEnd: (() => void) | undefined;
  readonly #listener: UseListener<Session>;
  #expectedAs: string | undefined;
  #ended = false;

  constructor(
    name: string,
    began: { session?: Session; leasedIn: number; onEnd?: () => void },
    listener: UseListener<Session>,
  ) {
    this.name = name;
    this.session = began.session;
    this.leasedIn = began.leasedIn;
    this.onEnd = began.onEnd;
    this.#listener = listener;
  }

  expect(key: string | undefined): void {
    const before = this.#expectedAs;
    this.#expectedAs = key;
    this.#listener.onExpect(before, key);
  }

  release(): void {
    this.#end();
    this.#listener.onRelease(this);
  }

  keep(session: Session, key: string): void {
    this.#end();
    this.#listener.onKeep(this, session, key);
  }

  quarantine(ms: number): () => void {
    this.#end();
    return this.#listener.onQuarantine(this, ms);
  }

  /** Under what it was expected, which it is not any more. */
  takeExpectation(): string | undefined {
    const key = this.#expectedAs;
    this.#expectedAs = undefined;
    return key;
  }

  #end(): void {
    if (this.#ended) throw new TypeError('a slot is released once');
    this.#ended = true;
  }
}
