/** What an issuer, or whoever answers for its name, may do to a download: attacks D2 and D3, on real sockets. */
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import {
  type AddressInfo,
  createServer,
  type LookupFunction,
  type Server,
  type Socket,
} from 'node:net';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { download } from '../../src/identity/download.ts';
import { createAuthority } from '../support/certificate.ts';

afterEach(() => {
  vi.unstubAllEnvs();
});

interface Site extends AsyncDisposable {
  readonly port: number;
  /** How many connections came. */
  readonly connections: number;
  /** Bytes that went out. */
  bytesSent(): number;
}

async function open(server: Server): Promise<Site> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on('connection', (socket: Socket) => {
    connections += 1;
    sockets.add(socket.on('error', () => {}));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    get connections() {
      return connections;
    },
    bytesSent: () => [...sockets].reduce((sum, { bytesWritten }) => sum + bytesWritten, 0),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A server that answers every request with `answer`. */
const httpSite = (answer: (response: ServerResponse) => void) =>
  open(createHttpServer((_, response) => answer(response)));

/** A server that says `text` to whoever connects, again and again where `forever`. */
const rawSite = (text: string, { forever = false } = {}) =>
  open(
    createServer((socket) => {
      socket.resume();
      const say = () => {
        if (forever) while (!socket.destroyed && socket.write(text));
        else socket.end(text);
      };
      if (forever) socket.on('drain', say);
      say();
    }),
  );

/** A resolver for which every name has these addresses; with `later`, those from the second question on. */
function resolver(addresses: readonly string[], later = addresses) {
  const asked: string[] = [];
  const lookup: LookupFunction = (hostname, { all }, callback) => {
    const found = (asked.length === 0 ? addresses : later).map((address) => ({
      address,
      family: address.includes(':') ? 6 : 4,
    }));
    asked.push(hostname);
    if (all) callback(null, found);
    else callback(null, found[0]?.address ?? '', found[0]?.family);
  };
  return { asked, lookup };
}

interface Given {
  readonly lookup?: LookupFunction;
  readonly privateHosts?: readonly string[];
  readonly timeoutMs?: number;
}

async function get(uri: string, { timeoutMs = 10_000, privateHosts = [], lookup }: Given = {}) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(new Error('too late')), timeoutMs);
  try {
    const options = { signal: abort.signal, maxBytes: 100_000, accept: 'application/json' };
    return await download(uri, { ...options, privateHosts, ...(lookup && { lookup }) });
  } finally {
    clearTimeout(timer);
  }
}

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => 'fetched',
    (error: Error) => error.message,
  );

const hello = (response: ServerResponse) => response.end('hello');

