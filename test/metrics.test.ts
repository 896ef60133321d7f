/** The metrics, before a real PostgreSQL: that they count what happens, and that nobody who connects makes more of them. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseConfig } from '../src/config.ts';
import { ConnectionMetrics } from '../src/connection-metrics.ts';
import { ConnectionRecord } from '../src/connection-record.ts';
import { ProxyError } from '../src/errors.ts';
import type { Asking } from '../src/identity/authentication.ts';
import type { Identity } from '../src/identity/policy.ts';
import { createMetrics } from '../src/metrics.ts';
import { addUp, cumulative, render } from '../src/metrics-sample.ts';
import { watchProcess } from '../src/metrics-process.ts';
import type { Outcome } from '../src/splice/splice.ts';
import type { Lease } from '../src/upstream/pool.ts';
import { passwordMessage, query, startup } from './e2e/parity/bytes.ts';
import { cancel, RawClient } from './e2e/raw-client.ts';
import { readScrape, type Scrape } from './support/scrape.ts';
import { startStack, until, type Stack } from './support/stack.ts';

const MAIN = { upstream: 'main', role: 'authenticated' };

/** What a proxy is scraped for. */
const scrape = async ({ proxy }: Pick<Stack, 'proxy'>, accept?: string): Promise<Scrape> =>
  readScrape((await proxy.metrics(accept)).text);

