/**
 * Judges policies by what PostgreSQL prints of their expressions: forgeable settings, identities asked once a row, NULL let in.
 *
 * Whether a policy means what its author wanted nobody but its author can tell.
 */
import type { Client } from 'pg';
import { select, type Expected } from './check.ts';
import type { Finding, Severity } from './finding.ts';
import { EXTENSION_FUNCTIONS } from './modes.ts';

/** A policy as the catalog has it. */
export interface Policy {
  readonly object: string;
  /** `alter policy … on …`, with its names quoted. */
  readonly alter: string;
  readonly using: string | null;
  readonly check: string | null;
  /** Functions it calls that read settings, as `schema.name`. */
  readonly forgeable: readonly string[];
}

interface Rule {
  readonly code: string;
  readonly severity: Severity;
  readonly reason: string;
  /** The expression without what the rule objects to; the same expression when it does not. */
  mend(expression: string, policy: Policy): string;
}

const READER = String.raw`(?:auth|pgjot)\.(?:user_id|uid|session|jwt)\(\)`;
const SETTING = (name: string) => String.raw`current_setting\('${name}'::text(?:, \w+)?\)`;
const CLAIM = String.raw`(?:${READER}|\(${READER} ->>? '[^']*'::text\))`;

// What people write by hand for want of auth.user_id(), as PostgreSQL prints it.
const BY_HAND: readonly (readonly [RegExp, string])[] = [
  [
    new RegExp(
      String.raw`\(\(${SETTING(String.raw`request\.jwt\.claims`)}\)::jsonb? ->> 'sub'::text\)`,
      'g',
    ),
    'pgjot.user_id()',
  ],
  [
    new RegExp(String.raw`\(${SETTING(String.raw`request\.jwt\.claims`)}\)::jsonb\b`, 'g'),
    'pgjot.session()',
  ],
  [new RegExp(SETTING(String.raw`request\.jwt\.claim\.sub`), 'g'), 'pgjot.user_id()'],
];
const FORGEABLE = /\bcurrent_setting\(|request\.jwt/;
const IS_NULL = new RegExp(
  String.raw`(?<!NOT )\((?:${CLAIM}|\( SELECT ${CLAIM} AS (?:\w+|"[^"]*")\)) IS NULL\)`,
);
// Before everything else, so that it is true whatever the rest says, in whatever brackets and negations.
const GUARD = '((( SELECT pgjot.user_id() AS user_id) IS NOT NULL) AND ';
// Nobody sees anything until somebody has written the policy anew.
const CLOSED = 'false';

/** In the order in which they are applied, because each may leave something for the next. */
const RULES: readonly Rule[] = [
  {
    code: 'policy_forgeable',
    severity: 'critical',
    reason: 'It believes a setting, and any client can set any setting to anything.',
    mend: withoutSettings,
  },
  {
    code: 'policy_null_identity',
    severity: 'critical',
    reason: 'It lets in whoever has no identity: an expired session, or a login past pgjot.',
    mend: (expression) =>
      IS_NULL.test(expression) && !expression.startsWith(GUARD)
        ? `${GUARD}${expression})`
        : expression,
  },
  {
    code: 'policy_per_row',
    severity: 'advice',
    reason: 'It asks for the identity once for each row instead of once for each statement.',
    mend: wrapReaders,
  },
];

/** Fetches the application's policies and judges them. */
export async function policyFindings(admin: Client, expected: Expected): Promise<Finding[]> {
  const policies = await select<Policy>(
    admin,
    `select format('policy %I on table %s', p.polname, p.polrelid::regclass) as object,
            format('alter policy %I on %s', p.polname, p.polrelid::regclass) as alter,
            pg_get_expr(p.polqual, p.polrelid) as using, pg_get_expr(p.polwithcheck, p.polrelid) as check,
            array(select format('%I.%I', n.nspname, f.proname)
                    from pg_depend d
                    join pg_proc f on f.oid = d.refobjid
                    join pg_namespace n on n.oid = f.pronamespace
                   where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
                     and n.nspname not in ('pg_catalog', 'pgjot')
                     and (concat(f.prosrc, pg_get_function_sqlbody(f.oid)) ~ 'current_setting|request\\.jwt'
                          -- Without a key from the proxy the extension believes request.jwt.claims.
                          or (select session from config) <> 'pg_session_jwt' and f.oid in (${EXTENSION_FUNCTIONS}))) as forgeable
       from pg_policy p
      where exists (select from wanted)
      order by 1`,
    expected,
  );
  return policies.flatMap(judgePolicy);
}

/** What is wrong with a policy. Every finding mends all of it, so that no mend undoes another. */
export function judgePolicy(policy: Policy): Finding[] {
  const expressions = { using: policy.using, check: policy.check };
  const broken: Rule[] = [];
  for (const rule of RULES) {
    for (const part of ['using', 'check'] as const) {
      const before = expressions[part];
      if (before === null) continue;
      const after = rule.mend(before, policy);
      if (after !== before && !broken.includes(rule)) broken.push(rule);
      expressions[part] = after;
    }
  }
  const sql = [
    policy.alter,
    ...(expressions.using === null ? [] : [`using (${expressions.using})`]),
    ...(expressions.check === null ? [] : [`with check (${expressions.check})`]),
  ].join(' ');
  const closed =
    expressions.using === CLOSED || expressions.check === CLOSED
      ? { manual: 'nobody sees a row by this policy until it is written anew' }
      : {};
  return broken.map(({ code, severity, reason }) => ({
    severity,
    code,
    object: policy.object,
    reason,
    mend: { sql: `${sql};`, ...closed },
  }));
}

/** Puts our readers where the expression asks a setting for `sub` or the claims; where it asks for anything else, closes it. */
function withoutSettings(expression: string, { forgeable }: Policy): string {
  const calls = forgeable.map((name) => [`${name}()`, ourReader(name)] as const);
  const replaced = BY_HAND.reduce(
    (text, [found, ours]) => text.replaceAll(found, ours),
    expression,
  );
  const asked = calls.reduce(
    (text, [call, ours]) => (ours === undefined ? text : text.replaceAll(call, ours)),
    replaced,
  );
  const left = calls.some(
    ([call, ours]) => ours === undefined && asked.includes(call.slice(0, -1)),
  );
  return left || FORGEABLE.test(asked) ? CLOSED : asked;
}

function ourReader(name: string): string | undefined {
  const reader = /^auth\.(user_id|uid|session|jwt)$/.exec(name)?.[1];
  return reader === undefined ? undefined : `pgjot.${reader}()`;
}

/** Puts `(select …)` around each reader that is not inside a scalar sub-select already. */
export function wrapReaders(expression: string): string {
  const token = new RegExp(String.raw`'(?:[^']|'')*'|"(?:[^"]|"")*"|\b${READER}|[()]`, 'g');
  const wrapped: boolean[] = [];
  return expression.replaceAll(token, (found, at: number) => {
    if (found === '(') wrapped.push(isScalarSelect(expression.slice(at)));
    else if (found === ')') wrapped.pop();
    else if (/^[ap]/.test(found) && !wrapped.includes(true)) return `( SELECT ${found})`;
    return found;
  });
}

/** Whether the text begins with a parenthesis that holds a SELECT without FROM, which PostgreSQL runs once for a statement. */
function isScalarSelect(text: string): boolean {
  if (!/^\(\s*SELECT\b/.test(text)) return false;
  let depth = 0;
  for (const [found] of text.matchAll(/'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]|\bFROM\b/g)) {
    if (found === '(') depth++;
    else if (found === ')' && --depth === 0) return true;
    else if (found === 'FROM' && depth === 1) return false;
  }
  return false;
}
