/** The endpoint for administrators: who is heard, what is answered, and that nothing of it is left open. */
import { X509Certificate } from 'node:crypto';
import { request as askOver } from 'node:http';
import { request as askOverTls } from 'node:https';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startAdmin, type Admin } from '../../src/admin/endpoint.ts';
import { readCredentials } from '../../src/admin/principal.ts';
import { createRoutes } from '../../src/admin/routes.ts';
import { parseConfig, type ConfigInput } from '../../src/config.ts';
import { ConfigError } from '../../src/errors.ts';
import { createAuthority } from '../support/certificate.ts';
import { recordedLogger } from '../support/logger.ts';
import { recordSecret } from '../support/record.ts';
import { until } from '../support/stack.ts';
import { recording } from './recording.ts';

const TOKEN = 'an-administrators-token-of-32-characters';
recordSecret('token of an administrator', TOKEN);

let folder: string;
let admin: Admin;
const LOGGER = recordedLogger();
const start = (config: Parameters<typeof readCredentials>[0], heard: unknown[]) =>
  startAdmin(config, readCredentials(config), createRoutes(recording(heard)), LOGGER);
const heard: unknown[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-admin-'));
  await writeFile(join(folder, 'token'), TOKEN);
  admin = await start(
    { host: '127.0.0.1', port: 0, token: { file: join(folder, 'token') } },
    heard,
  );
});
afterAll(async () => {
  await admin?.close();
  await rm(folder, { recursive: true, force: true });
});

const ask = async (
  path: string,
  { method = 'POST', body, ...headers }: Record<string, string | undefined> = {},
) => {
  const response = await fetch(`http://127.0.0.1:${admin.port}${path}`, {
    method,
    headers: { authorization: `Bearer ${TOKEN}`, ...headers } as Record<string, string>,
    ...(body !== undefined && { body }),
  });
  return { status: response.status, text: await response.text() };
};

