/**
 * The control column: a TCP proxy in Node that knows nothing of Postgres and does nothing but `pipe()`.
 *
 * What it costs is what Node costs; what pgjot costs beyond it is pgjot's. Takes the port to listen on
 * and the port to connect to.
 */
import { connect, createServer } from 'node:net';

const [listenPort, upstreamPort] = process.argv.slice(2).map(Number);
if (listenPort === undefined || upstreamPort === undefined) {
  throw new Error('usage: node bench/pipe.mjs LISTEN_PORT UPSTREAM_PORT');
}

createServer({ noDelay: true }, (client) => {
  const upstream = connect({ host: '127.0.0.1', port: upstreamPort, noDelay: true });
  client.on('error', () => upstream.destroy());
  upstream.on('error', () => client.destroy());
  client.on('close', () => upstream.destroy());
  upstream.on('close', () => client.destroy());
  client.pipe(upstream).pipe(client);
}).listen(listenPort, '127.0.0.1');
