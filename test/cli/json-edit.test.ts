/** Adding a member to a JSON text: the result says what it should, and the author's writing stays. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { addMember } from '../../src/cli/json-edit.ts';

const NEW = { preset: 'clerk', roles: ['authenticated'] };
const LINE = '"new": { "preset": "clerk", "roles": ["authenticated"] }';

describe('addMember', () => {
  it.each<[what: string, before: string, after: string]>([
    [
      'after the others, on a line of its own',
      '{\n  "providers": {\n    "x": { "a": 1 }\n  },\n  "z": 1\n}\n',
      `{\n  "providers": {\n    "x": { "a": 1 },\n    ${LINE}\n  },\n  "z": 1\n}\n`,
    ],
    [
      'with tabs and Windows line ends',
      '{\r\n\t"providers": {\r\n\t\t"x": 1\r\n\t}\r\n}\r\n',
      `{\r\n\t"providers": {\r\n\t\t"x": 1,\r\n\t\t${LINE}\r\n\t}\r\n}\r\n`,
    ],
    [
      'on the line that there is',
      '{ "providers": { "x": 1 } }',
      `{ "providers": { "x": 1, ${LINE} } }`,
    ],
    ['where there is no white space', '{"providers":{"x":1}}', `{"providers":{"x":1, ${LINE}}}`],
    [
      'into an empty object',
      '{\n    "a": 1,\n    "providers": {}\n}',
      `{\n    "a": 1,\n    "providers": {\n        ${LINE}\n    }\n}`,
    ],
    [
      'with the object, where it is not there',
      '{\n  "a": 1\n}\n',
      `{\n  "a": 1,\n  "providers": { ${LINE} }\n}\n`,
    ],
    ['into nothing', '{}', `{\n  "providers": { ${LINE} }\n}`],
    [
      'where odd names and strings look like braces',
      '{\n  "a\\"{": "}{\\\\",\n  "b": { "providers": [] },\n  "providers": {\n    "{": "providers"\n  }\n}',
      `{\n  "a\\"{": "}{\\\\",\n  "b": { "providers": [] },\n  "providers": {\n    "{": "providers",\n    ${LINE}\n  }\n}`,
    ],
    [
      'into the object that JSON.parse keeps of two',
      '{ "providers": { "x": 1 }, "providers": { "y": 1 } }',
      `{ "providers": { "x": 1 }, "providers": { "y": 1, ${LINE} } }`,
    ],
  ])('adds %s', (_, before, after) => {
    expect(addMember(before, 'providers', 'new', NEW)).toBe(after);
  });

  it('gives what is too long for a line a line for each member', () => {
    const long = { issuer: `https://${'x'.repeat(60)}.example.com`, audience: ['a'.repeat(40)] };

    expect(addMember('{\n  "providers": {}\n}', 'providers', 'new', long)).toBe(
      `{\n  "providers": {\n    "new": {\n      "issuer": "${long.issuer}",\n      "audience": [\n        "${long.audience[0]}"\n      ]\n    }\n  }\n}`,
    );
  });

  it.each(['{ "providers": [] }', '{ "providers": 1 }', '{ "providers": null }'])(
    'leaves alone what is no object: %s',
    (text) => {
      expect(() => addMember(text, 'providers', 'new', NEW)).toThrow(
        '"providers" is not an object',
      );
    },
  );

  it('adds exactly that to any object, however it is written, and takes nothing away', () => {
    const members = fc.dictionary(fc.string(), fc.jsonValue());
    const format = fc.constantFrom(0, 1, 2, 4, '\t');

    fc.assert(
      fc.property(members, members, format, fc.boolean(), (top, inner, indent, windows) => {
        const { new: _, ...others } = inner;
        const before = { ...top, providers: others };
        const lf = JSON.stringify(before, null, indent);
        const text = windows ? lf.replaceAll('\n', '\r\n') : lf;

        const edited = addMember(text, 'providers', 'new', NEW);

        expect(JSON.parse(edited)).toEqual(
          JSON.parse(JSON.stringify({ ...before, providers: { ...others, new: NEW } })),
        );
        // What was there is there still, in order: the edit is one insertion.
        let kept = 0;
        for (const character of edited) if (character === text[kept]) kept += 1;
        expect(kept).toBe(text.length);
      }),
      { numRuns: 500 },
    );
  });
});
