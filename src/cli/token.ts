/**
 * `pgjot token`: prints a token of the development issuer, and nothing else, for `PGPASSWORD=$(…)`.
 *
 * Needs no running server, only the key that `pgjot dev` made.
 */
import { Command, InvalidArgumentError } from 'commander';
import { mintHere, TOKEN_LIFETIME_MS } from './dev/mint.ts';
import { stateOf } from './dev/state.ts';

type Claims = Readonly<Record<string, unknown>>;

/** The command. */
export function tokenCommand(): Command {
  return new Command('token')
    .description('mint a token with the development issuer; prints the token alone')
    .requiredOption('--sub <subject>', 'who: the claim "sub", which SQL sees as auth.user_id()')
    .option(
      '--claim <name=value>',
      'another claim; the value is read as JSON where it is JSON, else as text (repeatable)',
      addClaim,
      {},
    )
    .option(
      '--expires <duration>',
      'how long it is good for: 90s, 15m, 1h, 7d; "-1m" is expired already',
      parseDuration,
      TOKEN_LIFETIME_MS,
    )
    .action(async ({ sub, claim, expires }: { sub: string; claim: Claims; expires: number }) => {
      const request = { subject: sub, claims: claim, expiresInMs: expires };
      console.log(await mintHere(stateOf(), request));
    });
}

function addClaim(text: string, claims: Claims): Claims {
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('It must be name=value.');
  return { ...claims, [text.slice(0, at)]: jsonOrText(text.slice(at + 1)) };
}

function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const UNITS_MS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** A duration such as `15m`, in milliseconds. */
function parseDuration(text: string): number {
  const found = /^(-?\d{1,9})([smhd])$/.exec(text);
  if (found === null) throw new InvalidArgumentError('It must be a number and s, m, h or d.');
  return Number(found[1]) * UNITS_MS[found[2] as keyof typeof UNITS_MS];
}
