/** What is counted against the limits, what is refused for them, and that nothing grows with what strangers make up. */
import { describe, expect, it, vi } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { ERRORS, type ErrorCode, ProxyError } from '../../src/errors.ts';
import { type LimitName, ProxyLedger } from '../../src/limits/ledger.ts';
import { refusalLog } from '../../src/limits/refusal-log.ts';
import { digest, LocalSetbacks, OTHERS, waitOf } from '../../src/limits/setbacks.ts';
import { LocalTally } from '../../src/limits/tally.ts';

const limitsOf = (limits: object) =>
  parseConfig({
    providers: {
      own: { issuer: 'own', jwksFile: 'keys.json', audience: 'app', roles: ['authenticated'] },
    },
    upstreams: {
      main: {
        host: '127.0.0.1',
        database: 'app',
        secret: { env: 'SECRET' },
        roles: { authenticated: { slots: 1 } },
      },
    },
    limits,
  }).limits;
const patient = () => new AbortController().signal;
const failure = (code: ErrorCode) => new ProxyError(code, { user: 'u', role: 'r' } as never);

function open(limits: object = {}) {
  const refused: LimitName[] = [];
  const ledger = new ProxyLedger(limitsOf(limits), (limit) => refused.push(limit));
  return {
    ledger,
    refused,
    change: (other: object) => ledger.setLimits(limitsOf(other)),
    admit: (address = '192.0.2.1') => ledger.admit(address, patient()),
    /** A login from there that fails with this error, after its token has named the issuer. */
    fail: async (code: ErrorCode, { address = '192.0.2.1', issuer = 'own' } = {}) => {
      const admission = await ledger.admit(address, patient());
      try {
        admission.attempt(issuer);
        admission.failed(failure(code));
      } finally {
        admission.leave();
      }
    },
  };
}

describe('unauthenticated sockets', () => {
  it('are bounded overall and by address, and their places are given back once', () => {
    const { ledger, refused } = open({ maxUnauthenticated: 5, maxUnauthenticatedPerAddress: 2 });
    const refuse = vi.fn<() => void>();
    const enter = (address?: string) => ledger.enter(address, refuse);

    const first = enter('192.0.2.1');
    enter('192.0.2.1');
    enter('192.0.2.1');
    expect(refused).toEqual(['maxUnauthenticatedPerAddress']);
    enter('192.0.2.2');
    enter(undefined);
    enter('192.0.2.3');
    expect(refuse).toHaveBeenCalledTimes(1);
    enter('192.0.2.4');
    expect(refused).toEqual(['maxUnauthenticatedPerAddress', 'maxUnauthenticated']);
    first();
    first();
    expect(ledger.counts().unauthenticated).toBe(4);
    enter('192.0.2.1');
    expect(refuse).toHaveBeenCalledTimes(2);
  });

  it('of one IPv6 network are those of one client', () => {
    const { ledger } = open({ maxUnauthenticatedPerAddress: 2 });
    const refuse = vi.fn<() => void>();

    for (let host = 1; host <= 3; host++) ledger.enter(`2001:db8:0:1::${host}`, refuse);
    ledger.enter('2001:db8:0:2::1', refuse);

    expect(refuse).toHaveBeenCalledTimes(1);
  });
});

