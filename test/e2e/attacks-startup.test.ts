/**
 * Forging an identity with the parameters of the StartupMessage: attacks B1, B2, B4 and B6, in every session mode.
 *
 * In some modes the identity travels in that packet, so here the client's words and ours would meet. More of what
 * parameters can do is in `parameter-attacks.test.ts`, what is tried where in `attack-scene.ts`.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { slotName } from '../../src/session-sql/credentials.ts';
import { OWNED, SPELLINGS } from './attack-parameters.ts';
import { type Attack, expectAlice, GROUND, grounds, notTried, Scene } from './attack-scene.ts';
import { type Parameter, passwordMessage, startup } from './parity/bytes.ts';
import { RawClient } from './raw-client.ts';

describe.each(grounds())(GROUND, (ground) => {
  const without = (attack: Attack) => notTried(ground, attack);
  let scene: Scene;
  let token: string;

  beforeAll(async () => {
    scene = await Scene.open(ground);
    token = await scene.stack.token('alice');
  });

  afterAll(() => scene?.close());

  /** The SQLSTATE with which a login with these parameters is refused, or who it let in. */
  async function login(...parameters: Parameter[]): Promise<string> {
    const { host, port, database } = scene.stack;
    using client = await RawClient.open({ host, port, tls: ground.tls });
    client.send(startup([['user', 'authenticated'], ['database', database], ...parameters]));
    client.send(passwordMessage(token));
    try {
      await client.next('Z');
    } catch (error) {
      return (error as { code?: string }).code ?? String(error);
    }
    const { rows, sqlstate } = await client.ask('select auth.user_id()');
    return `in as ${sqlstate ?? rows[0]?.[0]}`;
  }

  it.skipIf(without('forging at startup')).each(SPELLINGS)(
    'B1: options cannot say who one is: %s',
    async (_, options) => {
      const outcomes = new Map<string, string>();
      for (const name of OWNED) outcomes.set(name, await login(['options', options(name, 'bob')]));

      expect([...outcomes].filter(([, outcome]) => outcome !== '42501')).toEqual([]);
    },
  );

  it.skipIf(without('forging at startup'))(
    'B1: nor can a parameter of its own, in any case',
    async () => {
      const names = OWNED.flatMap((name) => [name, name.toUpperCase(), name.replaceAll('_', '-')]);
      const outcomes = new Map<string, string>();
      for (const name of names) outcomes.set(name, await login([name, '{"sub":"bob"}']));

      expect([...outcomes].filter(([, outcome]) => outcome !== '42501')).toEqual([]);
    },
  );

  it.skipIf(without('forging at startup'))('B2: nor can role=, whatever it names', async () => {
    for (const role of ['postgres', 'pgjot_control', slotName('authenticated', 1), 'none', '']) {
      expect(await login(['role', role])).toBe('42501');
      expect(await login(['options', `-c role=${role}`])).toBe('42501');
    }
  });

  it.skipIf(without('forging at startup'))('B6: nothing can be said twice', async () => {
    for (const [name, value] of [
      ['user', 'bob'],
      ['user', 'authenticated'],
      ['database', 'postgres'],
    ] as const) {
      expect(await login([name, value])).toBe('08P01');
    }
    expect(await login(['TimeZone', 'UTC'], ['timezone', 'UTC'])).toBe('08P01');
    expect(await login(['options', '-c geqo=off'], ['options', '-c role=postgres'])).toBe('08P01');
  });

  it.skipIf(without('forging at startup'))(
    'what passes changes nothing about who one is, and fills no packet',
    async () => {
      for (const parameters of [
        [['search_path', 'nowhere']],
        [['client_encoding', 'LATIN1']],
        [['DateStyle', 'German, DMY']],
        [['TimeZone', 'Asia/Kathmandu']],
        [['intervalstyle', 'iso_8601']],
        [['extra_float_digits', '-15']],
        [['application_name', 'pgjot.identity=bob']],
        [
          ['application_name', 'x'.repeat(1_000)],
          ['options', `-c search_path=${'y'.repeat(500)}`],
        ],
      ] satisfies Parameter[][]) {
        expect(await login(...parameters)).toBe('in as alice');
      }
      await expectAlice(scene.alice, 'all of it');
    },
  );
});
