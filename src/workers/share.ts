/**
 * A worker's share of what the configuration grants to the whole proxy: connections to an upstream, and spares.
 *
 * Clients are spread evenly, so even shares do; `limits` are counted exactly instead (`ledger.ts`), and slots are
 * leased from PostgreSQL.
 */
import type { Config } from '../config.ts';
import { ConfigError } from '../errors.ts';

/**
 * The configuration for worker `worker` of `workers`: together they open no more connections than it allows, and keep as
 * many spares as it says, or as many as there are workers.
 */
export function shareOf(config: Config, worker: number, workers: number): Config {
  const upstreams = Object.fromEntries(
    Object.entries(config.upstreams).map(([id, upstream]) => {
      const share = <Limits extends { maxConnections?: number | undefined }>(
        limits: Limits,
      ): Limits =>
        limits.maxConnections === undefined
          ? limits
          : {
              ...limits,
              maxConnections: Math.floor((limits.maxConnections + workers - worker) / workers),
            };
      const roles = Object.fromEntries(
        Object.entries(upstream.roles).map(([name, role]) => [name, share(role)]),
      );
      const pool = { ...share(upstream.pool), spares: Math.ceil(upstream.pool.spares / workers) };
      return [id, { ...upstream, roles, pool }];
    }),
  );
  return { ...config, upstreams };
}

/** @throws {ConfigError} when a worker's share of the connections to an upstream would be none. */
export function assertShareable(config: Config, workers: number): void {
  const limits = Object.entries(config.upstreams).flatMap(([id, { pool, roles }]) => [
    [`upstreams.${id}.pool`, pool.maxConnections] as const,
    ...Object.entries(roles).map(
      ([name, role]) => [`upstreams.${id}.roles.${name}`, role.maxConnections] as const,
    ),
  ]);
  const problems = limits
    .filter(([, maxConnections = Infinity]) => maxConnections < workers)
    .map(([path]) => ({
      path: `${path}.maxConnections`,
      message: `is less than the number of workers, ${workers}`,
    }));
  if (problems.length > 0) throw new ConfigError(problems);
}
