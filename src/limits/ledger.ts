/**
 * Who is counted where, against `limits`: unauthenticated sockets, clients by address and subject, logins, failures, cancels.
 *
 *   enter ─▶ admit ─▶ attempt ─▶ claim      a socket, a StartupMessage, a token that is to be verified, a verified one
 *     │        │         └ too_many_attempts: others from there with tokens of that issuer have failed too often
 *     │        └ too_many_clients, too_many_attempts
 *     └ closed without a word
 *
 * Whatever is refused is refused before the work that it would have cost. Of several workers the primary has the one ledger.
 */
import type { Config } from '../config.ts';
import { type ErrorCode, ProxyError } from '../errors.ts';
import { countedAs } from './address.ts';
import { localLimiter, type Rate, rateOf } from './rate.ts';
import { digest, LocalSetbacks, type Setbacks, type Wait, waitOf } from './setbacks.ts';
import { LocalTally, type Tally } from './tally.ts';

/** Names of the limits that something may be refused for, as in the configuration. */
export type LimitName =
  | 'maxClients'
  | 'maxClientsPerAddress'
  | 'maxClientsPerSubject'
  | 'maxUnauthenticated'
  | 'maxUnauthenticatedPerAddress'
  | 'loginsPerSecond'
  | 'loginsPerSecondPerAddress'
  | 'failedLogins'
  | 'missedCancelsPerSecond';

/** The ledger, as one who serves clients sees it. */
export interface Ledger {
  /**
   * Counts an unauthenticated socket in, from a canonical address where that is known. `refuse` is called, at once or soon,
   * where there are too many. Returns how to count it out, which may be called again.
   */
  enter(address: string | undefined, refuse: () => void): () => void;
  /**
   * Counts a client in that wants to log in.
   *
   * @throws {ProxyError} too_many_clients, too_many_attempts, or the signal's reason.
   */
  admit(address: string, signal: AbortSignal): Promise<Admission>;
  /** Whether a cancel request from there is looked at. */
  mayCancel(address: string): Promise<boolean>;
  /** A cancel request from there was for nobody's session. */
  missedCancel(address: string): void;
}

/** Whose client it is. */
export interface Claimant {
  readonly issuer: string | undefined;
  readonly subject: string | undefined;
}

/** A client that has been admitted, until it leaves. */
export interface Admission {
  /** A token that names this issuer is about to be verified. @throws {ProxyError} too_many_attempts */
  attempt(this: void, issuer: string): void;
  /** The login has failed; it is held against the address where it was for what the client presented. */
  failed(error: ProxyError): void;
  /** A token of this issuer was good. */
  succeeded(issuer: string): void;
  /** Counts it among the clients of its subject. @throws {ProxyError} too_many_clients */
  claim(identity: Claimant): Promise<void>;
  /** Has this done when the client leaves, or now if it has left. */
  onLeave(countOut: () => void): void;
  /** Counts it out; may be called again. */
  leave(): void;
}

/** What a ledger asks of its place in the world. */
export interface LedgerStore {
  readonly addresses: Tally;
  readonly subjects: Tally;
  readonly logins: Rate;
  readonly loginsByAddress: Rate;
  readonly setbacks: Setbacks;
}

/** How much is counted at present. */
export interface LedgerCounts {
  readonly unauthenticated: number;
  readonly clients: number;
  /** How often each limit has refused somebody, since the start. */
  readonly refused: Readonly<Partial<Record<LimitName, number>>>;
}

/** A ledger's store in this process alone. */
export function localStore(limits: () => Config['limits']): LedgerStore {
  return {
    addresses: new LocalTally(),
    subjects: new LocalTally(),
    logins: rateOf(localLimiter(), () => limits().loginsPerSecond),
    loginsByAddress: rateOf(localLimiter(), () => limits().loginsPerSecondPerAddress),
    setbacks: new LocalSetbacks(() => limits().failedLogins),
  };
}

