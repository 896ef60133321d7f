/** What the care for slots makes the proxy do, and how it is bounded, whoever spoils them and however fast. */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import { createHealing, type Healing } from '../../src/upstream/healing.ts';
import { QUARANTINE_MS } from '../../src/upstream/slots.ts';
import { until } from '../support/stack.ts';

/** Mends at once, or as slowly or badly as it is told to. */
class Ward {
  readonly asked: string[] = [];
  readonly healed: string[] = [];
  readonly failures: [slot: string, code: string][] = [];
  readonly back: string[] = [];
  failure: ProxyError | undefined;
  gate: Promise<void> = Promise.resolve();
  underWay = 0;
  most = 0;
  readonly healing: Healing = createHealing((slot) => this.#mendSlot(slot), {
    onHealed: (slot) => void this.healed.push(slot),
    onHealingFailed: (slot, { code }) => void this.failures.push([slot, code]),
  });

  async #mendSlot(slot: string): Promise<void> {
    this.asked.push(slot);
    this.most = Math.max(this.most, ++this.underWay);
    await this.gate;
    this.underWay--;
    if (this.failure !== undefined) throw this.failure;
  }

  mend(...slots: string[]): void {
    for (const slot of slots) this.healing.mend(slot, () => void this.back.push(slot));
  }
}

let ward: Ward;
let now: number;
const pass = (ms: number) => (now += ms);
beforeEach(() => {
  now = performance.now();
  vi.spyOn(performance, 'now').mockImplementation(() => now);
  ward = new Ward();
});
afterEach(async () => {
  vi.restoreAllMocks();
  await ward.healing.close();
});

// `until` goes by the clock that is stopped here; what never comes true is ended by the test's own time limit.
const healed = (count: number) => until(() => ward.healed.length === count);

describe('a spoilt slot', () => {
  test('is mended, told, and given back', async () => {
    ward.mend('pgjot_a_1', 'pgjot_a_2');
    await healed(2);

    expect(ward.asked).toEqual(['pgjot_a_1', 'pgjot_a_2']);
    expect(ward.back).toEqual(ward.healed);
    expect(ward.failures).toEqual([]);
  });

  test('that was mended and lets nobody in all the same is not mended again for a minute', async () => {
    ward.mend('x');
    await healed(1);

    expect(ward.healing.mayHelp('x')).toBe(false);
    ward.mend('x', 'y');
    await healed(2);
    expect(ward.asked).toEqual(['x', 'y']);
    pass(QUARANTINE_MS + 1);
    ward.mend('x');
    await healed(3);
  });

  test('that let somebody in since it was mended is mended again at once', async () => {
    ward.mend('x');
    await healed(1);
    ward.healing.letIn('x');

    ward.mend('x');
    await healed(2);

    expect(ward.asked).toEqual(['x', 'x']);
  });
});

describe('slots that are spoilt in a loop', () => {
  test('are mended one at a time, at most ten a second, and none is forgotten', async () => {
    const slots = Array.from({ length: 8 }, (_, at) => `slot_${at}`);
    const began = Date.now();

    // As twenty users do who try again and again.
    for (let round = 0; round < 20; round++) ward.mend(...slots);
    await healed(slots.length);

    expect(Date.now() - began).toBeGreaterThanOrEqual(650);
    expect(ward.asked).toEqual(slots);
    expect(ward.most).toBe(1);
  });

  test('wait for the one whose mending hangs', async () => {
    let open = () => {};
    ward.gate = new Promise((resolve) => {
      open = resolve;
    });
    ward.mend('x', 'y');
    await until(() => ward.asked.length === 1);
    ward.mend('z');

    expect(ward.underWay).toBe(1);
    open();
    await healed(3);
    expect(ward.most).toBe(1);
  });
});

describe('mending that fails', () => {
  test('gives nothing back, says why once a minute, and is tried again the next time', async () => {
    ward.failure = new ProxyError('upstream_login_rejected');
    ward.mend('x', 'y');
    await until(() => ward.asked.length === 2 && ward.underWay === 0);
    await until(() => ward.failures.length === 1);

    expect(ward.failures).toEqual([['x', 'upstream_login_rejected']]);
    expect(ward.back).toEqual([]);
    expect(ward.healing.mayHelp('x')).toBe(true);
    pass(60_000);
    ward.mend('x');
    await until(() => ward.failures.length === 2);
    ward.failure = undefined;
    ward.mend('x');
    await until(() => ward.back.includes('x'));
  });
});

describe('close', () => {
  test('waits for the one under way and forgets the others', async () => {
    let open = () => {};
    ward.gate = new Promise((resolve) => {
      open = resolve;
    });
    ward.mend('x', 'y');
    await until(() => ward.underWay === 1);

    const closed = ward.healing.close();
    open();
    await closed;

    expect(ward.underWay).toBe(0);
    ward.mend('z');
    expect(ward.healing.mayHelp('z')).toBe(false);
    expect(ward.asked).toEqual(['x']);
  });
});
