/** JSON Pointers into claims: RFC 6901's own examples, and attack C7. */
import { describe, expect, test } from 'vitest';
import { resolvePointer } from '../../src/identity/pointer.ts';

describe('the examples of RFC 6901 section 5', () => {
  const document = {
    foo: ['bar', 'baz'],
    '': 0,
    'a/b': 1,
    'c%d': 2,
    'e^f': 3,
    'g|h': 4,
    'i\\j': 5,
    'k"l': 6,
    ' ': 7,
    'm~n': 8,
  };

  test.each([
    ['', document],
    ['/foo', ['bar', 'baz']],
    ['/foo/0', 'bar'],
    ['/', 0],
    ['/a~1b', 1],
    ['/c%d', 2],
    ['/e^f', 3],
    ['/g|h', 4],
    ['/i\\j', 5],
    ['/k"l', 6],
    ['/ ', 7],
    ['/m~0n', 8],
  ])('%j', (pointer, value) => {
    expect(resolvePointer(document, pointer)).toEqual(value);
  });
});

test('"~01" is the name "~1", not "/"', () => {
  expect(resolvePointer({ '~1': 'tilde', '/': 'slash' }, '/~01')).toBe('tilde');
});

test.each([
  '/__proto__',
  '/__proto__/polluted',
  '/constructor/name',
  '/toString',
  '/roles/length',
  '/roles/at',
  '/roles/__proto__',
  '/roles/01',
  '/roles/-',
  '/roles/2',
  '/sub/length',
  '/sub/0',
  '/nothing/below',
  '/empty/below',
])('finds nothing at %s, which nobody signed', (pointer) => {
  const claims = { sub: 'alice', roles: ['a', 'b'], empty: null };

  expect(resolvePointer(claims, pointer)).toBeUndefined();
});

test('a member that is named like an inherited one is found where it is there', () => {
  const claims = JSON.parse('{"__proto__": {"role": "admin"}, "constructor": "mine"}') as object;

  expect(resolvePointer(claims, '/__proto__/role')).toBe('admin');
  expect(resolvePointer(claims, '/constructor')).toBe('mine');
});
