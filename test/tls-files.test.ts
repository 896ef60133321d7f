/** Certificates and keys on disk: what is wrong with them is said by name, and half of a new pair replaces nothing. */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, renameSync, rmSync, symlinkSync, mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { ConfigError } from '../src/errors.ts';
import { TlsFiles } from '../src/tls-files.ts';
import { createAuthority } from './support/certificate.ts';
import { until } from './support/stack.ts';

const authority = createAuthority();
const SECRET_TEXT = 'nobody-should-read-this-in-a-message';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pgjot-tls-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const put = (name: string, text: string) => {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
};
const pair = () => {
  const { cert, key } = authority.issue();
  put('tls.crt', cert);
  put('tls.key', key);
  return { certFile: join(folder, 'tls.crt'), keyFile: join(folder, 'tls.key') };
};
const problemsOf = (work: () => unknown) => {
  try {
    work();
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
};

describe('files that cannot be used', () => {
  const encrypted = generateKeyPairSync('ec', {
    namedCurve: 'P-256',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'x' },
  }).privateKey;

  it.each<[string, Partial<Record<'certFile' | 'keyFile' | 'caFile', string>>, string, RegExp]>([
    ['no certificate', { certFile: SECRET_TEXT }, 'listen.tls.certFile', /holds no certificate/],
    [
      'a certificate cut off',
      { certFile: authority.ca.slice(0, 200) },
      'listen.tls.certFile',
      /not the whole of one/,
    ],
    [
      'a chain whose second certificate is cut off',
      { certFile: authority.ca + authority.ca.slice(0, 200) },
      'listen.tls.certFile',
      /not the whole of one/,
    ],
    [
      'a certificate of nonsense',
      { certFile: '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n' },
      'listen.tls.certFile',
      /cannot be read/,
    ],
    ['a key that is none', { keyFile: SECRET_TEXT }, 'listen.tls.keyFile', /holds no private key/],
    ['a key with a passphrase', { keyFile: encrypted }, 'listen.tls.keyFile', /passphrase/],
    ['another key', { keyFile: authority.issue().key }, 'listen.tls', /does not belong/],
    ['an empty authority', { caFile: '' }, 'listen.tls.caFile', /holds no certificate/],
  ])('are named: %s', (_, wrong, path, message) => {
    const names = pair();
    const broken = Object.entries(wrong).map(([name, text]) => [name, put(`wrong.${name}`, text)]);

    const problems = problemsOf(
      () => new TlsFiles({ ...names, ...Object.fromEntries(broken) }, 'listen.tls'),
    );

    expect(problems).toEqual([{ path, message: expect.stringMatching(message) as string }]);
    expect(JSON.stringify(problems)).not.toContain(SECRET_TEXT);
  });

  it('are all named at once', () => {
    const names = { certFile: join(folder, 'none.crt'), keyFile: join(folder, 'none.key') };

    const problems = problemsOf(() => new TlsFiles(names, 'listen.tls'));

    expect(problems).toEqual([
      { path: 'listen.tls.certFile', message: `${names.certFile} cannot be read (ENOENT)` },
      { path: 'listen.tls.keyFile', message: `${names.keyFile} cannot be read (ENOENT)` },
    ]);
  });
});

describe('files that change', () => {
  const watched = (files: TlsFiles) => {
    const told: string[] = [];
    const watch = files.watch({
      onReloaded: (certificate) => told.push(`reloaded ${certificate?.serial}`),
      onUnusable: (problem) => told.push(problem),
    });
    onTestFinished(() => watch[Symbol.dispose]());
    return told;
  };
  const serialOf = ({ certificate }: TlsFiles) => certificate?.serialNumber;

  it('are used once the pair is whole, and half of one is told once', async () => {
    const files = new TlsFiles(pair(), 'listen.tls');
    const [before, serial] = [files.context, serialOf(files)];
    const told = watched(files);
    const { cert, key } = authority.issue();

    put('tls.crt', cert);
    await until(() => told.length > 0);
    // Past another look or two at the same half.
    await new Promise((resolve) => setTimeout(resolve, 2_200));
    expect(told).toEqual([expect.stringMatching(/^listen\.tls: the key in .* does not belong/)]);
    expect(files.context).toBe(before);
    put('tls.key', key);
    await until(() => told.length > 1);

    expect(serialOf(files)).not.toBe(serial);
    expect(files.context).not.toBe(before);
    expect(told[1]).toBe(`reloaded ${serialOf(files)}`);
  });

  it('by a swap of links, as Kubernetes does it, are noticed', async () => {
    const write = (version: string) => {
      const { cert, key } = authority.issue();
      mkdirSync(join(folder, version));
      put(`${version}/tls.crt`, cert);
      put(`${version}/tls.key`, key);
      symlinkSync(version, join(folder, '..data.new'));
      renameSync(join(folder, '..data.new'), join(folder, '..data'));
    };
    write('..1');
    for (const name of ['tls.crt', 'tls.key']) symlinkSync(`..data/${name}`, join(folder, name));
    const names = { certFile: join(folder, 'tls.crt'), keyFile: join(folder, 'tls.key') };
    const files = new TlsFiles(names, 'listen.tls');
    const serial = serialOf(files);
    const told = watched(files);

    write('..2');
    await until(() => told.length > 0);

    expect(serialOf(files)).not.toBe(serial);
    expect(told).toEqual([`reloaded ${serialOf(files)}`]);
  });

  it('to what they were are not read as new', () => {
    const files = new TlsFiles(pair(), 'listen.tls');
    const before = files.context;

    expect(files.refresh()).toBe(false);
    expect(files.context).toBe(before);
  });
});
