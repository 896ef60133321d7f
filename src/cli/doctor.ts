/**
 * `pgjot doctor`: looks for what would break isolation between users, and says how to mend each thing.
 *
 * Examines and changes nothing. The administrator's connection comes from $PGJOT_ADMIN_URL, as for `pgjot setup`.
 */
import { Command } from 'commander';
import { DatabaseError } from 'pg';
import { readSecrets } from '../config.ts';
import { ADMIN_URL, answer, connectAsAdmin, upstreamNamed } from './admin.ts';
import { configOption } from './config-option.ts';
import { diagnose } from './doctor/diagnose.ts';
import { count, type Finding } from './doctor/finding.ts';
import { CommandError, EXIT } from './failure.ts';
import { visible } from './table.ts';

interface DoctorOptions {
  readonly config: string;
  readonly json?: true;
}

/** The command. */
export function doctorCommand(): Command {
  return new Command('doctor')
    .description('look for what would break isolation in a database, and say how to mend it')
    .argument('<upstream>', 'its name in the configuration')
    .addOption(configOption())
    .option(
      '--json',
      'print { "findings": [{ "severity", "code", "object", "reason", "mend": { "sql", "shell", "manual" } }] }',
    )
    .addHelpText(
      'after',
      `
$${ADMIN_URL} is the administrator's connection to that database (postgres://…); a superuser sees
more. Exit status: 0 when nothing critical and no warning was found, ${EXIT.failure} otherwise.`,
    )
    .action(examineUpstream);
}

async function examineUpstream(name: string, { config: configFile, json }: DoctorOptions) {
  const { config, upstream } = upstreamNamed(name, configFile);
  const secrets = readSecrets(upstream, `upstreams.${name}`);
  const admin = await connectAsAdmin(upstream.database, 'pgjot doctor');
  let findings: Finding[];
  try {
    findings = await diagnose(admin, { name, config, configFile, secrets });
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    throw new CommandError('failure', visible(answer(error)), { cause: error });
  } finally {
    await admin.end().catch(() => {});
  }
  if (json) console.log(JSON.stringify({ findings }, null, 2));
  else console.log([...findings.map(describe), count(findings)].join('\n\n'));
  if (findings.some(({ severity }) => severity !== 'advice')) process.exitCode = EXIT.failure;
}

/** The finding in words, then what to paste. */
function describe({ severity, code, object, reason, mend }: Finding): string {
  const lines = [
    `${severity} ${code}: ${object}`,
    `  ${reason}`,
    ...(mend.sql ?? '').split('\n').filter((line) => line !== ''),
    ...(mend.shell === undefined ? [] : [`$ ${mend.shell}`]),
    ...(mend.manual === undefined ? [] : [`→ ${mend.manual}`]),
  ];
  return lines.map((line, at) => (at < 2 ? visible(line) : `    ${visible(line)}`)).join('\n');
}
