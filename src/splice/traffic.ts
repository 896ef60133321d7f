/**
 * What a session is doing, as far as frame headers tell: requests without an answer, transaction status, COPY.
 *
 * Errs on the side of "busy": thinking an idle session busy costs a wait, the opposite would let
 * somebody speak or reset in the middle of something.
 * https://www.postgresql.org/docs/current/protocol-flow.html
 */
import type { TransactionStatus } from '../wire/backend.ts';
import { BACKEND } from '../wire/backend.ts';
import { FRONTEND } from '../wire/frontend.ts';
import { FrameWalker, type FrameListener } from './frames.ts';

const STATES = {
  I: 'idle',
  T: 'idle in transaction',
  E: 'idle in transaction (aborted)',
} as const;

/** Both directions of one session. */
export class Traffic implements FrameListener {
  /** Bytes from the client. */
  readonly fromClient = new FrameWalker(-1, this);
  /** Bytes from the upstream. */
  readonly fromUpstream = new FrameWalker(BACKEND.ReadyForQuery, this);

  #status: TransactionStatus = 'I';
  /** Queries, function calls and Syncs that no ReadyForQuery has answered yet. */
  #unanswered = 0;
  /** Of those, Syncs that the client sent last: should the backend begin COPY IN, it reads and ignores them. */
  #trailingSyncs = 0;
  /** From CopyInResponse until the ReadyForQuery that every COPY ends in. */
  #copyingIn = false;
  /** Whether CopyDone or CopyFail was sent, perhaps before CopyInResponse came: what follows is read after the COPY. */
  #copyEndSent = false;
  /** The trailing Syncs as they were then. */
  #syncsBeforeCopyEnd = 0;
  /** Extended-protocol messages since the last Sync: the backend may say nothing until one comes. */
  #unsynced = false;
  #guessed = false;
  #terminated = false;
  #reported = false;
  #lastUpstreamType = 0;

  /** Between two requests, outside any transaction, both directions at a frame boundary: nothing is cut short by speaking now. */
  get idle(): boolean {
    return !this.busy && this.#status === 'I' && this.fromUpstream.atBoundary;
  }

  /** Whether the backend may be working on something, or waits for the rest of a frame. */
  get busy(): boolean {
    return this.#unanswered > 0 || this.#unsynced || this.#copyingIn || !this.fromClient.atBoundary;
  }

  /** The same in one word of `pg_stat_activity.state`; what counts there as idle may here be active still. */
  get state(): 'active' | 'idle' | 'idle in transaction' | 'idle in transaction (aborted)' {
    if (this.busy) return 'active';
    return STATES[this.#status];
  }

  /**
   * Whether requests were counted out that the backend was thought to ignore: Syncs that reach it when the COPY has failed
   * meanwhile are answered after all. Then "idle" is good enough to speak, and not to give the session to another client.
   */
  get guessed(): boolean {
    return this.#guessed;
  }

  /** Whether the client has said Terminate. */
  get terminated(): boolean {
    return this.#terminated;
  }

  /** Whether the upstream has reported the value of a setting (ParameterStatus). */
  get reported(): boolean {
    return this.#reported;
  }

  /** Whether the last thing that the upstream said was an error: then it has explained its own end. */
  get upstreamExplained(): boolean {
    return this.#lastUpstreamType === BACKEND.ErrorResponse;
  }

  onFrame(type: number, walker: FrameWalker): void {
    if (walker === this.fromClient) this.#onClientFrame(type);
    else this.#onUpstreamFrame(type);
  }

  /** Only of what the upstream says: the client's walker watches for no type. */
  onFirstByte(status: number): void {
    this.#status = String.fromCharCode(status) as TransactionStatus;
    if (this.#unanswered > 0) this.#unanswered--;
    if (this.#copyingIn) this.#copyEndSent = false;
    this.#copyingIn = false;
    this.#trailingSyncs = Math.min(this.#trailingSyncs, this.#unanswered);
    this.#syncsBeforeCopyEnd = Math.min(
      this.#syncsBeforeCopyEnd,
      this.#unanswered - this.#trailingSyncs,
    );
  }

  #onClientFrame(type: number): void {
    switch (type) {
      case FRONTEND.Query:
      case FRONTEND.FunctionCall:
        this.#onRequest();
        this.#unanswered++;
        this.#trailingSyncs = 0;
        break;
      case FRONTEND.Sync:
        this.#unsynced = false;
        // In the middle of a COPY IN it is ignored; only one behind the end of the COPY is answered.
        if (this.#copyingIn && !this.#copyEndSent) {
          this.#guessed = true;
          break;
        }
        this.#unanswered++;
        this.#trailingSyncs++;
        break;
      case FRONTEND.CopyDone:
      case FRONTEND.CopyFail:
        this.#copyEndSent = true;
        this.#syncsBeforeCopyEnd = this.#trailingSyncs;
        this.#trailingSyncs = 0;
        break;
      case FRONTEND.Terminate:
        this.#terminated = true;
        break;
      case FRONTEND.Parse:
      case FRONTEND.Bind:
      case FRONTEND.Describe:
      case FRONTEND.Execute:
      case FRONTEND.Close:
        this.#onRequest();
        this.#unsynced = true;
        break;
      default:
      // CopyData, Flush, and whatever PostgreSQL itself will refuse.
    }
  }

  #onRequest(): void {
    // A CopyDone may also come too late, when the COPY had failed; it says nothing of the next one.
    if (this.#unanswered === 0 && !this.#copyingIn) this.#copyEndSent = false;
  }

  #onUpstreamFrame(type: number): void {
    this.#lastUpstreamType = type;
    if (type === BACKEND.ParameterStatus) this.#reported = true;
    if (type !== BACKEND.CopyInResponse) return;
    this.#copyingIn = true;
    const before = this.#unanswered;
    if (this.#copyEndSent) {
      this.#unanswered -= this.#syncsBeforeCopyEnd;
      this.#syncsBeforeCopyEnd = 0;
    } else {
      this.#unanswered -= this.#trailingSyncs;
      this.#trailingSyncs = 0;
    }
    if (this.#unanswered < before) this.#guessed = true;
  }
}
