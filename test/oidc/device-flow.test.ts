/**
 * psql 18 signs in through a real OpenID provider, with nothing but the address of one: the whole of `docs/oauth.md`.
 *
 * Needs a psql that was built with libcurl, for libpq's own device authorization flow (RFC 8628).
 */
import { existsSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ending, start, versionOf } from '../clients/command.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import type { OpenIdProvider } from './provider.ts';

const missing = !existsSync(new URL('node_modules/oidc-provider/package.json', import.meta.url));
const psql = versionOf('psql') ?? 0;
if (missing) console.log('skipped the device flow: run npm ci --prefix test/oidc');
else if (psql < 18) console.log('skipped the device flow: no psql 18 on the PATH');

describe.skipIf(missing || psql < 18)('psql', () => {
  let idp: OpenIdProvider;
  let stack: Stack;
  let client: string;

  beforeAll(async () => {
    // It says at length that it is not set up for production.
    vi.spyOn(console, 'warn').mockImplementation(() => {});
    vi.spyOn(console, 'info').mockImplementation(() => {});
    const { DEVICE_CLIENT, RESOURCE, startOpenIdProvider } = await import('./provider.ts');
    client = DEVICE_CLIENT;
    idp = await startOpenIdProvider();
    stack = await startStack({
      listen: { authentication: 'oauth', oauth: { scope: 'openid todos' } },
      provider: { issuer: idp.issuer, jwksUri: `${idp.issuer}/jwks`, audience: RESOURCE },
    });
  });
  afterAll(async () => {
    await stack.close();
    await idp[Symbol.asyncDispose]();
    vi.restoreAllMocks();
  });

  it('shows a code, and is alice once she has entered it', async ({ skip }) => {
    const { host, port, database } = stack;
    const settings = { host, port, dbname: database, user: 'authenticated', require_auth: 'oauth' };
    const oauth = { oauth_issuer: idp.issuer, oauth_client_id: client };
    const connection = Object.entries({ ...settings, ...oauth }).map((pair) => pair.join('='));
    const child = start('psql', ['-XAtc', 'select auth.user_id()', connection.join(' ')], {
      // Plain http, which is all that this test's provider speaks, is for debugging alone.
      PGOAUTHDEBUG: 'UNSAFE',
    });
    let said = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const ended = ending(child);

    const prompt = await until(
      () =>
        /^Visit (\S+) and enter the code: (\S+)$/m.exec(said) ??
        /^psql: error: .*/m.exec(said) ??
        undefined,
    );
    if (prompt[0].includes('no OAuth flows are available')) {
      console.log('skipped the device flow: this psql comes without libpq-oauth');
      skip();
    }
    const [, page, code] = prompt;
    await enterCode(page ?? prompt[0], code ?? '', 'alice');

    expect(await ended).toMatchObject({ code: 0, stdout: 'alice\n' });
    const logins = stack.logs.filter((line) => line.includes('"event":"login"'));
    expect(logins.map((line) => JSON.parse(line) as unknown)).toMatchObject([
      { outcome: 'discovery' },
      { outcome: 'accepted', subject: 'alice' },
    ]);
  });
});

/** What a browser does with the page that psql names: the code, the login and the consent, each in its form. */
async function enterCode(page: string, code: string, user: string): Promise<void> {
  const cookies = new Map<string, string>();
  const send = async (url: URL, form?: Record<string, string>): Promise<Response> => {
    const response = await fetch(url, {
      redirect: 'manual',
      headers: { cookie: [...cookies].map((pair) => pair.join('=')).join('; ') },
      ...(form && { method: 'POST', body: new URLSearchParams(form) }),
    });
    for (const cookie of response.headers.getSetCookie()) {
      const [name = '', value = ''] = (cookie.split(';')[0] ?? '').split(/=(.*)/s);
      cookies.set(name, value);
    }
    return response;
  };
  let url = new URL(page);
  const [, xsrf = ''] = /name="xsrf" value="(\w+)"/.exec(await (await send(url)).text()) ?? [];
  const forms = [{ prompt: 'login', login: user, password: 'any' }, { prompt: 'consent' }];
  let response = await send(url, { xsrf, user_code: code, confirm: 'yes' });
  for (let hops = 0; hops < 10; hops++) {
    const location = response.headers.get('location');
    if (location === null) break;
    url = new URL(location, url);
    response = await send(
      url,
      url.pathname.startsWith('/interaction/') ? forms.shift() : undefined,
    );
  }
  expect(await response.text()).toContain('Sign-in Success');
}