describe('D3 names that lead inside', () => {
  test.each([
    ['127.0.0.1'],
    ['10.0.0.1'],
    ['192.168.1.1'],
    ['172.20.0.1'],
    ['100.64.0.1'],
    ['169.254.169.254'],
    ['0.0.0.0'],
    ['::1'],
    ['::'],
    ['fe80::1'],
    ['fd00::1'],
    ['::ffff:127.0.0.1'],
    ['64:ff9b::7f00:1'],
  ])('a name with the address %s is not connected to', async (address) => {
    await using site = await httpSite(hello);
    const { lookup } = resolver([address]);

    const reason = await failure(get(`http://issuer.test:${site.port}/`, { lookup }));

    expect(reason).toBe(
      `"issuer.test" has the address ${address}, which is not on the public internet; where that is meant, name it in jwks.privateHosts`,
    );
    expect(site.connections).toBe(0);
  });

  test('one private address among public ones spoils them all', async () => {
    await using site = await httpSite(hello);
    const { lookup } = resolver(['8.8.8.8', '127.0.0.1', '2606:4700::1111']);

    const reason = await failure(get(`http://issuer.test:${site.port}/`, { lookup }));

    expect(reason).toMatch(/has the address 127\.0\.0\.1, which is not/);
    expect(site.connections).toBe(0);
  });

  test('a name that changes its address after it was judged gains nothing (DNS rebinding)', async () => {
    await using site = await httpSite(hello);
    const rebinding = resolver(['8.8.8.8', '127.0.0.1'], ['127.0.0.1']);
    const honest = resolver(['127.0.0.1'], ['10.255.255.1']);
    const uri = `http://issuer.test:${site.port}/`;

    expect(await failure(get(uri, { lookup: rebinding.lookup }))).toMatch(/not on the public/);
    expect(site.connections).toBe(0);
    // The address that was judged is the one that is connected to: nobody asks a second time.
    await get(uri, { lookup: honest.lookup, privateHosts: ['issuer.test'] });
    expect([rebinding.asked, honest.asked]).toEqual([['issuer.test'], ['issuer.test']]);
  });

  test('a name that the configuration lists may have a private address', async () => {
    await using site = await httpSite(hello);
    const { lookup } = resolver(['127.0.0.1']);

    const { text } = await get(`http://issuer.test:${site.port}/`, {
      lookup,
      privateHosts: ['issuer.test'],
    });

    expect(text).toBe('hello');
  });

  test('a listed name stands for itself alone, not for what is below it', async () => {
    const { lookup } = resolver(['127.0.0.1']);

    const reason = await failure(
      get('http://a.issuer.test:1/', { lookup, privateHosts: ['issuer.test'] }),
    );

    expect(reason).toMatch(/^"a\.issuer\.test" has the address 127\.0\.0\.1/);
  });

  test.each(['169.254.169.254', 'fe80::1', '0.0.0.0', '224.0.0.1'])(
    'not even a listed name may have the address %s',
    async (address) => {
      const { lookup } = resolver([address]);

      const reason = await failure(
        get('http://issuer.test:1/', { lookup, privateHosts: ['issuer.test'] }),
      );

      expect(reason).toMatch(/which is not on the public internet/);
    },
  );

  test('localhost is this machine, whatever the resolver says', async () => {
    await using site = await httpSite(hello);

    const uri = `http://localhost:${site.port}/`;

    expect((await get(uri, { lookup: resolver(['127.0.0.1']).lookup })).text).toBe('hello');
    for (const address of ['10.0.0.1', '8.8.8.8', '169.254.169.254']) {
      const reason = await failure(get(uri, { lookup: resolver([address]).lookup }));
      expect(reason).toMatch(/^"localhost" has the address/);
    }
  });

  test('an address in the URI is what the operator wrote, and nobody is asked for it', async () => {
    await using site = await httpSite(hello);
    const { asked, lookup } = resolver([]);

    expect((await get(`http://127.0.0.1:${site.port}/`, { lookup })).text).toBe('hello');
    expect(asked).toEqual([]);
  });

  test('a name without an address and one that cannot be resolved say so', async () => {
    const broken: LookupFunction = (_, __, callback) =>
      callback(Object.assign(new Error('getaddrinfo ENOTFOUND'), { code: 'ENOTFOUND' }), '', 0);

    expect(await failure(get('http://issuer.test/', resolver([])))).toBe(
      '"issuer.test" has no address',
    );
    expect(await failure(get('http://issuer.test/', { lookup: broken }))).toMatch(/ENOTFOUND/);
  });

  test.each([300, 301, 302, 303, 304, 307, 308])(
    'a redirect (%i) is not followed',
    async (code) => {
      await using inside = await httpSite(hello);
      await using site = await httpSite((response) =>
        response.writeHead(code, { location: `http://127.0.0.1:${inside.port}/` }).end(),
      );

      const reason = await failure(get(`http://127.0.0.1:${site.port}/`));

      expect(reason).toBe(`the answer is a redirect (${code}), and none is followed`);
      expect(inside.connections).toBe(0);
    },
  );
});

