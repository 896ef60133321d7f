/**
 * The corpus: everything that a stranger, a driver or an attacker may say to a Postgres server before
 * it is logged in, each with a name and what it shows.
 *
 * It holds questions only. The answers come from a real PostgreSQL at the time of the test, and the
 * few places where pgjot answers otherwise on purpose are in `deliberate.ts`.
 *
 * https://www.postgresql.org/docs/current/protocol-flow.html
 */
import { loginPhase } from './corpus-login.ts';
import { clearCases, insideTls, negotiationPhase, tlsCases } from './corpus-negotiation.ts';
import { parameterCases } from './corpus-parameters.ts';
import { startupPhase } from './corpus-startup.ts';
import type { Step } from './probe.ts';

/** Who signs in, where a case gets that far: the same user and database on both sides, each side's own password. */
export interface Login {
  readonly user: string;
  readonly database: string;
  readonly password: string;
}

/** One case. Names are unique. */
export interface WireCase {
  readonly name: string;
  readonly shows: string;
  readonly steps: (login: Login) => Step[];
}

const ANYWHERE = [...startupPhase(), ...negotiationPhase(), ...parameterCases(), ...loginPhase()];

/** What to ask servers without TLS, in the order of a connection's life. */
export const CLEAR_CORPUS: readonly WireCase[] = [...ANYWHERE, ...clearCases()];

/** What to ask servers with TLS: how it begins, and then everything inside it. */
export const TLS_CORPUS: readonly WireCase[] = [
  ...negotiationPhase(),
  ...tlsCases(),
  ...ANYWHERE.map(insideTls),
];
