/**
 * The two clocks of a connection: how long a login may take, and when a session must be over.
 *
 * Only tells the time; what happens then is up to the connection.
 */
import type { Config } from './config.ts';
import type { Duplex } from 'node:stream';
import { ProxyError } from './errors.ts';

/** The signal of a login that is over: there is nothing left to give up. */
const OVER = new AbortController().signal;

/**
 * The one deadline from accept to ReadyForQuery, and the client's own going away before that. Once it is over it holds
 * nothing: sessions are long, and many.
 */
export class LoginDeadline {
  #abort: AbortController | undefined = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  /** Until it is over; by then the client may have another stream. */
  #stream: Duplex | undefined;
  #watched: Duplex | undefined;
  readonly #onClose = () => this.#abort?.abort(new ProxyError('client_lost'));
  #audible = false;

  constructor(ms: number, stream: Duplex) {
    this.#stream = stream.on('close', this.#onClose);
    this.#timer = setTimeout(() => {
      // Before a StartupMessage PostgreSQL ends in silence; the peer may not even speak this protocol.
      this.#abort?.abort(new ProxyError('login_timeout', { silent: !this.#audible }));
    }, ms);
  }

  get signal(): AbortSignal {
    return this.#abort?.signal ?? OVER;
  }

  /**
   * From now on a client that closes its sending side is gone: it has sent nothing but its password, so it can
   * never ask for anything. One that has sent its queries already is not, for its end comes behind them.
   */
  watch(stream: Duplex): void {
    this.#watched = stream.on('end', this.#onClose);
    if (stream.readableEnded) this.#onClose();
  }

  /** From now on the client is told when its time is up. */
  audible(): void {
    this.#audible = true;
  }

  /** `promise`, or the deadline's error if that comes first. */
  bound<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const onAbort = () => reject(this.signal.reason as Error);
      if (this.signal.aborted) onAbort();
      this.signal.addEventListener('abort', onAbort, { once: true });
      promise
        .then(resolve, reject)
        .finally(() => this.signal.removeEventListener('abort', onAbort));
    });
  }

  /**
   * The proxy is shutting down, or objects to who it is. Not a matter for the socket: TLS lies over it, and must hear of the
   * end first.
   */
  end(error: ProxyError): void {
    const isShutdown = error.code === 'shutdown';
    this.#abort?.abort(isShutdown ? new ProxyError('draining', { silent: !this.#audible }) : error);
  }

  over(): void {
    clearTimeout(this.#timer);
    this.#stream?.off('close', this.#onClose);
    this.#watched?.off('end', this.#onClose);
    this.#timer = undefined;
    this.#abort = undefined;
    this.#stream = undefined;
    this.#watched = undefined;
  }
}

// The last millisecond of the year 9999, which PostgreSQL and JavaScript both know.
const END_OF_TIME = 253_402_300_799_999;

/** What a session's clock sets off. */
export interface SessionAlarms {
  /** The token expires in `leftMs`. */
  onNotice(leftMs: number): void;
  /** The session is to end, within `graceMs` if it is busy. */
  onEnd(error: ProxyError, graceMs: number): void;
}

/** When a session must be over: by its token, which may be renewed, and by the longest lifetime, which may not. */
export class SessionClock {
  readonly #rules: Config['sessions'];
  readonly #alarms: SessionAlarms;
  readonly #startedAt = Date.now();
  readonly #lifetime: Alarm | undefined;
  #ofToken: Alarm[] = [];
  #over = false;

  constructor(rules: Config['sessions'], expiresAt: number, alarms: SessionAlarms) {
    this.#rules = rules;
    this.#alarms = alarms;
    if (rules.maxLifetimeMs > 0) {
      this.#lifetime = new Alarm(this.#startedAt + rules.maxLifetimeMs, () =>
        alarms.onEnd(new ProxyError('lifetime_over', { hint: 'Reconnect.' }), rules.graceMs),
      );
    }
    this.renew(expiresAt);
  }

  /** The token at hand now expires at `expiresAt`, in ms since the epoch. */
  renew(expiresAt: number): void {
    // A renewal may be answered when its session is gone; nobody would cancel its alarms.
    if (this.#over) return;
    for (const alarm of this.#ofToken) alarm.cancel();
    this.#ofToken = [];
    const { onTokenExpiry, graceMs, noticeMs } = this.#rules;
    if (onTokenExpiry === 'ignore' || expiresAt === Infinity) return;
    const end = () => {
      const hint = 'Reconnect with a fresh token.';
      const grace = onTokenExpiry === 'terminate' ? 0 : graceMs;
      this.#alarms.onEnd(new ProxyError('session_expired', { hint }), grace);
    };
    this.#ofToken.push(new Alarm(expiresAt, end));
    if (noticeMs === 0) return;
    const notice = () => this.#alarms.onNotice(Math.max(expiresAt - Date.now(), 0));
    this.#ofToken.push(new Alarm(expiresAt - noticeMs, notice));
  }

  /** Until when SQL may believe a token that expires at `expiresAt`, by the rules that this session began with. */
  believedUntil(expiresAt: number): number {
    return believedUntil(expiresAt, this.#rules, this.#startedAt);
  }

  cancel(): void {
    this.#over = true;
    for (const alarm of this.#ofToken) alarm.cancel();
    this.#lifetime?.cancel();
  }
}

/** Until when SQL may believe an identity: for as long as a session with this token can still be running a statement. */
export function believedUntil(
  expiresAt: number,
  rules: Config['sessions'],
  startedAt = Date.now(),
): number {
  const { onTokenExpiry, graceMs, maxLifetimeMs } = rules;
  const byToken =
    onTokenExpiry === 'ignore'
      ? END_OF_TIME
      : expiresAt + (onTokenExpiry === 'drain' ? graceMs : 0);
  const byLifetime = maxLifetimeMs > 0 ? startedAt + maxLifetimeMs + graceMs : END_OF_TIME;
  return Math.min(byToken, byLifetime, END_OF_TIME);
}

// setTimeout() takes a longer delay for 1 ms: a token with a far expiry would end its session at once.
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;

/** Calls `then` when the wall clock says `time` (ms since the epoch), however far that is, unless it is cancelled. */
class Alarm {
  readonly #time: number;
  readonly #then: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(time: number, then: () => void) {
    this.#time = time;
    this.#then = then;
    this.#arm();
  }

  cancel(): void {
    clearTimeout(this.#timer);
  }

  #arm(): void {
    const left = this.#time - Date.now();
    this.#timer =
      left > LONGEST_TIMEOUT_MS
        ? setTimeout(() => this.#arm(), LONGEST_TIMEOUT_MS)
        : setTimeout(this.#then, Math.max(left, 0));
  }
}
