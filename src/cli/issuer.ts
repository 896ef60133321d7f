/**
 * `pgjot issuer`: the issuer of `pgjot dev` by itself, for trying pgjot out before a database of one's own.
 *
 * On loopback alone: whoever has its folder can be anybody. In containers, give it the network of the proxy.
 */
import { Command } from 'commander';
import { startIssuer } from './dev/issuer.ts';
import { createStateFolder, stateOf } from './dev/state.ts';
import { stopRequests } from './signals.ts';

const PORT = 6433;

/** The command. */
export function issuerCommand(): Command {
  return new Command('issuer')
    .description(
      `run the development issuer alone, on 127.0.0.1:${PORT}; its key is kept in .pgjot`,
    )
    .action(async () => {
      using stop = stopRequests(['SIGINT', 'SIGTERM', 'SIGHUP']);
      const state = stateOf();
      await createStateFolder(state);
      const issuer = await startIssuer(state, PORT);
      console.log(`issuer ${issuer.url}, keys at ${issuer.jwksUri}`);
      await stop.first;
      await issuer.close();
    });
}