describe('the endpoint', () => {
  it('hears whoever has the token', async () => {
    heard.length = 0;

    expect(await ask('/revocations', { body: '{"sub":"alice"}' })).toEqual({
      status: 204,
      text: '',
    });
    expect(await ask('/reload')).toEqual({ status: 204, text: '' });

    expect(heard).toEqual([{ sub: 'alice' }, 'reload']);
  });

  it.each([
    ['no token', ''],
    ['another', `Bearer ${TOKEN}x`],
    ['a part of it', `Bearer ${TOKEN.slice(0, -1)}`],
    ['another scheme', `Basic ${TOKEN}`],
    ['two', `Bearer ${TOKEN} ${TOKEN}`],
  ])('hears nobody with %s', async (_, authorization) => {
    heard.length = 0;

    const { status, text } = await ask('/reload', { authorization });

    expect(status).toBe(401);
    expect(text).not.toContain(TOKEN);
    expect(heard).toEqual([]);
  });

  it.each<[string, Record<string, string>, number]>([
    ['/', {}, 405],
    ['//reload', {}, 404],
    ['/%72eload', {}, 404],
    ['/revocations/', { body: '{}' }, 404],
    ['/constructor', {}, 404],
    ['/reload', { method: 'GET' }, 405],
    ['/reload', { method: 'DELETE' }, 405],
    ['/reload', { origin: 'http://127.0.0.1' }, 403],
    ['/revocations', { body: 'x' }, 400],
    ['/revocations', { body: '' }, 400],
    ['/revocations', { body: 'x'.repeat(16_385) }, 413],
  ])('answers %s %j with %i and does nothing', async (path, request, status) => {
    heard.length = 0;

    expect((await ask(path, request)).status).toBe(status);
    expect(heard).toEqual([]);
  });

  it('asks for another token from when it is told to', async () => {
    const other = await start(
      { host: '127.0.0.1', port: 0, token: { file: join(folder, 'token') } },
      [],
    );
    const status = async (token: string) => {
      const headers = { authorization: `Bearer ${token}` };
      return (await fetch(`http://127.0.0.1:${other.port}/sessions`, { headers })).status;
    };
    const next = 'the-token-of-tomorrow-of-32-characters';

    expect([await status(TOKEN), await status(next)]).toEqual([200, 401]);
    other.setCredentials({
      token: next,
      readToken: undefined,
      tls: undefined,
      takesCertificates: false,
    });
    expect([await status(TOKEN), await status(next)]).toEqual([401, 200]);

    await other.close();
  });

  it('ends a request that does not go on, and drops whom it has no room for', async () => {
    const ended: Socket[] = [];
    const open = async () => {
      const socket = connect(admin.port, '127.0.0.1').resume();
      socket.on('error', () => {}).on('close', () => ended.push(socket));
      await once(socket, 'connect');
      socket.write('POST /reload HTTP/1.1\r\n');
      return socket;
    };
    const startedAt = performance.now();
    const first = await Promise.all(Array.from({ length: 64 }, open));
    await Promise.all(Array.from({ length: 3 }, open));

    await until(() => ended.length === 3, 2_000);
    expect(first.some((socket) => ended.includes(socket))).toBe(false);
    await until(() => ended.length === 67);
    expect(performance.now() - startedAt).toBeLessThan(8_000);
  }, 20_000);

  it('hears one request on a connection: thousands behind one another would never be over', async () => {
    heard.length = 0;
    const socket = connect(admin.port, '127.0.0.1').resume();
    const closed = new Promise((resolve) => socket.on('error', () => {}).once('close', resolve));
    const one = `POST /reload HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${TOKEN}\r\n\r\n`;
    socket.write(one.repeat(1_000));

    await closed;

    expect(heard.length).toBeLessThanOrEqual(1);
  });

  it('takes its answer away from whoever does not take it', async () => {
    const config = { host: '127.0.0.1', port: 0 };
    const metrics = async () => ({ contentType: 'text/x', text: 'x'.repeat(50_000_000) });
    const routes = createRoutes({ ...recording([]), metrics });
    const other = await startAdmin(config, readCredentials(config), routes, LOGGER, 500);
    const idler = connect(other.port, '127.0.0.1');
    const gone = new Promise((resolve) => idler.on('error', () => {}).once('close', resolve));
    idler.write('GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await once(idler, 'readable');
    // It has read some of it, and reads on only when it has been ended.
    await new Promise((resolve) => setTimeout(resolve, 800));
    let bytes = 0;
    idler.on('data', (chunk: Buffer) => (bytes += chunk.length));
    await gone;

    expect(bytes).toBeLessThan(50_000_000);
    await other.close();
  });

  it('says what is wrong with a configuration', async () => {
    const reload = () => {
      throw new ConfigError([{ path: 'upstreams.main.host', message: 'is wrong' }]);
    };
    const config = { host: '127.0.0.1', port: 0 };
    const routes = createRoutes({ ...recording([]), reload });
    const other = await startAdmin(config, readCredentials(config), routes, LOGGER);

    const response = await fetch(`http://127.0.0.1:${other.port}/reload`, { method: 'POST' });

    expect(response.status).toBe(422);
    expect(await response.json()).toEqual({ problem: 'upstreams.main.host: is wrong' });
    await other.close();
  });

  it('gives metrics in the format that is asked for, as the type that they have', async () => {
    const url = `http://127.0.0.1:${admin.port}/metrics`;
    const headers = { authorization: `Bearer ${TOKEN}`, accept: 'text/y' };

    const response = await fetch(url, { headers });

    expect(response.headers.get('content-type')).toBe('text/x');
    expect(await response.text()).toBe('as text/y');
    expect((await fetch(url)).status).toBe(401);
  });

  it('closes although somebody holds a connection', async () => {
    const other = await start({ host: '127.0.0.1', port: 0 }, []);
    const held = connect(other.port, '127.0.0.1');
    await once(held, 'connect');
    held.on('error', () => {});
    const closed = new Promise((resolve) => held.resume().once('close', resolve));
    held.write('POST /reload HTTP/1.1\r\n');

    await other.close();

    await closed;
  });
});

describe('a page of another site', () => {
  const PAGE = { 'sec-fetch-mode': 'no-cors', 'sec-fetch-dest': 'image' };
  const VISIT = { 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' };
  const FRAME = { 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'iframe' };
  const FOREIGN = ['cross-site', 'same-site'] as const;

  /** With the token: fetch() would say itself what it is. */
  const status = (method: string, path: string, headers: Record<string, string>) =>
    new Promise<number | undefined>((resolve, reject) => {
      const authorization = `Bearer ${TOKEN}`;
      const to = { port: admin.port, host: '127.0.0.1', path, method };
      askOver({ ...to, headers: { authorization, ...headers } }, (response) =>
        resolve(response.resume().statusCode),
      )
        .on('error', reject)
        .end();
    });

  it.each(FOREIGN.flatMap((site) => [PAGE, FRAME].map((how) => [site, how] as const)))(
    'of kind %s is answered nothing, whatever it shows: %j',
    async (site, how) => {
      heard.length = 0;
      const headers = { 'sec-fetch-site': site, ...how };

      for (const path of ['/', '/healthz', '/readyz', '/sessions', '/metrics']) {
        expect(await status('GET', path, headers)).toBe(403);
      }
      for (const path of ['/reload', '/drain']) {
        expect(await status('POST', path, headers)).toBe(403);
      }
      expect(heard).toEqual([]);
    },
  );

  it.each(FOREIGN)('of kind %s may have a link to here, and no form', async (site) => {
    heard.length = 0;
    const headers = { 'sec-fetch-site': site, ...VISIT };

    expect(await status('GET', '/', headers)).toBe(200);
    expect(await status('POST', '/reload', headers)).toBe(403);
    expect(heard).toEqual([]);
  });

  it.each(['same-origin', 'none'])('is none where the browser says "%s"', async (site) => {
    expect(await status('GET', '/sessions', { 'sec-fetch-site': site })).toBe(200);
  });
});

describe('its certificate', () => {
  const authority = createAuthority();
  const put = async (name: string, text: string) => {
    await writeFile(join(folder, `${name}.new`), text);
    await rename(join(folder, `${name}.new`), join(folder, name));
    return join(folder, name);
  };
  async function putPair(
    name: string,
  ): Promise<{ certFile: string; keyFile: string; serial: string }> {
    const { cert, key } = authority.issue();
    const certFile = await put(`${name}.crt`, cert);
    const keyFile = await put(`${name}.key`, key);
    return { certFile, keyFile, serial: new X509Certificate(cert).serialNumber };
  }
  async function serialAt({ port }: Admin): Promise<string> {
    const socket = connectTls({ port, host: '127.0.0.1', ca: authority.ca });
    await once(socket, 'secureConnect');
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  }

  it('is another one when its files have changed, or another configuration names others', async () => {
    const token = { file: join(folder, 'token') };
    const first = await putPair('first');
    const configured = ({ certFile, keyFile }: typeof first) => ({
      host: '127.0.0.1',
      port: 0,
      token,
      tls: { certFile, keyFile },
    });
    const other = await start(configured(first), []);
    expect(await serialAt(other)).toBe(first.serial);

    const rotated = await putPair('first');
    await until(async () => (await serialAt(other)) === rotated.serial);

    const second = await putPair('second');
    other.setCredentials(readCredentials(configured(second)));
    expect(await serialAt(other)).toBe(second.serial);
    const again = await putPair('second');
    await until(async () => (await serialAt(other)) === again.serial);

    // Half of a pair is none.
    await put('second.crt', authority.issue().cert);
    await expect(async () => readCredentials(configured(second))).rejects.toThrow('admin.tls');
    expect(await serialAt(other)).toBe(again.serial);
    await other.close();
  });

  it('is asked for of administrators as another authority signs it, when that file has changed', async () => {
    const [ours, theirs] = [createAuthority(), createAuthority()];
    const { certFile, keyFile } = await putPair('ours');
    const clientCaFile = await put('clients', ours.ca);
    const config = { host: '127.0.0.1', port: 0, tls: { certFile, keyFile, clientCaFile } };
    const other = await start(config, []);
    const statusWith = (certificate: object) =>
      new Promise<number | undefined>((resolve, reject) => {
        const asked = askOverTls(
          {
            host: '127.0.0.1',
            port: other.port,
            path: '/sessions',
            agent: false,
            ca: authority.ca,
            ...certificate,
          },
          (response) => resolve(response.resume().statusCode),
        );
        asked.on('error', reject).end();
      });
    const [one, another] = [ours.issue(['operator']), theirs.issue(['operator'])];
    expect([await statusWith(one), await statusWith(another)]).toEqual([200, 401]);

    await put('clients', theirs.ca);
    await until(async () => (await statusWith(another)) === 200);
    expect(await statusWith(one)).toBe(401);
    await other.close();
  });
});

describe('the endpoint without a token', () => {
  let open: Admin;
  const asked: unknown[] = [];
  beforeAll(async () => {
    open = await start({ host: '127.0.0.1', port: 0 }, asked);
  });
  afterAll(() => open?.close());

  /** fetch() lets nobody choose the Host. */
  const status = (path: string, headers: Record<string, string>, body = '') =>
    new Promise<number | undefined>((resolve, reject) => {
      askOver({ port: open.port, host: '127.0.0.1', path, method: 'POST', headers }, (response) => {
        response.resume();
        resolve(response.statusCode);
      })
        .on('error', reject)
        .end(body);
    });
  const JSON_TYPE = { 'content-type': 'application/json' };

  it.each(['127.0.0.1', '127.0.0.1:9187', 'localhost', 'LOCALHOST:1', '[::1]:9187'])(
    'hears who asks %s',
    async (host) => {
      expect(await status('/reload', { host })).toBe(204);
    },
  );

  it.each([
    'rebound.example',
    'rebound.example:9187',
    '127.0.0.1.rebound.example',
    'localhost.rebound.example',
    '192.168.0.1',
    '0.0.0.0',
    '[::2]',
    '?',
    '/',
    '127.0.0.1@rebound.example',
    ':',
  ])('hears nobody who asks for "%s"', async (host) => {
    asked.length = 0;

    expect(await status('/reload', { host })).toBe(403);
    expect(await status('/revocations', { host, ...JSON_TYPE }, '{"sub":"alice"}')).toBe(403);
    expect(asked).toEqual([]);
  });

  it.each([
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    'application/jsonp',
  ])('takes no body of type %s', async (type) => {
    asked.length = 0;

    expect(await status('/revocations', { 'content-type': type }, '{"sub":"alice"}')).toBe(415);
    expect(await status('/reload', { 'content-type': type }, 'x')).toBe(415);
    expect(asked).toEqual([]);
  });

  it('takes JSON, and no body where none is due', async () => {
    asked.length = 0;

    expect(await status('/revocations', JSON_TYPE, '{"sub":"alice"}')).toBe(204);
    expect(
      await status(
        '/revocations',
        { 'content-type': 'Application/JSON; charset=utf-8' },
        '{"sub":"bob"}',
      ),
    ).toBe(204);
    expect(await status('/revocations', {}, '{"sub":"carol"}')).toBe(415);
    expect(await status('/reload', {})).toBe(204);

    expect(asked).toEqual([{ sub: 'alice' }, { sub: 'bob' }, 'reload']);
  });
});

describe('a configuration of it', () => {
  const configured = (admin_: ConfigInput['admin']) =>
    parseConfig({
      providers: {
        own: {
          issuer: 'https://id.example',
          jwksUri: 'https://id.example/k',
          audience: 'a',
          roles: ['r'],
        },
      },
      upstreams: {
        main: { host: 'db', database: 'd', secret: { env: 'S' }, roles: { r: { slots: 1 } } },
      },
      admin: admin_,
    });

  it('needs a token where the address is not loopback', () => {
    expect(() => configured({ host: '0.0.0.0' })).toThrow(
      'admin.token: or admin.tls.clientCaFile is missing: 0.0.0.0 is not a loopback address',
    );
    expect(configured({ host: '0.0.0.0', token: { env: 'T' } }).admin).toMatchObject({
      port: 9187,
    });
    expect(configured({}).admin).toEqual({ host: '127.0.0.1', port: 9187 });
  });
});
