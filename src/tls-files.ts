/**
 * Certificates, private keys and authorities on disk, as TLS takes them: read again when their files have changed.
 *
 * What cannot be used (half of a new pair is there, the other half is not yet) replaces nothing. Files are judged here rather
 * than left to OpenSSL, which takes a broken authority for none, and says of a wrong key what only its authors understand.
 */
import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls';
import { ConfigError, type ConfigProblem } from './errors.ts';
import type { Logger } from './log.ts';
import { watchFile } from './watch.ts';

/** Which files: a certificate chain with its key, authorities to trust, or all of them. */
export interface TlsFileNames {
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  readonly caFile?: string | undefined;
  /** Authorities of those who connect to us; where it is, there is no `caFile`. */
  readonly clientCaFile?: string | undefined;
}

/** Who hears of files that have changed. */
export interface TlsFilesListener {
  /** From now on they are used. `certificate` is the first of the chain, where there is one. */
  onReloaded(certificate: { readonly serial: string; readonly validTo: string } | undefined): void;
  /** They cannot be used, and what was read before is used still. Told once for each thing that is wrong. */
  onUnusable(problem: string): void;
}

/** Has it logged, with the place in the configuration. */
export function logTo(logger: Logger, path: string): TlsFilesListener {
  return {
    onReloaded: (certificate) =>
      logger.info({ event: 'certificate_reloaded', path, ...certificate }),
    onUnusable: (problem) => logger.error({ event: 'certificate_unusable', path, problem }),
  };
}

// As often as the configuration is looked at.
const WATCH_MS = 1_000;

/** The files of one place in the configuration, read. */
export class TlsFiles {
  readonly #names: TlsFileNames;
  readonly #path: string;
  readonly #options: SecureContextOptions;
  #found: Found;

  /**
   * Reads them. `path` is where the configuration names them; `options` are added to each context.
   *
   * @throws {ConfigError} with everything that is wrong with them.
   */
  constructor(names: TlsFileNames, path: string, options: SecureContextOptions = {}) {
    this.#names = names;
    this.#path = path;
    this.#options = options;
    this.#found = load(names, path, options);
  }

  /** What was read last that could be used. */
  get context(): SecureContext {
    return this.#found.context;
  }

  /** The same in PEM, for listeners of Node's own that take nothing else. */
  get pem(): Pick<SecureContextOptions, 'cert' | 'key' | 'ca'> {
    return this.#found.pem;
  }

  /** The first certificate of `certFile`. */
  get certificate(): X509Certificate | undefined {
    return this.#found.certificate;
  }

  /** When that one expires, in ms since the epoch. */
  get expiresAt(): number | undefined {
    return this.certificate && Date.parse(this.certificate.validTo);
  }

  /**
   * Reads them again; returns whether they say something else than before.
   *
   * @throws {ConfigError} when they cannot be used; nothing has changed then.
   */
  refresh(): boolean {
    const before = this.#found;
    this.#found = load(this.#names, this.#path, this.#options, before);
    return this.#found !== before;
  }

  /** Reads them again whenever one of them changes. The caller closes it; it holds no process up. */
  watch(listener: TlsFilesListener): Disposable {
    let told: string | undefined;
    const look = (): 'again' | void => {
      try {
        const changed = this.refresh();
        told = undefined;
        if (changed) listener.onReloaded(describe(this.certificate));
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error;
        const problem = error.problems.map(({ path, message }) => `${path}: ${message}`).join('; ');
        if (problem !== told) listener.onUnusable(problem);
        told = problem;
        return 'again';
      }
    };
    const watches = Object.values(this.#names).flatMap((file: string | undefined) =>
      file === undefined ? [] : [watchFile(file, WATCH_MS, look)],
    );
    // What came between the first reading and now.
    look();
    return {
      [Symbol.dispose]() {
        for (const one of watches) one.close();
      },
    };
  }
}

/** What files held: their bytes, by which a change is told, and what was made of them. */
interface Found {
  readonly bytes: Buffer;
  readonly pem: Pick<SecureContextOptions, 'cert' | 'key' | 'ca'>;
  readonly context: SecureContext;
  readonly certificate: X509Certificate | undefined;
}

/** @throws {ConfigError} with everything that is wrong; else returns `known` where that is what the files still hold. */
function load(
  names: TlsFileNames,
  path: string,
  options: SecureContextOptions,
  known?: Found,
): Found {
  const problems: ConfigProblem[] = [];
  const read = <T>(name: keyof TlsFileNames, parse: (pem: Buffer, file: string) => T) => {
    const file = names[name];
    if (file === undefined) return undefined;
    try {
      const pem = readFileSync(file);
      return { pem, parsed: parse(pem, file) };
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const unread = code === undefined ? message : `${file} cannot be read (${code})`;
      problems.push({ path: `${path}.${name}`, message: unread });
      return undefined;
    }
  };
  const chain = read('certFile', readCertificates);
  const key = read('keyFile', readKey);
  const authorities = read('caFile', readCertificates) ?? read('clientCaFile', readCertificates);
  const certificate = chain?.parsed[0];
  if (certificate !== undefined && key !== undefined && !certificate.checkPrivateKey(key.parsed)) {
    const message = `the key in ${names.keyFile} does not belong to the certificate in ${names.certFile}`;
    problems.push({ path, message });
  }
  if (problems.length > 0) throw new ConfigError(problems);
  const bytes = Buffer.concat([chain, key, authorities].flatMap((one) => one?.pem ?? []));
  if (known?.bytes.equals(bytes)) return known;
  const pem = {
    ...(chain && { cert: chain.pem }),
    ...(key && { key: key.pem }),
    ...(authorities && { ca: authorities.pem }),
  };
  try {
    return { bytes, pem, context: createSecureContext({ ...options, ...pem }), certificate };
  } catch (error) {
    // What OpenSSL does not take although it can be read, for instance a key that is too weak.
    throw new ConfigError([{ path, message: (error as Error).message }]);
  }
}

const CERTIFICATE =
  /-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END (?:X509 |TRUSTED )?CERTIFICATE-----/g;

/** Every certificate of a file; a file that ends in the middle of one, or holds none, is no such file. */
function readCertificates(pem: Buffer, file: string): X509Certificate[] {
  const text = pem.toString('latin1');
  const found = text.match(CERTIFICATE) ?? [];
  if (
    found.length === 0 ||
    found.length !== text.match(/-----BEGIN [^-]*CERTIFICATE-----/g)?.length
  )
    throw new Error(`${file} holds no certificate in PEM, or not the whole of one`);
  try {
    return found.map((one) => new X509Certificate(one));
  } catch {
    throw new Error(`${file} holds a certificate that cannot be read`);
  }
}

/** Says nothing of what is in the file. */
function readKey(pem: Buffer, file: string): KeyObject {
  try {
    return createPrivateKey(pem);
  } catch {
    throw new Error(`${file} holds no private key in PEM, or one with a passphrase`);
  }
}

function describe(certificate: X509Certificate | undefined) {
  return (
    certificate && {
      serial: certificate.serialNumber,
      validTo: new Date(certificate.validTo).toISOString(),
    }
  );
}
