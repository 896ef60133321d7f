/**
 * Whether new clients should be sent here: what a load balancer asks, and what stands in the way.
 *
 * A proxy is ready while it listens, and not every upstream is out of reach, and not every provider without keys: what one
 * of several lacks is told, but is no reason to turn away the users of the others. `admin.readiness` names those without
 * which it is not ready.
 */
import type { Config } from './config.ts';
import { ProxyError } from './errors.ts';
import type { KeyState } from './identity/jwks.ts';
import { explain } from './log.ts';

/** What is in the way, in one word, which strangers may hear. */
export type Obstacle = 'starting' | 'draining' | 'upstreams' | 'providers' | 'workers';

/** Something that is not as it should be. For administrators. */
export interface Trouble {
  /** Which of several workers has it. */
  readonly worker?: number;
  readonly upstream?: string;
  readonly provider?: string;
  readonly issuer?: string;
  readonly cause: string;
}

/** Whether a proxy is ready. */
export interface Readiness {
  readonly ready: boolean;
  /** Why it is not. */
  readonly reasons: readonly Obstacle[];
  /** What is wrong, whether or not that makes it unready. */
  readonly troubles: readonly Trouble[];
  /** How long ago several workers were asked. */
  readonly ageMs?: number;
}

/** What readiness depends on. */
export interface Circumstances {
  readonly phase: 'starting' | 'serving' | 'draining';
  readonly config: Pick<Config, 'providers' | 'upstreams'> & {
    readonly admin?: Config['admin'];
  };
  /** Why an upstream cannot be had, by its name; those that can be are not in it. */
  readonly unreachable: ReadonlyMap<string, ProxyError>;
  readonly keys: readonly KeyState[];
}

/** Judges these circumstances. */
export function judgeReadiness({ phase, config, unreachable, keys }: Circumstances): Readiness {
  const { upstreams, providers } = config.admin?.readiness ?? {};
  const without = keys.filter(({ usable }) => !usable);
  const hasKeys = (id: string) => keys.some(({ provider, usable }) => provider === id && usable);
  const reasons: Obstacle[] = [];
  if (phase !== 'serving') reasons.push(phase);
  if (!suffice(Object.keys(config.upstreams), upstreams, (id) => !unreachable.has(id))) {
    reasons.push('upstreams');
  }
  if (!suffice(Object.keys(config.providers), providers, hasKeys)) reasons.push('providers');
  const troubles = [
    ...[...unreachable].map(([upstream, error]) => ({ upstream, cause: causeOf(error) })),
    ...without.map(({ provider, issuer, lastError }) => ({
      provider,
      issuer,
      cause: lastError ?? 'its keys have not been fetched yet',
    })),
  ];
  return { ready: reasons.length === 0, reasons, troubles };
}

/** Several processes' readiness as one: clients get to one that is. */
export function mergeReadiness(
  all: readonly { readonly worker: number; readonly readiness: Readiness }[],
): Readiness {
  const troubles = all.flatMap(({ worker, readiness }) =>
    readiness.troubles.map((trouble) => ({ worker, ...trouble })),
  );
  if (all.some(({ readiness }) => readiness.ready)) return { ready: true, reasons: [], troubles };
  const reasons = new Set(all.flatMap(({ readiness }) => readiness.reasons));
  return { ready: false, reasons: reasons.size > 0 ? [...reasons] : ['workers'], troubles };
}

/** Whether all that are required are well, or, where none is, any. */
function suffice(
  all: readonly string[],
  required: readonly string[] | undefined,
  isWell: (id: string) => boolean,
): boolean {
  return required === undefined ? all.some(isWell) : required.every(isWell);
}

function causeOf(error: ProxyError): string {
  return explain(error).cause ?? error.message;
}

// Whoever asks more often, and anybody may, costs nobody anything more.
const FRESH_MS = 1_000;
// A load balancer waits for a second, as a rule.
const WAIT_MS = 700;
// For so long what was found last is believed of an upstream that has not answered yet.
const BELIEVED_MS = 10_000;

/** Something that takes a while to find out, which happens once at a time and once a second, however often it is wanted. */
export class Finding<Found> {
  readonly #find: () => Promise<Found>;
  #finding: Promise<void> | undefined;
  #last: { readonly at: number; readonly found: Found } | undefined;

  /** `find` does not reject. */
  constructor(find: () => Promise<Found>) {
    this.#find = find;
  }

  /** What was found last, and when that was begun. */
  get last(): { readonly ageMs: number; readonly found: Found } | undefined {
    if (this.#last === undefined) return undefined;
    const { at, found } = this.#last;
    return { ageMs: performance.now() - at, found };
  }

  /** Resolves when what was found last is fresh. */
  async refresh(): Promise<void> {
    if (this.#last !== undefined && performance.now() - this.#last.at < FRESH_MS) return;
    this.#finding ??= this.#findOut().finally(() => {
      this.#finding = undefined;
    });
    await this.#finding;
  }

  async #findOut(): Promise<void> {
    const at = performance.now();
    this.#last = { found: await this.#find(), at };
  }
}

/** Asks one upstream whether it is there. */
export class Probe {
  readonly #finding: Finding<ProxyError | undefined>;

  /** `ask` rejects when it is not. */
  constructor(ask: () => Promise<void>) {
    this.#finding = new Finding(() =>
      ask().then(
        () => undefined,
        (thrown: unknown) => ProxyError.from(thrown),
      ),
    );
  }

  /** Why it is not there; undefined when it is. Resolves within a second. */
  async check(): Promise<ProxyError | undefined> {
    let timer: NodeJS.Timeout | undefined;
    const waited = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, WAIT_MS);
    });
    await Promise.race([this.#finding.refresh(), waited]);
    clearTimeout(timer);
    const { last } = this.#finding;
    if (last !== undefined && last.ageMs < BELIEVED_MS) return last.found;
    return new ProxyError('upstream_unreachable', { cause: new Error('it has not answered yet') });
  }
}
