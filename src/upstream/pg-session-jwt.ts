/**
 * Session mode `pg_session_jwt`: the identity is a token of ours in the StartupMessage, which the extension verifies.
 *
 * The key in the same packet is new for each connection, cannot be changed afterwards, and is there for nobody's sessions
 * too: without one the extension believes a setting that any client can set.
 */
import { isExactForExtension, mintSessionToken } from '../identity/session-token.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import { hello } from './hello.ts';
import { assertPreparedFor, assertUser, setupFailed, USER_ID } from './self-check.ts';
import type { SessionMode } from './session.ts';

const KEY = 'pg_session_jwt.jwk';
const TOKEN = 'pg_session_jwt.jwt';

// auth.init() loads the library and pins the key. Both functions, because policies may name either.
const QUESTION = encodeQuery(
  `select auth.init(), pg_catalog.current_setting('${KEY}'), ${USER_ID},` +
    " pg_catalog.encode(pg_catalog.convert_to(auth.user_id(), 'UTF8'), 'hex')",
);

/** The mode. */
export function createExtensionMode(): SessionMode {
  return {
    adopts: false,
    reusable: true,
    greet: hello,
    async startupParameters({ role, subject, claims, expiresAt }) {
      if (!isExactForExtension(claims.lookup ?? '')) {
        throw setupFailed(
          role,
          'the lookup has a number that the extension rounds: cast it to text',
        );
      }
      const { jwk, jwt } = await mintSessionToken(
        subject === undefined ? undefined : claims,
        expiresAt,
      );
      return jwt === undefined
        ? [[KEY, jwk]]
        : [
            [KEY, jwk],
            [TOKEN, jwt],
          ];
    },
    async install(connection, backend, identity, signal) {
      assertPreparedFor('pg_session_jwt', backend, identity);
      const [, key, ...users] = await ask(connection, QUESTION, signal);
      const [, ours] = connection.identity.find(([name]) => name === KEY) ?? [];
      if (key !== ours) throw setupFailed(identity.role, `${KEY} is not the key that we sent`);
      for (const user of users) {
        assertUser(user, identity, 'the extension does not name the subject that was verified');
      }
    },
  };
}
