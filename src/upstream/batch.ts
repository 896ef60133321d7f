/**
 * Puts questions that come while another one is under way together into one, a row for each.
 *
 * When many log in at once the control connection is asked a few times, not a few times for each of them.
 */

/** The columns of a batch, as arrays; its answer has one row for each of theirs, in order. */
type Ask = (columns: unknown[][]) => Promise<{ rows: Record<string, unknown>[] }>;

interface Question {
  readonly row: readonly unknown[];
  readonly resolve: (row: Record<string, unknown>) => void;
  readonly reject: (error: unknown) => void;
}

const MAX_ROWS = 100;

/**
 * A function that asks about one row, and gets its row of the answer.
 *
 * Where a batch fails with an answer (`isAnswer`), which may be about one row only, each is asked alone.
 */
export function inBatches(
  ask: Ask,
  isAnswer: (error: unknown) => boolean,
): (row: readonly unknown[]) => Promise<Record<string, unknown>> {
  const waiting: Question[] = [];
  let asking = false;

  const put = async (batch: readonly Question[]): Promise<void> => {
    try {
      const columns = (batch[0]?.row ?? []).map((_, column) => batch.map(({ row }) => row[column]));
      const { rows } = await ask(columns);
      if (rows.length !== batch.length) throw new TypeError('a batch and its answer differ');
      for (const [index, { resolve }] of batch.entries())
        resolve(rows[index] as Record<string, unknown>);
    } catch (error) {
      if (batch.length === 1 || !isAnswer(error)) {
        for (const { reject } of batch) reject(error);
      } else {
        for (const question of batch) await put([question]);
      }
    }
  };
  const putAll = async (): Promise<void> => {
    while (waiting.length > 0) await put(waiting.splice(0, MAX_ROWS));
    asking = false;
  };

  return (row) =>
    new Promise((resolve, reject) => {
      waiting.push({ row, resolve, reject });
      if (asking) return;
      asking = true;
      // Whoever else asks in this tick is in the first batch.
      queueMicrotask(() => void putAll());
    });
}
