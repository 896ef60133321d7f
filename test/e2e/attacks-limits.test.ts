/**
 * What one address, one user or a crowd of strangers can take from others: attacks A10, C22, G2 and H8, on a real proxy.
 *
 * Clients come from several addresses of loopback: 127.0.0.3 attacks, the others do not.
 */
import { connect, type Socket } from 'node:net';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/proxy.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { passwordMessage, startup } from './parity/bytes.ts';
import { cancelRequest } from './raw-client.ts';

const ATTACKER = '127.0.0.3';
const STARTUP = startup([
  ['user', 'authenticated'],
  ['database', 'app'],
]);

let stack: Stack;
let token: string;
beforeAll(async () => {
  stack = await startStack();
  token = await stack.token('alice');
});
afterAll(() => stack.close());

const sockets: Socket[] = [];
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  await until(() => stack.proxy.counts().connections === 0);
});

/** From now on, these limits. */
function limit(limits: object): void {
  stack.proxy.reload(parseConfig({ ...stack.config, limits }));
}

async function from(localAddress: string): Promise<Socket> {
  const socket = connect({ host: stack.host, port: stack.port, localAddress, noDelay: true });
  socket.on('error', () => {});
  sockets.push(socket);
  await once(socket, 'connect');
  return socket;
}

/** Logs in, and resolves with `in`, or with the SQLSTATE and words of the refusal; `closed` where there are none. */
async function login(address: string, password = token): Promise<string> {
  const socket = await from(address);
  socket.write(Buffer.concat([STARTUP, passwordMessage(password)]));
  return new Promise((resolve) => {
    let text = '';
    socket.on('close', () => resolve('closed'));
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      const refusal = /C(\d[\dA-Z]{4})\0M([^\0]*)\0/.exec(text);
      if (refusal !== null) resolve(`${refusal[1]} ${refusal[2]}`);
      else if (/Z[^]{4}I$/.test(text)) resolve('in');
    });
  });
}

const logins = (count: number, address: string, password?: string) =>
  Promise.all(Array.from({ length: count }, () => login(address, password)));
const times = (outcomes: readonly string[], outcome: RegExp) =>
  outcomes.filter((one) => outcome.test(one)).length;
const TOO_MANY = /^53300 sorry, too many clients already$/;
const TOO_OFTEN = /^53400 too many connection attempts$/;

describe('A10: two thousand silent sockets', () => {
  beforeEach(() => limit({ loginTimeoutMs: 120_000 }));

  it('of one address get no further than that address may, and nobody else waits for them', async () => {
    for (let batch = 0; batch < 20; batch++) {
      await Promise.all(Array.from({ length: 100 }, () => from(ATTACKER)));
    }
    await until(() => stack.proxy.counts().connections <= 200);

    expect(await logins(10, '127.0.0.1')).toEqual(Array.from({ length: 10 }, () => 'in'));
    expect(await login(ATTACKER)).toBe('closed');
    const { unauthenticated, refused } = stack.proxy.counts().limits;
    expect(unauthenticated).toBe(200);
    expect(refused.maxUnauthenticatedPerAddress).toBeGreaterThanOrEqual(1_801);
    const lines = stack.logs.filter((line) => line.includes('limit_reached'));
    expect(lines.length).toBeLessThan(20);
  });

  it('that say half a StartupMessage are no better', async () => {
    limit({ maxUnauthenticatedPerAddress: 10, loginTimeoutMs: 120_000 });
    const halves = await Promise.all(Array.from({ length: 10 }, () => from(ATTACKER)));
    for (const socket of halves) socket.write(STARTUP.subarray(0, 20));

    expect(await login(ATTACKER)).toBe('closed');
    expect(await login('127.0.0.1')).toBe('in');
    for (const socket of halves) socket.destroy();
    await until(async () => (await login(ATTACKER)) === 'in');
  });

  it('are no longer counted once they have logged in', async () => {
    limit({ maxUnauthenticatedPerAddress: 2 });

    for (let client = 0; client < 6; client++) expect(await login(ATTACKER)).toBe('in');
    expect(stack.proxy.counts().limits.unauthenticated).toBe(0);
  });
});

