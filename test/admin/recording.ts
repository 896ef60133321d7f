/** Operations that write down what they were told, for tests of the way to them. */
import type { Operations } from '../../src/admin/routes.ts';

/** Each pushes what it was told. */
export function recording(heard: unknown[]): Operations {
  return {
    readiness: async () => ({
      ready: false,
      reasons: ['upstreams'],
      troubles: [{ upstream: 'main', cause: 'connect ECONNREFUSED 10.1.2.3:5432' }],
    }),
    sessions(query) {
      heard.push(query);
      return { sessions: [], total: 0, next: undefined };
    },
    pools: async () => ({ pools: [] }),
    providers: () => ({ providers: [] }),
    terminate(selection) {
      heard.push({ terminate: selection });
      return { terminated: 1 };
    },
    reconnect(upstream) {
      heard.push({ reconnect: upstream });
      return { closed: 1, inUse: 0 };
    },
    drain: () => void heard.push('drain'),
    revoke: (entry) => void heard.push(entry),
    reload: () => void heard.push('reload'),
    metrics: async (accept) => ({ contentType: 'text/x', text: `as ${accept}` }),
  };
}
