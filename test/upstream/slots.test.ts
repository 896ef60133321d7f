/**
 * The book of slots: first come first served, and no name ever in two hands, whatever is lost or given back in between.
 */
import { setMaxListeners } from 'node:events';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ProxyError } from '../../src/errors.ts';
import {
  Slots as Book,
  type House,
  type Slot as SlotOf,
  type SlotOptions,
  type SlotSource,
} from '../../src/upstream/slots.ts';

/** A session, as far as the book is concerned. */
type Session = string;
type Slot = SlotOf<Session>;
type Slots = Pick<Book<Session>, 'counts' | 'forget' | 'giveBack' | 'serve'>;

const never = new AbortController().signal;
// Thirty waiters share it.
setMaxListeners(100, never);

/** The database's part: names that nobody has leased, and no lease of a name whose backend still lives. */
class Database implements SlotSource {
  readonly names: readonly string[];
  readonly leased = new Set<string>();
  /** Names that sessions hold: their backends live, whoever has the lease. */
  readonly live = new Map<string, Slot>();
  failure: Error | undefined;
  asked = 0;

  constructor(count: number) {
    this.names = Array.from({ length: count }, (_, index) => `slot_${index + 1}`);
  }

  async lease(_: string, count: number): Promise<string[]> {
    this.asked++;
    // It waits in a queue, and may be put to a later connection than there was when it was asked.
    await Promise.resolve();
    if (this.failure !== undefined) throw this.failure;
    const free = this.names.filter((name) => !this.leased.has(name) && !this.live.has(name));
    const given = free.slice(0, count);
    for (const name of given) this.leased.add(name);
    await Promise.resolve();
    return given;
  }

  async giveBack(slots: readonly string[]): Promise<void> {
    await Promise.resolve();
    for (const name of slots) this.leased.delete(name);
  }

  /** The control connection is lost, and its leases with it. */
  lose(slots: Slots): void {
    this.leased.clear();
    slots.forget();
  }
}

function book(count: number, patienceMs = 5_000, overrides: Partial<SlotOptions<Session>> = {}) {
  const database = new Database(count);
  const closing: Slot[] = [];
  const slots = new Book<Session>({
    role: 'authenticated',
    source: database,
    maxConnections: Infinity,
    maxWaiting: 1_000,
    house: { hasRoom: () => true, makeRoom: () => false, onRoom: () => {} },
    close: (slot) => closing.push(slot),
    ...overrides,
  });
  const acquire = (signal: AbortSignal, keys: readonly string[] = [], patience = patienceMs) =>
    slots.acquire({ keys, patienceMs: patience }, signal);
  return { database, slots, closing, acquire };
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  // No timer outlives what it was for.
  const left = vi.getTimerCount();
  vi.useRealTimers();
  if (left > 0) throw new Error(`${left} timers outlived the test`);
});

/** Lets everything happen that needs no time. */
const settle = () => vi.advanceTimersByTimeAsync(0);

