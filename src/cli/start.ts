/**
 * `pgjot start`: runs the proxy of a configuration file until it is told to stop.
 *
 * SIGTERM or SIGINT lets sessions finish (`sessions.drainTimeoutMs`); a second one ends them at once.
 * SIGHUP does not reload the configuration yet: it is logged and ends nothing.
 */
import { Command } from 'commander';
import { loadConfig } from '../config.ts';
import { createLogger } from '../log.ts';
import { createProxy } from '../proxy.ts';
import { CommandError } from './failure.ts';
import { stopRequests } from './signals.ts';

/** Where a configuration is looked for. */
export const CONFIG_FILE = 'proxy.config.json';

// Unless somebody listens for it, SIGHUP ends the process: a `systemctl reload` would end every session.
const RELOAD_UNSUPPORTED = {
  event: 'reload_unsupported',
  advice: 'the configuration is read at start only; restart pgjot to apply a changed one',
};

/** The command. */
export function startCommand(): Command {
  return new Command('start')
    .description('run the proxy')
    .option('--config <file>', 'the configuration', CONFIG_FILE)
    .action(async ({ config }: { config: string }) => {
      using stop = stopRequests(['SIGTERM', 'SIGINT']);
      const settings = loadConfig(config);
      const logger = createLogger(settings.log);
      const onHangup = () => logger.warn(RELOAD_UNSUPPORTED);
      process.on('SIGHUP', onHangup);
      const proxy = createProxy(settings, { logger });
      try {
        logger.info({ event: 'listening', ...(await listening(proxy)) });
        await stop.first;
        logger.info({ event: 'draining' });
        await Promise.race([proxy.drain(), stop.second]);
      } finally {
        await proxy.close();
        process.off('SIGHUP', onHangup);
      }
    });
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