describe('a proxy counts', () => {
  let stack: Stack;
  beforeAll(async () => {
    stack = await startStack({
      tls: true,
      slots: 3,
      upstream: { pool: { reuse: 'same-identity', spares: 0 }, acquireTimeoutMs: 300 },
    });
  });
  afterAll(async () => {
    await stack?.close();
  });

  /** By how much each series has grown by what `work` does. */
  const growth = async (work: () => Promise<void>): Promise<Scrape['sum']> => {
    const before = await scrape(stack);
    await work();
    await until(() => stack.proxy.counts().connections === 0);
    const after = await scrape(stack);
    return (...asked) => after.sum(...asked) - before.sum(...asked);
  };

  it('a login, each phase of it, and the session that it began', async () => {
    const grown = await growth(async () => {
      const client = await stack.connect('alice');
      expect((await scrape(stack)).sum('pgjot_sessions', MAIN)).toBe(1);
      expect((await scrape(stack)).sum('pgjot_slots', { ...MAIN, state: 'busy' })).toBe(1);
      await client.end();
    });

    expect(grown('pgjot_logins_total', { provider: 'test', outcome: 'accepted' })).toBe(1);
    expect(grown('pgjot_logins_total')).toBe(1);
    expect(grown('pgjot_login_seconds_count')).toBe(1);
    for (const phase of ['handshake', 'token', 'verify', 'acquire', 'welcome']) {
      expect(grown('pgjot_login_phase_seconds_count', { phase })).toBe(1);
    }
    const phases = grown('pgjot_login_phase_seconds_sum');
    expect(phases).toBeGreaterThan(0);
    // But for rounding: a sum of parts may be off by a bit.
    expect(phases).toBeCloseTo(grown('pgjot_login_seconds_sum'), 9);
    expect(grown('pgjot_session_ends_total', { ended_by: 'client', reason: '' })).toBe(1);
    expect(grown('pgjot_connections_accepted_total')).toBe(1);
    expect((await scrape(stack)).sum('pgjot_sessions')).toBe(0);
  });

  it('bytes while they pass, and never fewer than before', async () => {
    const client = await stack.connect('alice');
    const direction = 'upstream_to_client';
    const before = (await scrape(stack)).sum('pgjot_bytes_total', { direction });

    await client.query("select repeat('x', 100000)");

    const during = (await scrape(stack)).sum('pgjot_bytes_total', { direction });
    await client.end();
    await until(() => stack.proxy.counts().connections === 0);
    const after = (await scrape(stack)).sum('pgjot_bytes_total', { direction });
    expect(during - before).toBeGreaterThanOrEqual(100_000);
    expect(during - before).toBeLessThan(101_000);
    expect(after).toBe(during);
    const sent = (await scrape(stack)).sum('pgjot_bytes_total', {
      direction: 'client_to_upstream',
    });
    expect(sent).toBeGreaterThan("select repeat('x', 100000)".length);
  });

  it('refusals by their reason, and by the provider once its signature is known to be good', async () => {
    const signIn = (password: string) =>
      stack.connect('alice', { password }).then(
        (client) => client.end(),
        () => {},
      );

    const grown = await growth(async () => {
      await signIn('eyJub3.a.token');
      await signIn(await stack.token('alice', {}, { expiresIn: -600 }));
      await signIn(await stack.token('alice', { aud: 'another' }));
    });

    const refused = { outcome: 'refused' };
    expect(
      grown('pgjot_logins_total', { ...refused, provider: '', reason: 'token_rejected' }),
    ).toBe(1);
    expect(
      grown('pgjot_logins_total', { ...refused, provider: 'test', reason: 'token_expired' }),
    ).toBe(1);
    expect(
      grown('pgjot_logins_total', { ...refused, provider: 'test', reason: 'claims_rejected' }),
    ).toBe(1);
    expect(grown('pgjot_logins_total')).toBe(3);
    expect(grown('pgjot_login_seconds_count')).toBe(0);
  });

  it('sessions that are fresh and those that are used again, and tokens seen before', async () => {
    const password = await stack.token('reuser');
    const grown = await growth(async () => {
      for (let login = 0; login < 3; login++) {
        const client = await stack.connect('reuser', { password });
        await client.end();
        await until(async () => (await scrape(stack)).sum('pgjot_slots', { state: 'idle' }) > 0);
      }
    });

    expect(grown('pgjot_leases_total', { ...MAIN, source: 'fresh' })).toBe(1);
    expect(grown('pgjot_leases_total', { ...MAIN, source: 'reused' })).toBe(2);
    expect(grown('pgjot_tokens_verified_total', { provider: 'test', cache: 'miss' })).toBe(1);
    expect(grown('pgjot_tokens_verified_total', { provider: 'test', cache: 'hit' })).toBe(2);
    expect(grown('pgjot_slot_wait_seconds_count', MAIN)).toBe(3);
  });

  it('who waits for a slot, how long, and that it was in vain', async () => {
    const grown = await growth(async () => {
      const clients = await Promise.all(['a', 'b', 'c'].map((sub) => stack.connect(sub)));
      const late = stack.connect('d').catch((error: { code?: string }) => error.code);
      await until(async () => (await scrape(stack)).sum('pgjot_logins_waiting', MAIN) === 1);
      expect(await late).toBe('53300');
      await Promise.all(clients.map((client) => client.end()));
    });

    expect(grown('pgjot_limits_hit_total', { limit: 'pool_timeout' })).toBe(1);
    expect(grown('pgjot_slot_wait_seconds_count', MAIN)).toBe(4);
    expect(grown('pgjot_slot_wait_seconds_sum', MAIN)).toBeGreaterThan(0.29);
    expect((await scrape(stack)).sum('pgjot_logins_waiting')).toBe(0);
    expect((await scrape(stack)).sum('pgjot_slots_configured', MAIN)).toBe(3);
  });

  it('cancel requests, and what became of them', async () => {
    const grown = await growth(async () => {
      const client = await RawClient.login({ ...stack, tls: true }, await stack.token('alice'));
      client.send(query('select pg_sleep(20)'));
      await cancel(stack, { ...client.key, secretKey: Buffer.from('nope') });
      await cancel(stack, client.key);
      client.destroy();
    });

    expect(grown('pgjot_cancel_requests_total')).toBe(2);
    expect(grown('pgjot_cancels_total', { outcome: 'taken' })).toBe(1);
    expect(grown('pgjot_cancels_total', { outcome: 'unknown_key' })).toBe(1);
  });

  it('configurations that were taken and those that were not', async () => {
    const grown = await growth(async () => {
      stack.proxy.reload(parseConfig(stack.config));
      expect((await scrape(stack)).sum('pgjot_config_last_reload_successful')).toBe(1);
      expect(() => stack.proxy.reload(() => parseConfig({}))).toThrow('providers');
    });

    expect(grown('pgjot_config_reloads_total', { outcome: 'success' })).toBe(1);
    expect(grown('pgjot_config_reloads_total', { outcome: 'failure' })).toBe(1);
    const now = await scrape(stack);
    expect(now.sum('pgjot_config_last_reload_successful')).toBe(0);
    expect(now.sum('pgjot_config_age_seconds')).toBeLessThan(60);
  });

  it('keys and their age, the certificate, the build', async () => {
    const now = await scrape(stack);

    expect(now.sum('pgjot_jwks_keys', { provider: 'test' })).toBeGreaterThan(0);
    expect(now.sum('pgjot_jwks_age_seconds', { provider: 'test' })).toBeGreaterThan(0);
    expect(
      now.sum('pgjot_jwks_fetches_total', { provider: 'test', outcome: 'success' }),
    ).toBeGreaterThan(0);
    expect(now.sum('pgjot_certificate_expiry_timestamp_seconds')).toBeGreaterThan(
      Date.now() / 1000,
    );
    expect(now.sum('pgjot_build_info', { node: process.versions.node })).toBe(1);
  });

  it('revocations, and the sessions that they end', async () => {
    const grown = await growth(async () => {
      const client = await stack.connect('mallory');
      stack.proxy.revoke({ sub: 'mallory' });
      await until(() => stack.proxy.counts().connections === 0);
      await client.end().catch(() => {});
    });

    expect(grown('pgjot_revocations')).toBe(1);
    expect(
      grown('pgjot_session_ends_total', { ended_by: 'proxy', reason: 'session_revoked' }),
    ).toBe(1);
  });
});

