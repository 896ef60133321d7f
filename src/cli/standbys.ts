/**
 * Which upstreams of a configuration are standbys of which: those with the same database and the same secret.
 */
import { isDeepStrictEqual } from 'node:util';
import { readSecret, type Config, type UpstreamConfig } from '../config.ts';

/**
 * The standbys of this upstream that the configuration names.
 *
 * @throws {ConfigError} when a secret cannot be read.
 */
export function replicasOf(config: Config, name: string): UpstreamConfig[] {
  return Object.keys(config.upstreams)
    .filter((one) => isReplica(config, one) && haveSameRoles(config, name, one))
    .map((one) => upstream(config, one));
}

/**
 * The primary of this standby, where the configuration names it.
 *
 * @throws {ConfigError} when a secret cannot be read.
 */
export function primaryOf(config: Config, name: string): string | undefined {
  return Object.keys(config.upstreams).find(
    (one) => !isReplica(config, one) && haveSameRoles(config, name, one),
  );
}

const upstream = (config: Config, name: string) => config.upstreams[name] as UpstreamConfig;
const isReplica = (config: Config, name: string) => upstream(config, name).session === 'replica';

function haveSameRoles(config: Config, one: string, other: string): boolean {
  const [a, b] = [upstream(config, one), upstream(config, other)];
  if (a.database !== b.database) return false;
  return isDeepStrictEqual(a.secret, b.secret) || secretOf(config, one) === secretOf(config, other);
}

function secretOf(config: Config, name: string): string {
  return readSecret(upstream(config, name).secret, `upstreams.${name}.secret`);
}
