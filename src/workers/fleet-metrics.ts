/**
 * The metrics of all workers as one: sums, in which a worker that is gone still counts, and one that hangs holds nobody up.
 *
 * What a worker had counted since it was last asked is lost with it; what was told once is never taken back.
 */
import type { Metrics } from '../metrics.ts';
import { addUp, cumulative, type Sample } from '../metrics-sample.ts';
import type { Crew } from './crew.ts';
import type { Member } from './member.ts';

// Prometheus waits for ten seconds by default.
const ANSWER_MS = 2_000;

/** What the primary knows of its workers' metrics. */
export class FleetMetrics {
  readonly #own: Metrics;
  readonly #size: number;
  readonly #crew: Pick<Crew, 'survey'>;
  /** What each worker that is there has said last. */
  readonly #last = new Map<Member, Sample>();
  /** What workers had counted that are gone. */
  #departed: Promise<Sample> = Promise.resolve([]);
  #sampling: Promise<Sample> | undefined;

  /** `own` are the primary's, which come first where workers agree; `size` is how many workers there should be. */
  constructor(own: Metrics, size: number, crew: Pick<Crew, 'survey'>) {
    this.#own = own;
    this.#size = size;
    this.#crew = crew;
  }

  /** A worker is gone. */
  onGone(member: Member): void {
    const last = this.#last.get(member);
    if (last === undefined) return;
    this.#last.delete(member);
    this.#departed = this.#departed.then((departed) => addUp([departed, cumulative(last)]));
  }

  /** The numbers of all, at most two seconds from now. Whoever asks meanwhile gets the same. */
  sample(): Promise<Sample> {
    this.#sampling ??= this.#ask().finally(() => {
      this.#sampling = undefined;
    });
    return this.#sampling;
  }

  async #ask(): Promise<Sample> {
    const answers = await this.#crew.survey({ what: 'metrics' }, ANSWER_MS, (member, answer) =>
      this.#last.set(member, answer as Sample),
    );
    this.#own.workers.set(this.#size);
    this.#own.workersSilent.set(this.#size - answers.length);
    const own = await this.#own.sample();
    // Read in one go, so that a worker that goes at this moment counts once.
    const [departed, last] = [this.#departed, [...this.#last.values()]];
    return addUp([own, await departed, ...last]);
  }
}
