/**
 * Session mode `portable`: the identity is a row that the control connection writes, where the client has no way to reach.
 *
 * Needs no extension. Survives whatever the client resets, and a later `bind` or `unbind` holds from the next statement on.
 */
import { encodeClaims } from '../identity/session-claims.ts';
import { ProxyError } from '../errors.ts';
import { encodeErrorFields } from '../wire/backend.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { ask, readAnswer } from './ask.ts';
import type { Control, Hello } from './control.ts';
import {
  assertBackend,
  assertPreparedFor,
  assertUser,
  BACKEND_PID,
  USER_ID,
} from './self-check.ts';
import type { SessionIdentity, SessionMode } from './session.ts';

const QUESTION = encodeQuery(`select ${USER_ID}, ${BACKEND_PID}`);

/** The mode, by way of this control connection. */
export function createPortableMode(control: Control): SessionMode {
  const bind = (backend: Hello, { claims, expiresAt }: SessionIdentity) =>
    control.bind(backend, encodeClaims(claims), expiresAt);
  return {
    adopts: true,
    reusable: true,
    startupParameters: async () => [],
    async greet({ processId, slot }) {
      const backend = await control.greet(processId, slot);
      if (backend === undefined) throw isUnknown();
      return backend;
    },
    rehearsal: {
      question: QUESTION,
      async check(connection, backend, signal) {
        const user = userIn(await readAnswer(connection, signal), backend);
        if (user !== null) throw isTaken();
      },
    },
    async install(connection, backend, identity, signal) {
      assertPreparedFor('portable', backend, identity);
      if (backend.inRecovery) throw isStandby();
      // Nobody's session has no row: what an earlier backend with this pid left would not match it either.
      if (identity.subject !== undefined) {
        await bind(backend, identity);
      }
      const user = userIn(await ask(connection, QUESTION, signal), backend);
      assertUser(user, identity, 'pgjot.user_id() is not the subject that was verified');
    },
    renew: bind,
  };
}

/** Whose this very backend says that it is. */
function userIn(
  [user, pid]: readonly (string | null)[],
  backend: Hello,
): string | null | undefined {
  assertBackend(pid, backend.pid);
  return user;
}

/** As when the control connection is still with the server that was the primary before. */
function isUnknown(): ProxyError {
  const why =
    'the server that the control connection is with has no such backend: has it failed over, or is a transaction pooler in between?';
  return new ProxyError('upstream_lost', { cause: new Error(why) });
}

function isTaken(): ProxyError {
  const cause = new Error('a session that has just logged in belongs to somebody');
  return new ProxyError('upstream_protocol', { cause });
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
