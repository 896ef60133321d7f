/**
 * Fetches one small document from an issuer: no redirects, no compression, a size limit, and never from inside our network.
 *
 * Keeps no connection and remembers nothing. node:https instead of fetch, because only there the address that was judged is
 * the very address that is connected to: a name that changes its address in between (DNS rebinding) gains nothing.
 */
import { lookup as systemLookup, type LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { get as getPlain, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { get as getSecure } from 'node:https';
import type { LookupFunction } from 'node:net';
import { readBody } from '../body.ts';
import { printable } from '../errors.ts';
import { isLoopbackAddress, reachOf } from './address.ts';

/** The bounds of one download. */
export interface DownloadOptions {
  /** Ends it, whatever it is waiting for; its reason is what is thrown. */
  readonly signal: AbortSignal;
  readonly maxBytes: number;
  /** The `accept` header. */
  readonly accept: string;
  /** Names that may have private addresses. Any other may not. */
  readonly privateHosts: readonly string[];
  /** Default: the system's resolver. */
  readonly lookup?: LookupFunction;
}

/** A document as it came, in UTF-8. */
export interface Downloaded {
  readonly text: string;
  readonly headers: IncomingHttpHeaders;
}

/**
 * Fetches `uri`, which must be http or https. Where its host is an address, that address is what the configuration says and
 * is not judged.
 *
 * @throws {Error} with a sentence for the log.
 */
export async function download(uri: string, options: DownloadOptions): Promise<Downloaded> {
  const { signal, accept, maxBytes } = options;
  const url = new URL(uri);
  const get = url.protocol === 'https:' ? getSecure : getPlain;
  signal.throwIfAborted();
  const request = get(url, {
    // A connection of its own: one that is kept could be another's, made without our judgement.
    agent: false,
    // Else $NODE_TLS_REJECT_UNAUTHORIZED, meant for some other program, would let anybody publish an issuer's keys.
    rejectUnauthorized: true,
    signal,
    lookup: judging(options),
    headers: { accept, 'accept-encoding': 'identity', 'user-agent': 'pgjot' },
  });
  // Failures after the answer has begun show in the answer too; without a listener they would end the process.
  request.on('error', () => {});
  try {
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    return { text: await readAnswer(response, maxBytes), headers: response.headers };
  } catch (error) {
    signal.throwIfAborted();
    throw withReason(error as Error);
  } finally {
    request.destroy();
  }
}

/** The body of an answer that is as it should be. */
async function readAnswer(response: IncomingMessage, maxBytes: number): Promise<string> {
  const { statusCode = 0, headers } = response;
  if (statusCode >= 300 && statusCode < 400) {
    // Attack D3: it could lead to an address that only this machine can reach, or away from https.
    throw new Error(`the answer is a redirect (${statusCode}), and none is followed`);
  }
  if (statusCode !== 200) throw new Error(`the answer has status ${statusCode}`);
  if ((headers['content-encoding'] ?? 'identity') !== 'identity') {
    throw new Error('the answer is encoded although none was asked for');
  }
  const tooLong = new Error(`the answer is longer than jwks.maxBytes (${maxBytes})`);
  if (Number(headers['content-length'] ?? 0) > maxBytes) throw tooLong;
  const text = await readBody(response, maxBytes);
  if (text === undefined) throw tooLong;
  return text;
}

/** A resolver that hands out only addresses which the name may have (attack D3). One that it may not have spoils all. */
function judging({ privateHosts, lookup = systemLookup }: DownloadOptions) {
  const judge: LookupFunction = (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, found) => {
      if (error !== null) return callback(error, '', 0);
      const addresses = found as unknown as LookupAddress[];
      const wrong = addresses.find(({ address }) => !mayHave(hostname, address, privateHosts));
      const [first] = addresses;
      if (wrong !== undefined || first === undefined) {
        return callback(refusal(hostname, wrong?.address), '', 0);
      }
      if (options.all) return callback(null, addresses);
      return callback(null, first.address, first.family);
    });
  };
  return judge;
}

function mayHave(hostname: string, address: string, privateHosts: readonly string[]): boolean {
  if (hostname === 'localhost') return isLoopbackAddress(address);
  const reach = reachOf(address);
  return reach === 'public' || (reach === 'private' && privateHosts.includes(hostname));
}

function refusal(hostname: string, address: string | undefined): Error {
  const name = printable(hostname);
  return address === undefined
    ? new Error(`"${name}" has no address`)
    : new Error(
        `"${name}" has the address ${address}, which is not on the public internet; where that is meant, name it in jwks.privateHosts`,
      );
}

/** Where several addresses were tried the message is empty, and the code says it all. */
function withReason(error: Error): Error {
  const { code } = error as NodeJS.ErrnoException;
  return error.message === '' && code !== undefined ? new Error(code, { cause: error }) : error;
}
