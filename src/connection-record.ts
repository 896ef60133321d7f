/**
 * The record of one connection: what is known of it, from its first byte to its last, and who is told as it becomes known.
 *
 * The connection tells it what happens; it notes that and tells its listeners, which are the proxy's and not the connection's:
 * they keep what they know of it here. So each session has one object for its log, its metrics and its line on the roster.
 * Where one of them makes a mistake the others are told all the same, and then the connection.
 */
import { randomUUID } from 'node:crypto';
import type { ConnectionLog, Endable } from './connection.ts';
import { printable, type ProxyError } from './errors.ts';
import type { Asking } from './identity/authentication.ts';
import type { Identity } from './identity/policy.ts';
import type { Outcome, Progress } from './splice/splice.ts';

/** Told of every connection, one step at a time, when its record says so already. */
export interface ConnectionListener {
  onArrival?(record: ConnectionRecord): void;
  onStartup?(record: ConnectionRecord): void;
  onToken?(record: ConnectionRecord): void;
  onIdentity?(record: ConnectionRecord): void;
  onLease?(record: ConnectionRecord): void;
  onWelcome?(record: ConnectionRecord): void;
  onRenewal?(record: ConnectionRecord): void;
  onRenewalRefused?(record: ConnectionRecord, error: ProxyError): void;
  onRefusal?(record: ConnectionRecord, error: ProxyError): void;
  onEnd?(record: ConnectionRecord, outcome: Outcome): void;
}

/** One connection. */
export class ConnectionRecord implements ConnectionLog {
  /** Joins its log lines. */
  readonly session: string = randomUUID();
  /** In ms since the epoch. */
  readonly arrivedAt: number = Date.now();
  /** Where it is from, canonical. */
  address: string;
  /** What it asked for, as far as it may be shown. */
  user: string | undefined;
  database: string | undefined;
  applicationName: string | undefined;
  /** Who it is, and what it asked for to be that, once its token has been verified. */
  asking: Asking | undefined;
  identity: Identity | undefined;
  /** The LOGIN role, and the process of PostgreSQL, that work for it. */
  slot: string | undefined;
  backendPid: number | undefined;
  /** Its session, once it has one. */
  live: { readonly progress: Progress } | undefined;
  /** Whether it is over, but for the goodbyes. */
  closing = false;
  /** Times by `performance.now()`: when it came, when the phase of its login that it is in began, when it was let in. */
  readonly cameAt: number = performance.now();
  phaseBeganAt: number = this.cameAt;
  welcomedAt: number = this.cameAt;
  readonly #listeners: readonly ConnectionListener[];
  /** Its session; until there is one, its login. */
  #underWay: Endable | undefined;

  constructor(address: string, listeners: readonly ConnectionListener[]) {
    this.address = address;
    this.#listeners = listeners;
  }

  /** Ends its session, or its login. Whether there was anything to end. */
  end(error: ProxyError, graceMs: number): boolean {
    if (this.closing) return false;
    this.#underWay?.end(error, graceMs);
    return true;
  }

  onArrival(login: Endable): void {
    this.#underWay = login;
    this.#tell((listener) => listener.onArrival?.(this));
  }

  onLocated(address: string): void {
    this.address = address;
  }

  onStartup({ user, database, parameters }: Parameters<ConnectionLog['onStartup']>[0]): void {
    const applicationName = parameters.get('application_name');
    this.user = printable(user);
    this.database = printable(database);
    if (applicationName !== undefined) this.applicationName = printable(applicationName);
    this.#tell((listener) => listener.onStartup?.(this));
  }

  onToken(): void {
    this.#tell((listener) => listener.onToken?.(this));
  }

  onIdentity(asking: Asking, identity: Identity): void {
    this.asking = asking;
    this.identity = identity;
    this.#tell((listener) => listener.onIdentity?.(this));
  }

  onLease(): void {
    this.#tell((listener) => listener.onLease?.(this));
  }

  onWelcome(...[lease, session]: Parameters<ConnectionLog['onWelcome']>): void {
    this.slot = lease.slot;
    this.backendPid = lease.cancelTarget.processId;
    this.live = session;
    this.#underWay = session;
    this.welcomedAt = performance.now();
    this.#tell((listener) => listener.onWelcome?.(this));
  }

  onRenewal(identity: Identity): void {
    this.identity = identity;
    this.#tell((listener) => listener.onRenewal?.(this));
  }

  onRenewalRefused(error: ProxyError): void {
    this.#tell((listener) => listener.onRenewalRefused?.(this, error));
  }

  onRefusal(error: ProxyError): void {
    this.closing = true;
    this.#tell((listener) => listener.onRefusal?.(this, error));
  }

  onEnd(outcome: Outcome): void {
    this.closing = true;
    this.#tell((listener) => listener.onEnd?.(this, outcome));
  }

  #tell(what: (listener: ConnectionListener) => void): void {
    let first: { readonly mistake: unknown } | undefined;
    for (const listener of this.#listeners) {
      try {
        what(listener);
      } catch (mistake) {
        first ??= { mistake };
      }
    }
    if (first !== undefined) throw first.mistake;
  }
}
