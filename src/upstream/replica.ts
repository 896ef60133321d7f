/**
 * Session mode `replica`: on a hot standby, where nothing can be written, the identity is a setting that we have signed.
 *
 * It is signed for one login role, one port of ours and one minute, and so is worth nothing on any other backend; a session
 * is never used again for anybody else.
 */
import { createHmac } from 'node:crypto';
import { encodeClaims } from '../identity/session-claims.ts';
import { deriveIdentityKey } from '../session-sql/credentials.ts';
import { encodeQuery, encodeStatement } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import { hello } from './hello.ts';
import { assertPreparedFor, assertUser, setupFailed, USER_ID } from './self-check.ts';
import type { Secrets } from './secrets.ts';
import type { SessionIdentity, SessionMode } from './session.ts';

const SETTING = 'pgjot.identity';
const QUESTION = encodeQuery(`select ${USER_ID}`);
const SET = `select pg_catalog.set_config('${SETTING}', $1, false)`;

/** The mode for a database; `secrets` are the upstream's, which are its primary's as well. */
export function createReplicaMode(secrets: Secrets, database: string): SessionMode {
  const keys = new Map(secrets.all.map((secret) => [secret, deriveIdentityKey(secret)]));
  const keyOf = (secret: string) => keys.get(secret) as Buffer;
  return {
    adopts: false,
    reusable: false,
    greet: hello,
    async startupParameters(identity, slot, localPort, secret) {
      if (identity.subject === undefined) return [];
      const about = { db: database, slot, port: localPort, iat: Date.now() };
      // The server that lets us in with a secret has the key that derives from it.
      return [[SETTING, sign(about, identity, keyOf(secret))]];
    },
    async install(connection, backend, identity, signal) {
      const { inRecovery, pid, start } = backend;
      assertPreparedFor('portable', backend, identity);
      if (!inRecovery) {
        throw setupFailed(
          identity.role,
          'the server is no standby: it needs "session": "portable"',
        );
      }
      let [answer] = await ask(connection, QUESTION, signal);
      if (answer === null && identity.subject !== undefined) {
        // Our address is translated on the way (NAT, a cloud's connector), so the server sees another port. What is signed
        // for the backend itself does as well, but that we know only now, and RESET ALL will take it away.
        const about = { db: database, slot: connection.slot, pid, start };
        const value = sign(about, identity, keyOf(secrets.inUse));
        await ask(connection, encodeStatement(SET, [value]), signal);
        [answer] = await ask(connection, QUESTION, signal);
      }
      assertUser(answer, identity, DISBELIEVED);
    },
  };
}

/** An identity that holds for the backend that `about` describes, as `pgjot.signed_claims()` reads it. */
function sign(about: object, { claims, expiresAt }: SessionIdentity, key: Buffer): string {
  const head = JSON.stringify({ ...about, exp: Math.floor(expiresAt) });
  const text = `${head.slice(0, -1)},"claims":${encodeClaims(claims)}}`;
  const signed = Buffer.from(text, 'utf8').toString('base64');
  return `${signed}.${createHmac('sha256', key).update(signed).digest('base64')}`;
}

const DISBELIEVED =
  'the standby does not believe our signature: has pgjot setup been run for its primary since the replica was configured,' +
  ' with the same secret, and has the standby replayed that?';
