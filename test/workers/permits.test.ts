/** Permits: never more clients than the limit among all workers, and nobody refused while there is room. */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { PermitOffice, PermitPurse, type PermitHolder } from '../../src/workers/permits.ts';

const NEVER = new AbortController().signal;

/** An office and its purses, whose messages arrive in order, but only when `deliver` is called: as late as a test likes. */
class Bank {
  readonly office: PermitOffice;
  readonly workers: {
    purse: PermitPurse;
    holder: PermitHolder;
    inbox: (() => void)[];
    outbox: (() => void)[];
  }[];
  clients: { worker: number; countOut: () => void }[] = [];
  refused = 0;

  constructor(limit: number, size: number) {
    this.office = new PermitOffice(limit);
    this.workers = Array.from({ length: size }, () => {
      const [inbox, outbox] = [[] as (() => void)[], [] as (() => void)[]];
      const purse = new PermitPurse((message) =>
        outbox.push(() =>
          message.kind === 'want'
            ? this.office.onWant(holder)
            : this.office.onReturned(holder, message.count, message.round),
        ),
      );
      const holder: PermitHolder = {
        tell: (message) =>
          inbox.push(() =>
            message.kind === 'permits'
              ? purse.onPermits(message.count)
              : purse.onRecall(message.round),
          ),
      };
      return { purse, holder, inbox, outbox };
    });
  }

  arrive(worker: number, signal = NEVER): void {
    const admitted = this.workers[worker]?.purse.admit(signal);
    void Promise.resolve(admitted).then(
      (countOut) => countOut && this.clients.push({ worker, countOut }),
      () => this.refused++,
    );
  }

  /** One message, of the channel that `pick` points at. */
  async deliver(pick: number): Promise<boolean> {
    const channels = this.workers.flatMap(({ inbox, outbox }) => [inbox, outbox]);
    const busy = channels.filter((channel) => channel.length > 0);
    busy[pick % busy.length]?.shift()?.();
    await settle();
    return busy.length > 0;
  }

  async deliverAll(): Promise<void> {
    while (await this.deliver(0));
  }
}

const settle = async () => {
  for (let turn = 0; turn < 5; turn++) await Promise.resolve();
};

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  const left = vi.getTimerCount();
  vi.useRealTimers();
  if (left > 0) throw new Error(`${left} timers are left`);
});

describe('permits', () => {
  it('are never more than the limit, and all of it is given out, whatever order messages arrive in', async () => {
    const step = fc.record({
      what: fc.constantFrom('arrive', 'arrive', 'leave', 'deliver', 'deliver', 'deliver'),
      which: fc.nat(1_000),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 5 }),
        fc.array(step, { maxLength: 300 }),
        async (limit, size, steps) => {
          const bank = new Bank(limit, size);
          for (const { what, which } of steps) {
            if (what === 'arrive') bank.arrive(which % size);
            else if (what === 'leave')
              bank.clients.splice(which % (bank.clients.length || 1), 1)[0]?.countOut();
            else await bank.deliver(which);
            await settle();
            expect(bank.clients.length).toBeLessThanOrEqual(limit);
            expect(bank.office.leased).toBeLessThanOrEqual(limit);
          }
          await bank.deliverAll();
          const refusedBefore = bank.refused;
          // Now that all is quiet: as many as there is room for come in, wherever they arrive, and one more does not.
          const room = limit - bank.clients.length;
          for (let client = 0; client <= room; client++) {
            bank.arrive(client % size);
            await settle();
            await bank.deliverAll();
          }
          expect([bank.clients.length, bank.refused - refusedBefore]).toEqual([limit, 1]);
          bank.office.close();
        },
      ),
      { numRuns: 150 },
    );
  });

  it('of a worker that is gone are there for the others', async () => {
    const bank = new Bank(4, 2);
    for (let client = 0; client < 4; client++) bank.arrive(0);
    await bank.deliverAll();

    bank.arrive(1);
    const [gone] = bank.workers;
    bank.office.onGone(gone?.holder as PermitHolder);
    for (const deliver of bank.workers[1]?.outbox.splice(0) ?? []) deliver();
    for (const deliver of bank.workers[1]?.inbox.splice(0) ?? []) deliver();
    await settle();

    expect(bank.clients.map(({ worker }) => worker)).toEqual([0, 0, 0, 0, 1]);
    expect(bank.office.leased).toBe(1);
    bank.office.close();
  });

  it('are not waited for, for longer than a second, where a worker does not answer', async () => {
    const bank = new Bank(2, 2);
    bank.arrive(0);
    await bank.deliverAll();
    bank.arrive(0);
    await bank.deliverAll();
    bank.arrive(1);
    await bank.deliver(0);

    // The recall is never delivered to worker 0.
    bank.workers[0]?.inbox.splice(0);
    await vi.advanceTimersByTimeAsync(1_000);
    await bank.deliverAll();

    expect([bank.clients.length, bank.refused]).toEqual([2, 1]);
    bank.office.close();
  });

  it('of clients who gave up waiting go to those who still wait', async () => {
    const bank = new Bank(1, 1);
    const patience = new AbortController();
    bank.arrive(0, patience.signal);
    bank.arrive(0);
    patience.abort(new Error('gone'));
    await settle();
    await bank.deliverAll();

    expect([bank.clients.length, bank.refused]).toEqual([1, 1]);
    bank.office.close();
  });

  it('beyond a lower limit come back from whoever has them to spare, and from clients as they leave', async () => {
    const bank = new Bank(100, 2);
    for (let client = 0; client < 6; client++) bank.arrive(client % 2);
    await bank.deliverAll();
    expect(bank.office.leased).toBeGreaterThan(6);

    bank.office.setLimit(4);
    await bank.deliverAll();
    const atOnce = bank.office.leased;
    bank.arrive(0);
    await bank.deliverAll();
    for (const { countOut } of bank.clients.splice(0, 3)) countOut();
    await bank.deliverAll();
    bank.arrive(1);
    bank.arrive(1);
    await bank.deliverAll();

    expect([atOnce, bank.refused, bank.clients.length]).toEqual([6, 2, 4]);
    bank.office.close();
  });

  it('cost steady traffic next to no messages', async () => {
    const bank = new Bank(10_000, 2);
    for (let client = 0; client < 20; client++) bank.arrive(0);
    await bank.deliverAll();

    for (let turn = 0; turn < 100; turn++) {
      bank.clients.pop()?.countOut();
      bank.arrive(0);
      await settle();
    }

    expect(bank.clients).toHaveLength(20);
    expect(bank.workers[0]?.outbox.length).toBeLessThanOrEqual(1);
    bank.office.close();
  });
});
