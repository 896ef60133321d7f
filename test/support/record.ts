/**
 * What a test run says, and every secret that it makes, written down so that its end can search the one for the other.
 *
 * One file for each stream of each process, and one of secrets for each test file, in the folder that `global-setup.ts` has
 * made; `record-setup.ts` opens it. Outside a test run, as in the benchmarks, nothing is written. Does not judge: `leaks.ts`.
 */
import { randomUUID, type KeyObject } from 'node:crypto';
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  CONTROL_ROLE,
  deriveIdentityKey,
  derivePassword,
  LOOKUP_ROLE,
  slotName,
} from '../../src/session-sql/credentials.ts';

/** Who says something: what the report of a leak calls it, and what exemptions go by. */
export interface Source {
  /** Path of the test file, from the project's folder. */
  readonly test: string;
  /** What speaks: `log`, `console`, `fetch`, or the program of a child process. */
  readonly program: string;
  /** Its arguments, one after the other, or the URL. */
  readonly detail: string;
  readonly stream: string;
}

/** Private members of a JWK (RFC 7518 §6); the key's other numbers are public. */
const PRIVATE_MEMBERS = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'k'] as const;
// A system call for each line would make a chatty test slower.
const BUFFER_BYTES = 65_536;

/** What this process records. It has one record, however often a run loads this module into it, and several files after another. */
interface State {
  place: { readonly folder: string; readonly test: string; readonly id: string } | undefined;
  buffering: boolean;
  streams: number;
  readonly secrets: Set<string>;
  readonly unwritten: Map<string, { chunks: Buffer[]; bytes: number }>;
}

const KEY = Symbol.for('pgjot.record');
const state: State = ((globalThis as { [KEY]?: State })[KEY] ??= {
  place: undefined,
  buffering: true,
  streams: 0,
  secrets: new Set(),
  unwritten: new Map(),
});

/** Everything from now on is of this test file. Returns whether it is the first of this process. */
export function openRecord(folder: string, test: string): boolean {
  const first = state.place === undefined;
  state.place = { folder, test, id: randomUUID() };
  state.buffering = true;
  // A worker that is ended early has said what it has said.
  if (first) process.once('exit', closeRecord);
  return first;
}

/** Writes what is left; what comes after it, from processes that take their time to end, is written at once. */
export function closeRecord(): void {
  state.buffering = false;
  for (const file of state.unwritten.keys()) flush(file);
}

/** Returns what is to be called with everything that this source says. */
export function recordSource(
  program: string,
  detail: string,
  stream: string,
): (chunk: Buffer | string) => void {
  if (state.place === undefined) return () => {};
  const { folder, test, id } = state.place;
  state.streams += 1;
  const file = join(folder, `${id}-${state.streams}.said`);
  const source: Source = { test, program, detail, stream };
  // The searcher takes the first line for who it was.
  append(file, `${JSON.stringify(source)}\n`);
  return (chunk) => append(file, chunk);
}

/** Has the search look for this. What is shorter than `MIN_BYTES` of `leaks.ts` it cannot tell from chance. */
export function recordSecret(kind: string, value: string | Buffer): void {
  const { place, secrets } = state;
  if (place === undefined) return;
  const line = `${kind}\t${Buffer.from(value).toString('base64url')}\n`;
  if (secrets.has(line)) return;
  secrets.add(line);
  append(join(place.folder, `${place.id}.secrets`), line);
}

/** The parts of a token that nobody else may see. Its header is the same for every token of a key. */
export function recordToken(token: string): void {
  const [, payload = '', signature = ''] = token.split('.');
  recordSecret('payload of a token', payload);
  recordSecret('signature of a token', signature);
}

/** The numbers of a private key that are nobody else's, by their names in a JWK. */
export function privateMembers(key: KeyObject): [name: string, value: Buffer][] {
  const jwk = key.export({ format: 'jwk' });
  return PRIVATE_MEMBERS.flatMap((name) => {
    const value = jwk[name];
    return value === undefined ? [] : [[name, Buffer.from(value, 'base64url')]];
  });
}

export function recordKey(kind: string, key: KeyObject): void {
  if (state.place === undefined) return;
  for (const [name, value] of privateMembers(key)) recordSecret(`${kind}, "${name}"`, value);
}

/** The secret of an upstream, and whatever is derived from it for these roles and their slots. */
export function recordUpstreamSecret(
  secret: string,
  roles: Readonly<Record<string, { readonly slots: number }>>,
): void {
  recordSecret('secret of an upstream', secret);
  recordSecret('identity key', deriveIdentityKey(secret));
  const logins = Object.entries(roles).flatMap(([role, { slots }]) =>
    Array.from({ length: slots }, (_, index) => slotName(role, index + 1)),
  );
  for (const role of [CONTROL_ROLE, LOOKUP_ROLE, ...logins]) {
    recordSecret(`password of ${role}`, derivePassword(secret, role));
  }
}

/** Says that a proxy ran here: a search that then finds no output, or no secret to look for, has not searched. */
export function recordStack(): void {
  const { place } = state;
  if (place !== undefined) append(join(place.folder, `${place.id}.secrets`), 'stack\t\n');
}

function append(file: string, chunk: Buffer | string): void {
  const { unwritten } = state;
  let waiting = unwritten.get(file);
  if (waiting === undefined) {
    waiting = { chunks: [], bytes: 0 };
    unwritten.set(file, waiting);
  }
  // A copy: who reads a stream may change what he has read.
  waiting.chunks.push(Buffer.from(chunk));
  waiting.bytes += chunk.length;
  if (!state.buffering || waiting.bytes >= BUFFER_BYTES) flush(file);
}

function flush(file: string): void {
  const waiting = state.unwritten.get(file);
  if (waiting === undefined) return;
  state.unwritten.delete(file);
  try {
    appendFileSync(file, Buffer.concat(waiting.chunks));
  } catch (error) {
    // The run is over and has removed its folder; who still speaks then is not ours to hear.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
