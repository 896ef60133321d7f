/**
 * What a client can try with the parameters of its StartupMessage: attacks B1 to B10, each by its name.
 *
 * The token is good in all of them. What is refused is refused before a password is asked for, and
 * nothing is dialled upstream for it. `attacks-startup.test.ts` tries the same in every session mode.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type AttackTarget,
  expectCleanLogs,
  expectNothingLeft,
  MARK,
  startTarget,
} from './attack-stack.ts';
import { OWNED, SPELLINGS } from './attack-parameters.ts';
import { type Parameter, passwordMessage, query, startup, TERMINATE } from './parity/bytes.ts';
import { probe, type Reply } from './parity/probe.ts';

let target: AttackTarget;

beforeAll(async () => {
  target = await startTarget();
});

afterAll(async () => {
  await target?.[Symbol.asyncDispose]();
});

const NAMED: Parameter[] = [
  ['user', 'authenticated'],
  ['database', 'app'],
];

/** Plays a login with these parameters and asks for one value. */
async function login(parameters: readonly Parameter[], sql: string): Promise<readonly Reply[]> {
  const steps = [
    startup(parameters),
    'await reply' as const,
    passwordMessage(target.token),
    query(sql),
    TERMINATE,
  ];
  return (await probe(target.stack, steps, { quietMs: 8_000 })).replies;
}

const rows = (replies: readonly Reply[]) =>
  replies.flatMap((reply) => (reply.kind === 'row' ? [reply.values.join()] : []));

/** Expects a refusal before the password, in these words, with nothing dialled. */
async function refused(
  parameters: readonly Parameter[],
  sqlstate: string,
  message: string | RegExp,
) {
  await target.unheard(async () => {
    const { replies, end } = await probe(target.stack, [startup(parameters)], { quietMs: 8_000 });

    const words = typeof message === 'string' ? message : expect.stringMatching(message);
    expect(replies).toMatchObject([{ kind: 'error', severity: 'FATAL', sqlstate, message: words }]);
    expect(end).toBe('closes');
  });
}

describe('B1: identity through options', () => {
  describe.each(SPELLINGS)('%s', (_, options) => {
    test.each(OWNED)('cannot set %s', async (name) => {
      const parameters: Parameter[] = [...NAMED, ['options', options(name, 'x')]];

      await refused(parameters, '42501', `permission denied to set parameter "${name}"`);
    });

    test('can set search_path', async () => {
      const parameters: Parameter[] = [...NAMED, ['options', options('search_path', 'mine')]];
      const expected = options('search_path', 'mine').includes('mine') ? 'mine' : '';

      expect(rows(await login(parameters, 'show search_path'))).toEqual([expected]);
    });
  });

  test.each(OWNED)('cannot set %s as a parameter of its own, in any case', async (name) => {
    for (const spelt of [name, name.toUpperCase(), name.replaceAll('_', '-')]) {
      const message = /^permission denied to set parameter "/;

      await refused([...NAMED, [spelt, 'x']], '42501', message);
    }
  });
});

describe('B2: a role of one’s own choice', () => {
  test.each(['authenticated', 'postgres', 'pgjot_authenticated_1', 'none', ''])(
    'role=%s is refused',
    async (role) => {
      const message = 'permission denied to set parameter "role"';

      await refused([...NAMED, ['role', role]], '42501', message);
      await refused([...NAMED, ['options', `-c role=${role}`]], '42501', message);
    },
  );

  test('another user than the policy grants is refused after the token is known to be good', async () => {
    await target.unheard(async () => {
      for (const user of ['postgres', 'pgjot_authenticated_1', 'pgjot_owner', 'nobody']) {
        const replies = await login(
          [
            ['user', user],
            ['database', 'app'],
          ],
          'select 1',
        );

        expect(replies).toMatchObject([
          { kind: 'asks password' },
          { sqlstate: '28000', message: `role "${user}" is not permitted to log in` },
        ]);
      }
    });
  });
});

describe('B3: libraries', () => {
  test.each([
    'session_preload_libraries',
    'local_preload_libraries',
    'shared_preload_libraries',
    'dynamic_library_path',
    'jit_provider',
  ])('%s is refused', async (name) => {
    const message = `permission denied to set parameter "${name}"`;

    await refused([...NAMED, [name, 'evil']], '42501', message);
  });
});

