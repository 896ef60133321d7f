/**
 * `pgjot start`: runs the proxy of a configuration file until it is told to stop.
 *
 * SIGTERM or SIGINT lets sessions finish (`sessions.drainTimeoutMs`); a second one ends them at once.
 * SIGHUP, and each change of the file, has the configuration read again; a wrong one changes nothing and is logged.
 */
import { Command } from 'commander';
import { loadConfig } from '../config.ts';
import { ConfigError } from '../errors.ts';
import { createLogger, type Logger } from '../log.ts';
import { createProxy, type Proxy } from '../proxy.ts';
import { watchFile } from '../watch.ts';
import { CommandError } from './failure.ts';
import { stopRequests } from './signals.ts';

/** Where a configuration is looked for. */
export const CONFIG_FILE = 'proxy.config.json';

const WATCH_MS = 1_000;

/** The command. */
export function startCommand(): Command {
  return new Command('start')
    .description('run the proxy')
    .option('--config <file>', 'the configuration', CONFIG_FILE)
    .action(async ({ config }: { config: string }) => {
      using stop = stopRequests(['SIGTERM', 'SIGINT']);
      using _watch = watchFile(config, WATCH_MS, () => onChange());
      const settings = loadConfig(config);
      const logger = createLogger(settings.log);
      const proxy = createProxy(settings, { logger, readConfig: () => loadConfig(config) });
      const onChange = () => reload(proxy, config, logger);
      process.on('SIGHUP', onChange);
      try {
        logger.info({ event: 'listening', ...(await listening(proxy)) });
        await stop.first;
        logger.info({ event: 'draining' });
        await Promise.race([proxy.drain(), stop.second]);
      } finally {
        await proxy.close();
        process.off('SIGHUP', onChange);
      }
    });
}

function reload(proxy: Proxy, file: string, logger: Logger): void {
  try {
    proxy.reload(loadConfig(file));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    logger.error({ event: 'reload_failed', problems: error.problems });
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
