/**
 * Copies bytes between a client and its upstream session, both ways, until one of them is done or fails.
 *
 * Byte for byte what each side sent: nothing is parsed beyond frame headers, nothing is held back, and
 * the only words of our own are one last ErrorResponse, spoken between two frames. It closes neither
 * side in anger: whoever gave it the two streams disposes of them by the outcome.
 *
 *   both open ──client's end──▶ upstream told ──upstream's end──▶ done
 *       │                            └──still busy after a while──▶ done, busy
 *       ├──client's end or Terminate when nothing is under way──▶ done, idle: the upstream can serve another
 *       ├──upstream's end──▶ client told ──▶ done
 *       ├──error of either──▶ done
 *       └──finish(error)──idle or grace over──▶ ErrorResponse ──▶ done
 */
import { ProxyError } from '../errors.ts';
import { encodeErrorResponse } from '../wire/backend.ts';
import { FRONTEND } from '../wire/frontend.ts';
import { Flow, type FlowOwner, type Peer } from './flow.ts';
import { hasEnded, letGo } from './reading.ts';
import { type Judging, Screen, type TokenJudge } from './screen.ts';
import { Traffic } from './traffic.ts';

/** How a splice ended. */
export interface Outcome {
  /** Whose doing it was. */
  readonly endedBy: 'client' | 'upstream' | 'proxy';
  /** What went wrong, if anything did. */
  readonly error: ProxyError | undefined;
  /** Whether the backend may still be working on something that nobody waits for. */
  readonly busy: boolean;
  /**
   * Whether the client said goodbye, of which the upstream has heard nothing, while nothing was under way: whole frames both ways,
   * every request answered, no transaction. Then the upstream's stream is an ordinary one again, paused, in which whatever
   * the backend says from now on is kept, and on which of ours is but a listener that ignores errors.
   */
  readonly idle: boolean;
  /** Whether the upstream has reported the value of a setting meanwhile: the ones that it greeted with may be others by now. */
  readonly reported: boolean;
  readonly bytes: { readonly clientToUpstream: number; readonly upstreamToClient: number };
}

/** Times, in ms. */
export interface SpliceTimes {
  /** How long a client that has only closed its sending side may wait for the answer it asked for. */
  readonly halfCloseMs: number;
  /** How long a client may leave what it asked for untaken before it counts as gone. */
  readonly stallMs: number;
}

/** What holds unless a test is in a hurry. */
export const SPLICE_TIMES: SpliceTimes = { halfCloseMs: 2_000, stallMs: 300_000 };

/** What a splice does beside copying. */
export interface SpliceOptions {
  /** Judges the tokens that the client sends with SET pgjot.token. Without it, that statement is one like any other. */
  readonly judge?: TokenJudge | undefined;
  readonly times?: SpliceTimes;
  /** What a mistake of ours is called, by which this session alone ends. Default: `internal`. */
  readonly onMistake?: (thrown: unknown) => ProxyError;
}

/** How far a session is. */
export interface Progress extends Pick<Outcome, 'bytes'> {
  readonly state: Traffic['state'];
}

/** A splice under way. */
export interface Splice {
  readonly done: Promise<Outcome>;
  /** What it is doing, and has passed on so far. */
  readonly progress: Progress;
  /** Gives the client a message of ours, whole frames, as soon as the upstream's are not cut by it. */
  say(frames: Buffer): void;
  /** Ends it with `error` as soon as the session is idle, or after `graceMs` whatever it does. The first error counts, and the shortest grace. */
  finish(error: ProxyError, graceMs: number): void;
}

/** Begins to copy. Both streams must be idle at a frame boundary; bytes already in their read buffers are copied first. */
export function splice(client: Peer, upstream: Peer, options: SpliceOptions = {}): Splice {
  return new RunningSplice(client, upstream, options);
}

class RunningSplice implements Splice, FlowOwner {
  readonly done: Promise<Outcome>;
  readonly #client: Peer;
  readonly #upstream: Peer;
  readonly #options: SpliceOptions;
  readonly #traffic = new Traffic();
  readonly #toUpstream: Flow;
  readonly #toClient: Flow;
  readonly #screen: Screen | undefined;
  /** Listeners of the upstream's, which may outlive this. */
  readonly #onUpstreamGone = () => this.#guard(() => this.#onUpstreamEnd());
  readonly #onUpstreamBroken = (cause: Error) => this.#guard(() => this.#onUpstreamError(cause));
  #resolve: (outcome: Outcome) => void = () => {};
  #ended = false;
  /** Whether the client had whole frames alone before the last chunk from upstream. */
  #cutsNothing = true;
  #clientEnded = false;
  #finishing: ProxyError | undefined;
  #graceTimer: NodeJS.Timeout | undefined;
  #graceDeadline = Infinity;
  #halfCloseTimer: NodeJS.Timeout | undefined;
  #unsaid: Buffer | undefined;

