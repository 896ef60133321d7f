/**
 * What a token costs the proxy at a login: to verify one that was never seen before, and to know it again.
 *
 * The built verifier itself, in this process, without a socket: milliseconds of network would hide microseconds of work.
 */
import { createVerifier } from '../dist/identity/jwt.js';
import { parseConfig } from '../dist/proxy.js';
import { AUDIENCE, createIssuer, ISSUER } from './pgjot.mjs';

/** So many users, each of whom comes back so many times. */
const TOKENS = 500;
const TIMES = 40;

/**
 * @param {import('./clients.mjs').Scene} scene
 * @returns {Promise<import('./clients.mjs').Sample>}
 */
export async function tokenCost({ stage }) {
  const issuer = await createIssuer();
  const config = parseConfig({
    listen: { port: 0 },
    providers: {
      bench: {
        issuer: ISSUER,
        jwksFile: stage.write('token-jwks.json', JSON.stringify(issuer.jwks)),
        audience: AUDIENCE,
        algorithms: ['ES256'],
        roles: ['authenticated'],
      },
    },
    upstreams: {
      unused: {
        host: '127.0.0.1',
        database: 'unused',
        secret: { env: 'UNUSED' },
        roles: { authenticated: { slots: 1 } },
      },
    },
  });
  const verifier = createVerifier(config);
  try {
    const tokens = await issuer.mint(TOKENS, 'token');
    const newUs = await timeEach(verifier, tokens);
    // The first pass warms the code up as much as any proxy is after its first minute.
    await timeEach(verifier, repeated(tokens));
    return { newUs, knownUs: await timeEach(verifier, repeated(tokens)) };
  } finally {
    verifier.close();
  }
}

/** @param {readonly string[]} tokens */
const repeated = (tokens) => Array.from({ length: TIMES }, () => tokens).flat();

/**
 * µs for each, one after another.
 *
 * @param {import('../dist/identity/jwt.js').Verifier} verifier
 * @param {readonly string[]} tokens
 */
async function timeEach(verifier, tokens) {
  const start = performance.now();
  for (const token of tokens) await verifier.verify(token, 'authenticated');
  return ((performance.now() - start) * 1_000) / tokens.length;
}
