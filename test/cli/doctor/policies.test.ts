/** Policies as PostgreSQL prints them, judged and mended. */
import { describe, expect, it } from 'vitest';
import { judgePolicy, wrapReaders, type Policy } from '../../../src/cli/doctor/policies.ts';

const policy = (using: string | null, more: Partial<Policy> = {}): Policy => ({
  object: 'policy p on table t',
  alter: 'alter policy p on t',
  using,
  check: null,
  forgeable: [],
  ...more,
});

const sqlOf = (one: Policy) => judgePolicy(one).map(({ code, mend }) => [code, mend.sql]);

describe('a policy', () => {
  it.each([
    '(owner = ( SELECT auth.user_id() AS user_id))',
    `(org = ( SELECT (auth.session() ->> 'org'::text) AS "?column?"))`,
    `(org = ( SELECT ((auth.jwt() -> 'app'::text) ->> 'org (1)'::text) AS "a FROM b"))`,
    `(EXISTS ( SELECT 1\n   FROM members m\n  WHERE (m.reader = ( SELECT auth.user_id() AS user_id))))`,
    `(owner = 'auth.user_id()'::text)`,
    `("auth.user_id()" = 'x'::text)`,
    '(owner IS NULL)',
    '(( SELECT auth.user_id() AS user_id) IS NOT NULL)',
    '(NOT (( SELECT auth.user_id() AS user_id) IS NULL))',
    'true',
  ])('is fine when it says %s', (using) => {
    expect(judgePolicy(policy(using))).toEqual([]);
  });

  it.each([
    ['(owner = auth.user_id())', '(owner = ( SELECT auth.user_id()))'],
    ['(owner = pgjot.uid())', '(owner = ( SELECT pgjot.uid()))'],
    [
      `(org = (auth.session() ->> 'org'::text))`,
      `(org = (( SELECT auth.session()) ->> 'org'::text))`,
    ],
    [
      `(EXISTS ( SELECT 1\n   FROM members m\n  WHERE (m.reader = auth.user_id())))`,
      `(EXISTS ( SELECT 1\n   FROM members m\n  WHERE (m.reader = ( SELECT auth.user_id()))))`,
    ],
    [
      `((owner = ( SELECT auth.user_id() AS user_id)) OR (name = ('it''s ('::text || auth.user_id())))`,
      `((owner = ( SELECT auth.user_id() AS user_id)) OR (name = ('it''s ('::text || ( SELECT auth.user_id()))))`,
    ],
  ])('is asked for once a row when it says %s', (using, mended) => {
    expect(sqlOf(policy(using))).toEqual([
      ['policy_per_row', `alter policy p on t using (${mended});`],
    ]);
    expect(wrapReaders(mended)).toBe(mended);
  });

  it.each([
    [
      `(owner = ((current_setting('request.jwt.claims'::text, true))::json ->> 'sub'::text))`,
      '(owner = ( SELECT pgjot.user_id()))',
    ],
    [
      `(owner = current_setting('request.jwt.claim.sub'::text))`,
      '(owner = ( SELECT pgjot.user_id()))',
    ],
    [
      `(org = ((current_setting('request.jwt.claims'::text, true))::jsonb ->> 'org'::text))`,
      `(org = (( SELECT pgjot.session()) ->> 'org'::text))`,
    ],
    [`(org = current_setting('app.org'::text))`, 'false'],
    [
      `(owner = (( SELECT current_setting('request.jwt.claims'::text, true) AS c))::json ->> 'sub'::text)`,
      'false',
    ],
  ])('can be forged when it says %s', (using, mended) => {
    const findings = judgePolicy(policy(using));

    expect(findings[0]).toMatchObject({
      code: 'policy_forgeable',
      severity: 'critical',
      mend: { sql: `alter policy p on t using (${mended});` },
    });
    expect(findings[0]?.mend.manual !== undefined).toBe(mended === 'false');
  });

  it('can be forged through a function that believes a setting', () => {
    const asks = policy('(owner = ( SELECT (auth.uid())::text AS uid))', {
      check: 'app.is_member(org)',
      forgeable: ['auth.uid', 'app.is_member'],
    });

    expect(sqlOf(asks)).toEqual([
      [
        'policy_forgeable',
        'alter policy p on t using ((owner = ( SELECT (pgjot.uid())::text AS uid))) with check (false);',
      ],
    ]);
  });

  it.each([
    '(auth.user_id() IS NULL)',
    '(( SELECT auth.user_id() AS user_id) IS NULL)',
    `((auth.session() ->> 'org'::text) IS NULL)`,
    `(( SELECT (auth.session() ->> 'org'::text) AS "?column?") IS NULL)`,
  ])('lets nobody in who is nobody: %s', (condition) => {
    const lenient = `((owner = 'x'::text) OR ${condition})`;
    const [finding] = judgePolicy(policy(lenient));

    expect(finding).toMatchObject({ code: 'policy_null_identity', severity: 'critical' });
    expect(finding?.mend.sql).toMatch(
      /^alter policy p on t using \(\(\(\( SELECT pgjot\.user_id\(\) AS user_id\) IS NOT NULL\) AND \(\(owner = 'x'::text\) OR /,
    );
    const guarded = `((( SELECT pgjot.user_id() AS user_id) IS NOT NULL) AND ${lenient})`;
    expect(sqlOf(policy(guarded)).map(([code]) => code)).not.toContain('policy_null_identity');
  });

  it('is mended at once where it has several faults', () => {
    const worst = policy(
      `((auth.user_id() IS NULL) OR (owner = current_setting('request.jwt.claim.sub'::text)))`,
    );

    const sql =
      'alter policy p on t using (((( SELECT pgjot.user_id() AS user_id) IS NOT NULL) AND ' +
      '((( SELECT auth.user_id()) IS NULL) OR (owner = ( SELECT pgjot.user_id())))));';
    expect(sqlOf(worst)).toEqual([
      ['policy_forgeable', sql],
      ['policy_null_identity', sql],
      ['policy_per_row', sql],
    ]);
  });
});
