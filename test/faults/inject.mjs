/**
 * Loaded into a process of pgjot by `node --import`: on SIGUSR2 it does what $PGJOT_FAULT says.
 *
 * In a preload, because the product has no switch that breaks it.
 */
const FAULTS = {
  /** Occupies the event loop for two seconds. */
  stall() {
    const until = Date.now() + 2_000;
    while (Date.now() < until);
  },
  /** Uses up the heap. */
  heap() {
    const held = [];
    const more = () => {
      for (let n = 0; n < 100_000; n++) held.push({ n });
      setImmediate(more);
    };
    more();
  },
  throw() {
    setImmediate(() => {
      throw new TypeError('of nobody in particular eyJhbGciOiJub25lIn0.e30.secret');
    });
  },
  reject() {
    void Promise.reject(new TypeError('of nobody in particular'));
  },
};

process.on('SIGUSR2', () => FAULTS[process.env.PGJOT_FAULT]());
