/**
 * Session mode `replica`: on a hot standby, where nothing can be written, the identity is a setting that we have signed.
 *
 * It is signed for one login role, one port of ours and one minute, and so is worth nothing on any other backend; a session
 * is never used again for anybody else.
 */
import { createHmac } from 'node:crypto';
import { encodeClaims } from '../identity/session-claims.ts';
import { deriveIdentityKey } from '../session-sql/credentials.ts';
import { encodeQuery } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import { assertUser, setupFailed, USER_ID } from './self-check.ts';
import type { SessionMode } from './session.ts';

const QUESTION = encodeQuery(`select ${USER_ID}`);

/** The mode; `secret` is the upstream's, which is its primary's as well. */
export function createReplicaMode(secret: string): SessionMode {
  const key = deriveIdentityKey(secret);
  return {
    async startupParameters({ subject, claims, expiresAt }, slot, localPort) {
      if (subject === undefined) return [];
      const about = { slot, port: localPort, iat: Date.now(), exp: Math.floor(expiresAt) };
      const text = `${JSON.stringify(about).slice(0, -1)},"claims":${encodeClaims(claims)}}`;
      const signed = Buffer.from(text, 'utf8').toString('base64');
      const signature = createHmac('sha256', key).update(signed).digest('base64');
      return [['pgjot.identity', `${signed}.${signature}`]];
    },
    async install(connection, { inRecovery }, identity, signal) {
      if (!inRecovery) {
        throw setupFailed(
          identity.role,
          'the server is no standby: it needs "session": "portable"',
        );
      }
      const [answer] = await ask(connection, QUESTION, signal);
      assertUser(answer, identity, DISBELIEVED);
    },
  };
}

const DISBELIEVED =
  'the standby does not believe our signature: has pgjot setup been run for its primary since the replica was configured,' +
  ' with the same secret; do the clocks agree within a minute; is our address translated (NAT) on the way?';
