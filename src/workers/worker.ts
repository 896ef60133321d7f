/**
 * The program of a worker process: a proxy whose clients come from the primary, and what it shares with the others.
 *
 * Signals are the primary's business: a terminal or a supervisor sends them to every process of a group. When the primary is
 * gone the channel to it closes, and node:cluster ends this process at once.
 */
import type { Socket } from 'node:net';
import { exitOnMistakes } from '../crash.ts';
import { createLogger } from '../log.ts';
import { createMetrics, type Metrics } from '../metrics.ts';
import { createProxy, type Proxy } from '../proxy.ts';
import { createCancels, type Cancels } from '../upstream/cancel.ts';
import type { Config } from '../config.ts';
import { shareCancels } from './cancels.ts';
import { RemoteLedger } from './ledger.ts';
import {
  failureOf,
  toWorker,
  type Order,
  type Question,
  type Start,
  type ToPrimary,
} from './messages.ts';
import { answer, Questions } from './questions.ts';

// Longer than the primary waits for the worker that it asks.
const CANCEL_MS = 30_000;
// The primary answers at once, or is not there; a shared store has bounds of its own.
const LIMIT_MS = 10_000;

const questions = new Questions<Question>((ask) => tell(ask));
const ledger = new RemoteLedger({
  tell: (note) => tell({ kind: 'limit', note }),
  ask: (question) => questions.ask(question, LIMIT_MS),
  maxPerSubject: () => limits?.maxClientsPerSubject,
});
let limits: Config['limits'] | undefined;
let proxy: Proxy | undefined;
let cancels: Cancels | undefined;
/** Once it serves clients: before, there is nothing to be counted. */
let sample: Metrics['sample'] | undefined;
let onClient: (client: Socket) => Promise<void> = async () => {};
let taken = 0;
let open = 0;
let reporting: NodeJS.Immediate | undefined;

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
process.on('message', (message: unknown, client: Socket | undefined) => hear(message, client));
tell({ kind: 'hello' });

function tell(message: ToPrimary): void {
  // When it cannot be sent the primary is gone, and this process all but so.
  process.send?.(message, undefined, undefined, () => {});
}

function hear(sent: unknown, client: Socket | undefined): void {
  const message = toWorker(sent);
  switch (message.kind) {
    case 'start':
      return void start(message);
    case 'client':
      return take(message.id, client);
    case 'evict':
      return ledger.onEvict(message.id);
    case 'end':
      return void end(message.how);
    case 'ask':
      return void answer(message.id, () => obey(message.question)).then(tell);
    case 'answer':
      return questions.settle(message);
  }
}

async function start({ worker, workers, config, revocations, address }: Start): Promise<void> {
  // What `ps` and `top` show.
  process.title = `pgjot: worker ${worker}`;
  limits = config.limits;
  try {
    const metrics = createMetrics();
    const own = createCancels(worker, (outcome) => metrics.cancels.inc({ outcome }));
    cancels = own;
    const logger = createLogger(config.log, worker);
    proxy = createProxy(config, {
      logger,
      metrics,
      shared: {
        revocations,
        cancels: shareCancels(own, {
          worker,
          workers,
          arePeers: config.limits.store !== undefined,
          async forward(key) {
            const asked = questions.ask({ what: 'cancel', ...key }, CANCEL_MS);
            return (await asked.catch(() => false)) === true;
          },
        }),
        ledger,
        listen(onArrival) {
          onClient = onArrival;
          return address;
        },
      },
    });
    exitOnMistakes(logger, async () => proxy?.close());
    await proxy.start();
    sample = () => metrics.sample();
    tell({ kind: 'ready' });
  } catch (error) {
    tell({ kind: 'failed', failure: failureOf(error) });
    process.disconnect();
  }
}

/** Takes a client over; none comes with the message when it has left on its way. */
function take(id: number, client: Socket | undefined): void {
  taken = id;
  if (client !== undefined) {
    open++;
    // As the listener of a single process has them. Keepalive and the like stay with the socket.
    client.allowHalfOpen = true;
    client.on('error', () => {});
    void onClient(client).finally(() => {
      open--;
      reporting ??= setImmediate(report);
    });
  }
  report();
}

/** At once when a client has been taken over, because the primary waits for that; once a turn for those that have left. */
function report(): void {
  clearImmediate(reporting);
  reporting = undefined;
  tell({ kind: 'load', taken, open });
}

async function obey(order: Order): Promise<unknown> {
  switch (order.what) {
    case 'reload':
      proxy?.reload(order.config);
      limits = order.config.limits;
      return undefined;
    case 'revoke':
      proxy?.revoke(order.entry);
      return undefined;
    case 'counts':
      return proxy?.counts();
    case 'metrics':
      return sample?.();
    case 'readiness':
      return proxy?.readiness();
    case 'sessions':
      return proxy?.sessions(order.query);
    case 'pools':
      return proxy?.pools();
    case 'providers':
      return proxy?.providers();
    case 'terminate':
      return proxy?.terminate(order.selection);
    case 'reconnect':
      return proxy?.reconnect(order.upstream);
    case 'cancel': {
      const { processId, secretKey } = order;
      return cancels?.forward({ processId, secretKey: Buffer.from(secretKey) });
    }
    default:
      return order satisfies never;
  }
}

async function end(how: 'drain' | 'close'): Promise<void> {
  try {
    await proxy?.[how]();
  } finally {
    process.disconnect();
  }
}
