/**
 * OpenID Connect Discovery: from an issuer's URL to the address of its keys.
 *
 * For `pgjot provider add` alone: the proxy itself goes by what the configuration says, so that no issuer can lead it
 * elsewhere later.
 *
 * https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfig
 */
import { isIP } from 'node:net';
import type { JwksConfig, ProviderConfig } from '../config.ts';
import { ALGORITHMS } from '../config-provider.ts';
import { isSafeUri } from '../config-rules.ts';
import { printable } from '../errors.ts';
import { download } from '../identity/download.ts';
import { CommandError } from './failure.ts';
import { reachOf } from '../identity/address.ts';

/** What an issuer says about itself. */
export interface Discovered {
  readonly jwksUri: string;
  /** What it may sign ID tokens with, as far as a configuration may name it. */
  readonly algorithms: ProviderConfig['algorithms'];
}

/**
 * Reads the metadata of an issuer, within the bounds that its keys are fetched in: time, size, no redirects, no addresses
 * inside of a network.
 *
 * @throws {CommandError} usage: the issuer is no address to ask; unavailable: it does not answer; failure: what it
 *   answers is not about this issuer, or not safe to use.
 */
export async function discover(
  issuer: string,
  { timeoutMs, maxBytes, privateHosts }: JwksConfig,
): Promise<Discovered> {
  if (!URL.canParse(issuer) || !isSafeUri(issuer) || /[?#]/.test(issuer)) {
    throw new CommandError(
      'usage',
      '--issuer must be an https URL without query (http only on a loopback address)',
    );
  }
  const uri = `${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`;
  let text: string;
  try {
    const answer = await download(uri, {
      signal: AbortSignal.timeout(timeoutMs),
      maxBytes,
      accept: 'application/json',
      privateHosts,
    });
    text = answer.text;
  } catch (error) {
    const { name, message } = error as Error;
    const reason = name === 'TimeoutError' ? `no answer within ${timeoutMs} ms` : message;
    throw new CommandError('unavailable', `${uri}: ${reason}`);
  }
  return read(text, issuer, uri);
}

function read(text: string, issuer: string, uri: string): Discovered {
  const wrong = (problem: string) => new CommandError('failure', `${uri}: ${problem}`);
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw wrong('the answer is not JSON');
  }
  const said = (document ?? {}) as Readonly<Record<string, unknown>>;
  // Tokens would not match, and whoever publishes under a name that is not his may be nobody to trust.
  if (said['issuer'] !== issuer) {
    const other = typeof said['issuer'] === 'string' ? `"${printable(said['issuer'])}"` : 'nobody';
    throw wrong(`the issuer there is ${other}, not "${printable(issuer)}"`);
  }
  const jwksUri = said['jwks_uri'];
  if (typeof jwksUri !== 'string' || !URL.canParse(jwksUri) || !isSafeUri(jwksUri)) {
    throw wrong('jwks_uri is missing or not an https URL');
  }
  // What the configuration names may be anywhere; this is what a stranger's document names.
  if (new URL(jwksUri).hostname !== new URL(issuer).hostname && isInside(jwksUri)) {
    throw wrong("jwks_uri has a private address, which is not the issuer's own");
  }
  const listed = said['id_token_signing_alg_values_supported'];
  const supported: readonly unknown[] = Array.isArray(listed) ? listed : [];
  return { jwksUri, algorithms: ALGORITHMS.filter((alg) => supported.includes(alg)) };
}

/** Whether the host is an address, or the name, of this machine or a private network. */
function isInside(uri: string): boolean {
  const host = new URL(uri).hostname.replaceAll(/^\[|\]$/g, '');
  return host === 'localhost' || (isIP(host) !== 0 && reachOf(host) !== 'public');
}
