/** Things that are made of several parts, of which each may fail to start: what was started before is ended, last first. */

/** What ends each part, in the order in which they began. */
export type Closers = (() => Promise<unknown>)[];

/** Builds something; `build` pushes what ends each of its parts as soon as that has begun. `close` ends them all. */
export async function fromParts<T extends object>(
  build: (closers: Closers) => Promise<T>,
): Promise<T & AsyncDisposable & { close(): Promise<void> }> {
  const closers: Closers = [];
  const close = async (): Promise<void> => {
    const last = closers.pop();
    if (last === undefined) return;
    try {
      await last();
    } finally {
      await close();
    }
  };
  try {
    return { ...(await build(closers)), close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}
