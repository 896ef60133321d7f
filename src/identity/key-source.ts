/**
 * Where a provider's keys come from, a URL or a file, and for how long what was read counts as fresh.
 *
 * Judges no key and remembers nothing: that is `jwk.ts` and `jwks.ts`.
 *
 * https://www.rfc-editor.org/rfc/rfc9111#section-4.2 (freshness)
 */
import { readFile, stat } from 'node:fs/promises';
import type { IncomingHttpHeaders } from 'node:http';
import type { LookupFunction } from 'node:net';
import type { JwksConfig } from '../config.ts';
import { download } from './download.ts';

/** A JWK Set as text, and for how many milliseconds from the request on it counts as fresh. */
export interface PublishedText {
  readonly text: string;
  readonly freshMs: number;
}

/** Where keys come from. */
export interface KeySource {
  /** Whether asking costs somebody else something: then it is rationed, and done ahead of time, behind the logins. */
  readonly remote: boolean;
  /** The URL or the file. */
  readonly location: string;
  /** @throws {Error} with a sentence for the log, or the signal's reason. */
  load(signal: AbortSignal): Promise<PublishedText>;
}

/** Keys that an issuer publishes. `lookup` is for tests; the system's resolver else. */
export function remoteKeys(uri: string, config: JwksConfig, lookup?: LookupFunction): KeySource {
  return {
    remote: true,
    location: uri,
    async load(signal) {
      const { text, headers } = await download(uri, {
        signal,
        maxBytes: config.maxBytes,
        accept: 'application/jwk-set+json, application/json',
        privateHosts: config.privateHosts,
        ...(lookup && { lookup }),
      });
      return { text, freshMs: freshness(headers, config) };
    },
  };
}

/** Keys in a file. A key that is taken out of it is gone at the first login after `jwks.fileCheckMs`. */
export function fileKeys(file: string, { fileCheckMs, maxBytes }: JwksConfig): KeySource {
  return {
    remote: false,
    location: file,
    async load(signal) {
      const found = await stat(file);
      // A pipe or a device would be read for ever.
      if (!found.isFile()) throw new Error(`${file} is not a file`);
      if (found.size > maxBytes) {
        throw new Error(`${file} is longer than jwks.maxBytes (${maxBytes})`);
      }
      return { text: await readFile(file, { encoding: 'utf8', signal }), freshMs: fileCheckMs };
    },
  };
}

/**
 * How long an answer counts as fresh, in milliseconds: what its headers say, but never more than `freshMs`, and never less
 * than the ration of fetches allows: an issuer that says `no-store` must not be asked at every login.
 */
function freshness(headers: IncomingHttpHeaders, { freshMs, cooldownMs }: JwksConfig): number {
  const said = lifetimeFromHeaders(headers);
  return said === undefined ? freshMs : Math.min(freshMs, Math.max(2 * cooldownMs, said));
}

function lifetimeFromHeaders(headers: IncomingHttpHeaders): number | undefined {
  const control = directivesOf(headers['cache-control'] ?? '');
  if (control.has('no-store') || control.has('no-cache')) return 0;
  const age = wholeSeconds(headers.age) ?? 0;
  const maxAge = wholeSeconds(control.get('max-age'));
  if (maxAge !== undefined) return (maxAge - age) * 1000;
  if (headers.expires === undefined) return undefined;
  const [expires, date] = [Date.parse(headers.expires), Date.parse(headers.date ?? '')];
  // RFC 9111 section 5.3: what is no date, "0" above all, is in the past.
  if (Number.isNaN(expires) || headers.expires.trim() === '0') return 0;
  return Number.isNaN(date) ? undefined : expires - date - age * 1000;
}

const DIRECTIVE = /(?:^|,)\s*([\w-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s,;"]*)))?/g;

/** The directives of a Cache-Control header, in lower case. Of two with one name the first counts. */
function directivesOf(header: string): ReadonlyMap<string, string> {
  const directives = new Map<string, string>();
  for (const [, name = '', quoted, plain] of header.matchAll(DIRECTIVE)) {
    const key = name.toLowerCase();
    if (!directives.has(key)) directives.set(key, quoted ?? plain ?? '');
  }
  return directives;
}

/** A number of seconds; RFC 9111 section 1.2.2 lets it be cut at ten digits, which is 300 years. */
function wholeSeconds(text: string | undefined): number | undefined {
  const digits = /^\s*(\d+)\s*$/.exec(text ?? '')?.[1];
  return digits === undefined ? undefined : Math.min(Number(digits), 9_999_999_999);
}
