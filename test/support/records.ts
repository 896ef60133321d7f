/**
 * The end of a test run: everything that it said is searched for every secret that it had, and the run fails where one is
 * found, or where nothing was searched.
 *
 * What tests print on purpose is listed here, each with the reason and no wider than it.
 */
import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LeakSearch, type Secret } from './leaks.ts';
import type { Source } from './record.ts';

/** Records of a run. */
export interface Records {
  readonly folder: string;
  /**
   * Searches for what the test files have recorded, and for these secrets; returns a line on what was searched.
   *
   * @throws {Error} when something was found, naming where and around what, but not the secret; or when there was nothing.
   */
  search(more: readonly Secret[]): Promise<string>;
  remove(): Promise<void>;
}

/** What somebody says by right. */
interface Exemption {
  /** Of the secret. */
  readonly kind: RegExp;
  /** All that are given must match. */
  readonly source: Partial<Record<keyof Source, RegExp>>;
}

const TOKEN = /\btoken\b/;

/** Who hands out tokens to whoever asks. They are secrets like all others, wherever else they may be. */
const ISSUERS: readonly Exemption['source'][] = [
  { program: /\/node$/, detail: /\/cli\/main\.js token /, stream: /^stdout$/ },
  { program: /^fetch$/, detail: /^POST http:\/\/127\.0\.0\.1:\d+\/token$/, test: /^test\/oidc\// },
];

const EXEMPT: readonly Exemption[] = [
  ...ISSUERS.map((source) => ({ kind: TOKEN, source })),
  // No password can be computed from a verifier; the script that an administrator asks for is made of them.
  {
    kind: /^a SCRAM verifier$/,
    source: { detail: /\/cli\/main\.js setup .*--dry-run/, stream: /^stdout$/ },
  },
  // With log_statement = all PostgreSQL writes down those that setup gives it.
  {
    kind: /^a SCRAM verifier$/,
    source: { program: /\/postgres$/, detail: / -c log_statement=all / },
  },
];

// A report is read by people.
const MOST_REPORTED = 30;

/** Makes the folder. */
export async function startRecords(): Promise<Records> {
  const folder = await mkdtemp(join(tmpdir(), 'pgjot-record-'));
  return {
    folder,
    search: (more) => search(folder, more),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

async function search(folder: string, more: readonly Secret[]): Promise<string> {
  const began = performance.now();
  const files = (await readdir(folder)).toSorted().map((name) => join(folder, name));
  const records = files.filter((file) => file.endsWith('.said')).map(readSaid);
  const { secrets, stacks } = readSecrets(files.filter((file) => file.endsWith('.secrets')));
  const issuers = records.filter(({ source }) => ISSUERS.some((one) => fits(source, one)));
  const issued = issuers.flatMap(({ said }) => tokensIn(said));
  const searching = new LeakSearch([...secrets, ...issued, ...more]);
  const problems = new Map<string, string[]>();
  for (const { source, said } of records) {
    for (const { kind, context } of searching.search(said)) {
      if (EXEMPT.some((one) => one.kind.test(kind) && fits(source, one.source))) continue;
      const where = `${kind} in ${source.stream} of ${source.program} (${source.test})`;
      const places = problems.get(where) ?? [];
      problems.set(where, [...places, `${nameOf(source)}:\n      ${context}`]);
    }
  }
  const bytes = records.reduce((sum, { said }) => sum + said.length, 0);
  const took = ((performance.now() - began) / 1000).toFixed(1);
  const searched = `searched ${(bytes / 1e6).toFixed(2)} MB of output in ${records.length} streams for ${searching.count} secrets, in ${took} s`;
  if (problems.size > 0) throw new Error(`${searched}: found\n${reported(problems)}`);
  if (stacks > 0 && (bytes === 0 || secrets.length === 0)) {
    throw new Error(`${searched}, though ${stacks} proxies ran: nothing has been recorded`);
  }
  return `${searched}: none found`;
}

function readSecrets(files: readonly string[]): { secrets: Secret[]; stacks: number } {
  const kinds = new Map<string, string>();
  let stacks = 0;
  for (const line of files.flatMap((file) => readFileSync(file, 'utf8').trimEnd().split('\n'))) {
    const [kind = '', value = ''] = line.split('\t');
    if (kind === 'stack') stacks += 1;
    else kinds.set(value, kind);
  }
  const secrets = [...kinds].map(([value, kind]) => ({
    kind,
    bytes: Buffer.from(value, 'base64url'),
  }));
  return { secrets, stacks };
}

/** The first line of a record says whose it is. */
function readSaid(file: string): { source: Source; said: Buffer } {
  const content = readFileSync(file);
  const end = content.indexOf('\n');
  const source = JSON.parse(content.subarray(0, end).toString()) as Source;
  return { source, said: content.subarray(end + 1) };
}

function tokensIn(said: Buffer): Secret[] {
  return [...said.toString('latin1').matchAll(/\beyJ[\w-]+\.([\w-]+)\.([\w-]+)/g)].flatMap(
    ([, payload = '', signature = '']) => [
      { kind: 'payload of an issued token', bytes: Buffer.from(payload) },
      { kind: 'signature of an issued token', bytes: Buffer.from(signature) },
    ],
  );
}

function fits(source: Source, wanted: Exemption['source']): boolean {
  return Object.entries(wanted).every(([name, pattern]) =>
    pattern.test(source[name as keyof Source]),
  );
}

/** Arguments may themselves be secret. */
function nameOf({ program, detail, stream }: Source): string {
  const shown = detail
    .replaceAll(/eyJ[\w.-]+/g, '[token]')
    .replaceAll(/:[^:@/]+@/g, ':[password]@');
  return `${stream} of ${program} ${shown.slice(0, 200)}`;
}

/** What is said again and again is shown once. */
function reported(problems: ReadonlyMap<string, readonly string[]>): string {
  const lines = [...problems].map(([where, [first = '', ...others]]) => {
    const times = others.length === 0 ? '' : ` (and ${others.length} times more)`;
    return `  ${where}${times}, first\n    ${first}`;
  });
  const rest = lines.length - MOST_REPORTED;
  return [...lines.slice(0, MOST_REPORTED), ...(rest > 0 ? [`  and ${rest} more`] : [])].join('\n');
}
