/**
 * What all workers together show of themselves, and do when an administrator says so: sums and lists, in which it is said who has not answered.
 *
 * A worker that hangs holds nobody up for longer than two seconds. Whether it is ready anybody may ask, so that workers are asked
 * that once a second at most.
 */
import type { Joint, Operations } from '../admin/routes.ts';
import type { Config } from '../config.ts';
import { mergePools, type PoolDescription, type ProviderDescription } from '../inspection.ts';
import type { Reconnected } from '../overview.ts';
import { Finding, mergeReadiness, type Circumstances, type Readiness } from '../readiness.ts';
import { mergePages, type SessionPage } from '../roster.ts';
import type { Crew } from './crew.ts';
import type { Order } from './messages.ts';

/** What of the administrators' operations is every worker's. */
export type Survey = Pick<
  Operations,
  'readiness' | 'sessions' | 'pools' | 'providers' | 'terminate' | 'reconnect'
>;

const ANSWER_MS = 2_000;
// A load balancer waits for a second, as a rule, and a worker for 700 ms.
const READINESS_MS = 900;

/** The survey of this crew. */
export function createSurvey(
  crew: Pick<Crew, 'poll'>,
  {
    phase,
    config,
  }: { phase: () => Circumstances['phase']; config: () => Pick<Config, 'upstreams'> },
): Survey {
  const ask = async (order: Order, ms = ANSWER_MS) => {
    const { answers, unanswered } = await crew.poll(order, ms);
    return { all: answers, unanswered };
  };
  const readiness = new Finding<Readiness>(async () => {
    const { all, unanswered } = await ask({ what: 'readiness' }, READINESS_MS);
    const { troubles, ...merged } = mergeReadiness(
      all.map(({ worker, value }) => ({ worker, readiness: value as Readiness })),
    );
    const silent = unanswered.map((worker) => ({ worker, cause: 'it has not answered' }));
    return { ...merged, troubles: [...troubles, ...silent] };
  });
  return {
    async readiness() {
      if (phase() === 'serving') await readiness.refresh();
      // It may be draining by now.
      const [now, { last }] = [phase(), readiness];
      if (now === 'serving' && last !== undefined)
        return { ...last.found, ageMs: Math.round(last.ageMs) };
      return { ready: false, reasons: [now === 'serving' ? 'starting' : now], troubles: [] };
    },
    async sessions(query) {
      const { all, unanswered } = await ask({ what: 'sessions', query });
      const pages = all.map(({ worker, value }) => ({ worker, page: value as SessionPage }));
      return { ...mergePages(pages, query), unanswered };
    },
    async pools() {
      const { all, unanswered } = await ask({ what: 'pools' });
      const pools = mergePools(
        all.map(({ worker, value }) => ({ worker, pools: value as PoolDescription[] })),
      );
      return { pools, unanswered };
    },
    async providers() {
      const { all, unanswered } = await ask({ what: 'providers' });
      const providers = all.flatMap(({ worker, value }) =>
        (value as ProviderDescription[]).map((provider) => ({ worker, ...provider })),
      );
      return { providers, unanswered };
    },
    async terminate(selection) {
      const { all, unanswered } = await ask({ what: 'terminate', selection });
      return { terminated: sum(all.map(({ value }) => value as number)), unanswered };
    },
    async reconnect(upstream) {
      if (!Object.hasOwn(config().upstreams, upstream)) {
        throw new RangeError(`there is no upstream "${upstream}"`);
      }
      const { all, unanswered } = await ask({ what: 'reconnect', upstream });
      const closed = sum(all.map(({ value }) => (value as Reconnected).closed));
      const inUse = sum(all.map(({ value }) => (value as Reconnected).inUse));
      return { closed, inUse, unanswered } satisfies Joint<Reconnected>;
    },
  };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}
