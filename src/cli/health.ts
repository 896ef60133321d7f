/**
 * Whether a proxy on this machine is alive, by exit status, for whoever asks every few seconds (Docker's HEALTHCHECK).
 *
 *   node dist/cli/health.js [proxy.config.json]
 *
 * A program of its own that loads nothing: `pgjot` itself takes a quarter of a second to start. Reads of the configuration
 * no more than where to ask; `PGJOT_PORT` is where to, if there is no endpoint for administrators and `listen.port` is not it.
 */
import { readFileSync } from 'node:fs';
import { get as getPlain } from 'node:http';
import { get as getSecure } from 'node:https';
import { connect } from 'node:net';

interface Places {
  readonly listen?: { readonly port?: number };
  readonly admin?: { readonly host?: string; readonly port?: number; readonly tls?: object };
}

const [file = 'proxy.config.json'] = process.argv.slice(2);
const ASK_MS = 2_500;
const sick = (reason: string) => {
  console.log(reason);
  process.exit(1);
};
setTimeout(() => sick('no answer'), ASK_MS).unref();

const { listen, admin } = JSON.parse(readFileSync(file, 'utf8')) as Places;
if (admin === undefined) {
  const port = Number(process.env['PGJOT_PORT'] ?? listen?.port ?? 6432);
  const socket = connect(port, '127.0.0.1', () => socket.destroy());
  socket.on('error', ({ message }) => sick(message));
} else {
  const { port = 9187, host = '127.0.0.1' } = admin;
  const address = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
  const get = admin.tls === undefined ? getPlain : getSecure;
  // Nothing is told and nothing believed but that it answers, so it need not prove who it is.
  const options = {
    host: address,
    port,
    path: '/healthz',
    agent: false,
    rejectUnauthorized: false,
  };
  get(options, (response) => {
    response.resume();
    if ((response.statusCode ?? 500) >= 500) sick(`/healthz says ${response.statusCode}`);
  }).on('error', ({ message }) => sick(message));
}
