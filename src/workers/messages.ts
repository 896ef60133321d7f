/**
 * What the primary and its workers say to one another: every message by its kind, and failures that can travel.
 *
 * Both ends are processes of one build, so only the kind of a message is checked; nothing here ever comes from a client
 * but the keys of cancel requests.
 */
import type { Address } from '../accept/tcp.ts';
import type { Config } from '../config.ts';
import { ConfigError, type ConfigProblem } from '../errors.ts';
import type { Revocation } from '../identity/revocations.ts';
import type { LimitNote, LimitQuestion } from './ledger.ts';
import type { SessionQuery, SessionSelection } from '../roster.ts';

/** The first message to a worker, in answer to its `hello`. */
export interface Start {
  readonly kind: 'start';
  /** Its number, from 1, which its log lines and its cancel keys carry. */
  readonly worker: number;
  /** How many there are. */
  readonly workers: number;
  readonly config: Config;
  /** What administrators have revoked so far. */
  readonly revocations: readonly Revocation[];
  /** Where the primary listens. */
  readonly address: Address;
}

/** From the primary to a worker. A `client` comes with its socket; `evict` is for one that has entered where there are too many. */
export type ToWorker =
  | Start
  | { readonly kind: 'client'; readonly id: number }
  | { readonly kind: 'evict'; readonly id: number }
  | { readonly kind: 'end'; readonly how: 'drain' | 'close' }
  | Ask<Order>
  | Answer;

/** From a worker to the primary. It hears nothing before it says `hello`. `load` tells which client it has taken over last, and how many it has. */
export type ToPrimary =
  | { readonly kind: 'hello' }
  | { readonly kind: 'ready' }
  | { readonly kind: 'failed'; readonly failure: Failure }
  | { readonly kind: 'load'; readonly taken: number; readonly open: number }
  | { readonly kind: 'limit'; readonly note: LimitNote }
  | Ask<Question>
  | Answer;

/** What a worker asks of the primary. */
export type Question = CancelOrder | LimitQuestion;

/** What the primary asks of a worker, which answers when it is done. */
export type Order =
  | { readonly what: 'reload'; readonly config: Config }
  | { readonly what: 'revoke'; readonly entry: unknown }
  | { readonly what: 'counts' }
  | { readonly what: 'metrics' }
  | { readonly what: 'readiness' }
  | { readonly what: 'sessions'; readonly query: SessionQuery }
  | { readonly what: 'pools' }
  | { readonly what: 'providers' }
  | { readonly what: 'terminate'; readonly selection: SessionSelection }
  | { readonly what: 'reconnect'; readonly upstream: string }
  | CancelOrder;

/** A cancel request that came to another worker than the key's own. */
export interface CancelOrder {
  readonly what: 'cancel';
  readonly processId: number;
  readonly secretKey: Uint8Array;
}

/** A question, and the number that its answer will have. */
export interface Ask<Asked> {
  readonly kind: 'ask';
  readonly id: number;
  readonly question: Asked;
}

/** The answer to a question. */
export interface Answer {
  readonly kind: 'answer';
  readonly id: number;
  readonly value?: unknown;
  readonly failure?: Failure;
}

/** An error as it travels: the problems of a `ConfigError`, or one line. */
export type Failure =
  | { readonly problems: readonly ConfigProblem[] }
  | { readonly message: string };

const TO_WORKER = ['start', 'client', 'evict', 'end', 'ask', 'answer'];
const TO_PRIMARY = ['hello', 'ready', 'failed', 'load', 'limit', 'ask', 'answer'];

/** A message from the primary. @throws {TypeError} when it is none. */
export function toWorker(message: unknown): ToWorker {
  assertKnown(message, TO_WORKER);
  return message as ToWorker;
}

/** A message from a worker. @throws {TypeError} when it is none. */
export function toPrimary(message: unknown): ToPrimary {
  assertKnown(message, TO_PRIMARY);
  return message as ToPrimary;
}

/** An error, to be sent. */
export function failureOf(error: unknown): Failure {
  if (error instanceof ConfigError) return { problems: error.problems };
  return { message: error instanceof Error ? error.message : String(error) };
}

/** An error that was sent. */
export function errorOf(failure: Failure): Error {
  return 'problems' in failure
    ? new ConfigError([...failure.problems])
    : new Error(failure.message);
}

function assertKnown(message: unknown, kinds: readonly string[]): void {
  const { kind } = (message ?? {}) as { kind?: unknown };
  if (typeof kind === 'string' && kinds.includes(kind)) return;
  throw new TypeError(`unknown message of kind ${String(kind)}`);
}
