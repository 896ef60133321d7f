/**
 * Looks for `SET pgjot.token = '…'` among what a client sends, and lets everything else pass by reference.
 *
 * The token in it goes to the proxy and no further: upstream goes the same statement with an empty one, so that PostgreSQL
 * itself answers in the right order, under the right names and in the right transaction; or, where the token was
 * refused, one that fails with the reason. Knows nothing of tokens.
 *
 *   passing ──a frame that may be one──▶ holding ──it is none──▶ passing
 *                                           └──it is one──▶ waiting for the verdict ──▶ passing, with another frame
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html (Query, Parse)
 */
import { encodeFrame, encodeString, HEADER_BYTES } from '../wire/frame.ts';
import { encodeQuery, FRONTEND } from '../wire/frontend.ts';
import type { ByteTaker } from './reading.ts';

/** What a client gets told when its token was refused: constants, since they become part of a statement. */
export type Refusal = (typeof REFUSALS)[number];

/** The reasons. */
export const REFUSALS = [
  'it has expired',
  'it was revoked',
  'it is for another user, role or database',
  'its claims are too many for a session',
  'its user has no entry in the database',
  'it cannot be checked at the moment',
  'it came too late: the session is ending',
  'this session mode takes no new token: reconnect',
  'the statement must be SET pgjot.token = followed by one string, and nothing else',
  'its signature, issuer or claims are not good',
] as const;

/** Judges a token; undefined when it was taken. Must not throw. */
export type TokenJudge = (token: string) => Promise<Refusal | undefined>;

/** Whoever has a judge. */
export interface Judging {
  readonly judge: TokenJudge;
}

const MALFORMED: Refusal =
  'the statement must be SET pgjot.token = followed by one string, and nothing else';
const ACCEPTED = "SET pgjot.token = ''";

// So much of a statement is looked at; a longer comment in front of it hides it.
const PREFIX_BYTES = 512;
// A prepared statement's name that is longer than this belongs to somebody who plays games.
const MAX_NAME_BYTES = 256;
// The longest PasswordMessage, and what may be around the token.
const MAX_FRAME_BYTES = 65_536 + PREFIX_BYTES;

// White space and comments. No part of it can be read in two ways, or a client could have us try them all.
// A line ends at either of its characters, as it does for PostgreSQL.
const GAP = String.raw`(?:\s|--[^\n\r]*[\n\r]|/\*(?:[^*]|\*(?!/))*\*/)`;
const NAME = String.raw`"?pgjot"?${GAP}*\.${GAP}*"?token"?`;
const ABOUT_TOKEN = new RegExp(
  // An empty statement before it, and the end of a comment that held another: refused, but not passed on.
  String.raw`^(?:${GAP}|;|\*/)*set${GAP}+(?:(?:session|local)${GAP}+)?${NAME}(?![\w$])`,
  'i',
);
const WITH_TOKEN = new RegExp(
  String.raw`^${GAP}*set${GAP}+(?:session${GAP}+)?${NAME}(?:${GAP}*=${GAP}*|${GAP}+to${GAP}+)'([\w.-]*)'${GAP}*(?:;${GAP}*)?$`,
  'i',
);

/** It passes; more of it must be seen; it is held, for it is about the token. */
type Verdict = 'pass' | 'wait' | 'hold';

const EMPTY = Buffer.alloc(0);

/** Whom to resume. */
interface Source {
  readonly stream: { resume(): unknown };
}

/** The stage before a flow's first. `source` is resumed where `take` has said `false`. */
export class Screen implements ByteTaker {
  readonly #next: ByteTaker;
  readonly #judging: Judging;
  readonly #source: Source;
  /** Body bytes of a frame that passes, still to come. */
  #bodyLeft = 0;
  /** Body bytes of a frame that does not, still to come. */
  #dropLeft = 0;
  /** From the beginning of a frame on which there is no verdict yet. */
  #held: Buffer = EMPTY;
  #isJudging = false;
  #blind = false;
  #stopped = false;
  #afterwards: (() => void) | undefined;

  constructor(next: ByteTaker, judging: Judging, source: Source) {
    this.#next = next;
    this.#judging = judging;
    this.#source = source;
  }

  /** Whether bytes of the client are held back: then the session is not idle. */
  get holding(): boolean {
    return this.#held.length > 0 || this.#isJudging || this.#dropLeft > 0;
  }