describe('acquire', () => {
  test('leases from the database only when there is none, several at once', async () => {
    const { database, slots, acquire } = book(10);

    const taken = await Promise.all([acquire(never), acquire(never)]);

    expect(taken.map(({ name }) => name)).toEqual(['slot_1', 'slot_2']);
    expect(database.asked).toBe(1);
    expect(slots.counts()).toEqual({ free: 2, idle: 0, busy: 2, quarantined: 0, waiting: 0 });
  });

  test('takes no name twice from a standby, which knows of no leases', async () => {
    const { database, slots, acquire } = book(6);
    // What it says is what nobody is logged in with, and nobody gets so far here.
    database.lease = async (_, count) => database.names.slice(0, count + 1);
    const [first, second] = await Promise.all([acquire(never), acquire(never)]);
    first.quarantine(60_000);

    const third = await acquire(never);
    const fourth = await acquire(never);
    const fifth = await acquire(never);
    const sixth = acquire(never, [], 300).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(300);

    const names = [first, second, third, fourth, fifth].map(({ name }) => name);
    expect(names).toEqual(['slot_1', 'slot_2', 'slot_3', 'slot_4', 'slot_5']);
    expect(await sixth).toMatchObject({ code: 'pool_timeout' });
    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 4, quarantined: 1, waiting: 0 });
  });

  test('serves in the order of asking', async () => {
    const { acquire } = book(1);
    const first = await acquire(never);
    const served: number[] = [];
    const waiting = [1, 2, 3].map((number) =>
      acquire(never).then((slot) => {
        served.push(number);
        return slot;
      }),
    );

    first.release();
    for (const one of waiting) (await one).release();

    expect(served).toEqual([1, 2, 3]);
  });

  test('gives up after its time with pool_timeout, and keeps no slot for who has gone', async () => {
    const { slots, acquire } = book(1, 300);
    const first = await acquire(never);
    const late = acquire(never).catch((error: unknown) => error);

    await vi.advanceTimersByTimeAsync(300);

    expect(await late).toMatchObject({ code: 'pool_timeout' });
    first.release();
    expect(slots.counts()).toEqual({ free: 1, idle: 0, busy: 0, quarantined: 0, waiting: 0 });
  });

  test('gives up sooner when the login has waited for other things already', async () => {
    const { acquire } = book(0, 300);
    const late = acquire(never, [], 100).catch((error: unknown) => error);

    await vi.advanceTimersByTimeAsync(100);

    expect(await late).toMatchObject({ code: 'pool_timeout' });
  });

  test("gives up with the signal's reason, before or while it waits", async () => {
    const { slots, acquire } = book(0);
    const abort = new AbortController();
    const reason = new ProxyError('client_lost');
    const waiting = acquire(abort.signal).catch((error: unknown) => error);
    await settle();

    abort.abort(reason);

    expect(await waiting).toBe(reason);
    await expect(acquire(abort.signal)).rejects.toBe(reason);
    expect(slots.counts().waiting).toBe(0);
  });

  test('asks again while somebody waits: another proxy may have given one back', async () => {
    const { database, slots, acquire } = book(1);
    database.leased.add('slot_1');
    const waiting = acquire(never);
    await vi.advanceTimersByTimeAsync(250);
    expect(slots.counts().waiting).toBe(1);

    database.leased.clear();
    await vi.advanceTimersByTimeAsync(100);

    expect((await waiting).name).toBe('slot_1');
  });

  test('tells everybody who waits when the database cannot be asked, and the next one asks anew', async () => {
    const { database, acquire } = book(2);
    database.failure = new ProxyError('upstream_unreachable');
    const waiting = [acquire(never), acquire(never)];

    for (const one of waiting) await expect(one).rejects.toBe(database.failure);

    database.failure = undefined;
    expect((await acquire(never)).name).toBe('slot_1');
  });
});

describe('a slot', () => {
  test.each([
    ['released twice', (slot: Slot) => slot.release(), (slot: Slot) => slot.release()],
    [
      'released and quarantined',
      (slot: Slot) => slot.release(),
      (slot: Slot) => slot.quarantine(60_000),
    ],
    [
      'quarantined and released',
      (slot: Slot) => slot.quarantine(60_000),
      (slot: Slot) => slot.release(),
    ],
  ])('cannot be %s', async (_, first, second) => {
    const { slots, acquire } = book(1);
    const slot = await acquire(never);
    first(slot);

    expect(() => second(slot)).toThrow(TypeError);

    expect(slots.counts().busy).toBe(0);
  });

  test('in quarantine is nobody’s for as long as was said, and then used again', async () => {
    const { slots, acquire } = book(1, 120_000);
    (await acquire(never)).quarantine(60_000);
    const waiting = acquire(never);

    await vi.advanceTimersByTimeAsync(59_900);
    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 0, quarantined: 1, waiting: 1 });
    await vi.advanceTimersByTimeAsync(200);

    expect((await waiting).name).toBe('slot_1');
  });

  test('whose quarantine is ended early goes to whoever waits, and later ends of it mean nothing', async () => {
    const { slots, acquire } = book(1);
    const endQuarantine = (await acquire(never)).quarantine(60_000);
    const waiting = acquire(never);
    await settle();

    endQuarantine();
    const slot = await waiting;
    endQuarantine();

    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 1, quarantined: 0, waiting: 0 });
    slot.release();
    endQuarantine();
    expect(slots.counts()).toEqual({ free: 1, idle: 0, busy: 0, quarantined: 0, waiting: 0 });
  });

  test('does not come back from a quarantine whose lease was lost', async () => {
    const { database, slots, acquire } = book(1);
    const endQuarantine = (await acquire(never)).quarantine(60_000);

    database.lose(slots);
    endQuarantine();

    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 0, quarantined: 0, waiting: 0 });
  });

  test('goes back to the database where enough are kept', async () => {
    const { database, slots, acquire } = book(40);
    const all = await Promise.all(Array.from({ length: 30 }, () => acquire(never)));

    for (const slot of all) slot.release();
    await settle();

    const { free } = slots.counts();
    expect(free).toBeLessThan(30);
    expect(database.leased.size).toBe(free);
  });
});

