/**
 * Session mode `portable`: the identity is a row that the control connection writes, where the client has no way to reach.
 *
 * Needs no extension. Survives whatever the client resets, and a later `bind` or `unbind` holds from the next statement on.
 */
import { encodeClaims } from '../identity/session-claims.ts';
import { ProxyError } from '../errors.ts';
import { encodeErrorFields } from '../wire/backend.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import type { Control } from './control.ts';
import { assertPreparedFor, assertUser, USER_ID } from './self-check.ts';
import type { Hello, SessionIdentity, SessionMode } from './session.ts';

const QUESTION = encodeQuery(`select ${USER_ID}`);

/** The mode, by way of this control connection. */
export function createPortableMode(control: Control): SessionMode {
  const bind = (backend: Hello, { claims, expiresAt }: SessionIdentity) =>
    control.bind(backend, encodeClaims(claims), expiresAt);
  return {
    adopts: true,
    reusable: true,
    startupParameters: async () => [],
    async install(connection, backend, identity, signal) {
      assertPreparedFor('portable', backend, identity);
      if (backend.inRecovery) throw isStandby();
      // Nobody's session has no row: what an earlier backend with this pid left would not match it either.
      if (identity.subject !== undefined) {
        await bind(backend, identity);
      }
      const [answer] = await ask(connection, QUESTION, signal);
      assertUser(answer, identity, 'pgjot.user_id() is not the subject that was verified');
    },
    renew: bind,
  };
}

/** Most likely in the midst of a failover: it will be promoted, or the name lead elsewhere. So logins wait, and ask again. */
function isStandby(): ProxyError {
  const message = 'the database system is a standby';
  const frame = encodeErrorFields({ severity: 'FATAL', sqlstate: '57P03', message });
  const cause = new Error(`${message}: should it stay one, it needs "session": "replica"`);
  return new ProxyError('upstream_rejected', {
    frame,
    cause: Object.assign(cause, { sqlstate: '57P03' }),
  });
}