/** Faults of ours, or of an issuer, are not among them, nor is silence: they say nothing about who is at the other end. */
const FAILURES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'token_rejected',
  'token_expired',
  'token_revoked',
  'claims_rejected',
  'role_forbidden',
]);

/** The one ledger of a proxy. */
export class ProxyLedger implements Ledger {
  #limits: Config['limits'];
  readonly #store: LedgerStore;
  readonly #onRefused: (limit: LimitName, address: string | undefined) => void;
  readonly #strangers = new LocalTally();
  readonly #refused = new Map<LimitName, number>();
  readonly #missedCancels = localLimiter();
  #unauthenticated = 0;
  #clients = 0;

  /** `onRefused` is told of each refusal. */
  constructor(
    limits: Config['limits'],
    onRefused: (limit: LimitName, address: string | undefined) => void,
    store?: LedgerStore,
  ) {
    this.#limits = limits;
    this.#onRefused = onRefused;
    this.#store = store ?? localStore(() => this.#limits);
  }

  /** Failed logins, by `Admission`'s keys. */
  get setbacks(): Setbacks {
    return this.#store.setbacks;
  }

  /** Other limits. What is counted beyond them stays. */
  setLimits(limits: Config['limits']): void {
    this.#limits = limits;
  }

  counts(): LedgerCounts {
    return {
      unauthenticated: this.#unauthenticated,
      clients: this.#clients,
      refused: Object.fromEntries(this.#refused),
    };
  }

  /** Whether one more socket from there could enter now; if not, it counts as refused. */
  hasRoomFor(address: string | undefined): boolean {
    const { maxUnauthenticated, maxUnauthenticatedPerAddress } = this.#limits;
    if (this.#unauthenticated >= maxUnauthenticated) {
      this.refuse('maxUnauthenticated', address);
      return false;
    }
    if (address === undefined) return true;
    if (this.#strangers.count(this.#keyOf(address)) < maxUnauthenticatedPerAddress) return true;
    this.refuse('maxUnauthenticatedPerAddress', address);
    return false;
  }

  enter(address: string | undefined, refuse: () => void): () => void {
    if (!this.hasRoomFor(address)) {
      refuse();
      return () => {};
    }
    const key = address === undefined ? undefined : this.#keyOf(address);
    this.#unauthenticated++;
    if (key !== undefined) this.#strangers.add(key, Infinity);
    return once(() => {
      this.#unauthenticated--;
      if (key !== undefined) this.#strangers.remove(key);
    });
  }

  async admit(address: string, signal: AbortSignal): Promise<CountedIn> {
    const key = this.#keyOf(address);
    const admission = new CountedIn(this.#store, key, {
      refusal: (code, limit, hint) => this.#refusal(code, limit, address, hint),
      maxPerSubject: () => this.#limits.maxClientsPerSubject,
    });
    if (this.#clients >= this.#limits.maxClients) {
      throw this.#refusal('too_many_clients', 'maxClients', address);
    }
    this.#clients++;
    admission.onLeave(() => this.#clients--);
    try {
      await this.#assertRates(key, address);
      const { maxClientsPerAddress } = this.#limits;
      if (maxClientsPerAddress !== undefined) {
        if (!(await this.#store.addresses.add(key, maxClientsPerAddress))) {
          throw this.#refusal('too_many_clients', 'maxClientsPerAddress', address);
        }
        admission.onLeave(() => this.#store.addresses.remove(key));
      }
      admission.waits = await this.#store.setbacks.at(key);
      signal.throwIfAborted();
      return admission;
    } catch (error) {
      admission.leave();
      throw error;
    }
  }

  async mayCancel(address: string): Promise<boolean> {
    const missed = await this.#missedCancels.get(this.#keyOf(address));
    if ((missed?.consumedPoints ?? 0) < this.#limits.missedCancelsPerSecond) return true;
    this.refuse('missedCancelsPerSecond', address);
    return false;
  }

  missedCancel(address: string): void {
    void this.#missedCancels.penalty(this.#keyOf(address));
  }

  async #assertRates(key: string, address: string): Promise<void> {
    // Its own first: who is too fast must not use up what is everybody's.
    if (!(await this.#store.loginsByAddress.take(key))) {
      throw this.#refusal('too_many_attempts', 'loginsPerSecondPerAddress', address);
    }
    if (!(await this.#store.logins.take('all'))) {
      throw this.#refusal('too_many_attempts', 'loginsPerSecond', address);
    }
  }

  #keyOf(address: string): string {
    return countedAs(address, this.#limits.ipv6PrefixBits);
  }

  /** Counts somebody who is refused for this limit. */
  refuse(limit: LimitName, address: string | undefined): void {
    this.#refused.set(limit, (this.#refused.get(limit) ?? 0) + 1);
    this.#onRefused(limit, address);
  }

  #refusal(code: Refusal, limit: LimitName, address: string, hint?: string): LimitError {
    this.refuse(limit, address);
    return new LimitError(code, limit, hint);
  }
}

/** How a client can be refused. */
export type Refusal = 'too_many_clients' | 'too_many_attempts';

/** A limit is reached; which one is for the log. */
export class LimitError extends ProxyError<Refusal> {
  readonly limit: LimitName;

  constructor(code: Refusal, limit: LimitName, hint?: string) {
    super(code, { cause: new Error(`limits.${limit}`), ...(hint !== undefined && { hint }) });
    this.limit = limit;
  }
}

/** What an admission may refuse, and for what. */
export interface AdmissionRules {
  refusal(code: Refusal, limit: LimitName, hint?: string): LimitError;
  maxPerSubject(): number | undefined;
}

/** An admission: what has been counted for it, and its address's setbacks as they were when it came. */
export class CountedIn implements Admission {
  /** By what the address is counted. */
  readonly key: string;
  waits: readonly Wait[] = [];
  readonly #arrivedAt = performance.now();
  readonly #store: Pick<LedgerStore, 'setbacks' | 'subjects'>;
  readonly #rules: AdmissionRules;
  #issuer = '';
  #left = false;
  #countOut: (() => void)[] = [];

  constructor(
    store: Pick<LedgerStore, 'setbacks' | 'subjects'>,
    key: string,
    rules: AdmissionRules,
  ) {
    this.#store = store;
    this.key = key;
    this.#rules = rules;
  }

  readonly attempt = (issuer: string): void => {
    this.#issuer = issuer;
    const wait = waitOf(this.waits, digest(issuer));
    const leftMs = (wait?.leftMs ?? 0) - (performance.now() - this.#arrivedAt);
    if (leftMs <= 0) return;
    const hint = `Too many logins have failed. Try again in ${Math.ceil(leftMs / 1000)} s.`;
    throw this.#rules.refusal('too_many_attempts', 'failedLogins', hint);
  };

  failed({ code }: ProxyError): void {
    if (FAILURES.has(code)) this.#store.setbacks.failed(this.key, digest(this.#issuer));
  }

  succeeded(issuer: string): void {
    if (this.waits.length === 0) return;
    const key = digest(issuer);
    if (this.waits.some((one) => one.issuer === key)) {
      this.#store.setbacks.succeeded(this.key, key);
    }
  }

  async claim({ issuer, subject }: Claimant): Promise<void> {
    if (this.#rules.maxPerSubject() === undefined) return;
    if (!(await this.count(digest(JSON.stringify([issuer, subject]))))) {
      throw this.#rules.refusal('too_many_clients', 'maxClientsPerSubject');
    }
  }

  /** Counts it among the clients with this key, unless there are too many. */
  async count(subject: string): Promise<boolean> {
    const { subjects } = this.#store;
    if (!(await subjects.add(subject, this.#rules.maxPerSubject() ?? Infinity))) return false;
    this.onLeave(() => subjects.remove(subject));
    return true;
  }

  onLeave(countOut: () => void): void {
    if (this.#left) countOut();
    else this.#countOut.push(countOut);
  }

  leave(): void {
    this.#left = true;
    for (const countOut of this.#countOut) countOut();
    this.#countOut = [];
  }
}

function once(work: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    work();
  };
}