describe('clients', () => {
  it('are bounded overall, by address and by subject, and refused in the words of too many', async () => {
    const { admit, refused, ledger } = open({
      maxClients: 4,
      maxClientsPerAddress: 2,
      maxClientsPerSubject: 1,
    });
    const alice = { issuer: 'own', subject: 'alice' };
    const one = await admit();
    await one.claim(alice);
    const two = await admit();

    await expect(two.claim(alice)).rejects.toMatchObject({ code: 'too_many_clients' });
    await two.claim({ ...alice, issuer: 'other' });
    await expect(admit()).rejects.toMatchObject({ code: 'too_many_clients' });
    await admit('192.0.2.2');
    await admit('192.0.2.3');
    await expect(admit('192.0.2.4')).rejects.toMatchObject({ code: 'too_many_clients' });
    one.leave();
    one.leave();
    const again = await admit('192.0.2.1');
    await again.claim(alice);

    expect(refused).toEqual(['maxClientsPerSubject', 'maxClientsPerAddress', 'maxClients']);
    expect(ledger.counts()).toMatchObject({ clients: 4, refused: { maxClients: 1 } });
  });

  it('that give up while they are admitted count nowhere', async () => {
    const { ledger, admit } = open({ maxClients: 1, maxClientsPerAddress: 1 });
    const abort = new AbortController();
    const admitted = ledger.admit('192.0.2.1', abort.signal);
    abort.abort(new ProxyError('client_lost'));

    await expect(admitted).rejects.toMatchObject({ code: 'client_lost' });
    (await admit()).leave();
    expect(ledger.counts().clients).toBe(0);
  });

  it('claimed after they have left count nowhere', async () => {
    const { admit } = open({ maxClientsPerSubject: 1 });
    const alice = { issuer: 'own', subject: 'alice' };
    const gone = await admit();
    gone.leave();
    await gone.claim(alice);

    await (await admit()).claim(alice);
  });

  it('that are more than another configuration allows stay', async () => {
    const { admit, change, ledger } = open();
    const clients = [await admit(), await admit()];
    change({ maxClients: 1 });

    await expect(admit()).rejects.toMatchObject({ code: 'too_many_clients' });
    expect(ledger.counts().clients).toBe(2);
    for (const client of clients) client.leave();
    await admit();
  });
});

