/**
 * `pgjot start`: runs the proxy of a configuration file until it is told to stop.
 *
 * SIGTERM or SIGINT lets sessions finish (`sessions.drainTimeoutMs`); a second one ends them at once.
 * SIGHUP, and each change of the file, has the configuration read again; a wrong one changes nothing and is logged.
 * A supervisor that asks for it (systemd) is told what is going on.
 * With `--workers` several processes do the work; to a supervisor and to clients that is one proxy still.
 */
import { availableParallelism } from 'node:os';
import { Command, InvalidArgumentError } from 'commander';
import { loadConfig, type Config } from '../config.ts';
import { exitOnMistakes } from '../crash.ts';
import { ConfigError } from '../errors.ts';
import { createLogger, type Logger } from '../log.ts';
import { createProxy, type Proxy } from '../proxy.ts';
import { MAX_WORKERS } from '../upstream/cancel.ts';
import { watchFile } from '../watch.ts';
import type { WorkersOptions } from '../workers/primary.ts';
import { configOption } from './config-option.ts';
import { CommandError } from './failure.ts';
import { stopRequests } from './signals.ts';
import { createSupervisor } from './supervisor.ts';

const WATCH_MS = 1_000;

/** A proxy, of one process or of several. */
interface Running extends Pick<Proxy, 'start' | 'drain' | 'close'> {
  reload(read: () => Config): void | Promise<void>;
}

interface StartOptions {
  readonly config: string;
  readonly workers: number;
}

/** The command. */
export function startCommand(): Command {
  return new Command('start')
    .description('run the proxy')
    .addOption(configOption())
    .option(
      '--workers <number>',
      'processes that share the work; "auto": one for each core',
      parseWorkers,
      1,
    )
    .action(async ({ config, workers }: StartOptions) => {
      using stop = stopRequests(['SIGTERM', 'SIGINT']);
      let proxy: Running | undefined;
      using supervisor = createSupervisor();
      let serving = '';
      const onChange = async () => {
        if (serving === '' || proxy === undefined) return 'again';
        supervisor.reloading();
        const outcome = await reload(proxy, config, logger);
        if (!stop.requested) supervisor.ready(`${serving}${outcome}`);
        return undefined;
      };
      using _watch = watchFile(config, WATCH_MS, onChange);
      const settings = loadConfig(config);
      const logger = createLogger(settings.log);
      proxy = await createRunning(settings, workers, {
        logger,
        readConfig: () => loadConfig(config),
        // Asked twice it is not to insist, as a second signal does.
        onDrainRequest: () => void (stop.requested || stop.request()),
      });
      exitOnMistakes(logger, proxy.close);
      const onHangup = () => void onChange();
      process.on('SIGHUP', onHangup);
      try {
        const address = await listening(proxy);
        logger.info({ event: 'listening', ...address, ...(workers > 1 && { workers }) });
        serving = `serving on ${address.host}:${address.port}`;
        supervisor.ready(serving);
        await stop.first;
        logger.info({ event: 'draining' });
        supervisor.stopping('draining');
        await Promise.race([proxy.drain(), stop.second]);
      } finally {
        await proxy.close();
        process.off('SIGHUP', onHangup);
        await supervisor.told();
      }
    });
}

async function createRunning(
  config: Config,
  workers: number,
  options: Omit<WorkersOptions, 'workers'>,
): Promise<Running> {
  if (workers === 1) return createProxy(config, options);
  // Whoever has a single process does without all that.
  const { createWorkers } = await import('../workers/primary.ts');
  return createWorkers(config, { workers, ...options });
}

function parseWorkers(text: string): number {
  const workers = text === 'auto' ? Math.min(availableParallelism(), MAX_WORKERS) : Number(text);
  if (!(Number.isInteger(workers) && workers >= 1 && workers <= MAX_WORKERS)) {
    throw new InvalidArgumentError(`It must be a number from 1 to ${MAX_WORKERS}, or "auto".`);
  }
  return workers;
}

/** What came of it, as the end of a sentence. */
async function reload(proxy: Running, file: string, logger: Logger): Promise<string> {
  try {
    await proxy.reload(() => loadConfig(file));
    return '';
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    logger.error({ event: 'reload_failed', problems: error.problems });
    return '; the last reload failed: see the log';
  }
}

/**
 * Starts the proxy and says in one line why it cannot listen.
 *
 * @throws {CommandError} when the address is taken or not ours to listen on.
 */
export async function listening(
  proxy: Pick<ReturnType<typeof createProxy>, 'start'>,
): Promise<{ host: string; port: number }> {
  try {
    return await proxy.start();
  } catch (error) {
    const { code, address, port } = error as NodeJS.ErrnoException & {
      address?: string;
      port?: number;
    };
    if (code === 'EADDRINUSE') {
      throw new CommandError('failure', `port ${port} on ${address} is taken`, { cause: error });
    }
    if (code === 'EACCES' || code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND') {
      throw new CommandError('failure', (error as Error).message, { cause: error });
    }
    throw error;
  }
}
