/**
 * Checks of the files that the proxy reads: who else on this machine can read its secrets or rewrite its configuration.
 *
 * Files that are not there are `pgjot check`'s to report.
 */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Config, UpstreamConfig } from '../../config.ts';
import type { Finding, Severity } from './finding.ts';

const GROUP_READ = 0o040;
const OTHERS_READ = 0o004;
const GROUP_OR_OTHERS_WRITE = 0o022;

/** The configuration file, the upstream's secrets, and every private key. */
export function fileFindings(
  configFile: string,
  config: Config,
  upstream: UpstreamConfig,
): Finding[] {
  const secrets = [
    'file' in upstream.secret ? upstream.secret.file : undefined,
    upstream.previousSecret && 'file' in upstream.previousSecret
      ? upstream.previousSecret.file
      : undefined,
    upstream.tls.keyFile,
    config.listen.tls.keyFile,
  ];
  return [
    ...configurationFindings(resolve(configFile)),
    ...[...new Set(secrets)].flatMap((file) => (file === undefined ? [] : secretFindings(file))),
  ];
}

function configurationFindings(file: string): Finding[] {
  const mode = modeOf(file);
  if (mode & GROUP_OR_OTHERS_WRITE) {
    const reason =
      'Others can write it, and with it name an issuer whose tokens the proxy believes.';
    return [finding('critical', 'config_file_writable', file, reason, 'go-rw')];
  }
  if (mode & (GROUP_READ | OTHERS_READ)) {
    const reason = 'Others can read it; it holds no secret, but says where everything is.';
    return [finding('advice', 'config_file_readable', file, reason, 'go-r')];
  }
  return [];
}

function secretFindings(file: string): Finding[] {
  const mode = modeOf(file);
  if (mode & (OTHERS_READ | GROUP_OR_OTHERS_WRITE)) {
    const reason = 'Every user of this machine can read or replace this secret.';
    return [finding('critical', 'secret_file_mode', file, reason, '600')];
  }
  if (mode & GROUP_READ) {
    const reason = 'Its group can read this secret.';
    return [finding('warning', 'secret_file_mode', file, reason, '600')];
  }
  return [];
}

function finding(
  severity: Severity,
  code: string,
  file: string,
  reason: string,
  mode: string,
): Finding {
  const quoted = `'${file.replaceAll("'", String.raw`'\''`)}'`;
  return {
    severity,
    code,
    object: `file ${file}`,
    reason,
    mend: { shell: `chmod ${mode} ${quoted}` },
  };
}

/** Permission bits; none where there is no such file, or where a system has no such bits. */
function modeOf(file: string): number {
  if (process.platform === 'win32') return 0;
  return statSync(file, { throwIfNoEntry: false })?.mode ?? 0;
}
