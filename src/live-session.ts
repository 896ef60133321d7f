/**
 * The long middle of a connection: a client and its upstream session with a splice between them, by the clock of its token.
 *
 * One object for all that the splice, the clock, a renewal or an administrator may ask of a session, since there are many, and
 * each is silent most of the time.
 */
import type { Config } from './config.ts';
import { SessionClock, type SessionAlarms } from './deadline.ts';
import { ProxyError } from './errors.ts';
import type { Asking } from './identity/authentication.ts';
import type { Identity } from './identity/policy.ts';
import { createRenewal, type RenewalContext, type RenewedSession } from './renewal.ts';
import type { Peer } from './splice/flow.ts';
import type { Refusal, TokenJudge } from './splice/screen.ts';
import {
  splice,
  type Outcome,
  type Progress,
  type Splice,
  type SpliceOptions,
} from './splice/splice.ts';
import { unwatchPeer, watchPeer } from './splice/unheard.ts';
import { encodeNotice } from './wire/backend.ts';

/** The upstream's part of a session. */
export interface SessionLease {
  /** Its stream, which the splice may replace. */
  readonly peer: Peer;
  /** Gives it the claims and the end of another token. Undefined where the session mode cannot. */
  readonly renew: RenewedSession['bind'];
  /** Takes its identity off at once. Never throws. */
  disown(): Promise<void>;
}

/** Whose session it is, and which. */
export interface Claim {
  readonly asking: Asking;
  readonly identity: Identity;
  readonly lease: SessionLease;
}

/** What a session needs of the proxy. */
export interface SessionContext {
  readonly sessions: Config['sessions'];
  /** What judges new tokens: by what is configured then. */
  current(): RenewalContext;
}

/** Told of new tokens. */
export interface RenewalLog {
  /** For mistakes of ours. */
  readonly session: string;
  onRenewal(identity: Identity): void;
  onRenewalRefused(error: ProxyError): void;
}

/** Why a token that comes too late is not taken. */
const GONE = new ProxyError('client_lost');

/** A session under way, from its construction until `done` resolves. */
export class LiveSession implements SessionAlarms, SpliceOptions, RenewedSession {
  readonly done: Promise<Outcome>;
  readonly asking: Asking;
  readonly identity: Identity;
  /** What it is ending for, whatever tokens still come. */
  ending: ProxyError | undefined;
  readonly #client: Peer;
  readonly #lease: SessionLease;
  readonly #context: SessionContext;
  readonly #log: RenewalLog;
  readonly #splice: Splice;
  readonly #clock: SessionClock;
  /** Once the client has sent a token. */
  #judge: TokenJudge | undefined;

  constructor(
    client: Peer,
    { asking, identity, lease }: Claim,
    context: SessionContext,
    log: RenewalLog,
  ) {
    this.asking = asking;
    this.identity = identity;
    this.#client = client;
    this.#lease = lease;
    this.#context = context;
    this.#log = log;
    this.#splice = splice(client, lease.peer, this);
    this.done = this.#splice.done;
    this.#clock = new SessionClock(context.sessions, identity.expiresAt, this);
    watchPeer(client);
    watchPeer(lease.peer);
  }

  /** What it is doing, and has passed on so far. */
  get progress(): Progress {
    return this.#splice.progress;
  }

  /**
   * Ends it when it is idle or `graceMs` are over. `error` is `shutdown`, `terminated` or the objection to who it is: then its
   * identity is taken off first.
   */
  end(error: ProxyError, graceMs: number): void {
    if (error.code === 'shutdown' || error.code === 'terminated') return this.onEnd(error, graceMs);
    // Nothing more is to be read or written as somebody who may no longer be anybody.
    void this.#lease.disown();
    this.onEnd(new ProxyError('session_revoked', { cause: error.cause }), graceMs);
  }

  /** It is over: no alarm goes off any more, and no token is taken. */
  close(): void {
    this.ending ??= GONE;
    this.#clock.cancel();
    unwatchPeer(this.#client);
    unwatchPeer(this.#lease.peer);
  }

  onNotice(leftMs: number): void {
    this.#splice.say(expiryNotice(leftMs));
  }

  onEnd(error: ProxyError, graceMs: number): void {
    this.ending ??= error;
    this.#splice.finish(error, graceMs);
  }

  onMistake(thrown: unknown): ProxyError {
    return ProxyError.from(thrown, this.#log.session);
  }

  judge(token: string): Promise<Refusal | undefined> {
    this.#judge ??= createRenewal(this, () => this.#context.current());
    return this.#judge(token);
  }

  get bind(): RenewedSession['bind'] {
    return this.#lease.renew;
  }

  believedUntil(expiresAt: number): number {
    return this.#clock.believedUntil(expiresAt);
  }

  onRenewal(renewed: Identity): void {
    this.#clock.renew(renewed.expiresAt);
    this.#tell(() => this.#log.onRenewal(renewed));
  }

  onRefusal(error: ProxyError): void {
    this.#tell(() => this.#log.onRenewalRefused(error));
  }

  /** The judge of tokens must not throw: a mistake of whoever is told ends this session, and not the process. */
  #tell(step: () => void): void {
    try {
      step();
    } catch (thrown) {
      this.onEnd(this.onMistake(thrown), 0);
    }
  }
}

function expiryNotice(leftMs: number): Buffer {
  return encodeNotice({
    severity: 'NOTICE',
    sqlstate: '01000',
    message: `the token expires in ${Math.ceil(leftMs / 1000)} s`,
    hint: "Reconnect with a fresh token, or SET pgjot.token = '…'.",
  });
}
