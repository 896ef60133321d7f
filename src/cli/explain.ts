/**
 * `pgjot explain`: why a token would be accepted or refused, step by step, and where its holder would go.
 *
 * It asks the same parts that a login asks, with the same configuration, and logs in nowhere. The token is a credential,
 * so its signature is never printed, and it comes from standard input or a file rather than from an argument.
 */
import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { Command } from 'commander';
import { perIssuer } from '../config-provider.ts';
import { loadConfig, type Config } from '../config.ts';
import { printable, ProxyError } from '../errors.ts';
import { createVerifier, type VerifiedToken } from '../identity/jwt.ts';
import { decide } from '../identity/policy.ts';
import { Revocations } from '../identity/revocations.ts';
import { findRoute } from '../identity/route.ts';
import { parseToken, type ParsedToken, truncationHint } from '../identity/token.ts';
import { configOption } from './config-option.ts';
import { CommandError, EXIT } from './failure.ts';

interface ExplainOptions {
  readonly tokenFile?: string;
  readonly config: string;
  readonly role?: string;
  readonly database?: string;
  readonly sni?: string;
  readonly json?: true;
}

/** One question that a login asks. */
interface Step {
  readonly step: string;
  /** `unknown` where an earlier step leaves it open. */
  readonly result: 'passed' | 'failed' | 'unknown';
  readonly because: string;
}

/** The command. */
export function explainCommand(): Command {
  return new Command('explain')
    .description('say why a token would be accepted or refused, and where its holder would go')
    .option('--token-file <file>', 'the token is in this file (default: standard input)')
    .addOption(configOption())
    .option('--role <role>', "the role to ask for (default: the first of the token's provider)")
    .option('--database <name>', 'the database to ask for (default: the first configured)')
    .option('--sni <host>', 'the host name to ask for')
    .option('--json', 'print the steps as JSON')
    .action(explainToken);
}

async function explainToken(options: ExplainOptions): Promise<void> {
  const config = loadConfig(options.config);
  const token = (await read(options.tokenFile)).trim();
  if (token === '') throw new CommandError('usage', 'there is no token on standard input');
  const steps = await explain(token, config, options);
  const accepted = steps.every(({ result }) => result === 'passed');
  if (options.json) console.log(JSON.stringify({ accepted, steps }, undefined, 2));
  else {
    for (const { step: name, result, because } of steps) {
      console.log(`${MARKS[result]} ${name.padEnd(11)} ${because}`);
    }
    console.log(accepted ? 'accepted' : 'refused');
  }
  if (!accepted) process.exitCode = EXIT.failure;
}

const MARKS = { passed: '+', failed: '-', unknown: '?' } as const;

async function read(file: string | undefined): Promise<string> {
  if (file === undefined || file === '-') return text(process.stdin);
  return readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    throw new CommandError('failure', `${file} cannot be read (${cause.code})`, { cause });
  });
}

async function explain(token: string, config: Config, options: ExplainOptions): Promise<Step[]> {
  let parsed: ParsedToken;
  try {
    parsed = parseToken(token, config.limits.maxTokenBytes);
  } catch (error) {
    const hint = truncationHint(token);
    const because = `${(error as Error).message}${hint === undefined ? '' : `. ${hint}`}`;
    return [step('form', 'failed', because)];
  }
  const { alg, kid, claims } = parsed;
  const form = step(
    'form',
    'passed',
    `a JWT of ${token.length} bytes, alg ${printable(alg)}, kid ${kid === undefined ? 'absent' : printable(kid)}`,
  );
  const provider = providerOf(config, claims['iss']);
  if (provider === undefined) {
    const iss = typeof claims['iss'] === 'string' ? `"${printable(claims['iss'])}"` : 'absent';
    return [form, step('issuer', 'failed', `iss ${iss} is not that of any provider`)];
  }
  const trusted = step('issuer', 'passed', `iss is that of provider "${provider}"`);
  const { verified, steps } = await verify(token, config, provider);
  const rest = verified === undefined ? [] : afterwards(verified, config, options, provider);
  return [form, trusted, ...steps, ...rest];
}

function providerOf(config: Config, iss: unknown): string | undefined {
  return Object.entries(config.providers).find(([, provider]) =>
    perIssuer(provider).some(({ issuer }) => issuer === iss),
  )?.[0];
}

/** Signature, times and claims, as the verifier sees them; its first objection is the only one. */
async function verify(
  token: string,
  config: Config,
  provider: string,
): Promise<{ verified: VerifiedToken | undefined; steps: Step[] }> {
  const problems: string[] = [];
  const verifier = createVerifier(config, {
    onKeyProblem: (id, problem) => void (id === provider && problems.push(problem)),
  });
  try {
    const verified = await verifier.verify(token, 'explain');
    const { subject, expiresAt, toleranceMs } = verified;
    const left = Math.round((expiresAt + toleranceMs - Date.now()) / 1000);
    return {
      verified,
      steps: [
        step('signature', 'passed', 'one of its keys has signed it'),
        step(
          'claims',
          'passed',
          `sub "${printable(subject)}"; expires in ${left} s, tolerance included`,
        ),
      ],
    };
  } catch (error) {
    if (!(error instanceof ProxyError)) throw error;
    const because = [
      (error.cause as Error | undefined)?.message ?? error.message,
      ...problems,
    ].join('; ');
    // Those two are only ever said of a token whose signature is good.
    const isSigned = error.code === 'token_expired' || error.code === 'claims_rejected';
    const steps = isSigned
      ? [
          step('signature', 'passed', 'one of its keys has signed it'),
          step('claims', 'failed', error.detail ?? because),
        ]
      : [
          step('signature', 'failed', because),
          step('claims', 'unknown', "they are anybody's without a signature"),
        ];
    return { verified: undefined, steps };
  } finally {
    verifier.close();
  }
}

/** Revocation, route and role. */
function afterwards(
  verified: VerifiedToken,
  config: Config,
  options: ExplainOptions,
  provider: string,
): Step[] {
  const role = options.role ?? config.providers[provider]?.roles[0] ?? '';
  const database =
    options.database ??
    config.routes?.find((rule) => rule.database !== undefined)?.database ??
    Object.values(config.upstreams)[0]?.database ??
    '';
  const asking = { user: role, database, sni: options.sni };
  const route = findRoute(config, { ...asking, provider, claims: verified.claims });
  return [
    revocation(verified, config),
    typeof route === 'string'
      ? step('route', 'failed', route)
      : step(
          'route',
          'passed',
          `database "${printable(database)}" goes to upstream "${route.upstream}", by ${route.rule}`,
        ),
    roleStep(() => decide(config, asking, verified), role),
  ];
}

function revocation(verified: VerifiedToken, config: Config): Step {
  const quiet = { onChange: () => {}, onProblem: () => {} };
  const revocations = new Revocations(config.revocations.file, [], quiet);
  revocations.close();
  return revocations.covers(verified)
    ? step('revocation', 'failed', `${config.revocations.file} names it`)
    : step(
        'revocation',
        'passed',
        config.revocations.file === undefined
          ? 'no file is configured; a running proxy may have been told otherwise'
          : 'not in the file; a running proxy may have been told otherwise',
      );
}

function roleStep(judge: () => unknown, role: string): Step {
  try {
    judge();
    return step('role', 'passed', `"${printable(role)}" is granted`);
  } catch (error) {
    if (!(error instanceof ProxyError)) throw error;
    return step('role', 'failed', (error.cause as Error | undefined)?.message ?? error.message);
  }
}

function step(name: string, result: Step['result'], because: string): Step {
  return { step: name, result, because };
}
