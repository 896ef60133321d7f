/**
 * What `pgjot doctor` finds: how bad, what, where, why, and what mends it.
 *
 * Words only; how a finding is come by is in the files beside this one.
 */

/** `critical`: somebody can read or become what they must not, or nobody can sign in. `warning`: one mistake away from that. */
export type Severity = 'critical' | 'warning' | 'advice';

/** What mends a finding, to be run in this order: SQL as the administrator, then a shell line, then by hand. */
export interface Mend {
  readonly sql?: string;
  readonly shell?: string;
  readonly manual?: string;
}

/** One thing that is wrong. */
export interface Finding {
  readonly severity: Severity;
  /** Stable, snake_case. */
  readonly code: string;
  /** What it is about, as PostgreSQL would call it: `table public.todos`. */
  readonly object: string;
  /** One sentence. */
  readonly reason: string;
  readonly mend: Mend;
}

const ORDER: readonly Severity[] = ['critical', 'warning', 'advice'];

/** The findings, the worst first, otherwise in the order in which they were found. */
export function worstFirst(findings: readonly Finding[]): Finding[] {
  return findings.toSorted((a, b) => ORDER.indexOf(a.severity) - ORDER.indexOf(b.severity));
}

/** How many there are of each severity, in words. */
export function count(findings: readonly Finding[]): string {
  return ORDER.map((severity) => {
    const found = findings.filter((one) => one.severity === severity).length;
    return `${found} ${severity}`;
  }).join(', ');
}