describe('after the control connection was lost', () => {
  test('free slots are forgotten, and one that comes back later is not free', async () => {
    const { database, slots, acquire } = book(4);
    const held = await acquire(never);
    database.live.set(held.name, held);

    database.lose(slots);
    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 1, quarantined: 0, waiting: 0 });
    held.release();

    expect(slots.counts()).toEqual({ free: 0, idle: 0, busy: 0, quarantined: 0, waiting: 0 });
  });

  test('what an older connection leased while it was being lost is not used', async () => {
    const { database, slots, acquire } = book(1);
    const waiting = acquire(never);

    database.lose(slots);
    await settle();
    database.leased.clear();
    await vi.advanceTimersByTimeAsync(100);

    expect((await waiting).name).toBe('slot_1');
    expect(database.asked).toBe(2);
  });

  test('what the next connection leased for a question that waited meanwhile is not lost', async () => {
    const { database, slots, acquire } = book(4);
    const waiting = acquire(never);

    database.lose(slots);
    await vi.advanceTimersByTimeAsync(200);

    expect((await waiting).name).toBe('slot_1');
    slots.giveBack();
    await settle();
    expect([...database.leased]).toEqual(['slot_1']);
  });
});

test('giveBack gives all free slots to the database, and no busy one', async () => {
  const { database, slots, acquire } = book(4);
  const held = await acquire(never);

  slots.giveBack();
  slots.giveBack();
  await settle();

  expect([...database.leased]).toEqual([held.name]);
  expect(slots.counts()).toMatchObject({ free: 0, busy: 1 });
});

test('giveBack gives back what has been in quarantine for long enough, and nothing else', async () => {
  const { database, slots, acquire } = book(2);
  (await acquire(never)).quarantine(1_000);
  (await acquire(never)).quarantine(60_000);

  await vi.advanceTimersByTimeAsync(1_000);
  slots.giveBack();
  await settle();

  expect([...database.leased]).toEqual(['slot_2']);
  expect(slots.counts()).toMatchObject({ free: 0, quarantined: 1 });
});

test('whoever waits for a session that was expected, and will not come, gets a free slot at once', async () => {
  const { slots, acquire } = book(4);
  const first = await acquire(never);
  first.expect('one');
  const waiting = acquire(never, ['one']);
  await settle();
  expect(slots.counts()).toMatchObject({ waiting: 1, free: 3 });

  first.expect(undefined);

  expect((await waiting).name).toBe('slot_2');
});

describe('room for another role', () => {
  const waits = async (house: Partial<House>, maxConnections = Infinity, names = 1) => {
    const made: (() => void)[] = [];
    const hasRoom = () => true;
    const makeRoom = (onMade: () => void) => made.push(onMade) > 0;
    const { slots, acquire } = book(names, 300, {
      maxConnections,
      house: { hasRoom, makeRoom, onRoom: () => {}, ...house },
    });
    const held = names > 0 && house.hasRoom === undefined ? await acquire(never) : undefined;
    const late = [acquire(never), acquire(never)].map((one) =>
      one.catch((error: unknown) => error),
    );
    await settle();
    for (let again = 0; again < 5; again++) slots.serve();
    const asked = made.length;
    await vi.advanceTimersByTimeAsync(300);
    await Promise.all(late);
    held?.release();
    return { asked, made };
  };

  test('is not made where slots are what is missing', async () => {
    expect((await waits({})).asked).toBe(0);
    expect((await waits({}, 1)).asked).toBe(0);
  });

  test('is made once for each who waits, however often they are served', async () => {
    expect((await waits({ hasRoom: () => false }, Infinity, 4)).asked).toBe(2);
  });
});

/** A request that was made, and what it wants. */
interface Asked {
  readonly keys: readonly string[];
  readonly spare: string | undefined;
}

/** What the model knows. */
interface Model {
  readonly holders: Slot[];
  /** Slots whose sessions are being closed, which takes as long as a command says. */
  readonly closing: Slot[];
  /** Under which key a session waits on which name. */
  readonly shelved: Map<string, string>;
  /** Those who wait, in their order. */
  readonly asked: Asked[];
  readonly expected: Map<Slot, string>;
  /** What ends the quarantines so far. */
  readonly endings: (() => void)[];
  readonly maxConnections: number;
  readonly broken: unknown[];
}
interface Real {
  readonly database: Database;
  readonly slots: Book<Session>;
  readonly model: Model;
}

