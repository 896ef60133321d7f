/**
 * Makes a session as good as new for its next user, or finds that it cannot be.
 *
 * A client that leaves in the middle of a frame makes the backend swallow whatever comes next (attack F1), and one that has
 * made the proxy miscount would have its own answers taken for ours. So nothing is believed but a reset that is answered
 * exactly, and a question behind it that nobody could have answered in advance.
 *
 * https://www.postgresql.org/docs/current/sql-discard.html
 */
import { randomInt, randomUUID } from 'node:crypto';
import { ProxyError } from '../errors.ts';
import { BACKEND } from '../wire/backend.ts';
import {
  decodeString,
  encodeFrame,
  encodeString,
  HEADER_BYTES,
  readFrame,
  takeFrame,
} from '../wire/frame.ts';
import { encodeQuery, encodeStatement } from '../wire/frontend.ts';
import { ownCopy } from '../wire/read.ts';
import { MAX_ANSWER_BYTES, MAX_ANSWER_FRAMES, readAnswer } from './ask.ts';
import { asProxyError, type UpstreamConnection } from './connect.ts';
import { USER_ID } from './self-check.ts';
import type { Session } from './session.ts';

const RESET_MS = 2_000;
const DISCARD_ALL = encodeQuery('DISCARD ALL');
const DISCARDED = Buffer.from('DISCARD ALL\0', 'latin1');
const IDLE = 0x49;

const hex = (text: string) => `pg_catalog.encode(pg_catalog.convert_to(${text}, 'UTF8'), 'hex')`;
/** The values of the settings that are named in $3, as JSON. */
const SETTINGS = hex(
  'pg_catalog.array_to_json(array(select pg_catalog.current_setting(s.name, true)' +
    ' from pg_catalog.unnest($3::pg_catalog.text[]) with ordinality as s (name, number) order by s.number))::pg_catalog.text',
);
/** The slot; looked up, where a query would be one more to be planned each time. */
const LOGIN = 'pg_catalog.to_regrole(pg_catalog.quote_ident(session_user))::pg_catalog.oid';
/** Attack E11, as pgjot.hello() sees it: that would have to be planned anew each time, which takes longer than all the rest. */
const HAS_SETTINGS = `exists (select from pg_catalog.pg_db_role_setting s where s.setrole operator(pg_catalog.=) ${LOGIN})`;
/** Before PostgreSQL 15 clients could grant their slots to each other, or other roles to their slots. */
const HAS_ACCOMPLICES =
  'exists (select from pg_catalog.pg_auth_members m join pg_catalog.pg_roles other' +
  ` on m.roleid operator(pg_catalog.=) ${LOGIN} and other.oid operator(pg_catalog.=) m.member` +
  " and other.rolname operator(pg_catalog.<>) 'pgjot_owner'" +
  ` or m.member operator(pg_catalog.=) ${LOGIN} and other.oid operator(pg_catalog.=) m.roleid` +
  ' and other.rolname operator(pg_catalog.<>) current_user)';

/** DISCARD ALL leaves what random() goes by, and whoever has called setseed() knows what the next user would draw. */
const NEW_SEED = 'pg_catalog.setseed($2::pg_catalog.float8)';

/** Who is there; `settings` is left out where none can have changed unseen, for it takes a sixth of the time. */
const whoIs = (dirty: string, settings: string) =>
  'select $1::pg_catalog.text, pg_catalog.pg_backend_pid(), ' +
  `${dirty}, ${hex('current_user::pg_catalog.text')}, ${USER_ID}, ${NEW_SEED}${settings}`;
const questions = (dirty: string) => ({
  plain: whoIs(dirty, ''),
  withSettings: whoIs(dirty, `, ${SETTINGS}`),
});
const WHO = questions(HAS_SETTINGS);
const WHO_BEFORE_15 = questions(`${HAS_SETTINGS} or ${HAS_ACCOMPLICES}`);

/**
 * Resets a session whose client has left it idle, at a frame boundary both ways. `reported` is whether the server has
 * told that client of a setting. The identity that is on the session stays there; where it has expired meanwhile, the
 * session says that there is none.
 *
 * @throws {ProxyError} upstream_protocol, upstream_lost, upstream_rejected: it cannot be used again, and the caller closes it.
 */
export function reset(session: Session, role: string, reported: boolean): Promise<void> {
  const { connection } = session;
  return inTime(async (signal) => {
    const question = questionFor(connection, reported);
    connection.stream.write(Buffer.concat([DISCARD_ALL, question.bytes]));
    await readDiscarded(connection, signal);
    await hearOut(session, role, question, signal);
  });
}

/**
 * The first half of a reset: what its client has left is cleared away at once, locks and temporary tables among it, and that
 * the session is as good as new is for `prove` to find out, if anybody ever wants it. Throws as `reset`.
 */
export function clear(session: Session, reported: boolean): Promise<void> {
  session.unproven = { reported };
  return inTime(async (signal) => {
    session.connection.stream.write(DISCARD_ALL);
    await readDiscarded(session.connection, signal);
  });
}

/** The second half of a reset that `clear` has begun. Throws as `reset`. */
export async function prove(session: Session, role: string): Promise<void> {
  const question = questionFor(session.connection, session.unproven?.reported ?? true);
  await inTime(async (signal) => {
    session.connection.stream.write(question.bytes);
    await hearOut(session, role, question, signal);
  });
  session.unproven = undefined;
}

