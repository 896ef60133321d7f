/**
 * What SQL sees of a token: the claims that were chosen, and what the database was asked, digit for digit.
 */
import { describe, expect, test } from 'vitest';
import { chooseClaims, encodeClaims } from '../../src/identity/session-claims.ts';

const CLAIMS = JSON.parse(
  '{"sub":"alice","email":"a@example.com","lookup":{"tenant":"chosen by a user"},"__proto__":{"sub":"bob"}}',
) as Record<string, unknown>;

describe('the chosen claims', () => {
  test('are all of them where none are named, but for what a token may not say', () => {
    expect(JSON.stringify(chooseClaims(CLAIMS, undefined))).toBe(
      '{"sub":"alice","email":"a@example.com","__proto__":{"sub":"bob"}}',
    );
  });

  test.each([
    [['email'], '{"sub":"alice","email":"a@example.com"}'],
    [['lookup', 'nothing', 'constructor'], '{"sub":"alice"}'],
    [[], '{"sub":"alice"}'],
  ])('are those that are named, %j, and always sub', (names, text) => {
    expect(JSON.stringify(chooseClaims(CLAIMS, names))).toBe(text);
  });
});

describe('claims that are chosen again', () => {
  const frozen = () => Object.freeze({ sub: 'alice', email: 'a@example.com' });

  test('are the object of before, frozen, for the same token and the same list', () => {
    const claims = frozen();
    const names = ['email'];

    for (const list of [undefined, names]) {
      const chosen = chooseClaims(claims, list);
      expect(chooseClaims(claims, list)).toBe(chosen);
      expect(Object.isFrozen(chosen)).toBe(true);
    }
  });

  test("are never another token's, nor those of another list", () => {
    const claims = frozen();
    const names = ['email'];

    expect(chooseClaims(frozen(), names)).not.toBe(chooseClaims(claims, names));
    expect(chooseClaims(claims, [])).toEqual({ sub: 'alice' });
    expect(chooseClaims(claims, names)).toEqual({ sub: 'alice', email: 'a@example.com' });
    expect(chooseClaims(Object.freeze({ ...frozen(), sub: 'bob' }), names)['sub']).toBe('bob');
  });

  test('are chosen anew from an object that may have changed', () => {
    const claims: Record<string, unknown> = { sub: 'alice' };
    chooseClaims(claims, undefined);
    claims['sub'] = 'bob';

    expect(chooseClaims(claims, undefined)).toEqual({ sub: 'bob' });
  });
});

describe('the encoded claims', () => {
  const claims = chooseClaims(CLAIMS, ['email']);

  test('keep every digit of what was looked up', () => {
    const lookup = '{"tenant": 9007199254740993}';

    expect(encodeClaims({ claims, lookup })).toBe(
      '{"sub":"alice","email":"a@example.com","lookup":{"tenant": 9007199254740993}}',
    );
    expect(encodeClaims({ claims: {}, lookup })).toBe(`{"lookup":${lookup}}`);
  });

  test('say null where nothing was found, and nothing where nothing was asked', () => {
    expect(encodeClaims({ claims: { sub: 'a' }, lookup: null })).toBe('{"sub":"a","lookup":null}');
    expect(encodeClaims({ claims: { sub: 'a' }, lookup: undefined })).toBe('{"sub":"a"}');
  });

  test('take the place of the claims of the token, and leave out what is to be left out', () => {
    const token = { sub: 'a', exp: 1, nbf: 2 };

    expect(
      encodeClaims({ claims: token, lookup: undefined }, { exp: 5, jti: 6, nbf: undefined }),
    ).toBe('{"sub":"a","exp":5,"jti":6}');
  });
});