const KEYS = ['one', 'two', 'three'];
const isSame = (one: Asked, other: Asked) =>
  one.spare === other.spare && one.keys.join() === other.keys.join();

/** Hands a slot over to who asked for it, and notices a name in two hands, somebody else's session, and who was passed over. */
function hold({ database, model }: Real, slot: Slot, who: Asked): void {
  const earlier = model.asked.splice(0, model.asked.indexOf(who) + 1).slice(0, -1);
  model.asked.unshift(...earlier);
  // Whoever has been promised one that will be back in a moment is not in the way of the others.
  const isExpected = ({ keys }: Asked) =>
    [...model.expected.values()].some((one) => keys.includes(one));
  expect(
    earlier.some((one) => isSame(one, who) && !isExpected(one)),
    'whoever wants the same and came earlier',
  ).toBe(false);
  const key = model.shelved.get(slot.name);
  if (slot.session === undefined) {
    expect(database.live.has(slot.name), `${slot.name} is in two hands`).toBe(false);
  } else {
    expect(slot.session).toBe(`${slot.name} for ${key}`);
    expect(who.keys).toContain(key);
    model.shelved.delete(slot.name);
  }
  database.live.set(slot.name, slot);
  model.holders.push(slot);
}

/** Takes one of these out of the model: its backend is gone, or its session waits. */
function letGo({ database, model }: Real, from: Slot[], at: number): Slot | undefined {
  const [slot] = from.splice(at % Math.max(1, from.length), 1);
  if (slot === undefined) return undefined;
  database.live.delete(slot.name);
  model.expected.delete(slot);
  return slot;
}

function ask(real: Real, keys: readonly string[], spare: string | undefined, signal: AbortSignal) {
  const { slots, model } = real;
  const who: Asked = { keys, spare };
  model.asked.push(who);
  return slots
    .acquire({ keys, patienceMs: 1_000, ...(spare !== undefined && { spare }) }, signal)
    .then((slot) => hold(real, slot, who))
    .catch((error: unknown) => {
      if (!(error instanceof ProxyError)) model.broken.push(error);
      else model.asked.splice(model.asked.indexOf(who), 1);
    });
}

/** What must hold whenever nothing is under way. */
function check({ slots, database, model }: Real): void {
  expect(model.broken).toEqual([]);
  const { busy, free, idle, waiting } = slots.counts();
  expect(busy).toBe(model.holders.length + model.closing.length);
  expect(idle).toBe(model.shelved.size);
  expect(free).toBeLessThanOrEqual(database.names.length);
  expect(busy + idle).toBeLessThanOrEqual(model.maxConnections);
  expect(waiting).toBe(model.asked.filter(({ spare }) => spare === undefined).length);
  // Each of the others may wait for one that is being closed, or is expected.
  if (waiting <= model.closing.length + model.expected.size) return;
  expect(idle, 'a session that waits while a login does').toBe(0);
  if (busy < model.maxConnections) expect(free, 'a free slot while a login waits').toBe(0);
}

type Command = fc.AsyncCommand<Model, Real>;
const command = (name: string, run: (real: Real) => Promise<unknown> | void): Command => ({
  check: () => true,
  run: async (_, real) => {
    await run(real);
    await settle();
    check(real);
  },
  toString: () => name,
});

