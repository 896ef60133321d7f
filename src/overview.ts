/**
 * What a proxy shows of itself, and does to its sessions when an administrator says so.
 *
 * One process's part; that of several is put together in `workers/survey.ts`.
 */
import type { Generation } from './generation.ts';
import {
  describePool,
  describeProvider,
  type PoolDescription,
  type ProviderDescription,
} from './inspection.ts';
import { judgeReadiness, type Circumstances, type Readiness } from './readiness.ts';
import type { Roster, SessionPage, SessionQuery, SessionSelection } from './roster.ts';
import type { ProxyError } from './errors.ts';

/** What becomes of an upstream's sessions at a reconnect. */
export interface Reconnected {
  /** They waited for their next user, and are being closed. */
  readonly closed: number;
  /** They are closed when their client leaves. */
  readonly inUse: number;
}

/** A proxy, seen and touched by administrators. */
export interface Overview {
  /** Who is on: a page of those that are meant, at most 100 unless `limit` says how many. */
  sessions(query?: Partial<SessionQuery>): SessionPage;
  /**
   * Ends these sessions and logins at once, with 57P01; their clients may come back. Returns how many.
   *
   * @throws {RangeError} when it is not said which.
   */
  terminate(selection: SessionSelection): number;
  /** The sessions and slots of each upstream. Asks the upstreams whether they are there, and waits for a second at most. */
  pools(): Promise<PoolDescription[]>;
  /** The keys of each issuer. */
  providers(): ProviderDescription[];
  /** Whether new clients should be sent here, and what is wrong. Waits for a second at most. */
  readiness(): Promise<Readiness>;
  /**
   * Has every login from now on get a session that was opened later, so that what ALTER ROLE or ALTER DATABASE … SET has
   * changed holds for it.
   *
   * @throws {RangeError} when there is no such upstream.
   */
  reconnect(upstream: string): Reconnected;
}

/** What is looked at. */
export interface Premises {
  readonly roster: Roster;
  /** The generation that new connections belong to. */
  readonly current: () => Generation;
  readonly phase: () => Circumstances['phase'];
}

const PAGE = 100;

/** The overview of these premises. */
export function createOverview({ roster, current, phase }: Premises): Overview {
  return {
    sessions: (query) => roster.page({ limit: PAGE, ...query }),
    terminate(selection) {
      if (Object.values(selection).every((one) => one === undefined)) {
        throw new RangeError('say which sessions: by id, sub, iss, provider, role or upstream');
      }
      return roster.terminate(selection);
    },
    async pools() {
      const { pools } = current();
      const unreachable = await findUnreachable(current());
      return [...pools].map(([id, pool]) =>
        describePool(id, pool.upstream, pool.state(), unreachable.get(id)),
      );
    },
    providers: () => current().context.verifier.keyStates().map(describeProvider),
    async readiness() {
      const unreachable =
        phase() === 'serving' ? await findUnreachable(current()) : new Map<string, ProxyError>();
      const { config, context } = current();
      return judgeReadiness({
        phase: phase(),
        config,
        unreachable,
        keys: context.verifier.keyStates(),
      });
    },
    reconnect(upstream) {
      const pool = current().pools.get(upstream);
      if (pool === undefined) throw new RangeError(`there is no upstream "${upstream}"`);
      return pool.reconnect();
    },
  };
}

/** Why upstreams cannot be had, by name; those that can be are left out. */
async function findUnreachable({ pools }: Generation): Promise<Map<string, ProxyError>> {
  const found = await Promise.all(
    [...pools].map(async ([id, { probe }]) => [id, await probe.check()] as const),
  );
  return new Map(found.flatMap(([id, error]) => (error === undefined ? [] : [[id, error]])));
}