async function inTime(task: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const attempt = new AbortController();
  const timer = setTimeout(() => attempt.abort(unfit(`no answer in ${RESET_MS} ms`)), RESET_MS);
  try {
    await task(attempt.signal);
  } finally {
    clearTimeout(timer);
  }
}

/** A question that nobody could have answered in advance. */
interface Question {
  readonly nonce: string;
  /** Of the settings whose values are asked for. */
  readonly names: readonly string[];
  readonly bytes: Buffer;
}

function questionFor({ greeting, version }: UpstreamConnection, reported: boolean): Question {
  // Out of Node's store of random bytes: to ask for sixteen takes ten times as long.
  const nonce = randomUUID();
  const names = reported ? [...statusesOf(greeting).keys()] : [];
  const who = version < 15 ? WHO_BEFORE_15 : WHO;
  const bytes = reported
    ? encodeStatement(who.withSettings, [nonce, seed(), arrayOf(names)])
    : encodeStatement(who.plain, [nonce, seed()]);
  return { nonce, names, bytes };
}

async function hearOut(
  session: Session,
  role: string,
  { nonce, names }: Question,
  signal: AbortSignal,
): Promise<void> {
  const { greeting } = session.connection;
  const answer = await readAnswer(session.connection, signal);
  const settings = assertOurs(answer, session, { nonce, role });
  for (const [index, name] of names.entries()) greeting.push(status(name, settings[index]));
  if (greeting.length > 1) tidy(greeting);
}

/** Reads up to the ReadyForQuery behind DISCARD ALL; what it changes back is reported, and belongs to the next greeting. */
async function readDiscarded(
  { stream, greeting }: UpstreamConnection,
  signal: AbortSignal,
): Promise<void> {
  let discarded = false;
  try {
    for (let frames = 0; frames < MAX_ANSWER_FRAMES; frames++) {
      const frame =
        takeFrame(stream, MAX_ANSWER_BYTES) ?? (await readFrame(stream, MAX_ANSWER_BYTES, signal));
      const { type, body } = frame;
      if (type === BACKEND.ParameterStatus) greeting.push(frame.bytes);
      // Not for the next user: it is about what the last one did, or listened to.
      else if (type === BACKEND.NoticeResponse || type === BACKEND.NotificationResponse) continue;
      else if (type === BACKEND.CommandComplete && !discarded && body.equals(DISCARDED)) {
        discarded = true;
      } else if (type === BACKEND.ReadyForQuery && discarded && body[0] === IDLE) return;
      else throw unfit(`message type ${type} in the answer to DISCARD ALL`);
    }
    throw unfit('the answer to DISCARD ALL never ended');
  } catch (error) {
    signal.throwIfAborted();
    throw asProxyError(error);
  }
}

/** Whether this very backend has answered this very question, is in its group's role, and nobody else's; gives the settings asked for. */
function assertOurs(
  [echo, pid, dirty, user, subject, , settings]: readonly (string | null)[],
  session: Session,
  { nonce, role }: { nonce: string; role: string },
): (string | null)[] {
  const { backend, identity } = session;
  if (echo !== nonce) throw unfit('an answer that is none to our question');
  if (Number(pid) !== backend.pid) throw unfit('another backend');
  if (dirty !== 'f') throw unfit('its user has changed the slot');
  if (decode(user) !== role) throw unfit('its role is not the one that it began with');
  if (subject === null) session.identity = undefined;
  else if (decode(subject) !== identity?.subject) throw unfit('it belongs to somebody else');
  return settings ? (JSON.parse(decode(settings)) as (string | null)[]) : [];
}

const decode = (text: string | null | undefined) => Buffer.from(text ?? '', 'hex').toString('utf8');

/** The ParameterStatus frames in these bytes, by the setting's name; the last one counts. */
function statusesOf(greeting: readonly Buffer[]): Map<string, Buffer> {
  const statuses = new Map<string, Buffer>();
  for (const bytes of greeting) {
    for (let at = 0, next = 0; at < bytes.length; at = next) {
      next = at + 1 + bytes.readInt32BE(at + 1);
      const frame = bytes.subarray(at, next);
      if (frame[0] === BACKEND.ParameterStatus)
        statuses.set(nameOf(frame.subarray(HEADER_BYTES)), frame);
    }
  }
  return statuses;
}

/** Leaves the last word on each setting, and no notice: those were for whoever was there then. */
function tidy(greeting: Buffer[]): void {
  greeting.splice(0, Infinity, ownCopy(Buffer.concat([...statusesOf(greeting).values()])));
}

function nameOf(body: Buffer): string {
  const name = decodeString(body, 0)?.text ?? '';
  if (!/^\w+$/.test(name)) throw unfit('a setting without a name');
  return name;
}

/** As PostgreSQL would report it. What is not ASCII would depend on the client's encoding: such sessions are not used again. */
function status(name: string, value: string | null | undefined): Buffer {
  if (value === null || value === undefined || !/^[ -~]*$/.test(value)) {
    throw unfit(`a value of ${name} that cannot be told`);
  }
  return encodeFrame('S', encodeString(name), encodeString(value));
}

/** From -1 to 1, with as many random bits as PostgreSQL uses. */
const seed = () => String(randomInt(2 ** 48 - 1) / 2 ** 47 - 1);

const arrayOf = (names: readonly string[]) => `{${names.join(',')}}`;

function unfit(why: string): ProxyError {
  return new ProxyError('upstream_protocol', { cause: new Error(`not used again: ${why}`) });
}
