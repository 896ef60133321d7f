/**
 * Searches what a run has said for the secrets that it had: as they are, and as base64, hex, JSON, a URL or a list of numbers
 * would show them, whole or in part.
 *
 * Every stretch of `MIN_BYTES` of every form, from 8 to 8 or 16 to 16 bytes, is in one hash table, and one pass with a rolling
 * hash finds them (Karp and Rabin, https://doi.org/10.1147/rd.312.0249): what it takes grows with the output plus the secrets,
 * not with their product.
 */

/** What must not be in any output. */
export interface Secret {
  readonly kind: string;
  readonly bytes: Buffer;
}

/** A place where one is. */
export interface Leak {
  readonly kind: string;
  /** What stands around it; the secret itself is left out. */
  readonly context: string;
}

/** The shortest stretch that counts: it could not be there by chance, though of a secret of one character repeated it could. */
const MIN_BYTES = 16;

const MIN_DISTINCT = 6;
// Of long ones, so much in every form but their own: a megabyte of a hostile token need not be found by its last byte.
const DERIVED_BYTES = 64;
const OWN_BYTES = 2_048;
// Within its first bytes a secret is found by any 23 of them, further on by any 31.
const DENSE_BYTES = 64;
const CONTEXT_BYTES = 80;
const MULTIPLIER = 0x01000193;
/** What `MULTIPLIER` has become when a byte leaves the window. */
const LEAVING = Array.from({ length: MIN_BYTES }).reduce<number>(
  (product) => Math.imul(product, MULTIPLIER),
  1,
);

/** Secrets that have no value to look for, as nobody has written them down: they are known by their looks. */
const LOOKS: readonly (readonly [kind: string, pattern: RegExp])[] = [
  ['a token that nobody has recorded', /eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{20,}/],
  ['a private key in PEM', /-----BEGIN [A-Z ]*PRIVATE KEY-----/],
  ['a private JWK', /"d\\?": ?\\?"[\w-]{40,}/],
  ['a SCRAM verifier', /SCRAM-SHA-256\$\d+:[\w+/=]{20,}/],
];

/** The two alphabets of base64 are one here. */
const ALIKE = Uint8Array.from({ length: 256 }, (_, byte) => {
  if (byte === 0x2b) return 0x2d;
  return byte === 0x2f ? 0x5f : byte;
});

/** The secrets of a run, ready to be looked for. */
export class LeakSearch {
  /** How many secrets are looked for. */
  readonly count: number;
  readonly #secrets: readonly Secret[];
  readonly #windows = new Windows();

  constructor(secrets: readonly Secret[]) {
    this.#secrets = secrets.filter(({ bytes }) => bytes.length >= MIN_BYTES);
    this.count = this.#secrets.length;
    for (const [index, { bytes }] of this.#secrets.entries()) {
      eachWindow(bytes, (hash) => this.#windows.add(hash, index + 1));
    }
  }

  /** What leaks here: each secret once, where it is first. */
  search(said: Buffer): Leak[] {
    const text = said.toString('latin1');
    const leaks: Leak[] = [];
    const add = (kind: string, from: number, to: number) =>
      leaks.push({ kind, context: contextOf(text, from, to, kind) });
    for (const [kind, pattern] of LOOKS) {
      const match = pattern.exec(text);
      if (match !== null) add(kind, match.index, match.index + match[0].length);
    }
    const found = new Set<Secret>();
    this.#hits(said, (end, entry) => {
      const secret = this.#secrets[entry - 1] as Secret;
      if (found.has(secret) || !isWindowOf(said.subarray(end - MIN_BYTES, end), secret)) return;
      found.add(secret);
      add(secret.kind, end - MIN_BYTES, end);
    });
    return leaks;
  }

  /** Calls `visit` with the end of every window whose hash is that of a secret's, and with the secret's entry. */
  #hits(said: Buffer, visit: (end: number, entry: number) => void): void {
    let hash = 0;
    for (let at = 0; at < said.length; at++) {
      hash = Math.imul(hash, MULTIPLIER) + (ALIKE[said[at] as number] as number);
      if (at >= MIN_BYTES) {
        hash -= Math.imul(ALIKE[said[at - MIN_BYTES] as number] as number, LEAVING);
      }
      hash |= 0;
      const entry = this.#windows.get(hash);
      if (entry !== 0 && at >= MIN_BYTES - 1) visit(at + 1, entry);
    }
  }
}

/** Hashes of windows, each with the entry that brought it first: a table with open addressing, as there may be millions. */
class Windows {
  #hashes = new Int32Array(1_024);
  /** 0 where there is none. */
  #entries = new Uint32Array(1_024);
  #used = 0;

  get(hash: number): number {
    return this.#entries[this.#slotOf(hash)] as number;
  }

