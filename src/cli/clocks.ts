/**
 * Whether this machine's clock is right, by what an issuer's says: with a wrong one all tokens are expired, or not valid yet.
 *
 * PostgreSQL's clock is compared by `pgjot doctor`.
 */
import type { ProviderConfig, JwksConfig } from '../config.ts';
import type { ConfigProblem } from '../errors.ts';
import { download } from '../identity/download.ts';

// A Date header counts whole seconds.
const TICK_MS = 1_000;

/**
 * The problem with our clock, if it is further off an issuer's than its tokens may be. Issuers that cannot be reached, or do
 * not say what time it is, tell nothing; that they cannot be reached is found elsewhere.
 */
export async function clockProblems(
  name: string,
  { jwksUri, clockToleranceMs }: ProviderConfig,
  { timeoutMs, maxBytes, privateHosts }: JwksConfig,
): Promise<ConfigProblem[]> {
  if (jwksUri === undefined) return [];
  const askedAt = Date.now();
  const answer = await download(jwksUri, {
    signal: AbortSignal.timeout(timeoutMs),
    maxBytes,
    accept: 'application/jwk-set+json, application/json',
    privateHosts,
  }).catch(() => undefined);
  const answeredAt = Date.now();
  // What a cache has kept tells the time at which it was kept.
  const said = Date.parse(answer?.headers.date ?? '') + Number(answer?.headers.age ?? 0) * 1000;
  if (Number.isNaN(said)) return [];
  const aheadMs = Math.max(askedAt - said - TICK_MS, 0);
  const behindMs = Math.max(said - answeredAt, 0);
  if (Math.max(aheadMs, behindMs) <= clockToleranceMs) return [];
  const [offMs, side] = aheadMs > 0 ? [aheadMs, 'ahead of'] : [behindMs, 'behind'];
  const message =
    `this machine's clock is ${Math.round(offMs / 1000)} s ${side} its issuer's, more than ` +
    `clockToleranceMs (${clockToleranceMs}): tokens will be refused; set the clock by NTP`;
  return [{ path: `providers.${name}`, message }];
}
