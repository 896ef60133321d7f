/**
 * The roster: which clients are connected, who they are and what they are doing, and how each is ended.
 *
 * Listens to what each connection's log is told. Never sees a token, and shows no claims.
 */
import type { ConnectionLog, Finish, Progress } from './connection.ts';
import { printable, ProxyError } from './errors.ts';
import type { Asking } from './identity/authentication.ts';
import type { Identity } from './identity/policy.ts';

/** What a session is doing: on its way in or out, or else in the words of `pg_stat_activity.state`. */
export type SessionState = 'login' | Progress['state'] | 'closing';

/** A client, as administrators see it. Times are ISO 8601. */
export interface SessionDescription {
  /** As in the log. */
  readonly id: string;
  /** Which of several workers serves it. */
  readonly worker?: number;
  readonly state: SessionState;
  readonly address: string;
  readonly connectedAt: string;
  /** What it asked for. What is longer than 63 characters is cut. */
  readonly user?: string;
  readonly database?: string;
  readonly applicationName?: string;
  /** Who it is, once its token has been verified; of nobody (`anonymous`) there is only the role and the upstream. */
  readonly provider?: string;
  readonly issuer?: string;
  /** What is longer than 255 characters is cut. */
  readonly subject?: string;
  readonly role?: string;
  readonly upstream?: string;
  /** When its token is no good any more: `exp` and the tolerance. */
  readonly expiresAt?: string;
  /** The LOGIN role, and the process of PostgreSQL, that work for it. */
  readonly slot?: string;
  readonly backendPid?: number;
  readonly bytes?: Progress['bytes'];
}

/** Which sessions are meant: those for which all holds that is said. */
export interface SessionSelection {
  readonly id?: string | undefined;
  readonly iss?: string | undefined;
  readonly sub?: string | undefined;
  readonly provider?: string | undefined;
  readonly role?: string | undefined;
  readonly upstream?: string | undefined;
  readonly address?: string | undefined;
  readonly state?: SessionState | undefined;
}

/** Which page of them. */
export interface SessionQuery extends SessionSelection {
  /** How many at most. */
  readonly limit: number;
  /** `next` of the page before. */
  readonly after?: string | undefined;
}

/** One page of sessions, the oldest first. */
export interface SessionPage {
  readonly sessions: readonly SessionDescription[];
  /** How many there are on all pages. */
  readonly total: number;
  /** What to ask for next; undefined on the last page. */
  readonly next: string | undefined;
}

const MAX_SUBJECT_CHARACTERS = 255;

/** Why whoever asked for this, and has this identity, may not go on, if they may not. */
type Judge = (asking: Asking, identity: Identity) => ProxyError | undefined;

/** Every connection of a process, from its first byte to its last. */
export class Roster {
  readonly #entries = new Set<Entry>();
  readonly #objection: Judge;
  /** How long busy sessions may go on, since the house is closing. */
  #graceMs: number | undefined;

  /** `objection` is asked whenever it becomes known who a client is: it may have been revoked while it was on its way. */
  constructor(objection: Judge) {
    this.#objection = objection;
  }

  /** How many there are. */
  get size(): number {
    return this.#entries.size;
  }

