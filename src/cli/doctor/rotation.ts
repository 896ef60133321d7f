/**
 * Where the rotation of an upstream's secret stands, as far as its configuration and one login tell.
 */
import type { Secrets } from '../../upstream/secrets.ts';
import type { Patient } from './diagnose.ts';
import type { Finding } from './finding.ts';

/** What is left to be done, where there are two secrets; `secrets` have been tried, so they know which one the server has. */
export function rotationFindings({ name, configFile }: Patient, secrets: Secrets): Finding[] {
  const [current, previous] = secrets.all;
  if (previous === undefined) return [];
  const object = `upstreams.${name}.previousSecret`;
  if (secrets.inUse !== current) {
    return [
      {
        severity: 'warning',
        code: 'secret_not_rotated',
        object,
        reason: 'The server still has the previous secret: its rotation was begun and not done.',
        mend: { shell: `pgjot rotate-secret ${name} --config ${configFile}` },
      },
    ];
  }
  return [
    {
      severity: 'advice',
      code: 'previous_secret_kept',
      object,
      reason: 'The server has the new secret, so the previous one is of no use any more.',
      mend: {
        manual: `take ${object} out of the configuration, reload every proxy, and destroy that secret`,
      },
    },
  ];
}
