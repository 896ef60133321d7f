/**
 * The development issuer on loopback: OpenID discovery and the JSON Web Key Set, nothing else.
 *
 * It has no login page and hands out no tokens; `pgjot token` signs them with the key file.
 *
 * https://openid.net/specs/openid-connect-discovery-1_0.html
 */
import { createServer } from 'node:http';
import { CommandError } from '../failure.ts';
import { createIssuer, issuerUrl, publicKey, readIssuer, type DevIssuer } from './mint.ts';
import type { State } from './state.ts';

/** An issuer that answers. */
export interface RunningIssuer {
  /** The exact `iss` of its tokens. */
  readonly url: string;
  readonly jwksUri: string;
  close(): Promise<void>;
}

/**
 * Serves the issuer of this state folder, on the port that it had before: the port is part of `iss`.
 *
 * `preferredPort` is where a new issuer goes, if that is free.
 *
 * @throws {CommandError} when the port of an existing issuer is taken.
 */
export async function startIssuer(state: State, preferredPort: number): Promise<RunningIssuer> {
  const known = await readIssuer(state);
  const server = createServer((request, response) => {
    const body = request.method === 'GET' ? pages?.get(request.url ?? '') : undefined;
    response.writeHead(body === undefined ? 404 : 200, {
      'content-type': 'application/json',
      'cache-control': 'max-age=300',
    });
    response.end(body ?? '{"error":"not_found"}');
  });
  let pages: Map<string, string> | undefined;
  const listen = (port: number) =>
    new Promise<number>((resolve, reject) => {
      server.once('error', reject).listen(port, '127.0.0.1', () => {
        server.off('error', reject);
        resolve((server.address() as { port: number }).port);
      });
    });

  let issuer: DevIssuer;
  if (known === undefined) {
    const port = await listen(preferredPort).catch(() => listen(0));
    issuer = await createIssuer(state, port);
  } else {
    issuer = known;
    await listen(known.port).catch((cause: unknown) => {
      throw new CommandError(
        'failure',
        `port ${known.port} of the development issuer is taken; free it, or start with --reset to get another`,
        { cause },
      );
    });
  }
  pages = documents(issuer);
  return {
    url: issuerUrl(issuer),
    jwksUri: `${issuerUrl(issuer)}/jwks.json`,
    close: () =>
      new Promise((closed) => {
        server.close(() => closed());
        server.closeAllConnections();
      }),
  };
}

function documents(issuer: DevIssuer): Map<string, string> {
  const url = issuerUrl(issuer);
  const discovery = {
    issuer: url,
    jwks_uri: `${url}/jwks.json`,
    response_types_supported: ['id_token'],
    subject_types_supported: ['public'],
    id_token_signing_alg_values_supported: [issuer.privateKey.alg],
  };
  return new Map([
    ['/.well-known/openid-configuration', JSON.stringify(discovery)],
    ['/jwks.json', JSON.stringify({ keys: [publicKey(issuer)] })],
  ]);
}
