/**
 * `--config`, the same in every command that reads the configuration.
 */
import { Option } from 'commander';

/** A new one. Default: `proxy.config.json` where the command runs. */
export function configOption(): Option {
  return new Option('--config <file>', 'the configuration').default('proxy.config.json');
}