  take(chunk: Buffer): boolean {
    if (this.#blind || this.#stopped) return this.#next.take(chunk);
    const bytes = this.#held.length > 0 ? Buffer.concat([this.#held, chunk]) : chunk;
    if (this.#isJudging) {
      this.#held = Buffer.from(bytes);
      return false;
    }
    return this.#screen(bytes);
  }

  holdsBytes(): boolean {
    return this.#next.holdsBytes();
  }

  expectsMore(): boolean {
    return this.#next.expectsMore();
  }

  /** The client sends no more: what is held goes on as it is, then `then` is called. */
  end(then: () => void): void {
    if (this.#isJudging) {
      this.#afterwards = then;
      return;
    }
    if (this.#held.length > 0) this.#next.take(this.#held);
    this.#held = EMPTY;
    then();
  }

  /** Nothing is held back any more, for nothing goes on any more: a verdict that comes later is nobody's. */
  stop(): void {
    this.#stopped = true;
  }

  #screen(given: Buffer): boolean {
    const dropped = Math.min(this.#dropLeft, given.length);
    this.#dropLeft -= dropped;
    const bytes = dropped > 0 ? given.subarray(dropped) : given;
    if (bytes.length === 0) return true;
    const end = this.#scan(bytes);
    if (end === bytes.length) {
      this.#held = EMPTY;
      return this.#next.take(bytes);
    }
    // By reference where it passes; what stays is copied, because its buffer will be used again.
    this.#held = Buffer.from(bytes.subarray(end));
    const goesOn = end === 0 || this.#next.take(bytes.subarray(0, end));
    return this.#startJudging() ? false : goesOn;
  }

  /** Where the first frame begins that may not pass, or not yet; the length where all may. */
  #scan(bytes: Buffer): number {
    let at = this.#bodyLeft;
    while (at < bytes.length) {
      if (bytes.length - at < HEADER_BYTES) break;
      const length = bytes.readInt32BE(at + 1);
      if (length < 4) {
        // No frames any more: PostgreSQL will end this itself.
        this.#blind = true;
        return bytes.length;
      }
      const type = bytes[at];
      if (
        (type === FRONTEND.Query || type === FRONTEND.Parse) &&
        !isPlain(bytes, at) &&
        verdictOn(bytes.subarray(at, at + 1 + length), length) !== 'pass'
      ) {
        break;
      }
      at += 1 + length;
    }
    this.#bodyLeft = Math.max(at - bytes.length, 0);
    return Math.min(at, bytes.length);
  }

  /** When what is held begins with a whole frame that carries a token, or with one that is too long to. */
  #startJudging(): boolean {
    const held = this.#held;
    if (held.length < HEADER_BYTES) return false;
    const length = held.readInt32BE(1);
    const frame = held.subarray(0, 1 + length);
    if (verdictOn(frame, length) !== 'hold') return false;
    const whole = frame.length === 1 + length;
    if (!whole && length <= MAX_FRAME_BYTES) return false;
    this.#held = Buffer.from(held.subarray(frame.length));
    this.#dropLeft = 1 + length - frame.length;
    this.#isJudging = true;
    const token = whole ? tokenIn(frame) : undefined;
    const verdict = token === undefined ? Promise.resolve(MALFORMED) : this.#judging.judge(token);
    void verdict.then((refusal) => this.#goOn(replacement(frame, refusal)));
    return true;
  }

  #goOn(frame: Buffer): void {
    if (this.#stopped) return;
    this.#isJudging = false;
    const held = this.#held;
    this.#held = EMPTY;
    const goesOn = this.#next.take(frame);
    const restGoesOn = held.length === 0 || this.#screen(held);
    if (this.#afterwards !== undefined && !this.#isJudging) this.end(this.#afterwards);
    else if (goesOn && restGoesOn) this.#source.stream.resume();
  }
}

/** Whether the first bytes of a Query, or of a Parse without a name, tell already that it is not about the token. */
function isPlain(bytes: Buffer, at: number): boolean {
  const start = at + HEADER_BYTES + (bytes[at] === FRONTEND.Query ? 0 : 1);
  if (start + 1 >= bytes.length) return false;
  if (bytes[at] === FRONTEND.Parse && bytes[start - 1] !== 0) return false;
  return !mayBegin(bytes[start] as number, bytes[start + 1]);
}

/** Whether a Query or Parse frame, of which the beginning is here, is about the token. Most are told by one byte. */
function verdictOn(frame: Buffer, length: number): Verdict {
  const start = textStart(frame);
  const isWhole = frame.length === 1 + length;
  if (start === undefined) {
    return isWhole || frame.length > HEADER_BYTES + MAX_NAME_BYTES ? 'pass' : 'wait';
  }
  if (frame.length > start && !mayBegin(frame[start] as number, frame[start + 1])) return 'pass';
  const text = frame.toString('latin1', start, start + PREFIX_BYTES);
  const isEnough = isWhole || text.length === PREFIX_BYTES;
  if (!isEnough) return 'wait';
  return ABOUT_TOKEN.test(endAtNul(text)) ? 'hold' : 'pass';
}

/** Where the statement begins; undefined where the name before it has not ended yet. */
function textStart(frame: Buffer): number | undefined {
  if (frame[0] === FRONTEND.Query) return HEADER_BYTES;
  const nul = frame.indexOf(0, HEADER_BYTES);
  return nul === -1 || nul - HEADER_BYTES > MAX_NAME_BYTES ? undefined : nul + 1;
}

/** Whether a statement that begins so may be SET: `se`, white space, a semicolon, or a comment. */
function mayBegin(first: number, second: number | undefined): boolean {
  if (first === 0x53 || first === 0x73) return second === undefined || (second | 0x20) === 0x65;
  return (
    first === 0x20 ||
    first === 0x3b ||
    first === 0x2d ||
    first === 0x2f ||
    (first >= 0x09 && first <= 0x0d)
  );
}

function endAtNul(text: string): string {
  const nul = text.indexOf('\0');
  return nul === -1 ? text : text.slice(0, nul);
}

function tokenIn(frame: Buffer): string | undefined {
  const start = textStart(frame) as number;
  const nul = frame.indexOf(0, start);
  return nul === -1 ? undefined : WITH_TOKEN.exec(frame.toString('latin1', start, nul))?.[1];
}

/** What goes upstream in the frame's place. */
function replacement(frame: Buffer, refusal: Refusal | undefined): Buffer {
  const sql = refusal === undefined ? ACCEPTED : refusing(refusal);
  if (frame[0] === FRONTEND.Query) return encodeQuery(sql);
  const start = textStart(frame) as number;
  // Under the same name, byte for byte, and with no parameter types.
  return encodeFrame('P', frame.subarray(HEADER_BYTES, start), encodeString(sql), Buffer.alloc(2));
}

/** PostgreSQL itself says it, so that whatever an error does to a transaction is done. */
function refusing(why: Refusal): string {
  return `DO $pgjot$ BEGIN RAISE EXCEPTION 'the token was not accepted: ${why}' USING ERRCODE = '28P01'; END $pgjot$`;
}