describe('who connects', () => {
  it('makes no series, whatever they say of themselves (attack I6)', async () => {
    await using stack = await startStack({
      slots: 2,
      roles: { auditor: { slots: 2 } },
      provider: { roles: ['authenticated', 'auditor'] },
      // All are to be looked at.
      limits: { failedLogins: { allowed: 1_000 } },
    });
    const strange = (number: number) => `str4nge"} ${number} 🙂`;
    const tokens = [
      (number: number) => stack.token('alice', { iss: `https://str4nge-${number}.example` }),
      (number: number) =>
        stack.token(strange(number), { role: strange(number), jti: String(number) }),
      (number: number) => stack.token('alice', {}, { kid: `str4nge-${number}` }),
      async (number: number) => strange(number),
    ];
    const arrive = async (number: number) => {
      const client = await RawClient.open(stack);
      const user = number % 3 === 0 ? `${strange(number)}\n` : 'authenticated';
      const database = number % 5 === 0 ? strange(number) : 'app';
      const token = await (tokens[number % 4] as (typeof tokens)[0])(number);
      const said = startup([
        ['user', user],
        ['database', database],
        ['application_name', strange(number)],
      ]);
      client.send(said, passwordMessage(token));
      await until(() => client.closed || client.heard.some(({ type }) => type === 'Z'));
      client.destroy();
    };
    const wave = async (from: number) => {
      for (let number = from; number < from + 60; number += 10) {
        await Promise.all(Array.from({ length: 10 }, (_, index) => arrive(number + index)));
      }
      await until(() => stack.proxy.counts().connections === 0);
      return scrape(stack);
    };

    const first = await wave(0);
    const second = await wave(60);

    expect(second.sum('pgjot_logins_total')).toBe(120);
    expect(second.sum('pgjot_logins_total', { outcome: 'accepted' })).toBeGreaterThan(10);
    expect(second.text).not.toMatch(/str4nge/i);
    expect([...second.series.keys()]).toEqual([...first.series.keys()]);
    expect(second.series.size).toBeLessThanOrEqual(1_000);
  }, 60_000);
});

describe('a session that a mistake of ours ends', () => {
  it('counts as ended, once, and not as a login that was refused', async () => {
    const metrics = createMetrics();
    const connections = new ConnectionMetrics(metrics);
    metrics.onSample(() => connections.collect());
    const bytes = { clientToUpstream: 1, upstreamToClient: 2 };
    const mistake = new ProxyError('internal');
    const ended = { endedBy: 'proxy', error: mistake, bytes } as Outcome;

    const log = new ConnectionRecord('192.0.2.1', [connections]);
    log.onIdentity({} as Asking, { provider: 'own', ...MAIN } as Identity);
    log.onWelcome({ slot: 's', cancelTarget: { processId: 1 } } as Lease, {
      end: () => {},
      progress: { state: 'idle', bytes },
    });
    log.onRefusal(mistake);
    log.onEnd(ended);

    const now = readScrape((await render(await metrics.sample())).text);
    expect(now.sum('pgjot_sessions')).toBe(0);
    expect(now.sum('pgjot_session_ends_total', { reason: 'internal' })).toBe(1);
    expect(now.sum('pgjot_logins_total')).toBe(1);
    expect(now.sum('pgjot_bytes_total')).toBe(3);
  });
});

