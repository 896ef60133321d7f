/**
 * Waiting for a server that is away, and not waiting when others have waited in vain.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { Patience } from '../../src/upstream/patience.ts';
import { until } from '../support/stack.ts';

const never = new AbortController().signal;
const DOWN = new ProxyError('upstream_unreachable');

/** An ErrorResponse of the server's with this SQLSTATE. */
const said = (sqlstate: string) =>
  new ProxyError('upstream_rejected', { cause: Object.assign(new Error('no'), { sqlstate }) });

/** A server that fails with `failure` as long as there is one, and counts who asks. */
function server(failure: ProxyError | undefined) {
  const state = { error: failure, asked: 0 };
  const patience = new Patience();
  const attempt = async () => {
    state.asked++;
    if (state.error !== undefined) throw state.error;
    return 'in';
  };
  const ask = async (forMs = 300, signal: AbortSignal = never): Promise<unknown> => {
    try {
      return await patience.try(forMs, signal, attempt);
    } catch (error) {
      return error;
    }
  };
  return { state, ask };
}

describe('a login', () => {
  test.each([DOWN, said('57P01'), said('57P02'), said('57P03'), new ProxyError('upstream_lost')])(
    'tries again while %s',
    async (error) => {
      const { state, ask } = server(error);
      const login = ask(3_000);
      await until(() => state.asked > 2);

      state.error = undefined;

      expect(await login).toBe('in');
    },
  );

  test.each([said('53300'), said('28000'), said('57P05'), new ProxyError('pool_timeout')])(
    'does not try again after %s',
    async (error) => {
      const { state, ask } = server(error);

      expect(await ask()).toBe(error);

      expect(state.asked).toBe(1);
    },
  );

  test('gives up after its time with what it heard last', async () => {
    const { state, ask } = server(DOWN);

    expect(await ask()).toBe(DOWN);

    // At 0, 50 and 150 ms; the next would be at 350.
    expect(state.asked).toBe(3);
  });

  test("ends with its signal's reason, in the middle of a pause", async () => {
    const abort = new AbortController();
    const { ask } = server(DOWN);
    const login = ask(300, abort.signal);
    await delay(10);

    const reason = new ProxyError('client_lost');
    abort.abort(reason);

    expect(await login).toBe(reason);
  });
});

describe('after three logins in a row that waited in vain', () => {
  async function openCircuit(failure: ProxyError = DOWN) {
    const one = server(failure);
    await Promise.all([one.ask(), one.ask(), one.ask()]);
    one.state.asked = 0;
    return one;
  }

  test('the next hear so at once, and the server is left alone for a second', async () => {
    const { state, ask } = await openCircuit();

    expect(await ask()).toBe(DOWN);

    expect(state.asked).toBe(0);
  });

  test('one attempt tells whether the second was long enough, and that one does not wait', async () => {
    const { state, ask } = await openCircuit();
    await delay(1_010);

    expect(await ask()).toBe(DOWN);
    expect(state.asked).toBe(1);
    expect(await ask()).toBe(DOWN);
    expect(state.asked).toBe(1);
  });

  test('everybody gets in within two seconds of the server’s return', async () => {
    const { state, ask } = await openCircuit();
    state.error = undefined;
    await delay(1_010);

    expect(await ask()).toBe('in');
    state.error = DOWN;
    expect(await ask()).toBe(DOWN);
    expect(state.asked).toBeGreaterThan(2);
  });

  test('whose own settings may have been the reason, nobody else is kept out', async () => {
    const { state, ask } = await openCircuit(new ProxyError('upstream_lost'));
    state.error = undefined;

    expect(await ask()).toBe('in');
  });
});