describe('clients', () => {
  it('of one address, or one subject, leave room for others', async () => {
    limit({ maxClientsPerAddress: 3, maxClientsPerSubject: 2 });
    const bob = await stack.token('bob');

    expect(times(await logins(6, ATTACKER), TOO_MANY)).toBe(4);
    expect(await login(ATTACKER, bob)).toBe('in');
    expect(await login(ATTACKER, bob)).toMatch(TOO_MANY);
    expect(await login('127.0.0.4')).toMatch(TOO_MANY);
    expect(await login('127.0.0.4', bob)).toBe('in');
  });

  it('that leave make room', async () => {
    limit({ maxClientsPerAddress: 1, maxClientsPerSubject: 1 });
    for (let round = 0; round < 5; round++) {
      expect(await login(ATTACKER)).toBe('in');
      expect(await login(ATTACKER)).toMatch(TOO_MANY);
      for (const socket of sockets.splice(0)) socket.destroy();
      await until(() => stack.proxy.counts().clients === 0);
    }
  });
});

describe('C22: bad tokens', () => {
  it('are not verified after too many of them, and do not keep out others, nor those whose token is known', async () => {
    limit({ failedLogins: { allowed: 5, delayMs: 60_000, maxDelayMs: 60_000 } });
    expect(await login(ATTACKER)).toBe('in');
    const bad = `${(await stack.token('mallory')).slice(0, -8)}AAAAAAAA`;

    const outcomes: string[] = [];
    for (let attempt = 0; attempt < 10; attempt++) outcomes.push(await login(ATTACKER, bad));

    expect(times(outcomes.slice(0, 6), /^28P01/)).toBe(6);
    expect(times(outcomes.slice(6), TOO_OFTEN)).toBe(4);
    expect(await login(ATTACKER, await stack.token('carol'))).toMatch(TOO_OFTEN);
    expect(await login(ATTACKER)).toBe('in');
    expect(await login('127.0.0.1', await stack.token('carol'))).toBe('in');
  });

  it('are forgotten with the first good one', async () => {
    limit({ failedLogins: { allowed: 3, delayMs: 60_000, maxDelayMs: 60_000 } });
    const bad = `${(await stack.token('mallory')).slice(0, -8)}AAAAAAAA`;
    for (let round = 0; round < 4; round++) {
      for (let attempt = 0; attempt < 3; attempt++) {
        expect(await login('127.0.0.5', bad)).toMatch(/^28P01/);
      }
      expect(await login('127.0.0.5', await stack.token(`user-${round}`))).toBe('in');
    }
  });
});

describe('logins', () => {
  it('of one address are bounded by the second', async () => {
    limit({ loginsPerSecondPerAddress: 4 });
    const startedAt = performance.now();
    const outcomes = await logins(40, ATTACKER);
    const seconds = Math.floor((performance.now() - startedAt) / 1_000) + 1;

    expect(times(outcomes, /^in$/)).toBeLessThanOrEqual(4 * (seconds + 1));
    expect(times(outcomes, /^in$/) + times(outcomes, TOO_OFTEN)).toBe(40);
    expect(await login('127.0.0.1')).toBe('in');
  });
});

describe('G2: a flood of cancel requests', () => {
  it('with made-up keys is not looked at, and others may cancel', async () => {
    limit({ missedCancelsPerSecond: 5 });
    const cancel = async (address: string, key = randomKey()) => {
      const socket = await from(address);
      const closed = new Promise((resolve) => socket.once('close', resolve));
      socket.resume().write(cancelRequest(key));
      await closed;
    };
    const randomKey = () => ({
      processId: randomBytes(3).readUIntBE(0, 3),
      secretKey: randomBytes(4),
    });

    await Promise.all(Array.from({ length: 60 }, () => cancel(ATTACKER)));

    const { refused } = stack.proxy.counts().limits;
    expect(refused.missedCancelsPerSecond).toBeGreaterThan(0);
    const before = refused.missedCancelsPerSecond;
    await cancel('127.0.0.1');
    expect(stack.proxy.counts().limits.refused.missedCancelsPerSecond).toBe(before);
  });
});
