/**
 * What is accepted no more although its signature is good: by token, by subject, by issuer, or by when it was issued.
 *
 * Two sources: a file that is read again whenever it changes, and administrators, whose entries last as long as the process.
 * A file that cannot be read or understood changes nothing, and says so: what was revoked stays revoked. Ends no
 * session; whoever does is told of each change.
 */
import { readFileSync, type Stats, statSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { z } from 'zod';
import { ConfigError } from '../errors.ts';
import { type Watch, watchFile } from '../watch.ts';

/** One entry. All that it names must hold of a token for it to count. */
export type Revocation = z.output<typeof revocation>;

/** What revocations look at; from a verified token. */
export interface Revocable {
  readonly issuer: string | undefined;
  readonly subject: string | undefined;
  readonly claims: Readonly<Record<string, unknown>>;
}

const MAX_ENTRIES = 100_000;
const MAX_FILE_BYTES = 32 * 1024 * 1024;
// Live sessions have to end within a second of the file's change.
const WATCH_MS = 400;

const text = z.string().min(1).max(1_024);
const revocation = z
  .strictObject({
    jti: text.optional(),
    iss: text.optional(),
    sub: text.optional(),
    /** Seconds since the epoch, as `iat` has them, or a date. */
    issuedBefore: z
      .union([
        z.number().min(0).max(253_402_300_799),
        z.iso.datetime({ offset: true }).transform((date) => Date.parse(date) / 1000),
      ])
      .optional(),
  })
  .refine(
    ({ jti, sub, issuedBefore }) => (jti ?? sub ?? issuedBefore) !== undefined,
    'must name jti, sub or issuedBefore: of an issuer alone, remove the provider',
  );
const revocations = z.array(revocation).max(MAX_ENTRIES);

/** The entries at hand. */
export class Revocations {
  readonly #watch: Watch | undefined;
  readonly #onChange: () => void;
  readonly #onProblem: (problem: string) => void;
  readonly #added: Revocation[];
  #index: RevocationIndex;
  #fromFile: readonly Revocation[] = [];
  #closed = false;
  #lastProblem: string | undefined;

  /**
   * Reads `file`, where there is one, and watches it until `close`. `added` are administrators' entries of before.
   *
   * @throws {ConfigError} when it cannot be read or understood now.
   */
  constructor(
    file: string | undefined,
    added: readonly Revocation[],
    listener: { onChange(): void; onProblem(problem: string): void },
  ) {
    this.#added = [...added];
    this.#onChange = () => listener.onChange();
    this.#onProblem = (problem) => listener.onProblem(problem);
    if (file !== undefined) {
      this.#watch = watchFile(file, WATCH_MS, () => this.#readAgain(file));
      try {
        assertReadable(statSync(file));
        this.#fromFile = parse(readFileSync(file, 'utf8'));
      } catch (error) {
        this.close();
        throw new ConfigError([{ path: 'revocations.file', message: reason(error) }]);
      }
    }
    this.#index = new RevocationIndex([...this.#fromFile, ...this.#added]);
  }

  /** How many entries there are. */
  get size(): number {
    return this.#fromFile.length + this.#added.length;
  }

  /** Administrators' entries. */
  get added(): readonly Revocation[] {
    return this.#added;
  }

  /** Whether this token is accepted no more. */
  covers(token: Revocable): boolean {
    return this.#index.covers(token);
  }

  /**
   * Adds an administrator's entry.
   *
   * @throws {z.ZodError} when it is none. @throws {RangeError} when there are too many.
   */
  add(entry: unknown): void {
    const parsed = revocation.parse(entry);
    if (this.#added.length >= MAX_ENTRIES) throw new RangeError(`more than ${MAX_ENTRIES} entries`);
    this.#added.push(parsed);
    this.#rebuild();
  }

  /** Stops watching. */
  close(): void {
    this.#closed = true;
    this.#watch?.close();
  }

  /** Where the file could not be read at all, it is to be tried again. */
  async #readAgain(file: string): Promise<'again' | void> {
    try {
      assertReadable(await stat(file));
      const content = await readFile(file, 'utf8');
      if (this.#closed) return;
      this.#fromFile = parse(content);
    } catch (error) {
      this.#report(reason(error));
      return (error as NodeJS.ErrnoException).code === undefined ? undefined : 'again';
    }
    this.#lastProblem = undefined;
    this.#rebuild();
  }

  /** Once, however often it is met. */
  #report(problem: string): void {
    if (!this.#closed && problem !== this.#lastProblem) this.#onProblem(problem);
    this.#lastProblem = problem;
  }

  #rebuild(): void {
    this.#index = new RevocationIndex([...this.#fromFile, ...this.#added]);
    this.#onChange();
  }
}

/** Finds the entries about a token without looking at all of them. */
class RevocationIndex {
  readonly #byToken = new Map<string, Revocation[]>();
  readonly #bySubject = new Map<string, Revocation[]>();
  readonly #others: Revocation[] = [];

  constructor(entries: readonly Revocation[]) {
    for (const entry of entries) {
      if (entry.jti !== undefined) append(this.#byToken, entry.jti, entry);
      else if (entry.sub !== undefined) append(this.#bySubject, entry.sub, entry);
      else this.#others.push(entry);
    }
  }

  covers({ issuer, subject, claims }: Revocable): boolean {
    const { jti, iat } = claims;
    const about = [
      ...(typeof jti === 'string' || typeof jti === 'number'
        ? (this.#byToken.get(String(jti)) ?? [])
        : []),
      ...(subject === undefined ? [] : (this.#bySubject.get(subject) ?? [])),
      ...this.#others,
    ];
    return about.some(
      (one) =>
        (one.iss === undefined || one.iss === issuer) &&
        (one.sub === undefined || one.sub === subject) &&
        // A token that does not say when it was issued may be as old as any.
        (one.issuedBefore === undefined || !(typeof iat === 'number' && iat >= one.issuedBefore)),
    );
  }
}

function append(map: Map<string, Revocation[]>, key: string, entry: Revocation): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [entry]);
  else list.push(entry);
}

/** Before it is held, and before a pipe or a device is read for ever. */
function assertReadable(found: Stats): void {
  if (!found.isFile()) throw new RangeError('is not a file');
  if (found.size > MAX_FILE_BYTES) throw new RangeError(`more than ${MAX_FILE_BYTES} bytes`);
}

function parse(content: string): Revocation[] {
  return revocations.parse(JSON.parse(content));
}

/** What is wrong with a file: where, and never what is in it. */
function reason(error: unknown): string {
  if (error instanceof z.ZodError) {
    const [issue] = error.issues;
    return `entry ${issue?.path.map(String).join('.') || '(all)'}: ${issue?.message ?? 'is wrong'}`;
  }
  if (error instanceof SyntaxError) return 'is not JSON';
  const { code, message } = error as NodeJS.ErrnoException;
  return code === undefined ? message : `cannot be read (${code})`;
}