  /** One more connection, whose log this is. `onIdentity` is called whenever it becomes known who it is. */
  enter(log: ConnectionLog, address: string, onIdentity: () => void): RosterEntry {
    return new Entry(log, address, {
      onFinishable: (finish) => {
        if (this.#graceMs !== undefined) finish(new ProxyError('shutdown'), this.#graceMs);
      },
      onIdentity: (known) => {
        onIdentity();
        known.judge(this.#objection);
      },
      onLife: (entry) => this.#entries.add(entry),
      onGone: (entry) => this.#entries.delete(entry),
    });
  }

  /** Ends those of the sessions, and of the logins, to which there is an objection. */
  judge(objection: Judge): void {
    for (const entry of this.#entries) entry.judge(objection);
  }

  /** Ends these sessions and logins at once; their clients may come back. Returns how many. */
  terminate(selection: SessionSelection): number {
    let ended = 0;
    for (const entry of this.#entries) {
      if (!entry.matches(selection) || !entry.end(new ProxyError('terminated'), 0)) continue;
      ended++;
    }
    return ended;
  }

  /** Ends all, those that are busy after `graceMs`, and those that are still to come; resolves when none is left. */
  async leave(graceMs: number): Promise<void> {
    this.#graceMs = graceMs;
    for (const entry of this.#entries) entry.end(new ProxyError('shutdown'), graceMs);
    await Promise.all([...this.#entries].map(({ gone }) => gone));
  }

  /** A page of those that are meant. */
  page({ limit, after, ...selection }: SessionQuery): SessionPage {
    const matching = [...this.#entries].filter((entry) => entry.matches(selection));
    return pageOf(
      matching.map((entry) => ({ key: entry.key, describe: () => entry.describe() })),
      matching.length,
      { limit, after },
    );
  }
}

/** Several processes' first pages as one. */
export function mergePages(
  pages: readonly { readonly worker: number; readonly page: SessionPage }[],
  query: Pick<SessionQuery, 'limit'>,
): SessionPage {
  const rows = pages.flatMap(({ worker, page }) =>
    page.sessions.map((session) => ({
      key: keyOf(session.connectedAt, session.id),
      describe: () => ({ ...session, worker }),
    })),
  );
  const total = pages.reduce((sum, { page }) => sum + page.total, 0);
  const merged = pageOf(rows, total, query);
  // What one of them has kept back comes behind the last that is here.
  const isMore = merged.next !== undefined || pages.some(({ page }) => page.next !== undefined);
  const last = merged.sessions.at(-1);
  return isMore && last ? { ...merged, next: keyOf(last.connectedAt, last.id) } : merged;
}

interface Row {
  readonly key: string;
  describe(): SessionDescription;
}

function pageOf(
  rows: readonly Row[],
  total: number,
  { limit, after = '' }: Pick<SessionQuery, 'limit' | 'after'>,
): SessionPage {
  const ordered = rows
    .filter(({ key }) => key > after)
    .toSorted((one, other) => (one.key < other.key ? -1 : 1));
  const sessions = ordered.slice(0, limit).map((row) => row.describe());
  return { sessions, total, next: ordered.length > limit ? ordered[limit - 1]?.key : undefined };
}

/** By this they are ordered. ISO 8601 in UTC sorts as text. */
function keyOf(connectedAt: string, id: string): string {
  return `${connectedAt}_${id}`;
}

/** One connection. It is the log that the connection writes to, and passes everything on to the real one. */
export interface RosterEntry extends ConnectionLog {
  /** Ends its session, or its login. Whether there was anything to end. */
  end(error: ProxyError, graceMs: number): boolean;
  /** Has it on the roster until this is over; resolves then. */
  live(life: Promise<void>): Promise<void>;
}

interface EntryListener {
  onLife(entry: Entry): void;
  onGone(entry: Entry): void;
  onFinishable(finish: Finish): void;
  onIdentity(entry: Entry): void;
}

class Entry implements RosterEntry {
  readonly session: string;
  gone: Promise<void> = Promise.resolve();
  readonly #log: ConnectionLog;
  readonly #listener: EntryListener;
  readonly #connectedAt = new Date().toISOString();
  #address: string;
  #asked: Pick<SessionDescription, 'user' | 'database' | 'applicationName'> = {};
  #claim: { readonly asking: Asking; readonly identity: Identity } | undefined;
  #work: Pick<SessionDescription, 'slot' | 'backendPid'> = {};
  #progress: (() => Progress) | undefined;
  #isClosing = false;
  /** Ends its session; until there is one, its login. */
  #finish: Finish = () => {};

  constructor(log: ConnectionLog, address: string, listener: EntryListener) {
    this.#log = log;
    this.#address = address;
    this.#listener = listener;
    this.session = log.session;
  }

  get key(): string {
    return keyOf(this.#connectedAt, this.session);
  }

  matches({ id, iss, sub, provider, role, upstream, address, state }: SessionSelection): boolean {
    const identity = this.#claim?.identity;
    const fits = (wanted: string | undefined, is: string | undefined) =>
      wanted === undefined || wanted === is;
    return (
      fits(id, this.session) &&
      fits(iss, identity?.issuer) &&
      fits(sub, identity?.subject) &&
      fits(provider, identity?.provider) &&
      fits(role, identity?.role) &&
      fits(upstream, identity?.upstream) &&
      fits(address, this.#address) &&
      (state === undefined || state === this.#state)
    );
  }

  live(life: Promise<void>): Promise<void> {
    this.#listener.onLife(this);
    this.gone = life.finally(() => this.#listener.onGone(this));
    return this.gone;
  }

  end(error: ProxyError, graceMs: number): boolean {
    if (this.#isClosing) return false;
    this.#finish(error, graceMs);
    return true;
  }

  judge(objection: Judge): void {
    if (this.#claim === undefined) return;
    const error = objection(this.#claim.asking, this.#claim.identity);
    if (error !== undefined) this.end(error, 0);
  }

  describe(): SessionDescription {
    const bytes = this.#progress?.().bytes;
    return {
      id: this.session,
      state: this.#state,
      address: this.#address,
      connectedAt: this.#connectedAt,
      ...this.#asked,
      ...(this.#claim && describeIdentity(this.#claim.identity)),
      ...this.#work,
      ...(bytes && { bytes }),
    };
  }

  get #state(): SessionState {
    if (this.#isClosing) return 'closing';
    return this.#progress?.().state ?? 'login';
  }

  onArrival(finish: Finish): void {
    this.#log.onArrival(finish);
    this.#take(finish);
  }

  onLocated(address: string): void {
    this.#address = address;
    this.#log.onLocated(address);
  }

  onStartup(startup: Parameters<ConnectionLog['onStartup']>[0]): void {
    const { user, database, parameters } = startup;
    const applicationName = parameters.get('application_name');
    this.#asked = {
      user: printable(user),
      database: printable(database),
      ...(applicationName !== undefined && { applicationName: printable(applicationName) }),
    };
    this.#log.onStartup(startup);
  }

  onIdentity(asking: Asking, identity: Identity): void {
    this.#claim = { asking, identity };
    this.#log.onIdentity(asking, identity);
    this.#listener.onIdentity(this);
  }

  onToken(): void {
    this.#log.onToken();
  }

  onLease(): void {
    this.#log.onLease();
  }

  onWelcome(...given: Parameters<ConnectionLog['onWelcome']>): void {
    const [{ slot, cancelTarget }, finish, progress] = given;
    this.#work = { slot, backendPid: cancelTarget.processId };
    this.#progress = progress;
    this.#log.onWelcome(...given);
    this.#take(finish);
  }

  onRenewal(asking: Asking, identity: Identity): void {
    this.#claim = { asking, identity };
    this.#log.onRenewal(asking, identity);
    this.#listener.onIdentity(this);
  }

  onRenewalRefused(error: ProxyError): void {
    this.#log.onRenewalRefused(error);
  }

  onRefusal(error: ProxyError): void {
    this.#isClosing = true;
    this.#log.onRefusal(error);
  }

  onEnd(outcome: Parameters<ConnectionLog['onEnd']>[0]): void {
    this.#isClosing = true;
    this.#log.onEnd(outcome);
  }

  #take(finish: Finish): void {
    this.#finish = finish;
    this.#listener.onFinishable(finish);
  }
}

function describeIdentity({
  provider,
  issuer,
  subject,
  role,
  upstream,
  expiresAt,
}: Identity): Partial<SessionDescription> {
  return {
    ...(provider !== undefined && { provider }),
    ...(issuer !== undefined && { issuer }),
    ...(subject !== undefined && { subject: cut(subject) }),
    role,
    upstream,
    ...(Number.isFinite(expiresAt) && { expiresAt: isoTime(expiresAt) }),
  };
}

/** OpenID Connect allows no longer ones; tokens of others may, and a page of them must not be without bounds. */
function cut(subject: string): string {
  return subject.length > MAX_SUBJECT_CHARACTERS
    ? `${subject.slice(0, MAX_SUBJECT_CHARACTERS)}…`
    : subject;
}

// What `Date` can say; a token may expire later than that.
const LAST_MS = 8.64e15;

function isoTime(ms: number): string {
  return new Date(Math.min(ms, LAST_MS)).toISOString();
}