describe('D2 answers that do not end, or begin', () => {
  const MEGABYTE = ' '.repeat(1_000_000);

  test.each([
    ['that says how long it is', { 'content-length': '131000000' }],
    ['that does not say', {}],
  ])('of 131 MB %s, hardly any is read', async (_, headers) => {
    await using site = await httpSite((response) => {
      response.writeHead(200, headers);
      let left = 131;
      const write = () => {
        while (left > 0 && !response.destroyed) {
          left -= 1;
          if (!response.write(MEGABYTE)) return;
        }
      };
      response.on('drain', write);
      write();
    });
    const before = process.memoryUsage().rss;

    const reason = await failure(get(`http://127.0.0.1:${site.port}/`));

    expect(reason).toBe('the answer is longer than jwks.maxBytes (100000)');
    // What the kernel buffers on both sides, and one megabyte in hand.
    expect(site.bytesSent()).toBeLessThan(16_000_000);
    expect(process.memoryUsage().rss - before).toBeLessThan(64_000_000);
  });

  test('one byte within the limit is read, one beyond it is not', async () => {
    for (const [length, outcome] of [
      [100_000, 'fetched'],
      [100_001, 'the answer is longer than jwks.maxBytes (100000)'],
    ] as const) {
      await using site = await httpSite((response) => {
        response.write(' '.repeat(length - 1));
        response.end(' ');
      });
      expect(await failure(get(`http://127.0.0.1:${site.port}/`))).toBe(outcome);
    }
  });

  test.each([
    [
      'headers without end',
      `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(50_000)}`,
      true,
      /Header overflow/i,
    ],
    ['silence after half a header', 'HTTP/1.1 200 O', true, /too late|Parse Error/],
    ['provisional answers without end', 'HTTP/1.1 102 Processing\r\n\r\n', true, /too late/],
    ['another protocol', 'SSH-2.0-OpenSSH_9.6\r\n', false, /Parse Error/],
    ['nothing', '', false, /socket hang up/],
    ['a switch of protocols', 'HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n', false, /./],
    [
      'less than it announced',
      'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello',
      false,
      /aborted/,
    ],
    [
      'chunks that are none',
      'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
      false,
      /aborted|Parse Error/,
    ],
    [
      'two lengths',
      'HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!',
      false,
      /Parse Error/,
    ],
  ])('%s is a failure', async (_, text, forever, reason) => {
    await using site = await rawSite(text, { forever });

    expect(await failure(get(`http://127.0.0.1:${site.port}/`, { timeoutMs: 400 }))).toMatch(
      reason,
    );
  });

  test('a body that drips is cut off at the deadline, not given a new one with every byte', async () => {
    await using site = await httpSite((response) => {
      const drip = setInterval(() => response.write(' '), 5);
      response.on('close', () => clearInterval(drip));
    });
    const started = performance.now();

    expect(await failure(get(`http://127.0.0.1:${site.port}/`, { timeoutMs: 200 }))).toBe(
      'too late',
    );

    expect(performance.now() - started).toBeLessThan(2_000);
  });

  test('nothing is connected to when it is too late already', async () => {
    await using site = await httpSite(hello);
    const options = { maxBytes: 1, accept: '*/*', privateHosts: [] };
    const signal = AbortSignal.abort(new Error('too late'));

    expect(await failure(download(`http://127.0.0.1:${site.port}/`, { ...options, signal }))).toBe(
      'too late',
    );
    expect(site.connections).toBe(0);
  });

  test('a resolver that never answers is left alone at the deadline', async () => {
    const lookup: LookupFunction = () => {};

    expect(await failure(get('http://issuer.test/', { lookup, timeoutMs: 100 }))).toBe('too late');
  });
});

describe('a download', () => {
  test('asks for what it can read, by a connection that is closed afterwards', async () => {
    let asked: NodeJS.Dict<string | string[]> = {};
    await using site = await open(
      createHttpServer((request, response) => {
        asked = request.headers;
        response.setHeader('cache-control', 'max-age=60').end('grüße');
      }),
    );

    const { text, headers } = await get(`http://127.0.0.1:${site.port}/keys?tenant=1`);

    expect(asked).toEqual({
      accept: 'application/json',
      'accept-encoding': 'identity',
      connection: 'close',
      host: `127.0.0.1:${site.port}`,
      'user-agent': 'pgjot',
    });
    expect([text, headers['cache-control']]).toEqual(['grüße', 'max-age=60']);
  });

  test.each([
    ['', undefined],
    [', whatever Node is told for all programs', '0'],
  ])('trusts no certificate that nobody vouches for%s', async (_when, told) => {
    vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', told);
    const { cert, key } = createAuthority().issue();
    let asked = 0;
    await using site = await open(
      createHttpsServer({ cert, key }, (_, response) => {
        asked += 1;
        response.end('hello');
      }),
    );

    const reason = await failure(get(`https://localhost:${site.port}/`));

    expect(reason).toMatch(/certificate/);
    expect(asked).toBe(0);
  });
});