describe('B4: a search_path to hostile operators and functions', () => {
  test('does not reach the SQL of the proxy', async () => {
    const admin = new pg.Client(target.stack.admin);
    await admin.connect();
    try {
      await admin.query(HOSTILE);
    } finally {
      await admin.end();
    }
    const path: Parameter = ['search_path', 'evil, pg_catalog, auth, pgjot'];

    const replies = await login([...NAMED, path], 'select auth.user_id(), 1 = 1');

    // That the path is hostile indeed: the client's own comparison is answered by the wrong operator.
    expect(rows(replies)).toEqual(['alice,f']);
  });
});

// Everything answers wrongly: a comparison is false, a name or a setting is the victim's.
const HOSTILE = `
  create schema evil;
  grant usage on schema evil to public;
  create function evil.no(integer, integer) returns boolean language sql as 'select false';
  create function evil.no(text, text) returns boolean language sql as 'select false';
  create function evil.no(name, name) returns boolean language sql as 'select false';
  create function evil.no(bigint, bigint) returns boolean language sql as 'select false';
  create operator evil.= (function = evil.no, leftarg = integer, rightarg = integer);
  create operator evil.= (function = evil.no, leftarg = text, rightarg = text);
  create operator evil.= (function = evil.no, leftarg = name, rightarg = name);
  create operator evil.= (function = evil.no, leftarg = bigint, rightarg = bigint);
  create function evil.lower(text) returns text language sql as $$select 'victim'$$;
  create function evil.pg_backend_pid() returns integer language sql as 'select 1';
  create function evil.now() returns timestamptz language sql as $$select 'infinity'::timestamptz$$;
  create function evil.current_setting(text) returns text language sql as $$select 'victim'$$;
  create function evil.current_setting(text, boolean) returns text language sql as $$select 'victim'$$;
  create function evil.set_config(text, text, boolean) returns text language sql as $$select 'victim'$$;
  create function evil.user_id() returns text language sql as $$select 'victim'$$;
`;

describe('B5: replication', () => {
  test.each(['true', 'on', '1', 'yes', 'database', 'TRUE', 'Database', '', 'maybe', ' off', '00'])(
    'replication=%j is refused',
    async (value) => {
      const message = 'replication connections are not supported';

      await refused([...NAMED, ['replication', value]], '0A000', message);
    },
  );

  test.each(['false', 'off', '0', 'no', 'f', 'n', 'of', 'FALSE', 'Off'])(
    'replication=%j is an ordinary login',
    async (value) => {
      const replies = await login([...NAMED, ['replication', value]], "select 'in'");

      expect(rows(replies)).toEqual(['in']);
    },
  );

  test('B5b: COPY BOTH cannot be asked for: what would begin it is a syntax error', async () => {
    const replies = await login(NAMED, 'START_REPLICATION 0/0');

    expect(replies).toMatchObject(
      expect.arrayContaining([expect.objectContaining({ severity: 'ERROR', sqlstate: '42601' })]),
    );
  });
});

describe('B6: the same parameter twice', () => {
  const twice = 'invalid startup packet layout: a parameter is given twice';

  test.each<[string, Parameter[]]>([
    [
      'user',
      [
        ['user', 'authenticated'],
        ['user', 'postgres'],
        ['database', 'app'],
      ],
    ],
    ['user, the same', [...NAMED, ['user', 'authenticated']]],
    ['user, first the forbidden one', [['user', 'postgres'], ...NAMED]],
    ['database', [...NAMED, ['database', 'postgres']]],
    ['options', [...NAMED, ['options', '-c geqo=off'], ['options', '-c role=postgres']]],
    ['a setting in two cases', [...NAMED, ['TimeZone', 'UTC'], ['timezone', 'UTC']]],
    ['replication', [...NAMED, ['replication', 'off'], ['replication', 'on']]],
  ])('%s is refused', async (_, parameters) => {
    await refused(parameters, '08P01', twice);
  });
});