describe('logins', () => {
  it('are bounded by the second, and one address does not use up the rate of all', async () => {
    const { admit, refused } = open({ loginsPerSecond: 4, loginsPerSecondPerAddress: 2 });
    vi.useFakeTimers({ now: 1_000_000 });
    try {
      const outcomes = await Promise.allSettled(Array.from({ length: 50 }, () => admit()));
      expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(2);
      await admit('192.0.2.2');
      await admit('192.0.2.2');
      await expect(admit('192.0.2.3')).rejects.toMatchObject({ code: 'too_many_attempts' });
      await vi.advanceTimersByTimeAsync(1_001);
      await admit();
      expect(refused.at(-1)).toBe('loginsPerSecond');
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('failed logins', () => {
  const strict = { failedLogins: { allowed: 3, delayMs: 1_000, maxDelayMs: 4_000 } };

  it('make the next one wait, for longer each time, with tokens of that issuer from that address alone', async () => {
    const { fail, admit } = open(strict);
    for (let time = 0; time < 4; time++) await fail('token_rejected');

    await expect(fail('token_rejected')).rejects.toMatchObject({
      code: 'too_many_attempts',
      hint: 'Too many logins have failed. Try again in 1 s.',
    });
    (await admit()).attempt('another');
    (await admit('192.0.2.2')).attempt('own');
  });

  it.each(Object.keys(ERRORS) as ErrorCode[])(
    'are counted only for what the client presented: %s',
    async (code) => {
      const { fail } = open(strict);
      const counted = [
        'token_rejected',
        'token_expired',
        'token_revoked',
        'claims_rejected',
        'role_forbidden',
      ];
      for (let time = 0; time < 4; time++) await fail(code);

      const next = fail(code);

      if (counted.includes(code))
        await expect(next).rejects.toThrow('too many connection attempts');
      else await next;
    },
  );

  it('are forgotten when one succeeds', async () => {
    const { fail, admit } = open(strict);
    for (let time = 0; time < 3; time++) await fail('token_expired');
    (await admit()).succeeded('own');

    for (let time = 0; time < 3; time++) await fail('token_expired');
    (await admit()).attempt('own');
  });

  it('attack: nothing tells whether an issuer is configured', async () => {
    const { fail } = open(strict);
    const outcomes = async (issuer: string) => {
      const said: unknown[] = [];
      for (let time = 0; time < 6; time++) {
        await fail('token_rejected', { issuer }).catch(({ code, hint }) => said.push([code, hint]));
      }
      return said;
    };

    expect(await outcomes('https://configured.example')).toEqual(
      await outcomes('https://no.example'),
    );
  });
});

describe('setbacks', () => {
  const rules = { allowed: 2, delayMs: 1_000, maxDelayMs: 5_000 };
  const at = (setbacks: LocalSetbacks, issuer: string) => waitOf(setbacks.at('a'), issuer)?.leftMs;

  it('double the wait up to the longest, and are forgotten in time', () => {
    let now = 0;
    const setbacks = new LocalSetbacks(
      () => rules,
      () => now,
    );
    const waits = Array.from({ length: 7 }, () => {
      setbacks.failed('a', 'i');
      return at(setbacks, 'i');
    });
    expect(waits).toEqual([0, 0, 1_000, 2_000, 4_000, 5_000, 5_000]);
    now += 4_000;
    expect(at(setbacks, 'i')).toBe(1_000);
    now += 600_000;
    expect(at(setbacks, 'i')).toBeUndefined();
  });

  it('attack: a million addresses, or issuers that are made up, are not remembered', () => {
    const setbacks = new LocalSetbacks(() => rules);
    for (let i = 0; i < 1_000_000; i++) setbacks.failed(`address-${i}`, 'i');
    expect(setbacks.size).toBeLessThanOrEqual(10_000);
    expect(setbacks.size).toBeGreaterThan(8_999);
    for (let i = 0; i < 1_000; i++) setbacks.failed('a', digest(`issuer-${i}`));

    expect(setbacks.at('a')).toHaveLength(17);
    expect(setbacks.at('a').map(({ issuer }) => issuer)).toContain(OTHERS);
    expect(at(setbacks, digest('one more'))).toBeGreaterThan(0);
  });
});

describe('cancel requests', () => {
  it('for nobody’s session are bounded by address, and good ones are not counted', async () => {
    const { ledger, refused } = open({ missedCancelsPerSecond: 3 });
    vi.useFakeTimers({ now: 2_000_000 });
    try {
      for (let time = 0; time < 3; time++) {
        expect(await ledger.mayCancel('192.0.2.1')).toBe(true);
        ledger.missedCancel('192.0.2.1');
      }
      expect(await ledger.mayCancel('192.0.2.1')).toBe(false);
      expect(await ledger.mayCancel('192.0.2.2')).toBe(true);
      expect(refused).toEqual(['missedCancelsPerSecond']);
      await vi.advanceTimersByTimeAsync(1_001);
      expect(await ledger.mayCancel('192.0.2.1')).toBe(true);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('a tally', () => {
  it('remembers a key no longer than something is counted under it', () => {
    const tally = new LocalTally();
    for (let i = 0; i < 1_000; i++) tally.add(`key-${i}`, 1);
    expect(tally.add('key-1', 1)).toBe(false);
    for (let i = 0; i < 1_000; i++) tally.remove(`key-${i}`);

    expect(tally.size).toBe(0);
    expect(tally.add('key-1', 1)).toBe(true);
  });
});

describe('the log of refusals', () => {
  it('has one line in ten seconds for each limit, with how many there were', () => {
    vi.useFakeTimers();
    const inc = vi.fn<() => void>();
    const warn = vi.fn<(line: { limit: string; refused: number }) => void>();
    const onRefused = refusalLog({ warn } as never, { inc });
    for (let i = 0; i < 500; i++) onRefused('maxUnauthenticated', '192.0.2.1');
    onRefused('failedLogins', '192.0.2.1');
    vi.advanceTimersByTime(10_000);
    onRefused('maxUnauthenticated', '192.0.2.9');
    vi.useRealTimers();

    expect(inc).toHaveBeenCalledTimes(502);
    expect(warn.mock.calls.map(([line]) => [line.limit, line.refused])).toEqual([
      ['limits.maxUnauthenticated', 1],
      ['limits.failedLogins', 1],
      ['limits.maxUnauthenticated', 500],
    ]);
  });
});
