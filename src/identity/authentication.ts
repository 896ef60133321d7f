/**
 * Which way of presenting its token is asked of a client: the rules of `listen.authentication`, the first that matches.
 *
 * User, database and host name are only what the client says, and it may say what it likes: the token is the same either
 * way, and so is what has to be true of it.
 */
import type { Config } from '../config.ts';
import { discoveryProvider } from '../config-rules.ts';

/** What a client has said of itself before it is asked for its token. */
export interface Asking {
  readonly user: string;
  readonly database: string;
  /** The host name of its TLS handshake, in whatever case. */
  readonly sni: string | undefined;
}

/** What a client is told that asks where to get a token. */
export interface Discovery {
  /** Where the issuer publishes its metadata. */
  readonly openidConfiguration: string;
  /** The scopes that it should ask for, with a space between them. */
  readonly scope: string;
}

/** What the client is told when it asks where to get a token, if it is to sign in by OAUTHBEARER; else `undefined`. */
export function chooseAuthentication(config: Config, asking: Asking): Discovery | undefined {
  const { authentication, authenticationRules, oauth } = config.listen;
  const sni = asking.sni?.toLowerCase();
  const rule = authenticationRules.find(
    (one) =>
      (one.user ?? asking.user) === asking.user &&
      (one.database ?? asking.database) === asking.database &&
      (one.sni ?? sni) === sni,
  );
  if ((rule?.method ?? authentication) === 'password') return undefined;
  const provider = config.providers[discoveryProvider(config, rule ?? oauth) ?? ''];
  // A checked configuration has it.
  if (provider === undefined) throw new TypeError('method "oauth" without a provider');
  return {
    // Where PostgreSQL says it is, which is what libpq holds to be the issuer's, to the byte.
    openidConfiguration: `${provider.issuer}/.well-known/openid-configuration`,
    scope: rule?.scope ?? oauth.scope,
  };
}
