/** Signing in to PostgreSQL with the tokens of a real OpenID provider: discovery, both kinds of token, and new keys. */
import { existsSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createProxy, parseConfig, type Proxy } from '../../src/proxy.ts';
import { recordedLogger } from '../support/logger.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import type { OpenIdProvider } from './provider.ts';

const missing = !existsSync(new URL('node_modules/oidc-provider/package.json', import.meta.url));
if (missing) {
  console.log('skipped signing in with oidc-provider: run npm ci --prefix test/oidc');
}

describe.skipIf(missing)('a real OpenID provider', () => {
  let idp: OpenIdProvider;
  let stack: Stack;
  let proxy: Proxy;
  let port: number;
  const logs: string[] = [];

  beforeAll(async () => {
    // It says at length that it is not set up for production, and that it would rather have Node 22.
    for (const level of ['info', 'warn'] as const) {
      const say = console[level];
      vi.spyOn(console, level).mockImplementation((...words) => {
        if (!String(words[0]).includes('oidc-provider ')) say(...words);
      });
    }
    const { RESOURCE, startOpenIdProvider } = await import('./provider.ts');
    idp = await startOpenIdProvider();
    stack = await startStack();
    const discovery = await fetch(`${idp.issuer}/.well-known/openid-configuration`);
    const { issuer, jwks_uri } = (await discovery.json()) as { issuer: string; jwks_uri: string };
    const config = parseConfig({
      ...stack.config,
      providers: {
        idp: { issuer, jwksUri: jwks_uri, audience: RESOURCE, roles: ['authenticated'] },
      },
      // The keys are asked for every three seconds, and two fetches in two seconds are the ration.
      jwks: { freshMs: 6_000, cooldownMs: 1_000 },
    });
    proxy = createProxy(config, {
      logger: recordedLogger((line) => void logs.push(line)),
    });
    ({ port } = await proxy.start());
  });

  afterAll(async () => {
    await proxy.close();
    await stack.close();
    await idp[Symbol.asyncDispose]();
    vi.restoreAllMocks();
  });

  /** Who the database says this token's holder is, or what it says instead. */
  async function whoIs(password: string): Promise<string> {
    const client = new pg.Client({
      host: '127.0.0.1',
      port,
      database: 'app',
      user: 'authenticated',
      password,
    });
    client.on('error', () => {});
    try {
      await client.connect();
      const { rows } = await client.query<{ who: string }>(
        'select auth.user_id() as who, auth.session() -> $1 as scope',
        ['scope'],
      );
      return JSON.stringify(rows[0]);
    } catch (error) {
      const { code, detail } = error as pg.DatabaseError;
      return [code, detail].filter((part) => part !== undefined).join(' ');
    } finally {
      await client.end();
    }
  }

  it('signs alice and bob in, each as themselves', async () => {
    const [alice, bob] = await Promise.all([idp.signIn('alice'), idp.signIn('bob')]);

    expect(await whoIs(alice.access_token)).toBe('{"who":"alice","scope":"todos"}');
    expect(await whoIs(bob.access_token)).toBe('{"who":"bob","scope":"todos"}');
  });

  it('does not take an ID token, which is for the client, for an access token', async () => {
    const { id_token } = await idp.signIn('alice');

    expect(await whoIs(id_token)).toBe(
      '28P01 The claim "aud" is missing or names another audience.',
    );
  });

  it('does not take a token that is no JWT', async () => {
    const { access_token } = await idp.signIn('alice', { resource: false });

    expect(await whoIs(access_token)).toBe('28P01');
  });

  it('lets a token of a new key in at once, and one of the old key while that is published', async () => {
    const old = await idp.signIn('alice');
    idp.rotate({ keepOld: true });
    const fresh = await idp.signIn('bob');

    expect(await whoIs(fresh.access_token)).toBe('{"who":"bob","scope":"todos"}');
    expect(await whoIs(old.access_token)).toBe('{"who":"alice","scope":"todos"}');
  });

  it('refuses a token that was good when its key is published no more', async () => {
    const { access_token } = await idp.signIn('alice');
    expect(await whoIs(access_token)).toMatch(/alice/);

    idp.rotate({ keepOld: false });

    await until(async () => (await whoIs(access_token)) === '28P01');
    const fresh = await idp.signIn('alice');
    await until(async () => (await whoIs(fresh.access_token)).includes('alice'));
  });

  it('was asked for its keys no more often than the ration allows', async () => {
    const { access_token } = await idp.signIn('alice');
    const [before, started] = [idp.keyFetches(), performance.now()];
    let logins = 0;
    for (; performance.now() - started < 1_000; logins += 1) await whoIs(access_token);

    const rations = Math.ceil((performance.now() - started) / 2_000);
    expect(logins).toBeGreaterThan(2);
    expect(idp.keyFetches() - before).toBeLessThanOrEqual(2 * rations);
  });

  it('has no token of its users in our log', () => {
    const text = logs.join('\n');

    expect(text).toContain('"subject":"alice"');
    expect(text).not.toContain('eyJ');
  });
});
