/**
 * The roster: which clients are connected, who they are and what they are doing, and how each is ended.
 *
 * Reads what each connection's record says. Never sees a token, and shows no claims.
 */
import type { Progress } from './connection.ts';
import type { ConnectionListener, ConnectionRecord } from './connection-record.ts';
import { ProxyError } from './errors.ts';
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
export class Roster implements ConnectionListener {
  readonly #records = new Set<ConnectionRecord>();
  readonly #objection: Judge;
  /** How long busy sessions may go on, since the house is closing. */
  #graceMs: number | undefined;
  /** Told when none is left. */
  readonly #leaving: (() => void)[] = [];

  /** `objection` is asked whenever it becomes known who a client is: it may have been revoked while it was on its way. */
  constructor(objection: Judge) {
    this.#objection = objection;
  }

  /** How many there are. */
  get size(): number {
    return this.#records.size;
  }

  /** One more connection. */
  enter(record: ConnectionRecord): void {
    this.#records.add(record);
  }

  /** It is over. */
  exit(record: ConnectionRecord): void {
    this.#records.delete(record);
    if (this.#records.size > 0) return;
    for (const resolve of this.#leaving.splice(0)) resolve();
  }

  onArrival(record: ConnectionRecord): void {
    this.#closeIfLeaving(record);
  }

  onWelcome(record: ConnectionRecord): void {
    this.#closeIfLeaving(record);
  }

  onIdentity(record: ConnectionRecord): void {
    judge(record, this.#objection);
  }

  onRenewal(record: ConnectionRecord): void {
    judge(record, this.#objection);
  }

  /** Ends those of the sessions, and of the logins, to which there is an objection. */
  judge(objection: Judge): void {
    for (const record of this.#records) judge(record, objection);
  }

  /** Ends these sessions and logins at once; their clients may come back. Returns how many. */
  terminate(selection: SessionSelection): number {
    let ended = 0;
    for (const record of this.#records) {
      if (!matches(record, selection) || !record.end(new ProxyError('terminated'), 0)) continue;
      ended++;
    }
    return ended;
  }

  /** Ends all, those that are busy after `graceMs`, and those that are still to come; resolves when none is left. */
  async leave(graceMs: number): Promise<void> {
    this.#graceMs = graceMs;
    for (const record of this.#records) record.end(new ProxyError('shutdown'), graceMs);
    while (this.#records.size > 0) {
      await new Promise<void>((resolve) => this.#leaving.push(resolve));
    }
  }

  /** A page of those that are meant. */
  page({ limit, after, ...selection }: SessionQuery): SessionPage {
    const matching = [...this.#records].filter((record) => matches(record, selection));
    return pageOf(
      matching.map((record) => ({
        key: keyOf(isoTime(record.arrivedAt), record.session),
        describe: () => describe(record),
      })),
      matching.length,
      { limit, after },
    );
  }

  #closeIfLeaving(record: ConnectionRecord): void {
    if (this.#graceMs !== undefined) record.end(new ProxyError('shutdown'), this.#graceMs);
  }
}

function judge(record: ConnectionRecord, objection: Judge): void {
  const { asking, identity } = record;
  if (asking === undefined || identity === undefined) return;
  const error = objection(asking, identity);
  if (error !== undefined) record.end(error, 0);
}

function matches(record: ConnectionRecord, selection: SessionSelection): boolean {
  const { id, iss, sub, provider, role, upstream, address, state } = selection;
  const { identity } = record;
  const fits = (wanted: string | undefined, is: string | undefined) =>
    wanted === undefined || wanted === is;
  return (
    fits(id, record.session) &&
    fits(iss, identity?.issuer) &&
    fits(sub, identity?.subject) &&
    fits(provider, identity?.provider) &&
    fits(role, identity?.role) &&
    fits(upstream, identity?.upstream) &&
    fits(address, record.address) &&
    (state === undefined || state === stateOf(record))
  );
}

function describe(record: ConnectionRecord): SessionDescription {
  const { session, address, arrivedAt, user, database, applicationName, identity } = record;
  const { slot, backendPid } = record;
  const bytes = record.live?.progress.bytes;
  return {
    id: session,
    state: stateOf(record),
    address,
    connectedAt: isoTime(arrivedAt),
    ...(user !== undefined && { user }),
    ...(database !== undefined && { database }),
    ...(applicationName !== undefined && { applicationName }),
    ...(identity && describeIdentity(identity)),
    ...(slot !== undefined && { slot }),
    ...(backendPid !== undefined && { backendPid }),
    ...(bytes && { bytes }),
  };
}

function stateOf({ closing, live }: ConnectionRecord): SessionState {
  if (closing) return 'closing';
  return live?.progress.state ?? 'login';
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
