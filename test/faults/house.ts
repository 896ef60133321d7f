/**
 * pgjot in a network of its own: clients come to it by one cable, and it reaches PostgreSQL by another.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ConfigInput } from '../../src/config.ts';
import { Gate } from '../e2e/gate.ts';
import { RawClient } from '../e2e/raw-client.ts';
import { fromParts } from '../support/parts.ts';
import { configOf, startFleet, type Fleet, type Ground } from '../workers/fleet.ts';
import { openNamespace, type Cable, type Namespace } from './namespace.ts';

/** The house. */
export interface House extends AsyncDisposable {
  readonly fleet: Fleet;
  readonly namespace: Namespace;
  readonly toClients: Cable;
  readonly toPostgres: Cable;
  /** Signs in by the clients' cable, or another. */
  login(sub: string, cable?: Cable): Promise<RawClient>;
}

/** Starts it, with one process. */
export async function openHouse(
  ground: Ground,
  settings: Partial<ConfigInput> = {},
  prepare: (namespace: Namespace) => void = () => {},
): Promise<House> {
  return fromParts(async (closers) => {
    const namespace = openNamespace();
    closers.push(async () => namespace[Symbol.dispose]());
    prepare(namespace);
    const [toClients, toPostgres] = [namespace.lay(), namespace.lay()];
    const gate = await Gate.open(toPostgres.near);
    closers.push(() => gate[Symbol.asyncDispose]());
    gate.target = ground.postgres.port;

    const folder = await mkdtemp(join(tmpdir(), 'pgjot-keys-'));
    closers.push(() => rm(folder, { recursive: true }));
    const jwksFile = join(folder, 'jwks.json');
    await writeFile(jwksFile, await (await fetch(ground.issuer.jwksUri)).text());
    const own = { ...ground.issuer.provider({ roles: ['authenticated'] }), jwksFile };
    delete own.jwksUri;
    const main = {
      ...configOf(ground).upstreams['main'],
      host: toPostgres.near,
      port: gate.port,
      tls: { mode: 'disable' },
      // Whatever is open is a client's.
      pool: { reuse: 'never', spares: 0 },
    };
    const fleet = await startFleet(ground, {
      workers: 1,
      under: namespace.under,
      settings: {
        listen: { host: '0.0.0.0', port: 0, allowPlaintext: true, tls: { mode: 'disable' } },
        providers: { own },
        upstreams: { main } as ConfigInput['upstreams'],
        ...settings,
      },
    });
    closers.push(async () => fleet[Symbol.asyncDispose]());
    return {
      fleet,
      namespace,
      toClients,
      toPostgres,
      login: (sub, cable = toClients) =>
        RawClient.login({ host: cable.far, port: fleet.port, database: 'app' }, fleet.token(sub)),
    };
  });
}
