/** What is asked of workers for those whom anybody may send: a thousand probes cost them no more than one. */
import { describe, expect, it, vi } from 'vitest';
import type { Readiness } from '../../src/readiness.ts';
import { createSurvey } from '../../src/workers/survey.ts';

const READY: Readiness = { ready: true, reasons: [], troubles: [] };

/** Workers that count what they are asked, of which the second never answers. */
function crewOf(answered: () => Readiness) {
  const asked: string[] = [];
  const poll = async ({ what }: { what: string }, ms: number) => {
    asked.push(what);
    const answers = [{ worker: 1, value: answered() }];
    await new Promise((resolve) => setTimeout(resolve, ms));
    return { answers, unanswered: [2] };
  };
  let phase: 'starting' | 'serving' | 'draining' = 'serving';
  const survey = createSurvey(
    { poll },
    {
      phase: () => phase,
      config: () => ({ upstreams: {} }),
    },
  );
  return { survey, asked, drain: () => (phase = 'draining') };
}

describe('readiness of several workers', () => {
  it('attack: a thousand probes a second ask them once a second, however slow one is', async () => {
    vi.useFakeTimers();
    try {
      const { survey, asked } = crewOf(() => READY);
      const answers: Promise<Readiness>[] = [];
      for (let ms = 0; ms < 10_000; ms++) {
        answers.push(survey.readiness());
        await vi.advanceTimersByTimeAsync(1);
      }
      await vi.advanceTimersByTimeAsync(1_000);

      expect(asked.length).toBeLessThanOrEqual(11);
      for (const answer of await Promise.all(answers)) {
        expect(answer.ready).toBe(true);
        expect(answer.troubles).toEqual([{ worker: 2, cause: 'it has not answered' }]);
        expect(answer.ageMs).toBeLessThanOrEqual(1_000);
      }
    } finally {
      vi.useRealTimers();
    }
  });

  it('is what they say now, where they were asked more than a second ago', async () => {
    vi.useFakeTimers();
    try {
      let now = READY;
      const { survey } = crewOf(() => now);
      const first = survey.readiness();
      await vi.advanceTimersByTimeAsync(900);
      expect(await first).toMatchObject({ ready: true, ageMs: 900 });
      now = { ready: false, reasons: ['upstreams'], troubles: [] };
      await vi.advanceTimersByTimeAsync(101);
      const second = survey.readiness();
      await vi.advanceTimersByTimeAsync(900);

      expect(await second).toMatchObject({ ready: false, reasons: ['upstreams'] });
    } finally {
      vi.useRealTimers();
    }
  });

  it('is over at once with a drain, and while they are asked', async () => {
    vi.useFakeTimers();
    try {
      const { survey, drain } = crewOf(() => READY);
      const waiting = survey.readiness();
      drain();
      expect(await survey.readiness()).toMatchObject({ ready: false, reasons: ['draining'] });
      await vi.advanceTimersByTimeAsync(900);

      expect(await waiting).toMatchObject({ ready: false, reasons: ['draining'] });
    } finally {
      vi.useRealTimers();
    }
  });
});