  constructor(client: Peer, upstream: Peer, options: SpliceOptions) {
    this.#client = client;
    this.#upstream = upstream;
    this.#options = options;
    this.done = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    // A backend reads nothing while it executes, for as long as that takes: only a client can be too slow.
    this.#toUpstream = new Flow(client, upstream, this);
    this.#toClient = new Flow(upstream, client, this, this.#times.stallMs);
    // Reading may replace a stream, so both flows begin before anybody listens to either.
    this.#screen = hasJudge(options) ? new Screen(this.#toUpstream, options, client) : undefined;
    this.#toClient.begin();
    this.#toUpstream.begin(this.#screen);
    this.#listen();
  }

  get progress(): Progress {
    return { state: this.#traffic.state, bytes: this.#bytes };
  }

  get #times(): SpliceTimes {
    return this.#options.times ?? SPLICE_TIMES;
  }

  get #bytes(): Outcome['bytes'] {
    return { clientToUpstream: this.#toUpstream.bytes, upstreamToClient: this.#toClient.bytes };
  }

  finish(error: ProxyError, graceMs: number): void {
    this.#guard(() => this.#finish(error, graceMs));
  }

  say(frames: Buffer): void {
    this.#guard(() => {
      this.#unsaid = this.#unsaid === undefined ? frames : Buffer.concat([this.#unsaid, frames]);
      this.#sayNow();
    });
  }

  onChunk(chunk: Buffer, flow: Flow): void {
    const { fromClient, fromUpstream } = this.#traffic;
    if (flow === this.#toClient) {
      this.#cutsNothing = fromUpstream.atBoundary;
      fromUpstream.walk(chunk);
    } else if (this.#isGoodbye(chunk)) this.#end('client', undefined);
    else fromClient.walk(chunk);
  }

  afterWrite(flow: Flow): void {
    if (flow !== this.#toClient) return;
    if (this.#unsaid !== undefined) this.#sayNow();
    this.#finishIfIdle();
  }

  expectsMore(): boolean {
    return this.#traffic.busy;
  }

  onMistake(thrown: unknown): void {
    const error = this.#options.onMistake?.(thrown) ?? ProxyError.from(thrown);
    // Of the last chunk the walker may have seen more than the client has got.
    if (this.#cutsNothing) this.#sayLastWords(error, 'proxy');
    else this.#end('proxy', error);
  }

  onStall(): void {
    const cause = new Error(`it has not taken what it asked for in ${this.#times.stallMs} ms`);
    this.#end('client', new ProxyError('client_lost', { cause }));
  }

  /**
   * Runs what an event or a timer asks for. A mistake of ours in it ends this session and no other: thrown on, it would
   * end the process.
   */
  #guard(step: () => void): void {
    try {
      step();
    } catch (thrown) {
      this.onMistake(thrown);
    }
  }

  #finish(error: ProxyError, graceMs: number): void {
    if (this.#ended) return;
    const first = (this.#finishing ??= error);
    // A statement that has arrived already must not get in between.
    if (graceMs <= 0) return this.#sayLastWords(first, 'proxy');
    const deadline = performance.now() + graceMs;
    if (deadline < this.#graceDeadline) {
      this.#graceDeadline = deadline;
      clearTimeout(this.#graceTimer);
      const giveUp = () => this.#guard(() => this.#sayLastWords(first, 'proxy'));
      this.#graceTimer = setTimeout(giveUp, graceMs);
    }
    this.#finishIfIdle();
  }

  #listen(): void {
    this.#client.stream
      .on('end', () => this.#guard(() => this.#onClientEnd()))
      .on('error', (cause) =>
        this.#guard(() => this.#end('client', new ProxyError('client_lost', { cause }))),
      )
      .on('close', () => this.#guard(() => this.#onClientClose()));
    // A client that has already said goodbye, right behind its password.
    if (this.#ended) return;
    this.#upstream.stream
      .on('end', this.#onUpstreamGone)
      .on('error', this.#onUpstreamBroken)
      .on('close', this.#onUpstreamGone)
      .off('error', ignore);
    // Either may have gone before anybody listened; an end that has been told once is not told again.
    if (this.#client.stream.destroyed) this.#onClientClose();
    else if (this.#client.stream.readableEnded) this.#onClientEnd();
    if (this.#upstream.stream.destroyed || this.#upstream.stream.readableEnded)
      this.#onUpstreamEnd();
  }

  /** Whether nothing is under way and nothing left to be said. Rather false than true: by it a backend gets another client. */
  get #atRest(): boolean {
    const { stream } = this.#upstream;
    return (
      this.#traffic.idle &&
      !this.#traffic.guessed &&
      !this.#traffic.terminated &&
      !this.#screen?.holding &&
      this.#unsaid === undefined &&
      this.#finishing === undefined &&
      stream.writable &&
      stream.writableLength === 0 &&
      !hasEnded(stream)
    );
  }

  /**
   * Whether the client says Terminate while nothing is under way. Its type is enough: whatever length comes behind it, or
   * never comes, PostgreSQL would do nothing more for this client.
   */
  #isGoodbye(chunk: Buffer): boolean {
    return chunk[0] === FRONTEND.Terminate && this.#atRest;
  }

  /** The client has closed its sending side: PostgreSQL is told in the same way, and may still answer what was asked. */
  #onClientEnd(): void {
    if (this.#ended || this.#clientEnded) return;
    if (this.#atRest) return this.#end('client', undefined);
    this.#clientEnded = true;
    const pass = () => void (this.#ended || this.#upstream.stream.end());
    if (this.#screen === undefined) pass();
    else this.#screen.end(pass);
    this.#awaitAnswer();
  }

  /**
   * Gives up on a client that has only closed its sending side once nothing has come for it in a while:
   * it may as well be dead, since the socket of a killed process says exactly the same.
   */
  #awaitAnswer(): void {
    const before = this.#toClient.bytes;
    const look = () => {
      if (this.#toClient.bytes === before) this.#end('client', undefined);
      else this.#awaitAnswer();
    };
    this.#halfCloseTimer = setTimeout(() => this.#guard(look), this.#times.halfCloseMs);
  }

  #onClientClose(): void {
    if (this.#ended) return;
    if (this.#clientEnded) this.#end('client', undefined);
    else this.#end('client', new ProxyError('client_lost'));
  }

  /** PostgreSQL has closed: on request, with an explanation that has already passed, or without a word (a crash), which we then say. */
  #onUpstreamEnd(): void {
    if (this.#ended) return;
    if (this.#clientEnded || this.#traffic.terminated) this.#end('client', undefined);
    else if (this.#traffic.upstreamExplained) this.#end('upstream', undefined);
    else this.#sayLastWords(new ProxyError('upstream_lost'), 'upstream');
  }

  #onUpstreamError(cause: Error): void {
    // After Terminate or the client's end a reset is only PostgreSQL's way of closing.
    if (this.#clientEnded || this.#traffic.terminated) this.#end('client', undefined);
    // PostgreSQL resets when it leaves bytes of ours unread; what it had to say has been said.
    else if (this.#traffic.upstreamExplained) this.#end('upstream', undefined);
    else this.#sayLastWords(new ProxyError('upstream_lost', { cause }), 'upstream');
  }

  #sayNow(): void {
    const { stream } = this.#client;
    if (this.#unsaid === undefined || this.#ended || stream.writableEnded) return;
    if (!this.#traffic.fromUpstream.atBoundary) return;
    stream.write(this.#unsaid);
    this.#unsaid = undefined;
  }

  #finishIfIdle(): void {
    if (this.#finishing === undefined || this.#ended) return;
    if (this.#traffic.idle && !this.#screen?.holding) this.#sayLastWords(this.#finishing, 'proxy');
  }

  /** An ErrorResponse in the middle of another frame would be read as part of that frame, so then there are no words. */
  #sayLastWords(error: ProxyError, endedBy: Outcome['endedBy']): void {
    if (this.#ended) return;
    const words = encodeErrorResponse(error);
    if (
      words !== undefined &&
      this.#traffic.fromUpstream.atBoundary &&
      !this.#client.stream.writableEnded
    ) {
      this.#client.stream.write(words);
    }
    this.#end(endedBy, error);
  }

  #end(endedBy: Outcome['endedBy'], error: ProxyError | undefined): void {
    if (this.#ended) return;
    const idle = endedBy === 'client' && error === undefined && this.#atRest;
    this.#ended = true;
    clearTimeout(this.#graceTimer);
    clearTimeout(this.#halfCloseTimer);
    this.#toUpstream.stop();
    this.#toClient.stop();
    if (this.#screen?.holding) {
      // It has stopped the client until a verdict for which nobody waits any more.
      this.#screen.stop();
      this.#client.stream.resume();
    }
    if (idle) this.#letUpstreamGo();
    this.#resolve({
      endedBy,
      error,
      idle,
      reported: this.#traffic.reported,
      busy:
        (this.#traffic.busy || this.#screen?.holding === true) &&
        !this.#upstream.stream.destroyed &&
        !this.#upstream.stream.readableEnded,
      bytes: this.#bytes,
    });
  }

  #letUpstreamGo(): void {
    const { stream } = this.#upstream;
    letGo(stream);
    stream
      .on('error', ignore)
      .off('end', this.#onUpstreamGone)
      .off('error', this.#onUpstreamBroken)
      .off('close', this.#onUpstreamGone);
  }
}

function hasJudge(options: SpliceOptions): options is SpliceOptions & Judging {
  return options.judge !== undefined;
}

/** An error of a stream that nobody uses is followed by its close. */
function ignore(): void {}
