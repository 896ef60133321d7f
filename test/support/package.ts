/**
 * The package as npm would publish it.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { ROOT } from './cli.ts';

/** What `npm pack` says of the package. */
export interface Packed {
  readonly filename: string;
  /** Of the tarball, in bytes. */
  readonly size: number;
  readonly unpackedSize: number;
  readonly files: readonly { readonly path: string; readonly size: number }[];
}

/** Packs what is built into `destination`, or only says what would be packed. */
export function pack(destination?: string): Packed {
  const where = destination === undefined ? ['--dry-run'] : ['--pack-destination', destination];
  // `prepare` would build under the feet of other tests.
  const args = ['pack', '--json', '--ignore-scripts', ...where];
  const said = execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8', stdio: 'pipe' });
  const [packed] = JSON.parse(said) as [Packed];
  return { ...packed, filename: join(destination ?? '', packed.filename) };
}
