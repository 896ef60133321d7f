/**
 * An OpenID provider that is not ours, the package `oidc-provider`, and a browser's part of signing in with it.
 *
 * Its access tokens are JWTs for one resource (RFC 8707, RFC 9068), its ID tokens are for its client; the keys change when
 * the test says so.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Provider } from 'oidc-provider';
import { createIssuerKey, type IssuerKey } from '../support/issuer.ts';

/** The `aud` of its access tokens: the database. */
export const RESOURCE = 'https://database.example/app';

/** The client that signs users in on another device (RFC 8628), and names no resource, as psql does not. */
export const DEVICE_CLIENT = 'psql';

const CLIENT = 'to-do-list';
const REDIRECT = 'http://127.0.0.1/signed-in';

/** What a sign-in yields. */
export interface Tokens {
  readonly access_token: string;
  readonly id_token: string;
}

/** A running provider. */
export interface OpenIdProvider extends AsyncDisposable {
  readonly issuer: string;
  /** How often its keys were asked for. */
  readonly keyFetches: () => number;
  /** Signs in with a user name, as a browser would. Without `resource` the access token is no JWT. */
  signIn(user: string, options?: { readonly resource?: boolean }): Promise<Tokens>;
  /** From now on new tokens are signed with a new key; the old one is published for as long as `keepOld` says. */
  rotate(options: { readonly keepOld: boolean }): void;
}

/** Starts one on a free port of the loopback address. */
export async function startOpenIdProvider(): Promise<OpenIdProvider> {
  let keys = [createIssuerKey('ES256')];
  let handle: RequestListener = () => {};
  let keyFetches = 0;
  const server = createServer((request, response) => {
    if (request.url === '/jwks') keyFetches += 1;
    handle(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const publish = () => {
    handle = new Provider(issuer, configuration(keys)).callback();
  };
  publish();
  return {
    issuer,
    keyFetches: () => keyFetches,
    signIn: (user, { resource = true } = {}) => signIn(issuer, user, resource),
    rotate({ keepOld }) {
      keys = [createIssuerKey('ES256'), ...(keepOld ? keys : [])];
      publish();
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function configuration(keys: readonly IssuerKey[]) {
  const privateJwk = ({ privateKey, kid, alg }: IssuerKey) => ({
    ...privateKey.export({ format: 'jwk' }),
    kid,
    alg,
    use: 'sig',
  });
  return {
    clients: [
      {
        client_id: CLIENT,
        application_type: 'native' as const,
        redirect_uris: [REDIRECT],
        token_endpoint_auth_method: 'none' as const,
        id_token_signed_response_alg: 'ES256' as const,
      },
      {
        client_id: DEVICE_CLIENT,
        application_type: 'native' as const,
        grant_types: ['urn:ietf:params:oauth:grant-type:device_code'],
        response_types: [],
        redirect_uris: [],
        token_endpoint_auth_method: 'none' as const,
        id_token_signed_response_alg: 'ES256' as const,
      },
    ],
    cookies: { keys: [randomBytes(16).toString('hex')] },
    jwks: { keys: keys.map(privateJwk) },
    findAccount: (_: unknown, accountId: string) => ({
      accountId,
      claims: () => ({ sub: accountId }),
    }),
    features: {
      deviceFlow: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_: unknown, client: { readonly clientId: string }, one?: string) =>
          client.clientId === DEVICE_CLIENT ? RESOURCE : one,
        getResourceServerInfo: () => ({
          scope: 'todos',
          audience: RESOURCE,
          accessTokenFormat: 'jwt' as const,
          accessTokenTTL: 600,
          jwt: { sign: { alg: 'ES256' as const } },
        }),
        useGrantedResource: () => true,
      },
    },
  };
}

/** The authorization code flow with PKCE (RFC 7636): log in, consent, exchange the code. */
async function signIn(issuer: string, user: string, resource: boolean): Promise<Tokens> {
  const verifier = randomBytes(32).toString('base64url');
  const wanted = resource ? { resource: RESOURCE } : {};
  const code = await authorize(issuer, user, {
    ...wanted,
    client_id: CLIENT,
    response_type: 'code',
    redirect_uri: REDIRECT,
    scope: resource ? 'openid todos' : 'openid',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  });
  const response = await fetch(`${issuer}/token`, {
    method: 'POST',
    body: new URLSearchParams({
      ...wanted,
      grant_type: 'authorization_code',
      client_id: CLIENT,
      redirect_uri: REDIRECT,
      code,
      code_verifier: verifier,
    }),
  });
  if (!response.ok) throw new Error(`no tokens: ${response.status} ${await response.text()}`);
  return (await response.json()) as Tokens;
}

/** Follows redirects, keeps cookies, fills in each form that it meets, and returns the code at the end of the way. */
async function authorize(
  issuer: string,
  user: string,
  query: Readonly<Record<string, string>>,
): Promise<string> {
  const cookies = new Map<string, string>();
  const forms = ['prompt=login&password=any&login=', 'prompt=consent&login='];
  let url = new URL(`/auth?${new URLSearchParams(query).toString()}`, issuer);
  for (let hop = 0; hop < 10; hop += 1) {
    const form = url.pathname.startsWith('/interaction/') ? forms.shift() : undefined;
    const response = await fetch(url, {
      redirect: 'manual',
      headers: { cookie: [...cookies].map((pair) => pair.join('=')).join('; ') },
      ...(form !== undefined && {
        method: 'POST',
        body: new URLSearchParams(`${form}${user}`),
      }),
    });
    for (const cookie of response.headers.getSetCookie()) {
      const [name = '', value = ''] = (cookie.split(';')[0] ?? '').split(/=(.*)/s);
      cookies.set(name, value);
    }
    const location = response.headers.get('location');
    if (location === null) throw new Error(`stuck at ${url.pathname}: ${await response.text()}`);
    url = new URL(location, url);
    const code = url.searchParams.get('code');
    if (code !== null) return code;
  }
  throw new Error('the way to a code is too long');
}