const at = fc.nat(9);
const key = fc.constantFrom(...KEYS);
const commands = fc.commands(
  [
    fc
      .record({
        patience: fc.nat(400),
        lost: fc.constantFrom(false, false, false, false, true),
        keys: fc.subarray(KEYS),
        spare: fc.constantFrom(undefined, undefined, undefined, 'one', 'two'),
      })
      .map(({ patience, lost, keys, spare }) =>
        command(
          `acquire [${keys.join()}]${spare ? ` as spare ${spare}` : ''}, aborted after ${patience} ms${lost ? ', lose control' : ''}`,
          (real) => {
            const abort = new AbortController();
            const timer = setTimeout(() => abort.abort(new ProxyError('client_lost')), patience);
            const asked = spare === undefined ? keys : [];
            void ask(real, asked, spare, abort.signal).finally(() => clearTimeout(timer));
            // While the question that this may have led to is still in its queue.
            if (lost) real.database.lose(real.slots);
          },
        ),
      ),
    at.map((n) => command(`release ${n}`, (real) => letGo(real, real.model.holders, n)?.release())),
    fc.tuple(at, key).map(([n, wanted]) =>
      command(`keep ${n} for ${wanted}`, (real) => {
        const slot = letGo(real, real.model.holders, n);
        if (slot === undefined) return;
        real.database.live.set(slot.name, slot);
        real.model.shelved.set(slot.name, wanted);
        slot.keep(`${slot.name} for ${wanted}`, wanted);
      }),
    ),
    fc.tuple(at, fc.option(key, { nil: undefined, freq: 2 })).map(([n, wanted]) =>
      command(`expect ${wanted} of ${n}`, ({ model }) => {
        const slot = model.holders[n % Math.max(1, model.holders.length)];
        if (slot === undefined) return;
        model.expected.delete(slot);
        if (wanted !== undefined) model.expected.set(slot, wanted);
        slot.expect(wanted);
      }),
    ),
    fc
      .tuple(key, fc.nat(2))
      .map(([wanted, most]) =>
        command(
          `close ${most} that wait for ${wanted}`,
          ({ slots }) => void slots.evict((_, kept) => kept === wanted, most),
        ),
      ),
    at.map((n) =>
      command(`a closing ${n} is over`, (real) => letGo(real, real.model.closing, n)?.release()),
    ),
    at.map((n) =>
      command(`a closing ${n} fails`, (real) => {
        const endQuarantine = letGo(real, real.model.closing, n)?.quarantine(60_000);
        if (endQuarantine !== undefined) real.model.endings.push(endQuarantine);
      }),
    ),
    at.map((n) =>
      command(`quarantine ${n}`, (real) => {
        const endQuarantine = letGo(real, real.model.holders, n)?.quarantine(60_000);
        if (endQuarantine !== undefined) real.model.endings.push(endQuarantine);
      }),
    ),
    at.map((n) =>
      command(`end quarantine ${n}`, ({ model: { endings } }) => endings.splice(n, 1)[0]?.()),
    ),
    fc.constant(command('give back', ({ slots }) => slots.giveBack())),
    fc.constant(command('yield', ({ slots }) => slots.yield(1))),
    fc.constant(
      command('lose the control connection', ({ database, slots }) => database.lose(slots)),
    ),
    fc.boolean().map((down) =>
      command(`database ${down ? 'down' : 'up'}`, ({ database }) => {
        database.failure = down ? new ProxyError('upstream_unreachable') : undefined;
      }),
    ),
    fc
      .constantFrom(50, 150, 70_000)
      .map((ms) => command(`${ms} ms pass`, () => vi.advanceTimersByTimeAsync(ms))),
  ],
  { maxCommands: 60, size: 'max' },
);

const models = fc.record({
  maxConnections: fc.constantFrom(1, 2, 3, 9),
  names: fc.constantFrom(1, 3, 6),
});

test('no name is in two hands, nobody waits in vain, and none is passed over, whatever happens in whatever order', async () => {
  await fc.assert(
    fc.asyncProperty(models, commands, async ({ maxConnections, names }, sequence) => {
      const model: Model = {
        holders: [],
        closing: [],
        shelved: new Map(),
        asked: [],
        expected: new Map(),
        endings: [],
        maxConnections,
        broken: [],
      };
      const close = (slot: Slot) => {
        expect(model.shelved.delete(slot.name)).toBe(true);
        model.closing.push(slot);
      };
      const house = { hasRoom: () => true, makeRoom: () => false, onRoom: () => {} };
      const { database, slots } = book(names, 1_000, { maxConnections, close, house });
      const real: Real = { database, slots, model };
      await fc.asyncModelRun(() => ({ model, real }), sequence);

      await vi.advanceTimersByTimeAsync(2_000);
      expect(model.broken).toEqual([]);
      expect(model.asked).toEqual([]);
      // Nor is one lost: once everybody has left, all are to be had again.
      database.failure = undefined;
      while (model.holders.length > 0) letGo(real, model.holders, 0)?.release();
      slots.evict(() => true);
      while (model.closing.length > 0) letGo(real, model.closing, 0)?.release();
      await vi.advanceTimersByTimeAsync(70_000);
      const most = Math.min(names, maxConnections);
      const all = Promise.all(Array.from({ length: most }, () => ask(real, [], undefined, never)));
      await vi.advanceTimersByTimeAsync(900);
      await all;
      expect(new Set(model.holders.map(({ name }) => name)).size).toBe(most);
    }),
    { numRuns: 400 },
  );
});