  add(hash: number, entry: number): void {
    const slot = this.#slotOf(hash);
    if (this.#entries[slot] !== 0) return;
    this.#hashes[slot] = hash;
    this.#entries[slot] = entry;
    this.#used += 1;
    if (this.#used * 2 > this.#entries.length) this.#grow();
  }

  #slotOf(hash: number): number {
    const mask = this.#entries.length - 1;
    // The low bits of such a hash know only the last bytes.
    let slot = (Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 4) & mask;
    while (this.#entries[slot] !== 0 && this.#hashes[slot] !== hash) slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [hashes, entries] = [this.#hashes, this.#entries];
    this.#hashes = new Int32Array(hashes.length * 2);
    this.#entries = new Uint32Array(entries.length * 2);
    for (let old = 0; old < entries.length; old++) {
      if (entries[old] === 0) continue;
      const slot = this.#slotOf(hashes[old] as number);
      this.#hashes[slot] = hashes[old] as number;
      this.#entries[slot] = entries[old] as number;
    }
  }
}

/** Calls `visit` with the hash of every stretch by which a secret is found, in all its forms. */
function eachWindow(
  bytes: Buffer,
  visit: (hash: number, form: Buffer, from: number) => void,
): void {
  for (const form of [bytes.subarray(0, OWN_BYTES), ...formsOf(bytes.subarray(0, DERIVED_BYTES))]) {
    const last = form.length - MIN_BYTES;
    for (let from = 0; from <= last; ) {
      const hash = hashOf(form, from);
      if (hash !== undefined) visit(hash, form, from);
      if (from === last) break;
      // The last one ends where the form does: else of 23 bytes only the first 16 would be looked for.
      from = Math.min(last, from + (from < DENSE_BYTES ? 8 : MIN_BYTES));
    }
  }
}

/** The hash of the window at `from`, or undefined for one that is too plain to mean anything. */
function hashOf(form: Buffer, from: number): number | undefined {
  let hash = 0;
  let distinct = 0;
  for (let at = from; at < from + MIN_BYTES; at++) {
    const byte = form[at] as number;
    if (distinct < MIN_DISTINCT && form.indexOf(byte, from) === at) distinct += 1;
    hash = (Math.imul(hash, MULTIPLIER) + (ALIKE[byte] as number)) | 0;
  }
  return distinct < MIN_DISTINCT ? undefined : hash;
}

/** What has only the same hash is not the same. */
function isWindowOf(said: Buffer, { bytes }: Secret): boolean {
  let same = false;
  eachWindow(bytes, (_, form, from) => {
    same ||= said.every((byte, at) => ALIKE[byte] === ALIKE[form[from + at] as number]);
  });
  return same;
}

function formsOf(bytes: Buffer): Buffer[] {
  const text = bytes.toString('latin1');
  const hex = bytes.toString('hex');
  const escaped = JSON.stringify(text).slice(1, -1);
  const url = encodeURIComponent(text);
  const forms = [
    hex,
    hex.toUpperCase(),
    // As `util.inspect` and as JSON shows a Buffer.
    hex.replaceAll(/..(?=.)/g, '$& '),
    bytes.join(','),
    ...[0, 1, 2].map((before) => base64After(before, bytes)),
    ...(escaped === text ? [] : [escaped, JSON.stringify(escaped).slice(1, -1)]),
    ...(url === text ? [] : [url]),
  ];
  return forms.map((form) => Buffer.from(form, 'latin1'));
}

/** How it looks in the base64 of something in which so many bytes stand before it: without the characters it has only part in. */
function base64After(before: number, bytes: Buffer): string {
  const whole = Buffer.concat([Buffer.alloc(before), bytes]);
  const text = whole.toString('base64url');
  return text.slice(Math.ceil((before * 8) / 6), Math.floor((whole.length * 8) / 6));
}

/** The line around a leak, without whatever else may belong to the secret, or be another. */
function contextOf(text: string, from: number, to: number, kind: string): string {
  const line = text.lastIndexOf('\n', from) + 1;
  const before = text.slice(Math.max(line, from - OWN_BYTES), from);
  const [after = ''] = text.slice(to, to + OWN_BYTES).split('\n');
  const lead = before.replace(/(?:\b[0-9a-fA-F]{1,3}[ ,])*[\w+/=.~%-]*$/, '');
  const trail = after.replace(/^[\w+/=.~%-]*(?:[ ,][0-9a-fA-F]{1,3}\b)*/, '');
  const shown = (part: string) => part.replaceAll(/[\w+/=.~%-]{24,}/g, '…');
  return `${shown(lead).slice(-CONTEXT_BYTES)}[${kind}]${shown(trail).slice(0, CONTEXT_BYTES)}`;
}