describe('the watch over a process', () => {
  it('sees what holds the event loop up (fault H6), and is over when it is ended', async () => {
    const metrics = createMetrics();
    const end = watchProcess(metrics);
    const read = async () => readScrape((await render(await metrics.sample())).text);
    const bucket = 'pgjot_event_loop_delay_seconds_bucket';
    const blockedUntil = performance.now() + 500;
    while (performance.now() < blockedUntil);

    const now = await until(async () => {
      const seen = await read();
      return seen.sum(bucket, { le: '+Inf' }) > seen.sum(bucket, { le: '0.25' }) && seen;
    });
    for (const name of [
      'process_cpu_seconds_total',
      'process_resident_memory_bytes',
      'process_start_time_seconds',
    ]) {
      expect(now.sum(name)).toBeGreaterThan(0);
    }
    expect(now.sum('process_start_time_seconds')).toBeLessThanOrEqual(Date.now() / 1000);
    end();
    const last = await read();
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    expect((await read()).sum('process_cpu_seconds_total')).toBe(
      last.sum('process_cpu_seconds_total'),
    );
    expect((await read()).sum(bucket)).toBe(last.sum(bucket));
  });
});

describe('a sample', () => {
  const counted = async (logins: number, open: number) => {
    const metrics = createMetrics();
    metrics.logins.inc({ provider: 'p', outcome: 'accepted', reason: '' }, logins);
    metrics.loginSeconds.observe(logins);
    metrics.connections.set(open);
    return metrics.sample();
  };
  const textOf = async (...samples: Awaited<ReturnType<typeof counted>>[]) =>
    readScrape((await render(await addUp(samples))).text);

  it('adds up with others, but for what is one and the same for all', async () => {
    const sum = await textOf(await counted(1, 2), await counted(3, 4));

    expect(sum.sum('pgjot_logins_total')).toBe(4);
    expect(sum.sum('pgjot_login_seconds_sum')).toBe(4);
    expect(sum.sum('pgjot_login_seconds_bucket', { le: '1' })).toBe(1);
    expect(sum.sum('pgjot_connections')).toBe(6);
    expect(sum.sum('pgjot_build_info')).toBe(1);
    expect(sum.sum('pgjot_config_last_reload_successful')).toBe(1);
  });

  it('of a process that is gone counts as far as it was counted', async () => {
    const gone = cumulative(await addUp([[], cumulative(await counted(5, 9))]));

    const sum = await textOf(await counted(1, 2), gone);

    expect(sum.sum('pgjot_logins_total')).toBe(6);
    expect(sum.sum('pgjot_connections')).toBe(2);
  });

  it('adds up to the same in any order, to the last bit', async () => {
    const [a, b, c] = [await counted(0.1, 0), await counted(0.2, 0), await counted(0.3, 0)];
    expect(0.1 + 0.2 + 0.3).not.toBe(0.3 + 0.2 + 0.1);

    const sum = (await textOf(a, b, c)).sum('pgjot_login_seconds_sum');

    expect(sum).toBeCloseTo(0.6, 5);
    expect((await textOf(c, b, a)).sum('pgjot_login_seconds_sum')).toBe(sum);
    const gone = cumulative(await addUp([c, a]));
    expect((await textOf(gone, b)).sum('pgjot_login_seconds_sum')).toBe(sum);
  });

  it('is text as Prometheus asks for it', async () => {
    const sample = await counted(1, 2);
    const old = await render(sample, 'text/plain;version=0.0.4');
    const open = await render(
      sample,
      'application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
    );

    expect(old.contentType).toBe('text/plain; version=0.0.4; charset=utf-8');
    expect(old.text).toContain('# TYPE pgjot_logins_total counter\npgjot_logins_total{');
    expect(open.contentType).toBe('application/openmetrics-text; version=1.0.0; charset=utf-8');
    expect(open.text).toContain('# TYPE pgjot_logins counter\npgjot_logins_total{');
    expect(open.text).toMatch(/\n# EOF\n$/);
    expect((await textOf(sample)).series).toEqual(readScrape(open.text).series);
  });
});
