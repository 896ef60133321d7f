/** Each route as each principal (attack J1: PgBouncer's CVE-2026-6667, KILL_CLIENT for whoever could connect), over real TLS. */
import { request } from 'node:https';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startAdmin, type Admin } from '../../src/admin/endpoint.ts';
import { readCredentials } from '../../src/admin/principal.ts';
import { createRoutes } from '../../src/admin/routes.ts';
import { createAuthority } from '../support/certificate.ts';
import { recordedLogger } from '../support/logger.ts';
import { recording } from './recording.ts';

const WRITE = 'a-token-that-may-change-things-of-32-characters';
const READ = 'a-token-that-may-only-look-of-32-characters';
const [ours, theirs] = [createAuthority(), createAuthority()];
const bearer = (token: string) => ({ headers: { authorization: `Bearer ${token}` } });

/** What each route is for, written down here a second time. */
const ROUTES = {
  'GET /': 'public',
  'GET /healthz': 'public',
  'GET /readyz': 'public',
  'GET /sessions': 'read',
  'GET /pools': 'read',
  'GET /providers': 'read',
  'GET /metrics': 'read',
  'POST /sessions/{id}/terminate': 'write',
  'POST /terminate': 'write',
  'POST /pools/{upstream}/reconnect': 'write',
  'POST /revocations': 'write',
  'POST /reload': 'write',
  'POST /drain': 'write',
} as const;

const STRANGER = { public: 'answer', read: 401, write: 401 } as const;
const ADMINISTRATOR = { public: 'answer', read: 'answer', write: 'answer' } as const;
const PRINCIPALS = {
  nobody: [{}, STRANGER],
  'a wrong token': [bearer(`${WRITE}x`), STRANGER],
  'the read token': [bearer(READ), { public: 'answer', read: 'answer', write: 403 }],
  'the write token': [bearer(WRITE), ADMINISTRATOR],
  'a certificate': [ours.issue(['operator']), ADMINISTRATOR],
  'a certificate of another authority': [theirs.issue(['operator']), STRANGER],
} as const;

let folder: string;
let admin: Admin;
const heard: unknown[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pgjot-principals-'));
  const put = async (name: string, text: string) => {
    await writeFile(join(folder, name), text);
    return join(folder, name);
  };
  const { cert, key } = ours.issue();
  const config = {
    host: '127.0.0.1',
    port: 0,
    token: { file: await put('token', WRITE) },
    readToken: { file: await put('read', READ) },
    tls: {
      certFile: await put('crt', cert),
      keyFile: await put('key', key),
      clientCaFile: await put('ca', ours.ca),
    },
  };
  const routes = createRoutes(recording(heard));
  admin = await startAdmin(config, readCredentials(config), routes, recordedLogger());
});
afterAll(async () => {
  await admin?.close();
  await rm(folder, { recursive: true, force: true });
});

function ask(route: string, principal: object): Promise<{ status: number; text: string }> {
  const [method = '', pattern = ''] = route.split(' ');
  const path = pattern.replaceAll(/\{\w+\}/g, 'main');
  const { headers, ...certificate } = principal as { headers?: Record<string, string> };
  return new Promise((resolve, reject) => {
    const asked = request(
      {
        host: '127.0.0.1',
        port: admin.port,
        ca: ours.ca,
        agent: false,
        method,
        path,
        headers: { 'content-type': 'application/json', ...headers },
        ...certificate,
      },
      (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk.toString()));
        response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
      },
    );
    asked.on('error', reject).end(method === 'POST' ? '{"sub":"alice"}' : undefined);
  });
}

it('has no route that is not in this table', () => {
  const table = createRoutes(recording([]));
  const listed = table.map(({ method, path, permission }) => [`${method} ${path}`, permission]);

  expect(Object.fromEntries(listed)).toEqual(ROUTES);
});

describe.each(Object.entries(PRINCIPALS))('%s', (_, [shown, may]) => {
  it.each(Object.entries(ROUTES))('gets of %s what is due', async (route, permission) => {
    heard.length = 0;

    const { status, text } = await ask(route, shown);

    const due = may[permission];
    if (due === 'answer') expect([200, 202, 204, 503]).toContain(status);
    else {
      expect(status).toBe(due);
      expect(heard).toEqual([]);
    }
    for (const secret of [WRITE, READ]) expect(text).not.toContain(secret);
  });
});

it('tells strangers in one word why it is not ready, and administrators the cause', async () => {
  expect(JSON.parse((await ask('GET /readyz', {})).text)).toEqual({
    ready: false,
    reasons: ['upstreams'],
  });
  expect((await ask('GET /readyz', bearer(READ))).text).toContain('10.1.2.3');
});

it('documents every route, with an example and what it is for', () => {
  const text = readFileSync(new URL('../../docs/admin.md', import.meta.url), 'utf8');
  const sections = [...text.matchAll(/^## `((?:GET|POST) [^`]+)`$/gm)].map(([, route]) => route);
  const rows = [...text.matchAll(/^\| \[`([^`]+)`\]\(#[^)]*\) \| (\w+) \|/gm)];
  const rowsByRoute = Object.fromEntries(
    rows.map(([, route, asks]) => [route, asks === 'nothing' ? 'public' : asks]),
  );

  expect(sections).toEqual(Object.keys(ROUTES));
  expect(rowsByRoute).toEqual(ROUTES);
});
