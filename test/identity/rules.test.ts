/** The rules that tell one issuer's kinds of tokens apart (attack C13), each alone. */
import { describe, expect, test } from 'vitest';
import { brokenRule, claimMatches } from '../../src/identity/rules.ts';

const NO_RULES = { typ: undefined, authorizedParties: undefined, claims: {} };

describe('typ', () => {
  const wrong = 'header "typ" is missing or names another kind of token';

  test.each([
    [['JWT'], 'JWT', true],
    [['JWT'], 'jwt', true],
    [['at+jwt'], 'application/at+jwt', true],
    [['application/at+jwt'], 'AT+JWT', true],
    [['at+jwt', 'JWT'], 'JWT', true],
    [['at+jwt'], 'JWT', false],
    [['JWT'], 'application/json', false],
    [['JWT'], 'x/JWT', false],
    [['JWT'], '', false],
    [['JWT'], undefined, false],
  ])('%j accepts %j: %s', (typ, of, accepted) => {
    expect(brokenRule({ ...NO_RULES, typ }, {}, of)).toBe(accepted ? undefined : wrong);
  });

  test('is judged by no one who does not ask for it', () => {
    expect(brokenRule(NO_RULES, {}, undefined)).toBeUndefined();
  });
});

describe('authorized parties', () => {
  const rules = { ...NO_RULES, authorizedParties: ['ours', 'also-ours'] };

  test.each([
    [{ azp: 'ours' }, undefined],
    [{ client_id: 'also-ours' }, undefined],
    [{ appid: 'ours' }, undefined],
    [{ azp: 'ours', client_id: 'ours' }, undefined],
    [{}, 'claim "azp" is missing'],
    [{ azp: 'theirs' }, 'claim "azp" names another party'],
    [{ azp: null }, 'claim "azp" names another party'],
    [{ azp: ['ours'] }, 'claim "azp" names another party'],
    [{ client_id: 'theirs' }, 'claim "client_id" names another party'],
    [{ azp: 'ours', client_id: 'theirs' }, 'claim "client_id" names another party'],
    [{ azp: 'theirs', client_id: 'ours' }, 'claim "azp" names another party'],
  ])('of %j: %s', (claims, problem) => {
    expect(brokenRule(rules, claims, undefined)).toBe(problem);
  });

  test('are not found in what every object inherits', () => {
    const inherited = Object.create({ azp: 'ours' }) as Record<string, unknown>;

    expect(brokenRule(rules, inherited, undefined)).toBe('claim "azp" is missing');
  });
});

describe('the value of a claim', () => {
  test.each<[value: unknown, accepted: (string | number | boolean | null)[], matches: boolean]>([
    ['a', ['a'], true],
    ['a', ['b', 'a'], true],
    ['a', ['b'], false],
    ['a', [null], false],
    ['1', [1], false],
    [1, [1], true],
    [true, [true], true],
    [false, [null], false],
    [0, [null], false],
    ['', [null], false],
    [undefined, [null], true],
    [null, [null], true],
    [undefined, ['a'], false],
    [['a', 'b'], ['b'], true],
    [['a'], ['b'], false],
    [[], ['a'], false],
    [[], [null], false],
    [[null], [null], false],
    [[['a']], ['a'], false],
    [{ a: 1 }, ['a'], false],
    [{}, [null], false],
  ])('%j against %j: %s', (value, accepted, matches) => {
    const claims = value === undefined ? {} : { claim: value };

    expect(claimMatches(claims, '/claim', accepted)).toBe(matches);
  });

  test('may be deep inside, and every rule counts', () => {
    const rules = {
      ...NO_RULES,
      claims: { '/firebase/tenant': ['a'], '/email_verified': [true] },
    };

    expect(brokenRule(rules, { firebase: { tenant: 'a' }, email_verified: true }, undefined)).toBe(
      undefined,
    );
    expect(brokenRule(rules, { firebase: { tenant: 'a' } }, undefined)).toBe(
      'claim "/email_verified" is missing or has another value',
    );
    expect(brokenRule(rules, { firebase: 'a', email_verified: true }, undefined)).toBe(
      'claim "/firebase/tenant" is missing or has another value',
    );
  });

  test('is never repeated', () => {
    const rules = { ...NO_RULES, authorizedParties: ['ours'], claims: { '/kind': ['good'] } };

    const problems = [
      brokenRule(rules, { azp: 'a-secret' }, 'a-secret'),
      brokenRule(rules, { azp: 'ours', kind: 'a-secret' }, undefined),
      brokenRule({ ...rules, typ: ['JWT'] }, {}, 'a-secret'),
    ];

    expect(problems.every((problem) => problem !== undefined)).toBe(true);
    expect(problems.join()).not.toContain('a-secret');
  });
});