describe('B7: settings that nobody knows', () => {
  test.each([
    'a.b',
    'app.user_id',
    'myapp.tenant',
    'work_mem',
    'log_statement',
    'is_superuser',
    'x',
  ])('%s is refused', async (name) => {
    const message = `permission denied to set parameter "${name}"`;

    await refused([...NAMED, [name, 'c']], '42501', message);
    await refused([...NAMED, ['options', `-c ${name}=c`]], '42501', message);
  });
});

describe('B8: empty options', () => {
  test.each(['', ' ', '\t \n'])('%j are accepted', async (options) => {
    const replies = await login([...NAMED, ['options', options]], "select 'in'");

    expect(rows(replies)).toEqual(['in']);
  });
});

describe('B9: control bytes in names', () => {
  const forged = 'x\n{"level":30,"event":"login","outcome":"accepted"}\r\n\u001b[2J\u009b31m\u2028';

  test('forge no line of the log, nor of a message', async () => {
    const lines = target.stack.logs.length;
    const attempts: Parameter[][] = [
      [
        ['user', forged],
        ['database', 'app'],
      ],
      [
        ['user', 'authenticated'],
        ['database', forged],
      ],
      [...NAMED, [forged, 'x']],
      [...NAMED, ['options', `-c ${forged.replaceAll(/\s/g, '\\$&')}=x`]],
    ];
    for (const parameters of attempts) {
      const replies = await login(parameters, 'select 1');
      const error = replies.at(-1);

      expect(error).toMatchObject({ kind: 'error', severity: 'FATAL' });
      expect(error?.kind === 'error' && error.message).not.toMatch(/[\p{Cc}\p{Zl}]/u);
    }

    const written = target.stack.logs.slice(lines);
    expect(written).toHaveLength(attempts.length);
    for (const line of written) {
      expect(line).not.toMatch(/[\p{Cc}\p{Zl}]/u);
      expect(JSON.parse(line)).toMatchObject({ event: 'login', outcome: 'refused' });
    }
  });

  test('in application_name reach pg_stat_activity harmless', async () => {
    const parameters: Parameter[] = [...NAMED, ['application_name', 'a\nb\u001b[2J']];

    expect(rows(await login(parameters, 'show application_name'))).toEqual(['a\\x0ab\\x1b[2J']);
  });

  test('a token in place of a name is not logged (C21)', async () => {
    const lines = target.stack.logs.length;
    for (const parameters of [
      [
        ['user', target.token],
        ['database', 'app'],
      ],
      [
        ['user', 'authenticated'],
        ['database', target.token],
      ],
      [...NAMED, [target.token, 'x']],
      [...NAMED, ['application_name', target.token], ['x', target.token]],
    ] satisfies Parameter[][]) {
      const reply = (await login(parameters, 'select 1')).at(-1);

      expect(reply).toMatchObject({ kind: 'error', severity: 'FATAL' });
      expect(reply?.kind === 'error' && reply.message).not.toContain(target.token.slice(0, 20));
    }
    expect(target.stack.logs.slice(lines).join()).not.toContain(target.token.slice(0, 20));
  });
});

describe('B10: names too long for PostgreSQL', () => {
  test('are not cut to one that is granted', async () => {
    await target.unheard(async () => {
      const long = 'authenticated'.padEnd(64, '\u00e9');
      for (const parameters of [
        [
          ['user', 'a'.repeat(64)],
          ['database', 'app'],
        ],
        [
          ['user', 'a'.repeat(9_000)],
          ['database', 'app'],
        ],
        [
          ['user', long],
          ['database', 'app'],
        ],
        [
          ['user', 'authenticated'],
          ['database', 'app'.padEnd(64, 'p')],
        ],
      ] satisfies Parameter[][]) {
        const replies = await login(parameters, 'select 1');

        expect(replies).toMatchObject([{ kind: 'asks password' }, { sqlstate: '28000' }]);
      }
    });
  });

  test('a setting of more than 1 KiB is refused', async () => {
    const message = 'permission denied to set parameter "search_path"';

    await refused([...NAMED, ['search_path', MARK.repeat(40)]], '42501', message);
  });
});

test('after all this nothing is left, and no log line holds a token', async () => {
  await expectNothingLeft(target);
  expectCleanLogs(target);
});
