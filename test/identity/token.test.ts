/** Properties of the token parser: whatever arrives, it answers with claims or with one kind of refusal. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseToken, TokenRefusal } from '../../src/identity/token.ts';

// The most that limits.maxTokenBytes can be set to.
const MAX_BYTES = 65_530;
const encode = (text: string) => Buffer.from(text).toString('base64url');
const HEADER = encode('{"alg":"ES256"}');

function outcomeOf(token: string): unknown {
  try {
    return parseToken(token, MAX_BYTES);
  } catch (error) {
    return error;
  }
}

test('any string is parsed or refused, and a refusal repeats none of it', () => {
  const jsonText = fc.oneof(fc.json(), fc.string(), fc.constantFrom('{', '{}', '{"a":1,"a":2}'));
  const token = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.tuple(jsonText, jsonText, fc.string()).map((parts) => parts.map(encode).join('.')),
    fc
      .tuple(fc.base64String(), fc.base64String(), fc.base64String())
      .map((parts) => parts.join('.')),
  );

  fc.assert(
    fc.property(token, (text) => {
      const outcome = outcomeOf(text);
      if (!(outcome instanceof Error)) return;
      expect(outcome).toBeInstanceOf(TokenRefusal);
      if (text.length > 24) expect(outcome.message).not.toContain(text.slice(0, 24));
    }),
    { numRuns: 2_000 },
  );
});

test('claims come out as JSON.parse reads them, or not at all', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (claims) => {
      const text = JSON.stringify(claims);
      const outcome = outcomeOf(`${HEADER}.${encode(text)}.AAAA`);
      if (outcome instanceof TokenRefusal) {
        expect(outcome.message).toMatch(/__proto__|deep|members|bytes long/);
      } else {
        expect(JSON.stringify((outcome as { claims: unknown }).claims)).toBe(text);
      }
    }),
    { numRuns: 1_000 },
  );
});

test('a member given twice is refused wherever it is and however it is spelt', () => {
  const escaped = (name: string) =>
    `"${Array.from(name, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`).join('')}"`;

  fc.assert(
    fc.property(
      fc.string({ unit: 'grapheme-ascii', minLength: 1 }),
      fc.jsonValue({ maxDepth: 2 }),
      fc.constantFrom('', ' ', '\n\t'),
      (name, value, space) => {
        const inner = JSON.stringify(value);
        const twice = `{${JSON.stringify(name)}${space}:${inner},${escaped(name)}${space}:${inner}}`;
        for (const text of [twice, `{"a":[${twice}]}`]) {
          expect(outcomeOf(`${HEADER}.${encode(text)}.AAAA`)).toBeInstanceOf(TokenRefusal);
        }
      },
    ),
  );
});

test('the longest token takes no longer than a moment, whatever it holds', () => {
  const room = Math.floor((MAX_BYTES * 3) / 4) - 64;
  const payloads = [
    '['.repeat(room),
    '{"a":'.repeat(room / 5),
    `{"a":"${'\\"'.repeat(room / 2 - 8)}"}`,
    `{"a":"${'\\"'.repeat(room / 2 - 8)}`,
    `{"a"${' '.repeat(room - 8)}:1}`,
    `{"a":[${'"",'.repeat(room / 3 - 8)}""]}`,
    `[${'"" '.repeat(room / 3 - 8)}]`,
  ];

  const started = performance.now();
  for (const payload of payloads) outcomeOf(`${HEADER}.${encode(payload)}.AAAA`);

  // Linear, they take some 50 ms together; quadratic in 49,000, each would take seconds.
  expect(performance.now() - started).toBeLessThan(2_000);
});
